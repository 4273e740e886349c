"""run/program.py: runs are staged, followed, canceled and queued."""

import io
import os
import re
import sys
import tarfile
import threading
import time
from types import SimpleNamespace

import pytest
from project import call, load
from run_helpers import finish, plan, pretend_systemd

run_program = load("tf_cluster.run.program")
queue = load("tf_cluster.run.queue")
runs = load("tf_cluster.run.runs")


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


def test_a_detached_run_has_no_next_call(started):
    assert started(detach=True)[0] == {}


@pytest.mark.parametrize("name", ["timeout", "queue-timeout", "abort-after-silence", "output-mb"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "much"])
def test_a_limit_that_is_not_a_finite_number_is_refused(name, value):
    done = call("tf_cluster.run", "stage", "r1", "--program=a.py", f"--{name}={value}", input="")
    assert done.returncode == 2
    assert f"--{name}" in done.stderr.splitlines()[-1]


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


def test_a_canceled_run_can_end_by_itself_before_it_is_stopped(run, monkeypatch):
    commands = pretend_systemd(monkeypatch, active=[run.id])
    threading.Timer(0.3, lambda: run.note(ended=time.time())).start()
    assert run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=5.0, here=False))["lines"] == []
    assert [command for command in commands if "stop" in command] == []


def test_a_part_of_a_training_is_queued_again_if_its_machine_shuts_down(run, monkeypatch):
    run.note(task="worker:1", shared="/mnt/a", training={**plan(), "survives": True})
    monkeypatch.setattr(runs, "is_shutting_down", lambda: True)
    noted = finish(run)
    assert "ended" not in noted
    assert (noted["waiting"], noted["resumed"]) == (True, True)
