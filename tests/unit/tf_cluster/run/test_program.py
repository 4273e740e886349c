"""run/program.py: names of runs, output passed on piece by piece, and how a run ended."""

import base64
import errno
import functools
import io
import json
import os
import pwd
import re
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import call, load

run_program, collect_run = load("tf_cluster.run.program"), load("tf_cluster.collect.results")
shared = load("tf_cluster.run.shared")
ending, unit, queue = load("tf_cluster.run.ending"), load("tf_cluster.run.unit"), load("tf_cluster.run.queue")
runs = run_program.runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run that was started in a folder of the test's own."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setattr(run_program, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(run_program, "CONFINED", tmp_path)
    monkeypatch.setattr(runs, "is_alive", lambda _unit, _run: True)
    run = run_program.Run("20260101-000000-demo-ab12")
    for name in ("program", "results"):
        (run.folder / name).mkdir(parents=True)
    (run.folder / "stdout.log").write_bytes(b"")
    run.note(run_id=run.id, unit="tf-run-host-0.service", started=time.time(), limit=600.0)
    return run


@pytest.fixture
def log(tmp_path):
    """Return a function that makes a log with the given bytes and returns its path."""

    def log(data):
        (tmp_path / "stdout.log").write_bytes(data)
        return tmp_path / "stdout.log"

    return log


def follow(run, offset=0):
    """Return the answer to one call of ``follow``."""
    return run_program.follow(SimpleNamespace(run=run.id, offset=offset, reported=-1))


def test_a_run_that_would_not_be_confined_is_not_started(run, monkeypatch, capsys):
    monkeypatch.setattr(run_program, "CONFINED", run.folder / "missing.conf")
    with pytest.raises(SystemExit):
        run_program.stage(SimpleNamespace(run=run.id))
    assert "would not be confined" in capsys.readouterr().err


def finish(run):
    """Let systemd's last call happen and return what is noted of the run then."""
    with pytest.raises(SystemExit) as caught:
        run_program.finish(SimpleNamespace(run=run.id))
    assert not caught.value.code
    return run.read()


@pytest.mark.parametrize("name", ["20260101-000000-demo-ab12", "a", "A.b_c-d", "x" * 121])
def test_a_plain_name_is_a_valid_run_id(name):
    assert run_program.Run(name).folder == runs.RUNS / name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "-x", ".hidden", "a b", "a\n", "a\0", "é", "x" * 122])
def test_an_unsafe_name_is_not_a_valid_run_id(name, capsys):
    with pytest.raises(SystemExit) as caught:
        run_program.Run(name)
    assert caught.value.code == 2
    assert "is not a valid run ID" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("follow", "../x"), ("cancel", "a/b"), ("stage", "..", "--program", "x.py"), ("finish", ".")])
def test_each_call_refuses_an_invalid_run_id_with_one_line(words):
    done = call("tf_cluster.run", *words, input="")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is not a valid run ID" in done.stderr


def test_an_unknown_run_is_reported():
    done = call("tf_cluster.run", "follow", "no-such-run")
    assert done.returncode == 2
    assert done.stderr.startswith("tf_cluster.run: there is no run no-such-run on this machine")


def test_notes_are_added_to_earlier_notes(run):
    run.note(a=1)
    assert run.note(b=2).items() >= {"a": 1, "b": 2, "run_id": run.id}.items()
    assert run.read() == json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in run.folder.iterdir()) == ["note.lock", "program", "results", "run.json", "stdout.log"]


@pytest.mark.parametrize(
    ("data", "offset", "whole", "text", "end"),
    [
        (b"", 0, False, "", 0),
        (b"one\ntwo\n", 0, False, "one\ntwo\n", 8),
        (b"one\ntwo\n", 4, False, "two\n", 8),
        (b"one\ntwo\n", 8, False, "", 8),
        (b"one\ntw", 0, False, "one\n", 4),
        (b"one\ntw", 4, False, "", 4),
        (b"one\ntw", 4, True, "tw", 6),
        (b"one\n", 100, True, "", 100),
        (b"10%\r20%\r30", 0, False, "10%\r20%\r", 8),
        ("é\n".encode(), 0, False, "é\n", 3),
        (b"\xff\n", 0, False, "\N{REPLACEMENT CHARACTER}\n", 2),
    ],
)
def test_output_is_read_in_whole_lines_until_the_run_has_ended(log, data, offset, whole, text, end):
    assert run_program.read_from(log(data), offset, whole) == (text, end)


@pytest.mark.parametrize("whole", [True, False])
def test_the_end_of_huge_output_is_passed_on_and_the_rest_is_counted(log, whole):
    line = b"x" * 99 + b"\n"
    text, end = run_program.read_from(log(line * 100_000), 0, whole)
    assert end == 10_000_000
    first, *lines = text.splitlines()
    assert first == f"... {end - run_program.MAX_OUTPUT_BYTES} bytes are only in stdout.log ..."
    assert set(lines[1:]) == {"x" * 99}
    assert len(text) < run_program.MAX_OUTPUT_BYTES + 100


def test_a_very_long_line_does_not_delay_the_output(log):
    path, offset = log(b"x" * 1_000_000), 0
    while offset < 1_000_000:
        _text, end = run_program.read_from(path, offset, whole=False)
        assert end > offset
        offset = end


def test_the_omitted_part_of_a_huge_log_is_not_read(log):
    path = log(b"")
    os.truncate(path, 20 * 1024**3)  # a hole: it takes no space
    begun = time.perf_counter()
    run_program.read_from(path, 0, whole=True)
    assert time.perf_counter() - begun < 1


def test_all_output_is_passed_on_exactly_once(log):
    lines = [f"line {number} é\n".encode() for number in range(200)]
    path, offset, shown = log(b""), 0, ""
    for count in range(0, 7000, 37):
        path.write_bytes(b"".join(lines)[:count])
        text, offset = run_program.read_from(path, offset, whole=False)
        shown += text
    text, offset = run_program.read_from(path, offset, whole=True)
    assert shown + text == path.read_bytes().decode(errors="replace")


def test_following_a_running_run_returns_the_next_call(run):
    (run.folder / "stdout.log").write_bytes(b"step 1\nstep")
    answer = follow(run)
    assert answer["lines"] == ["step 1"]
    assert answer["next"] == ["follow", run.id, "--offset", "7"]
    assert "outcome" not in answer


def test_a_run_without_new_output_is_followed_from_the_same_offset(run):
    assert follow(run)["next"] == ["follow", run.id, "--offset", "0"]


def test_following_a_run_waits_for_the_end_of_an_incomplete_line(run):
    (run.folder / "stdout.log").write_bytes(b"half a line")
    begun = time.monotonic()
    assert follow(run)["lines"] == []
    assert time.monotonic() - begun >= 0.1


def test_following_a_run_that_has_ended_returns_its_last_output_and_its_outcome(run):
    (run.folder / "stdout.log").write_bytes(b"step 1\nlast words")
    run.note(started=100.0, started_clock=10.0, ended=102.4, ended_clock=12.5, failure="")
    answer = follow(run, 7)
    assert answer["lines"] == ["last words"]
    assert "next" not in answer
    assert answer["outcome"]["seconds"] == 2.5
    assert answer["outcome"]["run_id"] == run.id


def test_following_a_run_that_has_ended_with_huge_output_returns_its_outcome(run):
    (run.folder / "stdout.log").write_bytes(b"x" * 99 + b"\n" + b"y" * 300_000)
    run.note(ended=time.time(), failure="")
    answer, calls = follow(run), 1
    while "next" in answer:
        answer, calls = follow(run, int(answer["next"][-1])), calls + 1
        assert calls < 10
    assert answer["outcome"]["failure"] == ""


def test_a_run_whose_unit_is_missing_is_lost(run, monkeypatch):
    monkeypatch.setattr(runs, "is_alive", lambda _unit, _run: False)
    pretend_systemd(monkeypatch, active=())
    assert "was lost" in follow(run)["outcome"]["failure"]


@pytest.mark.parametrize(("job", "alive"), [("12", True), ("", False), ("0", False)])
def test_a_run_whose_unit_is_about_to_start_is_alive(run, monkeypatch, job, alive):
    monkeypatch.undo()  # of the fixture
    shown = {"ActiveState": "inactive", "Job": job, "Description": f"run {run.id}"}
    monkeypatch.setattr(runs, "property_of", lambda _unit, name: shown[name])
    assert runs.is_alive("tf-run-host-0.service", run) is alive


