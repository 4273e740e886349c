"""run/watch.py: when a task is called silent, back, or a new server, and when a run is given up for it."""

import json
import os
import queue
import socket
from types import SimpleNamespace

import pytest
from project import call, load

watch_tasks = load("tf_cluster.run.watch")


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(watch_tasks.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def task(clock):
    """Return a task that answered just now as the server "a"."""
    task = watch_tasks.Watched("worker", 1, "10.0.0.2:2222", None)
    assert task.note("a", "") == ""
    return task


def test_a_task_is_silent_after_two_unanswered_checks_and_ten_seconds(clock, task):
    told = []
    for seconds in (5, 4, 4, 4):
        clock.now += seconds
        told.append(task.note("", "no answer"))
    assert told == ["", "", "has not answered for 13 s: no answer", ""]
    assert task.silence() == 17


def test_one_late_check_does_not_make_a_task_silent(clock, task):
    clock.now += 3600  # the machine that asks was asleep
    assert task.note("", "no answer") == ""
    clock.now += 1
    assert task.note("a", "") == ""
    assert task.silence() == 0


def test_a_task_that_answers_again_is_reported_once(clock, task):
    for seconds in (6, 6):
        clock.now += seconds
        task.note("", "no answer")
    clock.now += 8
    assert task.note("a", "") == "answers again after 20 s"
    assert task.note("a", "") == ""
    clock.now += 100
    assert task.silence() == 20


def test_a_restarted_server_is_reported_once(clock, task):
    assert task.note("b", "") == watch_tasks.RESTARTED
    assert task.note("b", "") == ""


def test_silent_and_lost_tasks_are_written_to_part_json(clock, task, tmp_path):
    for seconds in (6, 6):
        clock.now += seconds
        task.note("", "no answer")
    watch_tasks.write_part(tmp_path / "part.json", [task], [task], ["host:0 has no server"])
    assert json.loads((tmp_path / "part.json").read_text(encoding="utf-8")) == {
        "silent": {"10.0.0.2:2222": 12.0}, "lost": True, "missing": "host:0 has no server",
    }  # fmt: skip


class EndedError(Exception):
    """Ends a watch that goes on for ever."""


@pytest.mark.parametrize(("answers", "pauses"), [([("a", ""), ("", "x"), ("", "x")], [5.0, 1.0])])
def test_a_task_that_does_not_answer_is_checked_more_often(monkeypatch, task, answers, pauses):
    slept, news = [], queue.Queue()
    monkeypatch.setattr(task, "ask", lambda: answers.pop(0))

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == len(pauses):
            raise EndedError

    monkeypatch.setattr(watch_tasks.time, "sleep", sleep)
    with pytest.raises(EndedError):
        task.watch(news, watch_tasks.INTERVAL_SECONDS)
    assert slept == pauses


def test_a_missing_config_is_an_error(tmp_path):
    done = call("tf_cluster.run.watch", f"--config={tmp_path}/none.json", f"--part={tmp_path}/part.json")
    assert done.returncode not in (0, watch_tasks.TASK_LOST_STATUS)


def test_a_connection_of_a_process_is_found():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not watch_tasks.has_session([os.getpid()], {port})
        with socket.create_connection(server.getsockname()), server.accept()[0]:
            assert watch_tasks.has_session([os.getpid()], {port, 1})
            assert not watch_tasks.has_session([1], {port})
            assert not watch_tasks.has_session([os.getpid()], {1})


@pytest.mark.parametrize(("busy", "reported"), [(0.0, True), (1.0, False)])
def test_a_program_that_waits_for_its_missing_server_is_reported(monkeypatch, busy, reported):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    used = iter([0.0, busy] * watch_tasks.WAIT_CHECKS)
    monkeypatch.setattr(watch_tasks, "siblings", lambda: [1])
    monkeypatch.setattr(watch_tasks, "cpu_seconds", lambda _pids: next(used))
    monkeypatch.setattr(watch_tasks, "has_session", lambda _pids, remote: remote == {2222})
    monkeypatch.setattr(watch_tasks, "IDLE_SECONDS", 0.01)
    monkeypatch.setenv("TF_RUN_ID", "r1")
    monkeypatch.setenv("TF_CONFIG", '{"task": {"type": "host", "index": 0}}')
    news, missing = queue.Queue(), []
    watch_tasks.watch_own_task(news, {"worker": ["10.0.0.1:2222"], "host": [f"10.0.0.3:{port}"]}, missing)
    assert (not news.empty()) is bool(missing) is reported
    if reported:
        assert missing[0].startswith("host:0 has no server: a session without device_filters waits for it.")
        assert news.get() == f"[cluster] {missing[0]}"


def test_a_program_that_loads_its_data_first_is_reported_too(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sessions = iter([False] * 3 * watch_tasks.WAIT_CHECKS + [True])
    monkeypatch.setattr(watch_tasks, "siblings", lambda: [1])
    monkeypatch.setattr(watch_tasks, "cpu_seconds", lambda _pids: 0.0)
    monkeypatch.setattr(watch_tasks, "has_session", lambda _pids, _remote: next(sessions))
    monkeypatch.setattr(watch_tasks, "IDLE_SECONDS", 0.01)
    monkeypatch.setenv("TF_RUN_ID", "r1")
    monkeypatch.setenv("TF_CONFIG", '{"task": {"type": "host", "index": 0}}')
    news, missing = queue.Queue(), []
    watch_tasks.watch_own_task(news, {"worker": ["10.0.0.1:2222"], "host": [f"10.0.0.3:{port}"]}, missing)
    assert "host:0 has no server" in news.get_nowait()
    assert list(sessions) == []  # not before it had a session


def test_the_processor_time_of_a_process_is_found():
    begun = watch_tasks.cpu_seconds([os.getpid(), 2**30])
    assert begun > 0
    while watch_tasks.cpu_seconds([os.getpid()]) < begun + 0.05:
        pass
