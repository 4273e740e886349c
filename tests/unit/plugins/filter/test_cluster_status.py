"""The filters of status.yml, and the program that asks systemd."""

import os
import subprocess

import pytest
from project import load

filters = load("plugins/filter/cluster_status.py")
task_state = load("tf_cluster.status.units")
# What systemd 252 prints of a task that runs, and of a run.
SHOWN = f"""\
Id=tf-server@worker-0.service
ActiveState=active
SubState=running
StateChangeTimestampMonotonic=1000000
NRestarts=2
MainPID={os.getpid()}
Description=TensorFlow server worker-0

Id=tf-server@worker-1.service
ActiveState=activating
SubState=auto-restart
StateChangeTimestampMonotonic=0
NRestarts=0
MainPID=0
Description=TensorFlow server worker-1
"""
RUN = "Id=tf-run-host-0-r1.service\nActiveState=active\nSubState=running\nStateChangeTimestampMonotonic=5\nDescription=run r1\n"
UNIT = {"unit": "active", "since": "2026-01-01T00:00:00+00:00", "restarts": 0, "memory_mb": 103}


def task(job, index, machine):
    """Return a task and its machine as the filter cluster_spec gives it."""
    standing = job != "host"
    return {"job": job, "index": index, "name": f"{job}-{index}", "address": machine, "port": 2222, "standing": standing}


CLUSTER = {
    "spec": {"worker": ["a:2222", "b:2222"], "host": ["c:2222"]},
    "machines": {"a": [task("worker", 0, "a")], "c": [task("host", 0, "c")], "b": [task("worker", 1, "b")]},
}
GATE = [
    {"task": f"worker:{index}", "state": "answers", "reason": "", "version": "2.21.0", "gpus": []} for index in range(2)
]  # fmt: skip
FIREWALL = {"version": "version_1a", "wanted": "version_1a", "whole": True}
STATES = {
    "a": {"units": {"worker-0": UNIT}, "runs": [], "firewall": FIREWALL},
    "b": {"units": {"worker-1": UNIT}, "runs": [], "firewall": FIREWALL},
    "c": {"units": {}, "runs": [{"run": "r1", "task": "host:0", "since": None}], "firewall": FIREWALL},
}


def test_the_problem_of_the_gate_is_the_reason_of_each_unchecked_task():
    status = filters.cluster_status(CLUSTER, [], {"a": STATES["a"]}, gate_problem="c is unreachable")
    assert status["ok"] is False
    assert {task["task"]: (task["unit"], task["state"], task["reason"]) for task in status["tasks"]} == {
        "worker:0": ("active", "not checked", "the host machine could not check it: c is unreachable"),
        "worker:1": ("unreachable", "not checked", "the host machine could not check it: c is unreachable"),
        "host:0": ("unreachable", "unreachable", "Ansible cannot reach its machine"),
    }


def test_a_complete_cluster_is_ok():
    status = filters.cluster_status(CLUSTER, GATE, STATES)
    assert status["ok"] is True
    assert status["open"] == []
    assert [(task["task"], task["machine"], task["state"]) for task in status["tasks"]] == [
        ("worker:0", "a", "answers"), ("worker:1", "b", "answers"), ("host:0", "c", "runs"),
    ]  # fmt: skip
    assert status["tasks"][2]["run"] == "r1"
    assert status["tasks"][0]["memory_mb"] == 103


def test_a_cluster_with_a_free_host_is_ok():
    states = {**STATES, "c": {"units": {}, "runs": []}}
    assert filters.cluster_status(CLUSTER, GATE, states)["tasks"][2]["state"] == "free"
    assert filters.cluster_status(CLUSTER, GATE, states)["ok"] is True


@pytest.mark.parametrize(
    ("gate", "away"),
    [([GATE[0], {**GATE[1], "state": "hangs", "reason": "x"}], ()), ([], ()), (GATE, ("c",)), ([], ("a", "b", "c"))],
)
def test_an_incomplete_cluster_is_not_ok(gate, away):
    states = {machine: state for machine, state in STATES.items() if machine not in away}
    status = filters.cluster_status(CLUSTER, gate, states)
    assert status["ok"] is False
    assert len(status["tasks"]) == 3
    assert all(task["unit"] == "unreachable" for task in status["tasks"] if task["machine"] in away)


def test_a_machine_that_is_not_set_up_is_not_reported_as_unreachable():
    states = {"a": STATES["a"]}
    sentence = "task_state.py is not there: has 'ansible-playbook site.yml' made this machine part of the cluster?"
    status = filters.cluster_status(CLUSTER, [], states, {"c": sentence})
    assert [task["unit"] for task in status["tasks"]] == ["active", "unreachable", "unknown"]
    assert status["tasks"][2]["state"] == "unknown"
    assert status["tasks"][2]["reason"] == sentence
    assert status["ok"] is False


def test_the_table_has_no_empty_columns():
    lines = filters.status_table(filters.cluster_status(CLUSTER, GATE, STATES))
    assert lines[0].split() == ["task", "machine", "address", "unit", "state", "since", "restarts", "MB", "TensorFlow", "run"]
    assert len(lines) == 4
    assert lines[3].endswith("r1")