@pytest.fixture
def systemctl(run, monkeypatch):
    """Return a function that lets systemctl fail so many times before it answers."""
    monkeypatch.undo()
    monkeypatch.setattr(runs, "RUNS", run.folder.parent)
    monkeypatch.setattr(run_program, "WAIT_SECONDS", 0.0)
    # What a default value was is not changed by changing the name that it came from.
    monkeypatch.setattr(runs.property_of, "__defaults__", (1.2,))

    def systemctl(failures):
        states = iter([1] * failures)

        def pretend(command, **_more):
            status = next(states, 0)
            answer = f"run {run.id}" if "--property=Description" in command else "active"
            return subprocess.CompletedProcess(command, status, "" if status else answer, "Failed to connect to bus" * status)

        monkeypatch.setattr(runs.subprocess, "run", pretend)

    return systemctl


def test_a_run_is_alive_if_systemd_answers_after_some_failures(run, systemctl):
    systemctl(2)
    assert runs.is_alive("tf-run-host-0.service", run)


def test_following_or_canceling_a_run_is_an_error_if_systemd_does_not_answer(run, systemctl):
    systemctl(99)
    sentence = "systemd did not report the state of tf-run-host-0.service: Failed to connect to bus"
    with pytest.raises(OSError, match=sentence):
        run_program.follow(SimpleNamespace(run=run.id, offset=0, reported=-1))
    failure = run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=0, here=False))["failure"]
    assert failure.startswith(sentence)
    assert "ended" not in run.read()


def test_a_run_is_noted_as_ended_even_if_systemd_does_not_answer(run, systemctl, monkeypatch):
    (run.folder / "layer").mkdir()
    systemctl(99)
    for name, value in {"SERVICE_RESULT": "timeout", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "still running after 600.0 s" in finish(run)["failure"]


@pytest.mark.parametrize(
    ("result", "code", "status", "failure"),
    [
        ("success", "exited", "0", ""),
        ("exit-code", "exited", "3", "the program exited with status 3"),
        ("signal", "killed", "KILL", "the program was killed by SIGKILL"),
        # systemd takes these for a clean end, but a program that was ended by them has not done its work
        ("success", "killed", "TERM", "the program was killed by SIGTERM"),
        ("success", "killed", "HUP", "the program was killed by SIGHUP"),
        ("success", "killed", "INT", "the program was killed by SIGINT"),
        ("success", "killed", "PIPE", "the program was killed by SIGPIPE"),
        ("core-dump", "dumped", "SEGV", "the program crashed with SIGSEGV"),
        ("core-dump", "dumped", "ABRT", "the program crashed with SIGABRT"),
        ("signal", "killed", "SEGV", "the program crashed with SIGSEGV"),
        ("timeout", "killed", "TERM", "the program was still running after 600.0 s and was stopped (run_timeout)"),
        ("timeout", "killed", "KILL", "the program was still running after 600.0 s and was stopped (run_timeout)"),
        ("oom-kill", "killed", "KILL", "the program was killed because the machine ran out of memory"),
        ("resources", "", "", "the program failed with systemd's result 'resources'"),
        ("protocol", "exited", "0", "the program failed with systemd's result 'protocol'"),
    ],
)
def test_the_result_of_systemd_becomes_the_failure_message(run, monkeypatch, result, code, status, failure):
    for name, value in {"SERVICE_RESULT": result, "EXIT_CODE": code, "EXIT_STATUS": status}.items():
        monkeypatch.setenv(name, value)
    noted = finish(run)
    assert noted["failure"] == failure
    assert noted["exit_status"] == status
    assert time.time() - 5 < noted["ended"] <= time.time()
    assert noted["run_id"] == run.id


@pytest.mark.parametrize(("seconds", "late"), [(1, False), (599, False), (600.1, True)])
def test_processes_that_a_program_left_do_not_count_towards_its_timeout(run, monkeypatch, seconds, late):
    times = {"ExecMainStartTimestampMonotonic": "1000000", "ExecMainExitTimestampMonotonic": f"{1000000 + seconds * 1e6:.0f}"}
    monkeypatch.setattr(runs, "property_of", lambda _unit, name, _patience: times[name])
    for name, value in {"SERVICE_RESULT": "timeout", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert ("still running" in finish(run)["failure"]) is late


@pytest.mark.parametrize("left", [True, False])
def test_a_missing_result_is_a_failure_if_the_run_needs_a_result(run, monkeypatch, left):
    run.note(needs_result=True)
    if left:
        (run.folder / "results/result.json").write_text("{}", encoding="utf-8")
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert ("left no result.json" in finish(run)["failure"]) is not left


@pytest.mark.parametrize(("tasks", "needed"), [(["worker:0", "worker:1"], False), (["worker:1"], True)])
def test_the_last_chief_of_a_training_has_to_leave_the_result(run, monkeypatch, tasks, needed):
    run.note(needs_result=True, task="worker:1", training=plan())
    history = [{"attempt": 1, "tasks": tasks, "first_step": 0, "ended": "done"}]
    part = {"failure": "", "outcome": "done", "attempts": 1, "history": history, "final": True}
    (run.folder / "part.json").write_text(json.dumps(part), encoding="utf-8")
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert ("left no result.json" in finish(run)["failure"]) is needed


def test_a_link_is_not_accepted_as_the_result(run, monkeypatch):
    run.note(needs_result=True)
    (run.folder / "results/result.json").symlink_to(run.folder / "run.json")
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "left no result.json" in finish(run)["failure"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a\n\nb\n", ["a", "", "b"]),
        ("half", ["half"]),
        ("10%\r20%\r30%\n", ["30%"]),
        ("10%\r20%\r", ["20%"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("\x1b[1;32mgreen\x1b[0m \x1b]0;title\x07\x1b[2Jé\ttab\x08\x07\n", ["green é\ttab"]),
        ("half \ud83d\n", ["half \\ud83d"]),
    ],
)
def test_lines_of_a_log_have_no_control_codes(text, lines):
    assert run_program.plain_lines(text) == lines


def test_an_end_without_a_result_of_systemd_is_a_failure(run, monkeypatch):
    for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"):
        monkeypatch.delenv(name, raising=False)
    assert finish(run)["failure"] == "the program failed with systemd's result 'unknown'"


def collect(run):
    """Return the answer to one call of ``collect``."""
    given = {"results": "true", "seconds": 0.0, "until": 0.0, "tasks": [], "note": "false", "end": ""}
    return collect_run.collect(SimpleNamespace(run=run.id, **given))


def test_only_a_run_that_has_ended_is_noted_as_collected(run):
    other = run_program.Run("20260101-000000-demo-ab12.worker-1")
    other.folder.mkdir()
    other.note(run_id=other.id, ended=1.0)
    other.folder.joinpath("stdout.log").touch()
    given = {"results": "true", "seconds": 0.0, "until": 0.0, "tasks": [], "note": "true", "end": ""}
    assert collect_run.collect(SimpleNamespace(run=other.id, **given))["next"] == ["collected", other.id]
    assert [collect_run.collected(SimpleNamespace(run=each.id)) for each in (run, other)] == [{}, {}]
    assert "collected" not in run.read()  # it has not ended
    assert time.time() - other.read()["collected"] < 60


def test_a_run_that_cannot_be_noted_as_collected_is_kept(run, monkeypatch):
    run.note(ended=1.0)

    def full(self, noted):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(runs.Run, "_write", full)
    [line] = collect_run.collected(SimpleNamespace(run=run.id))["lines"]
    assert line.endswith("keeps the run as one that is not collected: [Errno 30] Read-only file system")
    assert "collected" not in run.read()


def pack(run):
    """Return what one call of ``collect`` answers: name -> text, None for a folder."""
    answer = collect(run)
    assert "next" not in answer
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(answer["fetch"]["data"]))) as tar:
        found = {member.name: tar.extractfile(member).read().decode() if member.isfile() else None for member in tar}
    return found | answer["files"]


def test_large_results_are_listed_for_rsync(run, monkeypatch):
    monkeypatch.setattr(collect_run, "SMALL_BYTES", 5000)
    (run.folder / "results/deep").mkdir()
    for name in ("results/deep/a.txt", "results/verdict.json", "program/model"):
        (run.folder / name).write_text("0123456789" * 200, encoding="utf-8")
    answer, renamed = collect(run), {"verdict.json": "program-verdict.json"}
    assert answer["fetch"] == {
        "call": ["results", run.id],
        "size": 6000,
        "parts": [
            {"from": "results", "names": ["deep", "verdict.json", "deep/a.txt"], "renamed": renamed},
            {"from": ".", "names": ["stdout.log", "program", "program/model"]},
        ],
    }
    assert json.loads(answer["files"]["run.json"])["left_behind"] == []


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_becomes_a_link_or_a_pipe_is_not_listed_for_rsync(run, changing, monkeypatch, kind):
    monkeypatch.setattr(collect_run, "SMALL_BYTES", 5)
    (run.folder / "results/a").write_text("left " * 10, encoding="utf-8")
    changing(swap(kind))
    answer = collect(run)
    assert answer["fetch"]["parts"][0]["names"] == []
    assert json.loads(answer["files"]["run.json"])["left_behind"] == [f"a (a {kind})"]


def test_a_file_that_grows_during_the_collection_is_listed_for_rsync(run, changing, monkeypatch):
    monkeypatch.setattr(collect_run, "SMALL_BYTES", 5000)
    (run.folder / "results/a").write_bytes(b"")
    changing(lambda folder: os.truncate(folder / "a", 4 * 10**12))
    assert collect(run)["fetch"]["parts"][0]["names"] == ["a"]


def test_program_files_are_collected_only_if_the_run_changed_them(run):
    for name in ("main.py", "log.txt", "data/a.csv", "data/b.csv"):
        (run.folder / "program" / name).parent.mkdir(exist_ok=True)
        (run.folder / "program" / name).write_text(name, encoding="utf-8")
    run.note_given()
    assert set(pack(run)) == {"run.json", "stdout.log"}
    (run.folder / "program/log.txt").write_text("new text", encoding="utf-8")
    (run.folder / "program/data/model\n.keras").write_text("model", encoding="utf-8")
    os.utime(run.folder / "program/data/b.csv", (1, 1))
    changed = {"program", "program/log.txt", "program/data", "program/data/model\n.keras", "program/data/b.csv"}
    assert set(pack(run)) == {"run.json", "stdout.log", *changed}


def test_checkpoints_of_a_task_are_collected(run):
    (run.folder / "checkpoints/inner").mkdir(parents=True)
    assert "checkpoints" in pack(run)
    (run.folder / "checkpoints/inner/ckpt-20.index").write_text("kept", encoding="utf-8")
    (run.folder / "results/checkpoints").write_text("the program's own", encoding="utf-8")
    files = {"checkpoints", "checkpoints/inner", "checkpoints/inner/ckpt-20.index", "program-checkpoints"}
    assert set(pack(run)) == {"run.json", "stdout.log", *files}


@pytest.mark.parametrize("text", ["", "\0" * 300, '{"run_id": "20', "\udcff"])
def test_a_run_with_damaged_notes_is_collected_but_not_followed_or_canceled(run, text):
    (run.folder / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    (run.folder / "stdout.log").write_bytes(b"step 1")
    (run.folder / "results/a.txt").write_text("left", encoding="utf-8")
    answer = collect_run.outcome(SimpleNamespace(run=run.id))
    assert "is damaged" in answer["outcome"]["failure"]
    assert answer["outcome"]["seconds"] >= 0
    packed = pack(run)
    assert (packed["stdout.log"], packed["a.txt"]) == ("step 1", "left")
    assert json.loads(packed["run.json"])["failure"] == answer["outcome"]["failure"]
    sentence = "run=20260101-000000-demo-ab12' to collect the results"
    with pytest.raises(run_program.cluster_config.ConfigError, match=sentence):
        run_program.follow(SimpleNamespace(run=run.id, offset=0, reported=-1))
    assert sentence in run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=0, here=False))["failure"]


