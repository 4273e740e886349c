"""run/forward.py: the port that a run listens on, what is waited for, and the end of the run."""

import os
import socket
import time
from types import SimpleNamespace

import pytest
from project import load

forward = load("tf_cluster.run.forward")
program, runs = forward.program, forward.runs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a running run, whose program is this process."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setattr(program, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(forward, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(runs, "clock", lambda: 1000.0)
    monkeypatch.setattr(runs, "is_alive", lambda _unit, _run: True)
    monkeypatch.setattr(runs, "property_of", lambda _unit, _name: "active")
    monkeypatch.setattr(forward, "groups_of", lambda pid: {"tf-run-host-0.service"} if pid == os.getpid() else set())
    run = runs.Run("20260101-000000-demo-ab12")
    run.folder.mkdir()
    (run.folder / "stdout.log").write_bytes(b"")
    run.note(run_id=run.id, unit="tf-run-host-0.service", started=time.time())
    return run


@pytest.fixture
def listener():
    """Return a socket that listens on this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def call(run, port, **more):
    """Return the answer of one call."""
    return forward.forward(SimpleNamespace(**{"run": run.id, "port": port, "state": "new", "since": 0, "reported": -1, **more}))


def port_of(server):
    """Return the port of a socket."""
    return server.getsockname()[1]


def test_a_port_that_the_run_listens_on_is_found(run, listener):
    port = port_of(listener)
    answer = call(run, port)
    assert answer["forward"] == {"address": "127.0.0.1", "port": port, "scheme": "http", "path": "/"}
    assert answer["next"] == [run.id, f"--port={port}", "--state=open"]


def test_the_url_that_the_program_printed_is_shown(run, listener):
    port = port_of(listener)
    (run.folder / "stdout.log").write_text(f"  https://127.0.0.1:{port}/lab?token=abc\n", encoding="utf-8")
    answer = call(run, port)
    assert answer["forward"].items() >= {"scheme": "https", "path": "/lab?token=abc"}.items()


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("TensorBoard 2.21.0 at http://localhost:6006/ (Press CTRL+C to quit)", "http://localhost:6006/"),
        ("see <http://127.0.0.1:6006/a?b=c#d>.", "http://127.0.0.1:6006/a?b=c#d"),
        ("http://[::1]:6006/lab?token=abc", "http://[::1]:6006/lab?token=abc"),
        ("\x1b[32mhttp://m:6006\x1b[0m", "http://m:6006"),
        ("http://a:6006/1\nhttp://a:6006/2\nhttp://a:60060/3\nhttp://a:600/4", "http://a:6006/2"),
        ("port 6006", ""),
        ("", ""),
    ],
)
def test_the_last_url_with_the_port_is_used(run, line, url):
    (run.folder / "stdout.log").write_text(line, encoding="utf-8")
    assert forward.url_in(run, 6006) == url


@pytest.mark.parametrize(("before", "after"), [(0, 3_000_000), (3_000_000, 0), (600_000, 300_000)])
def test_the_start_and_the_end_of_long_output_are_searched(run, before, after):
    lines = ["x" * 99] * (before // 100) + ["http://m:6006/a"] + ["x" * 99] * (after // 100)
    (run.folder / "stdout.log").write_text("\n".join(lines), encoding="utf-8")
    assert forward.url_in(run, 6006) == "http://m:6006/a"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("", ("http", "/")),
        ("http://m:6006", ("http", "/")),
        ("http://m:6006/", ("http", "/")),
        ("https://m:6006/lab?token=a", ("https", "/lab?token=a")),
    ],
)
def test_a_url_keeps_its_scheme_path_and_query(url, parts):
    assert tuple(forward.parts_of(url).values()) == parts


def test_the_wait_for_a_port_is_reported_and_times_out(run, listener):
    free = socket.create_server(("127.0.0.1", 0))
    port = port_of(free)
    free.close()
    answer = call(run, port)
    assert answer["lines"] == [f"waits until the run listens on port {port} (0 s). It listens on {port_of(listener)}."]
    [name, number, since, reported] = answer["next"]
    assert (name, number) == (run.id, f"--port={port}")
    later = call(run, port, since=float(since.partition("=")[2]), reported=float(reported.partition("=")[2]))
    assert later["lines"] == []
    failed = call(run, port, since=runs.clock() - forward.LISTEN_SECONDS - 1)
    assert failed == {
        "failure": f"The run does not listen on port {port} after 61 s. It listens on {port_of(listener)}. "
        "Set a port of the run with -e port=NUMBER."
    }


def test_the_port_of_another_process_is_not_forwarded(run, listener, monkeypatch):
    monkeypatch.setattr(forward, "groups_of", lambda _pid: {"sshd.service"})
    failed = call(run, port_of(listener), since=runs.clock() - forward.LISTEN_SECONDS - 1)["failure"]
    assert f". The port belongs to {forward.ports.port_holder(port_of(listener))}. It listens on no port." in failed


def test_the_installation_of_packages_does_not_count_towards_the_timeout(run, monkeypatch):
    monkeypatch.setattr(runs, "property_of", lambda _unit, _name: "activating")
    [line] = call(run, 1, since=runs.clock() - forward.LISTEN_SECONDS - 1)["lines"]
    assert line == "waits until the run listens on port 1 (0 s). Its packages are being installed."


def test_the_time_in_the_queue_does_not_count_towards_the_timeout(run):
    [line] = call(run, 1, reported=300)["lines"]
    assert line == "waits until the run listens on port 1 (0 s). It listens on no port."


def test_forwarding_waits_for_a_queued_run(run, monkeypatch):
    run.note(waiting=True, number=1)
    words = "queued at position 1: worker:0 is used by run r0 (3 s)"
    monkeypatch.setattr(program, "wait", lambda _run, reported, follows: {"lines": [words], "waited": reported + 4})
    assert call(run, 6006) == {"lines": [words], "next": [run.id, "--port=6006", "--reported=3"]}


@pytest.mark.parametrize(("failure", "outcome"), [("", "it succeeded"), ("the program exited with status 1", None)])
def test_forwarding_stops_when_the_run_has_ended(run, listener, failure, outcome):
    run.note(ended=time.time(), failure=failure)
    assert call(run, port_of(listener), state="open") == {"lines": [f"the run {run.id} has ended: {outcome or failure}"]}
    sentence = f"The run {run.id} has ended ({outcome or failure}), so its port 1 cannot be forwarded."
    assert call(run, 1) == {"failure": sentence}


def test_a_program_that_stops_and_resumes_listening_is_reported(run):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = port_of(listener)
        assert call(run, port, state="open")["lines"] == []
        resumed = call(run, port, state="gone")
    gone = call(run, port, state="open")
    assert resumed == {"lines": [f"the run listens again on port {port}"], "next": [run.id, f"--port={port}", "--state=open"]}
    assert gone == {
        "lines": [f"the run does not listen any more on port {port}"],
        "next": [run.id, f"--port={port}", "--state=gone"],
    }
    assert call(run, port, state="gone")["lines"] == []


@pytest.mark.parametrize(("address", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")])
def test_each_listener_has_a_reachable_address(run, monkeypatch, address, reached):
    monkeypatch.setattr(forward.ports, "listeners", lambda: [{"pid": os.getpid(), "port": 80, "address": address}])
    assert forward.listening("tf-run-host-0.service") == {80: reached}


def test_only_an_existing_process_has_control_groups(monkeypatch):
    monkeypatch.undo()
    assert "" in forward.groups_of(os.getpid())
    assert forward.groups_of(2**22 + 1) == set()
