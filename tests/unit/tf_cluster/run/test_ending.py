"""run/ending.py: how a run ended, as a sentence."""

import json
import subprocess
import time

import pytest
from project import load
from run_helpers import finish, plan

run_program = load("tf_cluster.run.program")
ending = load("tf_cluster.run.ending")
runs = load("tf_cluster.run.runs")


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


def test_an_end_without_a_result_of_systemd_is_a_failure(run, monkeypatch):
    for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"):
        monkeypatch.delenv(name, raising=False)
    assert finish(run)["failure"] == "the program failed with systemd's result 'unknown'"


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


def test_a_successful_program_whose_output_is_lost_is_a_failed_run(run, monkeypatch):
    monkeypatch.setattr(ending, "FULL_DISK_BYTES", 10**18)
    for name, value in {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": ending.OUTPUT_LOST}.items():
        monkeypatch.setenv(name, value)
    assert finish(run)["failure"].startswith("the program succeeded, but part of its output is lost; the disk that holds")
    assert int(ending.OUTPUT_LOST) == load("tf_cluster.run.output").OUTPUT_LOST


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
    run.note(servers=servers, abort_after_silence=20, reserved=list(servers))
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
    run.note(timeout=90)
    assert finish(run)["failure"].endswith("after 90 s and was stopped (run_timeout); host:0 has no server")


def test_the_tasks_are_not_checked_after_a_successful_run(run, monkeypatch):
    run.note(servers={"a:1": "01"}, reserved=["a:1"])
    monkeypatch.setattr(run_program.subprocess, "run", None)
    for name, value in {"SERVICE_RESULT": "success", "EXIT_CODE": "exited", "EXIT_STATUS": "0"}.items():
        monkeypatch.setenv(name, value)
    assert "failed_tasks" not in finish(run)


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