def test_notes_are_synced_to_the_disk_before_they_are_renamed(run, monkeypatch):
    done, fsync, replace = [], os.fsync, runs.Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number))
    monkeypatch.setattr(runs.Path, "replace", lambda path, other: done.append(str(other)) or replace(path, other))
    run.note(a=1)
    assert done == [str(run.folder / "run.new"), str(run.folder / "run.json")]


@pytest.fixture
def set_clock(monkeypatch):
    """Return a function that sets the time of day forward, or back."""
    true = time.time

    def set_clock(seconds):
        monkeypatch.setattr(time, "time", lambda: true() + seconds)

    return set_clock


@pytest.mark.parametrize("step", [-3600, 3600])
def test_the_duration_of_a_run_does_not_depend_on_the_time_of_day(run, set_clock, step):
    run.note(started=time.time())
    time.sleep(0.1)
    set_clock(step)
    assert 0.1 <= runs.timed(run.read())["seconds"] < 10
    assert 0.1 <= runs.timed(run.note(ended=time.time()))["seconds"] < 10


def test_the_duration_of_a_run_is_never_negative():
    assert runs.timed({"asked": 100.0, "ended": 90.0})["seconds"] == 0
    assert runs.timed({"started": 100.0, "started_clock": 1e9, "ended": 130.0, "ended_clock": 5.0})["seconds"] == 30


@pytest.mark.parametrize(("noted", "failure"), [({}, "the run is still running"), ({"ended": 1e10, "failure": ""}, "")])
def test_the_state_and_the_age_of_a_run_are_reported(run, noted, failure):
    run.note(asked=time.time() - 60, **noted)
    answer = collect_run.outcome(SimpleNamespace(run=run.id))
    assert answer["outcome"]["failure"] == failure
    assert 60 <= answer["age"] < 70


def test_a_canceled_run_is_stopped_and_names_the_user(run, monkeypatch):
    run.note(reserved=[])
    commands = pretend_systemd(monkeypatch, active=[run.id])
    answer = run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=0, here=False))
    assert commands[0] == ["systemctl", "stop", "tf-run-host-0.service"]
    assert run.id in answer["lines"][0]
    (run.folder / "stdout.log").write_text(
        "Traceback (most recent call last):\n  File\nUnavailableError: handled\n", encoding="utf-8"
    )
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}.items():
        monkeypatch.setenv(name, value)
    noted = finish(run)
    assert noted["failure"] == "the run was canceled by jo"
    assert "reason" not in noted  # it did not fail for what its output shows


def test_a_run_that_ends_because_its_machine_shuts_down_says_so(run, monkeypatch):
    run.note(reserved=["a:1"], servers={"a:1": "01"})
    monkeypatch.setattr(runs, "is_shutting_down", lambda: True)
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}.items():
        monkeypatch.setenv(name, value)
    noted = finish(run)
    assert noted["failure"] == "the program was stopped because its machine was shut down or rebooted"
    assert "failed_tasks" not in noted  # those of this machine stop too


def test_a_task_in_a_reason_has_its_name_in_the_cluster(run, monkeypatch):
    run.note(reserved=[], names={"worker:0": "worker:1"})
    text = "Traceback (most recent call last):\n  File\nInvalidArgumentError: /job:worker/replica:0/task:0 has no such device\n"
    (run.folder / "stdout.log").write_text(text, encoding="utf-8")
    for name, value in {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "1"}.items():
        monkeypatch.setenv(name, value)
    noted = finish(run)
    assert noted["failure"].endswith("has no such device (worker:1)")
    assert noted["reason"]["task"] == "worker:1"


def test_a_run_that_has_ended_is_not_canceled(run, monkeypatch):
    run.note(ended=time.time())
    commands = pretend_systemd(monkeypatch, active=())
    assert "has already ended" in run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=0, here=False))["lines"][0]
    assert [command for command in commands if "stop" in command] == []


def test_several_runs_are_canceled_at_once(run, monkeypatch):
    part = runs.Run(f"{run.id}.worker-1")
    for name in (part.id, "r2"):
        runs.Run(name).folder.mkdir()
        runs.Run(name).note(run_id=name, unit=f"tf-run-{name}.service", started=1.0, reserved=[])
    run.note(reserved=[])
    commands = pretend_systemd(monkeypatch, active=[run.id, part.id, "r2"])
    answer = run_program.cancel(SimpleNamespace(run=[run.id, "r2", "elsewhere"], by="jo", after=0, here=True))
    assert sorted(answer["found"]) == sorted([run.id, part.id, "r2"])
    [stopped] = [command[2:] for command in commands if command[:2] == ["systemctl", "stop"]]
    assert sorted(stopped) == sorted(["tf-run-host-0.service", f"tf-run-{part.id}.service", "tf-run-r2.service"])


