"""Forwards of ports: Ansible on a terminal with Ctrl-C, and what is said if a forward fails. The lab has the machines for ssh."""

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import forwarding, progress
from project import ROOT
from terminal import on_terminal

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - distributed.tensorflow.tf_program: {argv: [%s, %s], forward: true}
      register: done
    - ansible.builtin.debug: {msg: "the next task runs"}
"""
# Answers as tf_cluster.run.forward does, for as many calls as its first argument says.
PROGRAM = """
import json, sys, time
left = int(sys.argv[1]) if len(sys.argv) > 1 else {calls}
time.sleep(0.2)
answer = {{"forward": {{"address": "127.0.0.1", "port": {port}, "scheme": "http", "path": "/x"}}}} if left == {calls} else {{}}
answer |= {{"next": [str(left - 1)]}} if left else {{"lines": ["the run has ended"]}}
print(json.dumps(answer))
"""


@pytest.fixture
def lines(monkeypatch):
    """Return the lines that are shown."""
    shown = []
    monkeypatch.setattr(progress, "show_line", shown.append)
    return shown


def play(tmp_path, calls, port):
    """Write a play that calls the program, and return the command and the settings that run it."""
    (tmp_path / "program.py").write_text(PROGRAM.format(calls=calls, port=port), encoding="utf-8")
    (tmp_path / "play.yml").write_text(PLAY % (sys.executable, tmp_path / "program.py"), encoding="utf-8")
    settings = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    settings |= {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-m", "ansible", "playbook", "--inventory=localhost,", tmp_path / "play.yml"], settings


def test_ctrl_c_closes_the_forward_and_the_play_continues(tmp_path):
    command, settings = play(tmp_path, 1000, 6006)
    status, text = on_terminal(command, ROOT, settings, "the run continues", lambda _text: time.sleep(0.5) or b"\x03")
    assert status == 0, text
    assert "http://127.0.0.1:6006/x" in text
    assert "the forward of port 6006 is closed" in text
    assert "the next task runs" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_task_finishes_when_the_run_finishes(tmp_path, terminal):
    command, settings = play(tmp_path, 3, 6006)
    if terminal:
        status, text = on_terminal(command, ROOT, settings, "http", lambda _text: b"other keys")
    else:
        done = subprocess.run(
            command, env=settings, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
        status, text = done.returncode, done.stdout
    assert status == 0, text
    assert text.index("http://127.0.0.1:6006/x") < text.index("the run has ended") < text.index("the next task runs")


def action(connection):
    """Return an action with this connection."""
    return SimpleNamespace(_connection=connection, _play_context=PlayContext())


def test_a_connection_without_port_forwarding_is_an_error():
    connection = SimpleNamespace(transport="containers.podman.podman")
    with (
        pytest.raises(
            AnsibleActionFail, match=r"ansible_connection is podman, .* cannot forward ports\. Set it to ssh or local\."
        ),
        forwarding.Forward(action(connection)),
    ):
        pass


@pytest.fixture
def forward():
    """Return a forward over ssh to a port of this machine on which nothing listens."""
    connection = connection_loader.get("ssh", PlayContext(), None)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        options = {"port": bound.getsockname()[1], "ssh_args": "-F none -o ControlMaster=auto -o ControlPersist=10m"}
        connection.set_options(direct={"host": "127.0.0.1", "host_key_checking": False, **options})
        with forwarding.Forward(action(connection)) as forward:
            yield forward


def test_an_ssh_failure_is_reported_with_its_reason(forward, lines):
    with pytest.raises(AnsibleActionFail, match=r"^The forward of port 6006 was closed: ssh: connect to host .* refused"):
        forward.open({"address": "127.0.0.1", "port": 6006, "scheme": "http", "path": "/"})
    assert lines == []


def test_the_port_of_another_process_is_not_taken_for_the_forward(forward, tmp_path):
    """Two forwards may choose the same free port at the same time."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\nsleep 0.3\necho 'bind [127.0.0.1]: Address already in use' >&2\nexit 255\n", encoding="utf-8")
    ssh.chmod(0o755)
    forward.action._connection.set_option("ssh_executable", str(ssh))
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert not forward.listens(other.getsockname()[1], "127.0.0.1:6006")
    assert forwarding.IN_USE in forward.messages()


def test_a_closed_forward_is_an_error(forward):
    forward.process = subprocess.Popen(["false"])
    forward.process.wait()
    with pytest.raises(AnsibleActionFail, match="was closed: ssh exited without a message"):
        forward.is_over()


def test_a_machine_that_does_not_permit_forwarding_is_an_error(forward):
    forward.errors.write(b"channel 2: open failed: administratively prohibited: open failed\r\n")
    forward.errors.flush()
    forward.process, forward.port = subprocess.Popen(["sleep", "60"]), 6006
    with pytest.raises(AnsibleActionFail, match=r"does not permit the forward of port 6006\. Set 'AllowTcp"):
        forward.is_over()


def test_leaving_the_context_stops_the_forward(lines):
    with forwarding.Forward(action(SimpleNamespace(transport="local"))) as forward:
        assert not forward.is_over()
        forward.process = process = subprocess.Popen(["sleep", "60"])
    assert process.poll() is not None


def test_the_local_connection_starts_no_forward(lines):
    with forwarding.Forward(action(SimpleNamespace(transport="ansible.builtin.local"))) as forward:
        forward.open({"address": "::1", "port": 8888, "scheme": "https", "path": "/lab?token=a"})
        assert forward.process is None
    assert lines[0] == "  https://[::1]:8888/lab?token=a"


def test_a_port_in_use_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert forwarding.free_port(port) == 0
        assert forwarding.free_port(0) not in (0, port)
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()
    assert forwarding.free_port(port) == port
