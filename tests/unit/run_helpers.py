"""What tests of runs have in common."""

import subprocess
from types import SimpleNamespace

import pytest
from project import load

run_program = load("tf_cluster.run.program")


def finish(run):
    """Let systemd's last call happen and return what is noted of the run then."""
    with pytest.raises(SystemExit) as caught:
        run_program.finish(SimpleNamespace(run=run.id))
    assert not caught.value.code
    return run.read()


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


def plan(chief="worker:0"):
    """Return a training of two workers."""
    return {
        "id": "r1", "chief": chief, "control": "10.0.0.1:4222", "cluster": {"worker": ["10.0.0.1:3222", "10.0.0.2:3222"]},
        "machines": {"worker:0": "a", "worker:1": "b"}, "restarts": 0, "join": 5.0, "queue_timeout": 0,
        "entries": {"worker:0": "10.0.0.1:3222", "worker:1": "10.0.0.2:3222"},
    }  # fmt: skip