def test_a_damaged_run_does_not_prevent_the_cancellation_of_others(run, monkeypatch):
    damaged = runs.Run("r2")
    damaged.folder.mkdir()
    (damaged.folder / "run.json").write_text("{", encoding="utf-8")
    commands = pretend_systemd(monkeypatch, active=[run.id])
    dispatched = []
    monkeypatch.setattr(queue, "dispatch", lambda ended=None: dispatched.append(ended))
    answer = run_program.cancel(SimpleNamespace(run=[damaged.id, run.id], by="jo", after=0, here=False))
    assert answer["lines"] == [f"run {run.id} was canceled"]
    assert "damaged" in answer["failure"]
    assert ["systemctl", "stop", "tf-run-host-0.service"] in commands
    assert dispatched == [None]


def test_links_and_pipes_in_the_working_directory_are_named(run):
    run.note_given()
    (run.folder / "program/latest").symlink_to("ckpt-5")
    (run.folder / "program/config.json").symlink_to(run.folder / "config.json")  # of the project
    os.mkfifo(run.folder / "results/pipe")
    os.mkfifo(run.folder / "program/pipe")
    noted = json.loads(pack(run)["run.json"])
    assert sorted(noted["left_behind"]) == ["pipe (a pipe)", "program/latest (a link)", "program/pipe (a pipe)"]


def test_all_files_of_a_run_are_packed(run):
    (run.folder / "program/demo.py").write_text("code", encoding="utf-8")
    (run.folder / "results/deep").mkdir()
    (run.folder / "results/deep/a.txt").write_text("left", encoding="utf-8")
    packed = pack(run)
    assert packed["program/demo.py"] == "code"
    assert packed["deep/a.txt"] == "left"
    assert set(packed) == {"run.json", "stdout.log", "program", "program/demo.py", "deep", "deep/a.txt"}


@pytest.mark.parametrize("name", ["run.json", "stdout.log", "verdict.json", "report.html", "summary.txt"])
def test_a_result_with_a_reserved_file_name_is_renamed(run, name):
    (run.folder / "results" / name).write_text("the program's", encoding="utf-8")
    packed = pack(run)
    assert packed[f"program-{name}"] == "the program's"
    assert packed.get(name) != "the program's"


def test_renamed_results_do_not_replace_other_results(run):
    results = run.folder / "results"
    (results / "logs").mkdir()
    left = ("verdict.json", "program-verdict.json", "program-program-verdict.json", "logs/a", "program-logs")
    for name in left:
        (results / name).write_text(name, encoding="utf-8")
    packed = pack(run)
    assert packed["program-program-program-verdict.json"] == "verdict.json"
    assert packed["program-program-logs/a"] == "logs/a"
    assert sorted(text for text in packed.values() if text in left) == sorted(left)


def test_links_and_special_files_are_listed_and_not_collected(run):
    (run.folder / "results/link").symlink_to("/etc/passwd")
    (run.folder / "results/folder").symlink_to("/etc")
    os.mkfifo(run.folder / "results/pipe")
    packed = pack(run)
    assert set(packed) == {"run.json", "stdout.log"}
    assert json.loads(packed["run.json"])["left_behind"] == ["folder (a link)", "link (a link)", "pipe (a pipe)"]


def test_the_list_of_files_that_were_not_collected_is_limited(run):
    for number in range(100):
        (run.folder / f"results/{number:03}\n").symlink_to("x")
    reported = json.loads(pack(run)["run.json"])["left_behind"]
    assert (len(reported), reported[0], reported[-1]) == (51, "'000\\n' (a link)", "50 more")


def test_each_hard_link_to_a_file_is_packed_as_a_file(run):
    (run.folder / "results/a").write_text("left", encoding="utf-8")
    os.link(run.folder / "results/a", run.folder / "results/b")
    assert (pack(run)["a"], pack(run)["b"]) == ("left", "left")


@pytest.fixture
def changing(run, monkeypatch):
    """Return a function that lets something happen between the listing of the program's files and their packing."""

    def changing(change):
        listed = collect_run.contents

        def contents(*words):
            found = listed(*words)
            change(run.folder / "results")
            return found

        monkeypatch.setattr(collect_run, "contents", contents)

    return changing


def swap(kind):
    """Return a function that puts something else in the place of the file "a"."""

    def change(folder):
        (folder / "a").unlink()
        (folder / "a").symlink_to("/etc/passwd") if kind == "link" else os.mkfifo(folder / "a")

    return change


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_becomes_a_link_or_a_pipe_during_the_collection_is_not_packed(run, changing, kind):
    (run.folder / "results/a").write_text("left", encoding="utf-8")
    changing(swap(kind))
    packed = pack(run)
    assert "a" not in packed
    assert json.loads(packed["run.json"])["left_behind"] == [f"a (a {kind})"]


def test_a_file_that_is_deleted_during_the_collection_is_ignored(run, changing):
    (run.folder / "results/deep").mkdir()
    for name in ("a", "b", "deep/c"):
        (run.folder / "results" / name).write_text("left", encoding="utf-8")
    changing(lambda folder: (folder / "deep/c").unlink())
    packed = pack(run)
    assert packed["a"] == packed["b"] == "left"
    assert "deep/c" not in packed
    assert json.loads(packed["run.json"])["left_behind"] == []


class Reading:
    """A file that changes while it is read."""

    def __init__(self, path, change):
        self.file, self.change = path.open("rb"), change
        self.fileno = self.file.fileno

    def read(self, count):
        """Return what is there by now."""
        self.change()
        return self.file.read(count)


@pytest.mark.parametrize(("after", "packed"), [(b"x" * 3, b"xxx\0\0"), (b"x" * 9, b"xxxxx")])
def test_a_file_that_changes_during_packing_keeps_the_size_that_was_found(tmp_path, after, packed):
    path, other, buffer = tmp_path / "a", tmp_path / "b", io.BytesIO()
    path.write_bytes(b"x" * 5)
    other.write_bytes(b"next")
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        packer = collect_run.archives.Packer(tar, 10**6, [])
        packer.add_open("a", Reading(path, lambda: path.write_bytes(after)))
        packer.add_open("b", other.open("rb"))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert tar.extractfile("a").read() == packed
        assert tar.extractfile("b").read() == b"next"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's rights")
def test_files_that_the_user_of_the_program_cannot_read_are_not_collected(run, monkeypatch):
    monkeypatch.setattr(load("tf_cluster.preflight.shared"), "USER", "nobody")
    monkeypatch.setattr(runs, "USER", "nobody")
    for folder in (run.folder, *run.folder.parents[:-1]):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    for name, mode in (("open", 0o644), ("secret", 0o600)):
        (run.folder / "results" / name).write_text("left", encoding="utf-8")
        (run.folder / "results" / name).chmod(mode)
    packed = pack(run)
    assert packed["open"] == "left"
    assert json.loads(packed["run.json"])["left_behind"] == ["secret (Permission denied)"]
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to a group")
def test_only_the_user_of_the_program_and_root_can_read_a_run(run, monkeypatch):
    """The user can have another ID by now."""
    monkeypatch.setattr(runs, "USER", "nobody")
    run.folder.chmod(0o755)
    collect_run.collect(SimpleNamespace(run=run.id, results="true", seconds=100.0, until=0, tasks=[], note="false", end=""))
    run.note(arguments=["secret"])
    found = [path.stat() for path in (run.folder, run.folder / "run.json")]
    assert [status.st_mode & 0o777 for status in found] == [0o750, 0o640]
    assert {(status.st_uid, status.st_gid) for status in found} == {(0, pwd.getpwnam("nobody").pw_gid)}


def test_the_wait_for_a_locked_run_times_out(run, monkeypatch):
    monkeypatch.setattr(runs.Run.locked.__wrapped__, "__defaults__", (0.1, False))
    with run.locked("note"), pytest.raises(BlockingIOError, match=r".*note.lock is locked by another process"):
        run.note(a=1)


def test_very_deep_folders_are_packed(run):
    place = run.folder / "results"
    descriptor = os.open(place, os.O_RDONLY)
    for _level in range(1500):  # deeper than Python's functions may call themselves
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    packed = len(pack(run))
    subprocess.run(["rm", "-r", run.folder / "results"], check=True)  # pytest could not
    assert packed > 1500


def test_an_error_without_a_file_name_is_reported_with_its_message(monkeypatch, capsys):
    def fails(_options):
        raise OSError("unexpected end of data")

    with pytest.raises(SystemExit):
        runs.answer(SimpleNamespace(parse_args=lambda: SimpleNamespace(call=fails)))
    assert capsys.readouterr().err.endswith(": unexpected end of data\n")


