"""machine_facts: the facts of a machine in one call; and the filter that compares its files with the expected ones."""

import json
import os
import subprocess
import sys

import pytest
from project import ROOT, load

differ = load("plugins/filter/task_environments.py").files_differ
machine_state = load("tf_cluster.preflight.machine")
SHOWN = """Id=tf-cluster.target
ActiveState=active
UnitFileState=enabled

Id=tf-server@worker-0.service
ActiveState=active
UnitFileState=enabled
StatusText=worker:0 listens on 10.0.0.1:2222, TensorFlow 2.21.0, inputs 0a1b2c
MainPID=77
NeedDaemonReload=no

Id=tf-server@worker-1.service
ActiveState=failed
UnitFileState=enabled

Id=tf-server@worker-2.service
ActiveState=active
UnitFileState=disabled
StatusText=inputs 0a1b2c

Id=tf-server@worker-9.service
ActiveState=inactive
UnitFileState=disabled
"""


@pytest.fixture
def systemctl(monkeypatch):
    """Let systemctl answer as on a machine with several tasks; return what it was asked."""
    asked = []

    def answer(*words):
        asked.append(words)
        return SHOWN if words[0] == "show" else "tf-server@.service disabled\ntf-server@worker-3.service enabled enabled\n"

    monkeypatch.setattr(machine_state, "systemctl", answer)
    return asked


def test_enabled_and_active_tasks_have_the_digest_of_their_inputs(systemctl):
    found = machine_state.tasks(machine_state.show_units())
    assert found == {
        "tasks": {"worker-0": "0a1b2c", "worker-1": None, "worker-2": None}, "target": True, "timer": False, "reload": False,
    }  # fmt: skip
    assert "tf-server@worker-3.service" in systemctl[1]


def test_the_timer_counts_only_if_it_is_enabled_and_active(systemctl, monkeypatch):
    shown = "\nId=tf-prune.timer\nActiveState=active\nUnitFileState=enabled\n"
    monkeypatch.setattr(sys.modules[__name__], "SHOWN", SHOWN + shown)
    assert machine_state.tasks(machine_state.show_units())["timer"]
    assert "tf-prune.timer" in systemctl[1]
    stopped = SHOWN.replace("tf-prune.timer\nActiveState=active", "tf-prune.timer\nActiveState=inactive")
    monkeypatch.setattr(sys.modules[__name__], "SHOWN", stopped)
    assert not machine_state.tasks(machine_state.show_units())["timer"]


def test_units_that_require_a_daemon_reload_are_reported(systemctl, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SHOWN", SHOWN.replace("NeedDaemonReload=no", "NeedDaemonReload=yes"))
    assert machine_state.tasks(machine_state.show_units())["reload"]


def test_a_listener_that_belongs_to_a_task_has_the_unit_of_the_task(systemctl, monkeypatch):
    found = [{"port": 2222, "pid": 77, "name": "python", "user": "root"}, {"port": 2223, "pid": 78, "name": "x", "user": "root"}]
    monkeypatch.setattr(machine_state, "port_listeners", lambda _ports: found)
    units = [listener["unit"] for listener in machine_state.listeners([2222, 2223], machine_state.show_units())]
    assert units == ["tf-server@worker-0.service", ""]


def test_the_module_collects_the_facts_of_an_empty_machine(tmp_path):
    """Ansible calls the module, also in check mode."""
    arguments = json.dumps({"ports": [1], "venv": f"{tmp_path}/none"})
    command = ["ansible", "localhost", "--check", "--connection=local", "--module-name=distributed.tensorflow.machine_facts"]
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "json", "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1"}
    words = [*command, f"--args={arguments}", f"--extra-vars=ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    result = json.loads(done.stdout)["plays"][0]["tasks"][0]["hosts"]["localhost"]
    assert result["changed"] is False
    found = result["ansible_facts"]["tf_machine"]
    assert found["environment"] == {"made_of": "", "id": "", "whole": False}
    assert {"listeners", "account", "disk_mb", "gpus", "firewall", "digests", "tasks", "target", "reload"} <= found.keys()
    assert found["disk_mb"] > 0


def test_only_missing_changed_and_additional_files_differ(tmp_path):
    path = str(tmp_path / "a.env")
    wanted = [{"path": path, "content": "ä=1\n"}]
    assert differ(wanted, {})
    (tmp_path / "a.env").write_text("ä=1\n", encoding="utf-8")
    os.chmod(path, 0o644)
    found = {path: machine_state.digest(path)}
    assert os.geteuid() or not differ(wanted, found, [str(tmp_path / "*.env")])
    assert differ([{**wanted[0], "mode": "0755"}], found)
    assert differ([{**wanted[0], "content": "ä=2\n"}], found)
    assert differ([], found, [str(tmp_path / "*.env")])
    assert not differ([], found, [str(tmp_path / "*.conf")])
