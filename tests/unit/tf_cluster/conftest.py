"""Runs in folders of the tests, without systemd."""

import io
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from project import load
from run_helpers import pretend_systemd

run_program = load("tf_cluster.run.program")
unit = load("tf_cluster.run.unit")
queue = load("tf_cluster.run.queue")
runs = load("tf_cluster.run.runs")


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
    run.note(run_id=run.id, unit="tf-run-host-0.service", started=time.time(), timeout=600.0)
    return run


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


@pytest.fixture
def set_clock(monkeypatch):
    """Return a function that sets the time of day forward, or back."""
    true = time.time

    def set_clock(seconds):
        monkeypatch.setattr(time, "time", lambda: true() + seconds)

    return set_clock


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


@pytest.fixture
def busy():
    """Let another run use all tasks."""
    other = runs.Run("other")
    other.folder.mkdir()
    used = ["10.0.0.1:2222", "[fd00::1]:2222", "10.0.0.1:3222", "10.0.0.2:3222"]
    other.note(run_id="other", task="host:0", unit="tf-run-host-0-other.service", started=1.0, waiting=False, training={},
               number=1, reserved=used, own="10.0.0.3:2223")  # fmt: skip
    return other