def test_simultaneous_notes_are_all_kept(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: run.note(**{f"fact{number}": number}), range(200)))
    assert len([name for name in run.read() if name.startswith("fact")]) == 200


def test_the_end_of_a_run_can_be_noted_on_a_full_disk(run, monkeypatch):
    run.reserve()
    write = runs.Path.write_text

    def full(path, *words, **more):
        if (run.folder / "reserve").exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *words, **more)

    monkeypatch.setattr(runs.Path, "write_text", full)
    monkeypatch.setattr(ending, "FULL_DISK_BYTES", 10**18)
    for name, value in {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert finish(run)["failure"] == f"the program exited with status 1; the disk that holds {runs.RUNS} is full"


def test_a_successful_program_whose_output_is_lost_is_a_failed_run(run, monkeypatch):
    monkeypatch.setattr(ending, "FULL_DISK_BYTES", 10**18)
    for name, value in {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": ending.OUTPUT_LOST}.items():
        monkeypatch.setenv(name, value)
    assert finish(run)["failure"].startswith("the program succeeded, but part of its output is lost; the disk that holds")
    assert int(ending.OUTPUT_LOST) == load("tf_cluster.run.output").OUTPUT_LOST


def test_old_files_of_runs_that_were_never_staged_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    for name, age in ((".old.sent", 10**6), (".new.sent", 60), ("run", 10**6)):
        (tmp_path / name / "data").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    run_program.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.sent", "run"]


def test_the_lock_of_the_queue_is_never_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    with queue.locked():
        os.utime(tmp_path / ".queue.lock", (time.time() - 10**6,) * 2)
        run_program.sweep()
        with (tmp_path / ".queue.lock").open("rb") as other:
            assert not queue.lock.acquire(other, 0)


def test_a_program_that_cannot_be_unpacked_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no tar file")))
    run = run_program.Run("r1")
    (run_program.inbox(run) / "data").mkdir(parents=True)
    with pytest.raises(tarfile.TarError):
        run_program.unpack(run)
    assert list(tmp_path.iterdir()) == []


def test_journals_are_collected_until_the_end_of_the_run(run, monkeypatch):
    commands = []
    monkeypatch.setattr(
        collect_run.subprocess, "run", lambda command, **_more: commands.append(command) or SimpleNamespace(stdout=b"")
    )
    collect_run.collect(SimpleNamespace(run=run.id, results="false", seconds=100.0, until=40.0, tasks=["worker-0"], end=""))
    [until] = [float(word.removeprefix("--until=@")) for word in commands[0] if word.startswith("--until")]
    assert until == pytest.approx(time.time() - 40, abs=2)


def test_a_program_is_staged_with_a_link_to_the_config(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("demo.py", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("x.pyc", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            tar.addfile(member)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    us = SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(run_program, "pwd", SimpleNamespace(getpwnam=lambda _name: us))  # not the module, which tarfile uses too
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(buffer.getvalue())))
    run = run_program.Run("r1")
    data = tmp_path / "stored.bin"
    data.write_bytes(b"data")
    run_program.inbox(run).mkdir(parents=True)
    os.link(data, run_program.inbox(run) / "data.bin")  # as the machine's end of rsync does
    run_program.unpack(run)
    assert sorted(path.name for path in (run.folder / "program").iterdir()) == ["config.json", "data.bin", "demo.py"]
    assert (run.folder / "program/data.bin").samefile(data)
    assert set(run.given()) == {"program/config.json", "program/data.bin", "program/demo.py"}
    assert os.readlink(run.folder / "program/config.json") == str(run.folder / "config.json")
    assert (run.folder / "results").is_dir()
    assert run.folder.stat().st_mode & 0o777 == 0o750
    run.note(arguments=["secret"])
    assert [(run.folder / name).stat().st_mode & 0o777 for name in ("run.json", "stdout.log")] == [0o640, 0o640]


@pytest.fixture
def started(run, monkeypatch, tmp_path):
    """Return a function that starts the run where systemd-run ends as given, and returns its answer and the command."""
    monkeypatch.setattr(run_program, "CONFIG", tmp_path / "config.json")
    monkeypatch.setattr(unit, "CONFIG", tmp_path / "config.json")
    monkeypatch.setattr(queue, "CONFIG", tmp_path / "config.json")
    spec = {"worker": ["10.0.0.1:2222", "[fd00::1]:2222"], "host": ["10.0.0.3:2223"]}
    run_program.CONFIG.write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setattr(run_program, "unpack", lambda run: None)
    (run.folder / "run.json").unlink()

    def started(
        stderr="",
        task="host:0",
        queue_timeout=600.0,
        detach=False,
        trace=False,
        training=None,
        missing=(),
        held=(),
        program="demo.py",
        keep=False,
        tasks=(),
        count=0,
        notify="",
        keras=3,
    ):
        commands = pretend_systemd(monkeypatch, stderr)
        options = SimpleNamespace(
            run=run.id, program=program, task=task, timeout=60.0, queue_timeout=queue_timeout, detach=detach, output_mb=0.5,
            needs_result=False, trace=trace, hold=False, reported=-1, abort_after_silence=30.0, keep_state=keep, keras=keras,
        )  # fmt: skip
        servers = {"10.0.0.1:2222": "00a1"}
        plan = {"arguments": ["--", "5 $HOME"], "training": training or {}, "servers": servers, "missing": list(missing)}
        plan |= {"held": list(held), "wants": {"own": ["10.0.0.3:2223"], "tasks": list(tasks), "count": count}, "user": "jo"}
        plan["notify"] = notify
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(json.dumps(plan).encode() + b"\n")))
        answer = run_program.stage(options)
        return answer, next((command for command in commands if command[0] == "systemd-run"), None)

    return started


def pretend_systemd(monkeypatch, stderr="", active=("other",)):
    """Let systemd start units, or print an error, and return the commands. The runs that are ``active`` have units."""
    commands = []
    shown = "\n\n".join(f"Id=tf-run-host-0-{name}.service\nActiveState=active\nDescription=run {name}" for name in active)

    def pretend(command, **_more):
        commands.append(command)
        failed = command[0] == "systemd-run" and bool(stderr)
        return subprocess.CompletedProcess(command, int(failed), shown if command[:2] == ["systemctl", "show"] else "", stderr)

    monkeypatch.setattr(run_program.subprocess, "run", pretend)
    return commands


@pytest.fixture
def busy():
    """Let another run use all tasks."""
    other = runs.Run("other")
    other.folder.mkdir()
    used = ["10.0.0.1:2222", "[fd00::1]:2222", "10.0.0.1:3222", "10.0.0.2:3222"]
    other.note(run_id="other", task="host:0", unit="tf-run-host-0-other.service", started=1.0, waiting=False, training={},
               number=1, reserved=used, own="10.0.0.3:2223")  # fmt: skip
    return other


def test_a_run_with_a_url_starts_its_notification_at_its_end(started, run, monkeypatch):
    started(notify="https://a.example/hidden")
    assert run.read()["notify"] == "https://a.example"
    assert "hidden" not in (run.folder / "run.json").read_text(encoding="utf-8")
    assert (run.folder / "notify.url").read_text(encoding="utf-8") == "https://a.example/hidden"
    notified = []
    monkeypatch.setattr(run_program.notify, "start", lambda run: notified.append((run.id, run.read()["ended"] > 0)))
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    finish(run)
    assert notified == [(run.id, True)]


def test_the_plan_of_a_run_is_read_before_its_tar_file(started, run, monkeypatch):
    """Both come by standard input, because an argument of a command can have at most 128 KiB."""
    rest = []
    monkeypatch.setattr(run_program, "unpack", lambda _run: rest.append(sys.stdin.buffer.read()))
    missing = [f"10.{number // 250}.0.{number % 250}:2222" for number in range(10_000)]
    started(missing=missing)
    assert rest == [b""]
    assert run.read()["missing"] == missing
    assert run.read()["arguments"] == ["--", "5 $HOME"]
    assert run.read()["servers"] == {"10.0.0.1:2222": "00a1"}


def test_packages_of_a_run_are_installed_before_it_starts(started, run):
    assert not any(word.startswith("--property=ExecStartPre=") for word in started()[1])
    (run.folder / "run.json").unlink()
    (run.folder / "layer/packages").mkdir(parents=True)
    [install] = [word for word in started()[1] if word.startswith("--property=ExecStartPre=")]
    assert f"--target {run.folder}/layer/packages --find-links {run.folder}/layer/wheels" in install


def test_the_installation_of_packages_has_a_separate_timeout(started, run):
    (run.folder / "layer/packages").mkdir(parents=True)
    answer, command = started()
    assert answer["lines"] == ["installing the packages of the run"]
    assert "--property=TimeoutStartSec=1800" in command
    assert "--no-block" in command


def test_a_detached_run_has_no_next_call(started):
    assert started(detach=True)[0] == {}


def test_a_run_is_started_with_its_environment_its_arguments_and_its_limits(started, run, request):
    request.addfinalizer(functools.partial(os.umask, os.umask(0o077)))  # as in a unit that starts the next run at its end
    answer, command = started()
    assert (run.folder / "config.json").stat().st_mode & 0o777 == 0o640
    assert answer["next"] == ["follow", run.id]
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    assert json.loads(Path(given["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8")) == run_program.cluster_config.load(
        run_program.CONFIG
    )
    assert given["TF_RUN_DIR"] == str(run.folder / "results")
    assert json.loads(given["TF_CONFIG"])["task"] == {"type": "host", "index": 0}
    assert given["PYTHONPATH"].split(":") == [str(unit.STARTUP), str(run.folder / "layer/packages")]
    assert given["no_grpc_proxy"] == "10.0.0.1,10.0.0.3,fd00::1"
    assert given["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert command[-3:] == ["demo.py", "--", "5 $$HOME"]
    assert "--most=500000" in command
    assert f"--unit=tf-run-host-0-{run.id}.service" in command
    assert "--property=RuntimeMaxSec=60.0" in command
    assert run.read()["limit"] == 60.0
    assert "TF_CLUSTER_TRACE" not in given


def test_a_program_whose_name_looks_like_an_option_is_started_as_a_program(started):
    _answer, command = started(program="-c.py")
    assert command[-3:] == ["./-c.py", "--", "5 $$HOME"]


@pytest.mark.parametrize("name", ["timeout", "queue-timeout", "abort-after-silence", "output-mb"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "much"])
def test_a_limit_that_is_not_a_finite_number_is_refused(name, value):
    done = call("tf_cluster.run", "stage", "r1", "--program=a.py", f"--{name}={value}", input="")
    assert done.returncode == 2
    assert f"--{name}" in done.stderr.splitlines()[-1]


def test_a_run_can_start_without_missing_tasks(started, run):
    _answer, command = started(missing=["10.0.0.1:2222"])
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    spec = {"worker": ["[fd00::1]:2222"], "host": ["10.0.0.3:2223"]}
    assert json.loads((run.folder / "config.json").read_text(encoding="utf-8")) == spec
    assert json.loads(given["TF_CONFIG"])["cluster"] == spec
    assert given["TF_CLUSTER_MISSING"] == "worker:0"
    assert given["TF_CLUSTER_PARTIAL"] == "1"
    assert run.read()["left_out"] == ["worker:0"]
    assert run.read()["names"] == {"worker:0": "worker:1", "host:0": "host:0"}


def test_a_job_without_remaining_tasks_is_not_in_the_spec():
    spec, names = unit.spec_without({"worker": ["a:1", "b:1"], "ps": ["c:1"]}, ["c:1"])
    assert spec == {"worker": ["a:1", "b:1"]}
    assert names == {"worker:0": "worker:0", "worker:1": "worker:1"}


@pytest.fixture
def gate(monkeypatch):
    """Return a function that lets the gate answer so after a failure."""

    def gate(*tasks):
        names = ("address", "state", "reason", "incarnation")
        report = json.dumps({"tasks": [dict(zip(names, task, strict=True)) for task in tasks]})
        done = subprocess.CompletedProcess([], 1, report, "")
        monkeypatch.setattr(run_program.subprocess, "run", lambda *_words, **_more: done)

    return gate


def test_failed_tasks_are_noted_after_a_failed_run(run, monkeypatch, gate):
    servers = {"a:1": "01", "b:1": "02", "c:1": "03", "d:1": "04", "f:1": ""}  # that of f:1 was started for this run
    run.note(servers=servers, lost=20, reserved=list(servers))
    gate(("a:1", "answers", "", "01"), ("b:1", "refused", "nothing listens", ""), ("c:1", "answers", "", "99"),
         ("d:1", "answers", "", "04"), ("e:1", "refused", "it was left out", ""), ("f:1", "answers", "", "05"))  # fmt: skip
    (run.folder / "part.json").write_text('{"silent": {"d:1": 12.4}, "lost": true}', encoding="utf-8")
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}.items():
        monkeypatch.setenv(name, value)
    noted = finish(run)
    assert noted["failure"] == "a task did not answer for 20 s, so the program was stopped (run_abort_after_silence)"
    assert noted["failed_tasks"] == {
        "b:1": "does not answer: refused, nothing listens",
        "c:1": "was restarted during the run: sessions opened before fail permanently, new sessions work",
        "d:1": "did not answer for 12 s during the run",
    }


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"silent": 1, "lost": true}', '{"silent": {"a": "x"}, "lost": 1}', "[" * 100_000]
)
def test_an_invalid_report_of_the_watch_counts_as_no_silence(run, text):
    (run.folder / "part.json").write_text(text, encoding="utf-8")
    assert ending.watch_report(run) == {"silent": {}, "lost": False, "missing": ""}


