"""run/runs.py: the names of runs, their notes, and whether their units are alive."""

import errno
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from project import load
from run_helpers import finish, plan

run_program = load("tf_cluster.run.program")
ending = load("tf_cluster.run.ending")
runs = load("tf_cluster.run.runs")


@pytest.mark.parametrize("name", ["20260101-000000-demo-ab12", "a", "A.b_c-d", "x" * 121])
def test_a_plain_name_is_a_valid_run_id(name):
    assert run_program.Run(name).folder == runs.RUNS / name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc", "-x", ".hidden", "a b", "a\n", "a\0", "é", "x" * 122])
def test_an_unsafe_name_is_not_a_valid_run_id(name, capsys):
    with pytest.raises(SystemExit) as caught:
        run_program.Run(name)
    assert caught.value.code == 2
    assert "is not a valid run ID" in capsys.readouterr().err


def test_notes_are_added_to_earlier_notes(run):
    run.note(a=1)
    assert run.note(b=2).items() >= {"a": 1, "b": 2, "run_id": run.id}.items()
    assert run.read() == json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in run.folder.iterdir()) == ["note.lock", "program", "results", "run.json", "stdout.log"]


@pytest.mark.parametrize(("job", "alive"), [("12", True), ("", False), ("0", False)])
def test_a_run_whose_unit_is_about_to_start_is_alive(run, monkeypatch, job, alive):
    monkeypatch.undo()  # of the fixture
    shown = {"ActiveState": "inactive", "Job": job, "Description": f"run {run.id}"}
    monkeypatch.setattr(runs, "property_of", lambda _unit, name: shown[name])
    assert runs.is_alive("tf-run-host-0.service", run) is alive


def test_a_run_is_alive_if_systemd_answers_after_some_failures(run, systemctl):
    systemctl(2)
    assert runs.is_alive("tf-run-host-0.service", run)


def test_notes_are_synced_to_the_disk_before_they_are_renamed(run, monkeypatch):
    done, fsync, replace = [], os.fsync, runs.Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number))
    monkeypatch.setattr(runs.Path, "replace", lambda path, other: done.append(str(other)) or replace(path, other))
    run.note(a=1)
    assert done == [str(run.folder / "run.new"), str(run.folder / "run.json")]


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


def test_the_wait_for_a_locked_run_times_out(run, monkeypatch):
    monkeypatch.setattr(runs.Run.locked.__wrapped__, "__defaults__", (0.1, False))
    with run.locked("note"), pytest.raises(BlockingIOError, match=r".*note.lock is locked by another process"):
        run.note(a=1)


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


@pytest.mark.parametrize(
    ("part", "over"),
    [({}, False), ({"failure": "lost", "final": False}, False), ({"failure": "", "final": True}, True)],
)
def test_a_training_that_survives_is_over_when_its_coordinator_says_so(run, part, over):
    run.note(task="worker:1", ended=time.time(), failure="", training={**plan(), "survives": True}, part=part)
    assert runs.outcome(run.read())["over"] is over
    run.note(cancelled="by jo")
    assert runs.outcome(run.read())["over"] is True


def test_a_run_that_version_0_9_has_queued_keeps_its_options(run):
    old = {"limit": 60.0, "wait": 5.0, "lost": 7.0, "task": "host:0"}
    (run.folder / "run.json").write_text(json.dumps(old), encoding="utf-8")
    new = {"timeout": 60.0, "queue_timeout": 5.0, "abort_after_silence": 7.0, "task": "host:0"}
    assert run.read() == new
    assert run.note(started=1.0).items() >= new.items()


@pytest.mark.parametrize("text", ["", "[]", "null", "1"])
def test_notes_that_are_no_object_are_damaged(run, text):
    (run.folder / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(runs.cluster_config.ConfigError, match=r"run\.json is damaged"):
        run.read()
