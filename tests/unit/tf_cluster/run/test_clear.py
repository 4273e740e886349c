"""run/clear.py and server/control.py: when a server is cleared of a run's state, and when not."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest
from project import load

clear = load("tf_cluster.run.clear")
control = load("tf_cluster.server.control")


def user(task="host:0", kept=False):
    """Return what a server notes of a run."""
    return {"task": task, "since": 1.0, "kept": kept}


def clearing(**given):
    """Return what a call for the run r2 of host:0 has to do."""
    users = {"r2": user(kept=given.get("keep", False))}
    default = {
        "users": users,
        "tasks": frozenset({"host:0", "chief:1"}),
        "keep": False,
        "ended": False,
        "lost": False,
        "seconds": 0.5,
    }
    return clear.Clearing(**{**default, **given})


@pytest.mark.parametrize(
    ("users", "given", "note"),
    [
        # Before the program: state of an earlier run of the same task, which cannot run any more.
        ({}, {}, None),
        ({"r1": user()}, {}, {}),
        (control.DAMAGED, {}, {}),
        ({"r1": user(kept=True)}, {}, None),
        ({"r1": user(), "r0": user(kept=True)}, {}, None),
        ({"r1": user("chief:0")}, {}, None),
        ({"r1": user(), "c1": user("chief:0")}, {}, None),
        ({"r1": user("chief:1")}, {}, {}),  # of this machine
        ({"r1": user("chief:1")}, {"lost": True}, {}),
        ({"r1": user("chief:1", kept=True)}, {}, None),
        ({"r2": user(), "r1": user("chief:1", kept=True)}, {"ended": True}, {}),
        # The machine failed before the servers noted the run.
        ({}, {"lost": True}, {}),
        ({"c1": user("chief:0")}, {"lost": True}, None),
        ({"r1": user(kept=True)}, {"lost": True}, None),
        # After the program.
        ({}, {"ended": True}, {}),
        ({"r2": user()}, {"ended": True}, {}),
        ({"r2": user(), "r1": user(kept=True)}, {"ended": True}, {}),
        ({"r2": user(), "c1": user("chief:0")}, {"ended": True}, {"c1": user("chief:0")}),
        ({"c1": user("chief:0")}, {"ended": True}, None),
        ({"r2": user(kept=True)}, {"ended": True, "keep": True}, None),
        ({}, {"ended": True, "keep": True}, {"r2": user(kept=True)}),
        ({"r1": user(kept=True)}, {"ended": True, "keep": True}, {"r1": user(kept=True), "r2": user(kept=True)}),
    ],
)
def test_the_note_for_a_server_depends_on_its_users_and_the_run(users, given, note):
    assert clear.note_to_write(users, clearing(**given)) == note


def test_the_programs_of_tasks_with_the_same_address_run_on_the_same_machine():
    cluster = {"chief": ["10.0.0.1:2224", "10.0.0.2:2224"], "host": ["10.0.0.2:2223"], "worker": ["10.0.0.2:2222"]}
    assert clear.tasks_here(cluster, "host:0") == {"host:0", "chief:1"}
    assert clear.tasks_here(cluster, "chief:0") == {"chief:0"}


def test_a_run_is_noted_with_its_task(monkeypatch):
    monkeypatch.setenv("TF_RUN_ID", "r1")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {}, "task": {"type": "chief", "index": 0}}')
    for value, kept in (("", False), ("1", True)):
        monkeypatch.setenv("TF_CLUSTER_KEEP_STATE", value)
        run, users = clear.this_run()
        assert (run, users["r1"]["task"], users["r1"]["kept"]) == ("r1", "chief:0", kept)
        assert abs(users["r1"]["since"] - time.time()) < 5


def test_a_server_counts_as_restarted_only_after_its_port_was_closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        assert not clear.listens_again(f"{host}:{port}", 0.3)

    def come_back():
        time.sleep(0.3)
        with socket.create_server((host, port)) as late:
            late.accept()

    threading.Thread(target=come_back, daemon=True).start()
    begun = time.monotonic()
    assert clear.is_closed(f"{host}:{port}", 5)
    assert time.monotonic() - begun < 0.2
    assert clear.listens_again(f"{host}:{port}", 5)
    assert 0.2 < time.monotonic() - begun < 2


class Server:
    """Stands for a session on a server."""

    def __init__(self, text):
        self.text, self.ran, self.closed = text, [], False

    def fetch_bytes(self, _name):
        """Return the runs."""
        return self.text

    def run(self, name):
        """Note the operation."""
        self.ran.append(name)

    def close(self):
        """Note the end."""
        self.closed = True


def test_a_server_that_is_used_by_another_task_keeps_its_state(monkeypatch):
    text = b'{"r2": {"task": "host:0", "since": 1, "kept": false}, "c1": {"task": "chief:0", "since": 1, "kept": false}}'
    server, written = Server(text), []
    monkeypatch.setattr(control, "session", lambda *_given, **_more: server)
    monkeypatch.setattr(control, "note_users", lambda *given: written.append(given[4]))
    assert clear.clear(None, "worker:0", "a:1", clearing(ended=True)) == ""
    assert (server.ran, server.closed, written) == ([], True, [{"c1": user("chief:0")}])


def test_a_server_that_does_not_answer_is_reported(monkeypatch):
    def fail(*_given, **_more):
        tries.append(time.monotonic())
        raise clear.capi.TensorFlowError(4, "Deadline Exceeded\nmore")

    tries = []
    monkeypatch.setattr(control, "session", fail)
    monkeypatch.setattr(clear, "START_SECONDS", 1.0)
    assert clear.clear(None, "worker:0", "a:1", clearing(ended=True)) == "worker:0 on a:1 does not answer: Deadline Exceeded"
    assert len(tries) == 1
    assert clear.clear(None, "worker:0", "a:1", clearing()) == "worker:0 on a:1 does not answer: Deadline Exceeded"
    assert len(tries) > 2  # before a program, a server may be starting


def test_a_wait_for_servers_before_a_program_is_reported(monkeypatch, capsys, tmp_path):
    """A server that hangs answers late or never."""
    (tmp_path / "config.json").write_text('{"worker": ["a:1", "b:1"], "host": ["c:1"]}', encoding="utf-8")
    monkeypatch.setattr(clear, "CONFIG", tmp_path / "config.json")
    monkeypatch.setenv("TF_CLUSTER_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(clear.capi, "Library", lambda: None)
    monkeypatch.setattr(clear, "own_server", lambda *_given: "")
    monkeypatch.setattr(clear, "clear", lambda _library, task, *_given: time.sleep(0.5 if task == "worker:1" else 0) or "")
    monkeypatch.setattr(clear, "WAITING_SECONDS", 0.1)
    for ended, words in ((False, "[cluster] waits for worker:1 on b:1 to be cleared of earlier runs, up to 120 s\n"), (True, "")):
        assert clear.clear_all("host:0", {"r1": user()}, SimpleNamespace(ended=ended, lost=True)) == []
        assert capsys.readouterr().out == words


def test_a_cleared_server_is_reported_with_the_run_whose_state_it_held(monkeypatch, capsys):
    server = Server(b'{"r1": {"task": "host:0", "since": 1, "kept": false}}')
    monkeypatch.setattr(control, "session", lambda *_given, **_more: server)
    monkeypatch.setattr(clear, "listens_again", lambda *_given: True)
    assert clear.clear(None, "worker:0", "a:1", clearing()) == ""
    assert capsys.readouterr().out == "[cluster] worker:0 is cleared of the state of r1\n"
    deadline = time.monotonic() + 2
    while not server.ran and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (server.ran, server.closed) == (["clear"], False)