def test_the_missing_server_for_which_a_program_waited_is_the_cause_of_its_timeout(run, monkeypatch):
    report = {"silent": {}, "lost": False, "missing": "host:0 has no server"}
    (run.folder / "part.json").write_text(json.dumps(report), encoding="utf-8")
    for name, value in {"SERVICE_RESULT": "timeout", "EXIT_CODE": "killed", "EXIT_STATUS": "TERM"}.items():
        monkeypatch.setenv(name, value)
    run.note(limit=90)
    assert finish(run)["failure"].endswith("after 90 s and was stopped (run_timeout); host:0 has no server")


def test_the_tasks_are_not_checked_after_a_successful_run(run, monkeypatch):
    run.note(servers={"a:1": "01"}, reserved=["a:1"])
    monkeypatch.setattr(run_program.subprocess, "run", None)
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "failed_tasks" not in finish(run)


def test_the_environment_and_the_notes_of_a_traced_run_have_the_trace_option(started, run):
    _answer, command = started(trace=True)
    assert "--setenv=TF_CLUSTER_TRACE=1" in command
    assert run.read()["trace"] is True


def test_a_queued_run_reports_the_run_that_it_waits_for(started, run, busy):
    answer, _command = started()
    assert answer["lines"] == ["queued at position 1: worker:0 and worker:1 are used by run other (0 s)"]
    assert answer["next"][:2] == ["start", run.id]


def test_a_queued_run_starts_with_its_original_options(started, run, busy, monkeypatch):
    answer, _command = started()
    busy.note(ended=time.time())
    commands = pretend_systemd(monkeypatch, active=())
    monkeypatch.setattr(runs.signal, "signal", lambda *_words: None)
    monkeypatch.setattr(sys, "argv", ["run_program.py", *answer["next"]])
    run_program.main()
    [command] = [command for command in commands if command[0] == "systemd-run"]
    assert command[-3:] == ["demo.py", "--", "5 $$HOME"]
    assert "--property=RuntimeMaxSec=60.0" in command


def again(call, run, **more):
    """Return the answer to a call for a run that waits."""
    return call(SimpleNamespace(run=run.id, offset=0, reported=-1, **more))


def test_the_reason_of_the_wait_is_reported_every_ten_seconds(started, run, busy):
    answer, _command = started()
    reported = float(answer["next"][-1])
    assert answer["next"] == ["start", run.id, "--reported", str(reported)]
    assert again(run_program.start, run).get("lines")
    assert not run_program.start(SimpleNamespace(run=run.id, reported=reported)).get("lines")
    run.note(queued=runs.clock() - 11)
    assert "(11 s)" in run_program.start(SimpleNamespace(run=run.id, reported=reported))["lines"][0]


@pytest.mark.parametrize("step", [-3600, 3600])
def test_the_waiting_time_does_not_depend_on_the_time_of_day(started, run, busy, set_clock, step):
    started()
    set_clock(step)
    answer = again(run_program.start, run)
    assert re.search(r"\([0-9] s\)", answer["lines"][0])
    assert answer["next"][0] == "start"


def test_the_waiting_time_starts_at_zero_after_a_reboot(started, run, busy):
    started()
    run.note(queued=runs.clock() + 10**6)
    assert "(0 s)" in again(run_program.start, run)["lines"][0]


