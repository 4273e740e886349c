"""The gate: what it says of a port that no TensorFlow server answers on."""

import json
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from project import call, load

ready = load("tf_cluster.ready.gate")


class SilentLibrary:
    """Stands for TensorFlow's library where no server answers."""

    version = "2.21.0"

    def __init__(self, code=ready.DEADLINE_EXCEEDED):
        self.code = code

    def session(self, *_arguments):
        """Fail as TensorFlow does."""
        raise ready.capi.TensorFlowError(self.code, "Deadline Exceeded\nand more")


@pytest.fixture
def ask(monkeypatch):
    """Return a function that asks one task on a port and returns its report."""
    monkeypatch.setattr(ready.control, "graph_of", lambda *_arguments: b"")
    monkeypatch.setattr(ready.capi, "message", lambda *_names: lambda **_fields: type("M", (), {"SerializeToString": bytes})())

    def ask(entry, seconds=0.3, library=None):
        task = ready.Task(
            "worker", 0, entry, library or SilentLibrary(), "digest", SimpleNamespace(needs=[], gpu_check_timeout=0)
        )
        task.ask(time.monotonic() + seconds)
        return task.report

    return ask


@pytest.fixture
def listener():
    """Return a function that listens on a port, sends something to each client, and returns its address."""
    servers = []

    def listen(words):
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            held = []
            while True:
                try:
                    wire, _address = server.accept()
                    wire.sendall(words)
                except OSError:
                    return
                held.append(wire)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for server in servers:
        server.close()


def test_a_port_without_a_listener_has_the_state_refused(ask):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    report = ask(f"127.0.0.1:{port}")
    assert report["state"] == "refused"
    assert "is its unit running?" in report["reason"]
    assert report["seconds"] < 1


def test_the_gate_waits_for_a_task_that_is_being_restarted(ask):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

    def come_back():
        time.sleep(0.3)
        with socket.create_server(address) as late:
            late.accept()
            time.sleep(0.5)

    threading.Thread(target=come_back, daemon=True).start()
    assert ask(f"127.0.0.1:{address[1]}", seconds=2)["state"] != "refused"


def test_an_unknown_name_is_unreachable(ask):
    report = ask("no-such-machine.invalid:2222")
    assert report["state"] == "unreachable"
    assert "no-such-machine.invalid cannot be resolved" in report["reason"]


@pytest.mark.parametrize(
    ("words", "code", "state", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", 4, "not_tensorflow", "SSH-2.0"),
        (b"HTTP/1.1 400 Bad Request\r\n", 14, "not_tensorflow", "HTTP/1.1"),
        (b"\0\0\0\4\0\0\0\0\0", 12, "not_tensorflow", "the gRPC server on the port is not TensorFlow"),
        (b"\0\0\0\4\0\0\0\0\0", 4, "hangs", "Deadline Exceeded"),
        (b"\0\0\0\4\0\0\0\0\0", 3, "other task", "Deadline Exceeded"),
        (b"", 4, "hangs", "accepts connections but does not answer"),
    ],
)
def test_the_first_bytes_and_the_error_code_determine_the_state(ask, listener, words, code, state, reason):
    report = ask(listener(words), library=SilentLibrary(code))
    assert report["state"] == state
    assert reason in report["reason"]
    assert "\n" not in report["reason"]


class Blocked:
    """Stands for TensorFlow's library where a server lists its devices and executes nothing, or has no identity."""

    version = "2.21.0"

    def __init__(self, code):
        self.code = code

    def session(self, *_arguments):
        """Return a session: itself."""
        return self

    def devices(self):
        """Return the server's devices."""
        return {"/job:worker/replica:0/task:0/device:CPU:0": 1}

    def fetch_bytes(self, _name):
        """Fail as TensorFlow does."""
        raise ready.capi.TensorFlowError(self.code, "Deadline Exceeded")

    def close(self):
        """Do nothing."""


@pytest.mark.parametrize(("code", "state"), [(ready.DEADLINE_EXCEEDED, "hangs"), (5, "other spec")])
def test_a_server_that_executes_nothing_hangs_and_one_without_an_identity_is_foreign(ask, listener, code, state):
    report = ask(listener(b"\0\0\0\4\0\0\0\0\0"), library=Blocked(code))
    assert report["state"] == state
    assert ("Deadline Exceeded" in report["reason"]) is (state == "hangs")


def test_an_unexpected_error_is_the_reason_in_the_report_of_the_task(ask, listener):
    report = ask(listener(b""), library=object())
    assert report["state"] == "hangs"
    assert "AttributeError" in report["reason"]


def test_the_table_has_a_line_for_each_task():
    tasks = [
        {"task": "worker:0", "address": "10.0.0.1:2222", "state": "answers", "seconds": 0.2, "reason": ""},
        {"task": "ps:0", "address": "[fd00::1]:2222", "state": "refused", "seconds": None, "reason": "nothing listens"},
    ]
    heading, first, second = ready.report_table({"tasks": tasks}).splitlines()
    assert heading.split() == ["task", "address", "state", "seconds", "reason"]
    assert first.split() == ["worker:0", "10.0.0.1:2222", "answers", "0.2"]
    assert heading.index("reason") == second.index("nothing listens")


def test_a_missing_config_is_reported_with_status_2(tmp_path):
    done = call("tf_cluster.ready", "--config", tmp_path / "config.json")
    assert done.returncode == 2
    assert done.stderr == f"tf_cluster.ready: {tmp_path}/config.json does not exist; give the cluster spec with --config PATH\n"


def test_a_missing_tensorflow_is_reported_with_status_1(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"worker": ["127.0.0.1:1"]}), encoding="utf-8")
    done = call("tf_cluster.ready", "--config", tmp_path / "config.json", "--json")
    assert done.returncode == 1
    assert done.stderr.startswith("tf_cluster.ready: TensorFlow is not installed for ")
    assert "Traceback" not in done.stderr


def test_tasks_that_do_not_answer_are_reported_early(monkeypatch):
    monkeypatch.setattr(ready.capi, "Library", lambda: SimpleNamespace(version="2.21.0"))
    monkeypatch.setattr(sys, "argv", ["ready.py", "--json", "--timeout=10", "--first=0.1"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = SimpleNamespace(needs=[], only=[], gpu_check_timeout=0, timeout=10.0, first=0.1)
    found = ready.ask_all({"worker": [f"127.0.0.1:{port}"]}, options)
    assert found["lines"] == ["waiting for worker:0 (refused)"]
    assert found["next"] == ["--json", "--timeout=10", "--first=0.1", "--timeout=9.9", "--first=0"]
    options.timeout, options.first = 0.1, 0.0
    assert "next" not in ready.ask_all({"worker": [f"127.0.0.1:{port}"]}, options)