@pytest.fixture
def systemd(monkeypatch):
    """Let systemctl print what it prints on such a machine."""

    def run(command, **_more):
        return subprocess.CompletedProcess(command, 0, RUN if command[-1] == "tf-run-*.service" else SHOWN, "")

    monkeypatch.setattr(task_state.subprocess, "run", run)


def test_task_state_reports_the_systemd_state_of_each_task(systemd, capsys, monkeypatch):
    monkeypatch.setattr(task_state.sys, "argv", ["task_state.py", "worker-0", "worker-1", "worker-2"])
    task_state.main()
    answer = task_state.json.loads(capsys.readouterr().out)
    first, second, third = (answer["units"][f"worker-{index}"] for index in range(3))
    assert (first["unit"], first["restarts"]) == ("active", 2)
    assert first["memory_mb"] > 10
    assert first["since"].endswith("+00:00")
    assert (second["unit"], second["since"], second["memory_mb"]) == ("activating (auto-restart)", None, None)
    assert third["unit"] == "unknown"
    assert answer["runs"][0]["run"] == "r1"
    assert answer["runs"][0]["task"] == "host:0"


@pytest.mark.parametrize(
    ("wall", "unguarded", "ok", "words"),
    [
        ({"version": None, "wanted": None}, ["b"], True, "OPEN: b: firewall_enabled is false"),
        ({"version": None, "wanted": None}, [], False, "OPEN: b: the firewall rules are missing or were changed"),
        ({"version": None, "wanted": "version_1a"}, [], False, "OPEN: b: the firewall rules are missing or were changed"),
        ({"version": "version_2b"}, [], False, "OPEN: b: the firewall rules are missing or were changed"),
        ({"whole": False}, [], False, "OPEN: b: the firewall rules are missing or were changed"),
        ({}, ["b"], False, "b: the firewall is active, but firewall_enabled is false"),
    ],
)
def test_a_firewall_that_differs_from_the_inventory_is_reported(wall, unguarded, ok, words):
    states = {**STATES, "b": {**STATES["b"], "firewall": {**FIREWALL, **wall}}}
    status = filters.cluster_status(CLUSTER, GATE, states, unguarded=unguarded)
    assert status["ok"] is ok
    assert len(status["open"]) == 1
    assert words in status["open"][0]


def test_a_machine_whose_state_is_unknown_makes_the_cluster_incomplete():
    status = filters.cluster_status(CLUSTER, GATE, {name: state for name, state in STATES.items() if name != "b"})
    assert status["ok"] is False
    assert status["open"] == ["b: the state of the firewall is unknown, because Ansible could not get it."]


def test_tasks_that_hold_the_state_of_earlier_runs_are_reported():
    kept = {"task": "host:0", "since": 1767225600.0, "kept": True}
    gate = [{**task, "runs": {"r0": kept, "r1": {**kept, "kept": False}}} for task in GATE]
    status = filters.cluster_status(CLUSTER, gate, STATES)
    assert status["held"] == [
        "worker:0, worker:1: holds the state of run r0 since 2026-01-01T00:00:00+00:00. The next run finds it (run_keep_state)."
    ]  # r1 is still running
    status = filters.cluster_status(CLUSTER, [{**GATE[0], "runs": {"r2": {**kept, "kept": False}}}, GATE[1]], STATES)
    assert status["held"] == ["worker:0: holds the state of run r2 since 2026-01-01T00:00:00+00:00. The next run clears it."]
    assert status["tasks"][0]["holds"] == {"r2": {**kept, "kept": False}}
    assert filters.cluster_status(CLUSTER, GATE, STATES)["held"] == []


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (
            {"c": [{"run": "r1", "ended": 1767225600.0}]},
            [
                "1 run has ended and was never collected, so it is not deleted. To collect the oldest: ansible-playbook "
                "playbooks/collect.yml -e run=r1",
                "  r1 on c, ended 2026-01-01T00:00:00+00:00",
            ],
        ),
        (
            {"a": [{"run": "r2", "ended": 5.0}], "c": [{"run": "r2", "ended": 5.0}, {"run": "r1", "ended": None}]},
            [
                "2 runs have ended and were never collected, so they are not deleted. To collect the oldest: ansible-playbook "
                "playbooks/collect.yml -e run=r1",
                "  r1 on c, ended at an unknown time",
                "  r2 on a, c, ended 1970-01-01T00:00:05+00:00",
            ],
        ),
    ],
)
def test_runs_that_were_never_collected_are_listed(found, lines):
    states = {machine: {**state, "uncollected": found.get(machine, [])} for machine, state in STATES.items()}
    status = filters.cluster_status(CLUSTER, GATE, states)
    assert status["uncollected"] == lines
    assert [run["run"] for run in status["uncollected_runs"]] == [line.split()[0] for line in lines[1:]]
    assert status["ok"] is True
    assert filters.cluster_status(CLUSTER, GATE, STATES)["uncollected"] == []