def test_following_a_queued_run_reports_the_wait_and_starts_the_run_once(started, run, busy, monkeypatch):
    started()
    answer = again(run_program.follow, run)
    assert answer["lines"][0].startswith("queued at position 1: worker:0 and worker:1 are used by run other")
    assert answer["next"][:3] == ["follow", run.id, "--reported"]
    busy.note(ended=time.time())
    pretend_systemd(monkeypatch, active=())
    assert again(run_program.follow, run)["next"] == ["follow", run.id, "--offset", "0"]
    assert run.read()["waiting"] is False
    pretend_systemd(monkeypatch, active=[run.id])
    monkeypatch.setattr(queue, "start_unit", lambda *_given: pytest.fail("it was started already"))
    assert again(run_program.start, run) == {"next": ["follow", run.id]}


def test_following_a_queued_run_whose_command_was_lost_does_not_end_it(started, run, busy):
    started(queue_timeout=1.0)
    run.note(queued=runs.clock() - 500)
    assert again(run_program.follow, run)["next"][0] == "follow"
    assert run.read()["waiting"] is True


def test_following_a_detached_queued_run_does_not_time_out(started, run, busy):
    assert "next" not in started(detach=True, queue_timeout=1.0)[0]
    run.note(queued=runs.clock() - 5)
    reported = again(run_program.follow, run)["next"][-1]
    begun = time.monotonic()
    answer = run_program.follow(SimpleNamespace(run=run.id, offset=0, reported=float(reported)))
    assert not answer.get("lines")
    assert answer["next"] == ["follow", run.id, "--reported", reported]
    assert time.monotonic() - begun >= run_program.WAIT_SECONDS


def test_a_queued_run_that_was_canceled_never_starts(started, run, busy, monkeypatch):
    started()
    call = SimpleNamespace(run=[run.id], by="jo", after=0, here=False)
    assert run_program.cancel(call)["lines"] == [f"queued run {run.id} was canceled"]
    monkeypatch.setattr(queue, "start_unit", lambda *_given: pytest.fail("it was canceled"))
    with pytest.raises(SystemExit):
        again(run_program.start, run)
    outcome = again(run_program.follow, run)["outcome"]
    assert outcome["failure"] == "the run was canceled by jo"
    assert outcome["seconds"] < 10


def test_the_outcome_of_a_queued_run_says_that_it_is_queued(run):
    run.note(waiting=True, asked=time.time(), task="host:0")
    found = collect_run.outcome(SimpleNamespace(run=run.id))
    assert found["outcome"]["failure"] == "the run is queued for host:0"
    assert found["ended"] == 0


def test_a_run_can_be_staged_without_being_started(started, run, monkeypatch):
    started()
    (run.folder / "run.json").unlink()
    options = SimpleNamespace(
        run=run.id, program="demo.py", task="host:0", timeout=60.0, queue_timeout=1.0, detach=True, output_mb=0.5,
        needs_result=False, trace=False, hold=True, abort_after_silence=0.0, keep_state=False, keras=3,
    )  # fmt: skip
    plan = b'{"arguments": [], "training": {}, "servers": {}, "missing": [], "held": [], "wants": {}, "user": "jo"}\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(plan)))
    monkeypatch.setattr(queue, "start_unit", lambda *_given: pytest.fail("started"))
    assert run_program.stage(options) == {}
    assert run.read()["waiting"] is True


@pytest.mark.parametrize(
    ("result", "words"), [("exit-code", "installing its packages failed"), ("timeout", "took longer than 1800 s")]
)
def test_a_failed_installation_of_packages_is_the_failure_of_the_run(run, monkeypatch, result, words):
    (run.folder / "layer").mkdir()
    monkeypatch.setattr(runs, "property_of", lambda _unit, _name, _patience: "0")
    monkeypatch.setenv("SERVICE_RESULT", result)
    for name in ("EXIT_CODE", "EXIT_STATUS"):
        monkeypatch.delenv(name, raising=False)
    assert words in finish(run)["failure"]


def test_the_end_of_a_run_of_an_older_version_is_noted(run, monkeypatch):
    run.note(servers={"10.0.0.1:2222": "00a1"})
    checked = []
    monkeypatch.setattr(ending, "failed_tasks", lambda servers, _silent: checked.append(servers) or {})
    for name, value in {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "3"}.items():
        monkeypatch.setenv(name, value)
    assert finish(run)["failure"] == "the program exited with status 3"
    assert checked == [{"10.0.0.1:2222": "00a1"}]


def test_servers_that_cannot_be_cleared_are_the_failure_of_the_run(run, monkeypatch):
    run.note(clear_before="held")
    monkeypatch.setattr(runs, "property_of", lambda _unit, _name, _patience: "0")
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    for name in ("EXIT_CODE", "EXIT_STATUS"):
        monkeypatch.delenv(name, raising=False)
    assert "servers could not be cleared" in finish(run)["failure"]


def before_the_program(command):
    """Return the commands that a unit runs before the program."""
    return [word.partition("-m ")[2] for word in command if word.startswith("--property=ExecStartPre=")]


def test_servers_are_cleared_before_a_run_only_if_they_can_hold_state(started, run):
    assert before_the_program(started()[1]) == []
    (run.folder / "run.json").unlink()
    command = started(held=["10.0.0.1:2222"])[1]
    assert before_the_program(command) == ["tf_cluster.run.clear"]
    assert "--no-block" in command


def test_the_option_to_keep_state_is_passed_to_the_unit(started, run):
    assert "--setenv=TF_CLUSTER_KEEP_STATE=1" not in started()[1]
    (run.folder / "run.json").unlink()
    assert "--setenv=TF_CLUSTER_KEEP_STATE=1" in started(keep=True)[1]


def test_keras_2_is_chosen_in_the_environment_of_the_program(started, run):
    assert not any("TF_USE_LEGACY_KERAS" in word for word in started()[1])
    (run.folder / "run.json").unlink()
    assert "--setenv=TF_USE_LEGACY_KERAS=1" in started(keras=2)[1]


def test_the_wait_in_the_queue_times_out(started, capsys, run, busy):
    with pytest.raises(SystemExit) as caught:
        started(queue_timeout=-1.0)
    assert caught.value.code == 1
    assert "run_queue_timeout" in capsys.readouterr().err
    assert not run.folder.exists()


def test_an_error_of_systemd_is_reported(started, capsys):
    with pytest.raises(SystemExit) as caught:
        started("Access denied")
    assert caught.value.code == 1
    assert "systemd could not start the run: Access denied" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["ps:0", "host:1", "host", "host:x", ":", ""])
def test_a_task_that_the_cluster_does_not_have_is_an_error(started, task):
    with pytest.raises(run_program.cluster_config.ConfigError):
        started(task=task)


SPEC = {"worker": ["a:2222"], "chief": ["b:2224"], "ps": ["b:2225"], "host": ["b:2223", "c:2223"]}


@pytest.mark.parametrize(
    ("job", "index", "seen"),
    [
        ("host", 0, {"worker": ["a:2222"], "ps": ["b:2225"], "host": ["b:2223"]}),
        ("host", 1, {"worker": ["a:2222"], "ps": ["b:2225"], "host": ["b:2223", "c:2223"]}),
        ("chief", 0, {"worker": ["a:2222"], "chief": ["b:2224"], "ps": ["b:2225"]}),
        ("worker", 0, {"worker": ["a:2222"], "ps": ["b:2225"]}),
    ],
)
def test_a_run_does_not_see_the_tasks_of_other_runs(job, index, seen):
    assert unit.spec_of_run(SPEC, job, index) == seen


def plan(chief="worker:0"):
    """Return a training of two workers."""
    return {
        "id": "r1", "chief": chief, "control": "10.0.0.1:4222", "cluster": {"worker": ["10.0.0.1:3222", "10.0.0.2:3222"]},
        "machines": {"worker:0": "a", "worker:1": "b"}, "restarts": 0, "join": 5.0, "queue_timeout": 0,
        "entries": {"worker:0": "10.0.0.1:3222", "worker:1": "10.0.0.2:3222"},
    }  # fmt: skip


def test_a_part_of_a_training_is_started_with_a_separate_cluster(started, run):
    answer, command = started(task="worker:1", training=plan(), detach=True)
    assert answer == {}
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    assert json.loads(given["TF_CONFIG"]) == {"cluster": plan()["cluster"], "task": {"type": "worker", "index": 1}}
    assert given["TF_CHECKPOINT_DIR"] == str(run.folder / "checkpoints")
    assert command[-3:] == ["-m", "tf_cluster.run.training", run.id]
    assert f"--unit=tf-run-worker-1-{run.id}.service" in command
    assert "--property=KillMode=mixed" in command
    assert "--property=RuntimeMaxSec=75.0" in command  # 60, 5 to join, and 10 to stop


def test_a_part_of_a_training_uses_the_shared_folder(started, run, monkeypatch, tmp_path):
    (tmp_path / "shared").write_text("/mnt/cluster\n", encoding="utf-8")
    monkeypatch.setattr(unit, "SHARED", tmp_path / "shared")
    _answer, command = started(task="worker:1", training=plan(), detach=True)
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    assert given["TF_SHARED_DIR"] == "/mnt/cluster"
    assert given["TF_CHECKPOINT_DIR"] == "/mnt/cluster/tf-cluster/r1/checkpoints"  # of the training, not of its part
    assert "--property=ReadWritePaths=-/mnt/cluster" in command
    assert "--no-block" in command
    assert any(
        word.startswith("--property=ExecStartPre=") and word.endswith(f"tf_cluster.run.shared {run.id}") for word in command
    )


def test_the_folders_of_a_run_are_created_only_if_the_file_system_is_mounted(tmp_path):
    noted = {"run_id": "r2", "shared": str(tmp_path), "training": {}}
    assert f"{tmp_path}/tf-cluster is missing on " in shared.create(noted)
    (tmp_path / "tf-cluster").mkdir()
    for _each in range(2):  # the tasks of a training create the same folders
        assert shared.create(noted) == ""
    assert sorted(path.name for path in (tmp_path / "tf-cluster/r2").iterdir()) == ["checkpoints", "coordinators"]
    assert shared.checkpoints(noted) == tmp_path / "tf-cluster/r2/checkpoints"
    assert shared.create({"run_id": "r2"}) == ""
    (tmp_path / "tf-cluster/r3").touch()
    assert "could not be created: Not a directory" in shared.create({**noted, "run_id": "r3"})


def test_a_part_of_a_training_that_cannot_start_is_reported_to_the_others(started, run, busy, monkeypatch):
    reported = []
    monkeypatch.setattr("tf_cluster.run.training.refuse", lambda *words: reported.append(words))
    answer, _command = started(task="worker:1", queue_timeout=-1.0, training=plan())
    [(_plan, task, sentence)] = reported
    assert task == "worker:1"
    assert "worker:1 is used by run other" in sentence
    assert sentence in answer["lines"][0]
    assert run.read()["failure"] == sentence


def test_a_chief_that_cannot_start_fails(started, run, busy, capsys):
    with pytest.raises(SystemExit):
        started(task="worker:0", queue_timeout=-1.0, training=plan())
    assert "worker:0 is used by run other" in capsys.readouterr().err
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("text", "result", "failure"),
    [
        ('{"failure": "worker:1 ended", "outcome": "was stopped with the others", "attempts": 2}', "exit-code", "worker:1 ended"),
        (
            '{"failure": "worker:1 ended", "outcome": "x", "attempts": 2}',
            "timeout",
            "the program was still running after 600.0 s",
        ),
        ("", "exit-code", "the program exited with status 1"),
        ("[" * 100_000, "exit-code", "the program exited with status 1"),
        ('{"failure": 1}', "exit-code", "the program exited with status 1"),
    ],
)
def test_the_failure_of_a_training_is_the_failure_of_its_part(run, monkeypatch, text, result, failure):
    (run.folder / "part.json").write_text(text, encoding="utf-8")
    for name, value in {"SERVICE_RESULT": result, "EXIT_CODE": "exited", "EXIT_STATUS": "1"}.items():
        monkeypatch.setenv(name, value)
    assert finish(run)["failure"].startswith(failure)


@pytest.mark.parametrize("task", ["worker:0", "worker:1"])
def test_a_result_named_tasks_is_renamed_in_a_part_of_a_training(run, task):
    (run.folder / "program/model").write_text("left", encoding="utf-8")
    (run.folder / "results/tasks").mkdir()
    run.note(training=plan(), task=task)
    assert set(pack(run)) == {"run.json", "stdout.log", "program-tasks", "program", "program/model"}


def test_a_part_that_does_not_end_with_its_training_is_canceled_before_it_is_collected(run, monkeypatch):
    run.note(reserved=[])
    commands = pretend_systemd(monkeypatch, active=[run.id])
    monkeypatch.setattr(collect_run, "END_SECONDS", 0.1)
    given = {"results": "true", "seconds": 0.0, "until": 0.0, "tasks": [], "note": "false"}
    answer = collect_run.collect(SimpleNamespace(run=run.id, end="its end on machine a", **given))
    assert answer["lines"] == [f"run {run.id} was canceled"]
    assert json.loads(answer["files"]["run.json"])["cancelled"] == "the run was canceled by its end on machine a"
    assert [command[:2] for command in commands if "stop" in command] == [["systemctl", "stop"]]


def test_a_canceled_run_can_end_by_itself_before_it_is_stopped(run, monkeypatch):
    commands = pretend_systemd(monkeypatch, active=[run.id])
    threading.Timer(0.3, lambda: run.note(ended=time.time())).start()
    assert run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=5.0, here=False))["lines"] == []
    assert [command for command in commands if "stop" in command] == []


@pytest.mark.parametrize(
    ("part", "result", "words"),
    [
        ('{"shared": "/mnt/a/tf-cluster is missing on m: mount it"}', "exit-code", "/mnt/a/tf-cluster is missing on m: mount it"),
        ("", "timeout", "/mnt/a (tf_shared) did not answer; see the run's output"),
    ],
)
def test_a_run_whose_shared_folder_is_missing_fails_with_the_reason(run, monkeypatch, part, result, words):
    monkeypatch.setattr(ending, "main_started", lambda _unit: False)
    run.note(shared="/mnt/a")
    (run.folder / "part.json").write_text(part, encoding="utf-8")
    monkeypatch.setenv("SERVICE_RESULT", result)
    monkeypatch.setenv("EXIT_CODE", "exited")
    monkeypatch.setenv("EXIT_STATUS", "1")
    assert finish(run)["failure"] == f"the program was not started: {words}"


def test_a_part_of_a_training_is_queued_again_if_its_machine_shuts_down(run, monkeypatch):
    run.note(task="worker:1", shared="/mnt/a", training={**plan(), "survives": True})
    monkeypatch.setattr(runs, "is_shutting_down", lambda: True)
    noted = finish(run)
    assert "ended" not in noted
    assert (noted["waiting"], noted["resumed"]) == (True, True)


def test_each_part_of_a_training_returns_the_outcome_of_the_training(run):
    run.note(task="worker:1", ended=time.time(), failure="", training=plan())
    outcome = runs.outcome(run.read())
    assert outcome["run_id"] == "r1"
    assert (outcome["training"]["chief"], outcome["training"]["first_chief"]) == ("worker:1", "worker:0")
    [part] = collect_run.parts(SimpleNamespace(run=run.id))["parts"]
    assert part == {"id": run.id, "task": "worker:1", "ended": True, "attempts": 0, "tasks": [], "over": True}


def test_the_attempts_of_a_running_training_are_those_of_its_coordinator(run, tmp_path):
    run.note(task="worker:1", shared=str(tmp_path), training={**plan(), "survives": True})
    assert collect_run.parts(SimpleNamespace(run=run.id))["parts"][0]["tasks"] == []
    folder = tmp_path / "tf-cluster/r1/coordinators"
    folder.mkdir(parents=True)
    content = {"task": "worker:1", "attempts": [{"attempt": 1, "tasks": ["worker:0"]}, {"attempt": 2, "tasks": ["worker:1"]}]}
    (folder / "2.json").write_text(json.dumps(content), encoding="utf-8")
    [part] = collect_run.parts(SimpleNamespace(run=run.id))["parts"]
    assert part == {"id": run.id, "task": "worker:1", "ended": False, "attempts": 2, "tasks": ["worker:1"], "over": False}


@pytest.mark.parametrize(
    ("part", "over"),
    [({}, False), ({"failure": "lost", "final": False}, False), ({"failure": "", "final": True}, True)],
)
def test_a_training_that_survives_is_over_when_its_coordinator_says_so(run, part, over):
    run.note(task="worker:1", ended=time.time(), failure="", training={**plan(), "survives": True}, part=part)
    assert runs.outcome(run.read())["over"] is over
    run.note(cancelled="by jo")
    assert runs.outcome(run.read())["over"] is True
