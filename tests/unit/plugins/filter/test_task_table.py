"""The filters task_table and with_machines: the gate's report as a person reads it."""

import pytest
from project import load

filters = load("plugins/filter/task_table.py")
TASKS = [
    {"task": "worker:0", "machine": "a", "address": "10.0.0.1:2222", "state": "answers", "reason": ""},
    {
        "task": "worker:10",
        "machine": "a-longer-name",
        "address": "[fd00::1]:2222",
        "state": "refused",
        "reason": "nothing listens",
    },
]


def test_each_task_has_a_line_with_its_reason():
    heading, first, second = filters.task_table(TASKS)
    assert heading.split() == ["task", "machine", "address", "state", "reason"]
    assert first.split() == ["worker:0", "a", "10.0.0.1:2222", "answers"]
    assert second.split(maxsplit=4) == ["worker:10", "a-longer-name", "[fd00::1]:2222", "refused", "nothing listens"]


def test_the_columns_stand_below_each_other():
    heading, first, second = filters.task_table(TASKS)
    assert heading.index("state") == first.index("answers") == second.index("refused")
    assert heading.index("machine") == first.index("a  ") == second.index("a-longer-name")


def test_no_line_ends_in_blanks():
    assert all(line == line.rstrip() for line in filters.task_table(TASKS))


def test_what_a_task_does_not_know_is_left_empty():
    assert "None" not in filters.task_table([{**TASKS[0], "machine": None, "reason": None}])[1]


def test_no_tasks_leave_the_heading_alone():
    assert len(filters.task_table([])) == 1


def test_what_systemd_says_stands_below_the_table_with_its_machine():
    explained = [{"item": {"machine": "m1"}, "answer": {"why": {"worker-0": "it is failed", "worker-1": "it is masked"}}}]
    assert filters.task_table(TASKS, explained)[3:] == ["m1: it is failed", "m1: it is masked"]


def test_why_a_machine_says_nothing_stands_below_the_table():
    explained = [{"item": {"machine": "m1"}, "msg": "python is missing on this machine", "failed": False}]
    assert filters.task_table(TASKS, explained)[3:] == ["m1: python is missing on this machine"]


def test_a_machine_that_ansible_cannot_reach_is_named():
    [line] = filters.task_table(TASKS, [{"item": {"machine": "m2"}, "unreachable": True}])[3:]
    assert line.startswith("m2: ")
    assert "cannot reach" in line


def test_each_task_gets_its_machine_and_keeps_the_rest():
    tasks = [{"task": "worker:0", "state": "hangs"}, {"task": "ps:0", "state": "hangs"}]
    assert filters.with_machines(tasks, {"worker:0": "m1"}) == [
        {"task": "worker:0", "state": "hangs", "machine": "m1"},
        {"task": "ps:0", "state": "hangs", "machine": ""},
    ]
    assert "machine" not in tasks[0]


def test_tasks_that_the_gate_could_not_check_are_known_from_the_cluster_spec():
    standing = {"job": "worker", "index": 1, "address": "10.0.0.2", "port": 2222, "standing": True}
    cluster = {"machines": {"m2": [standing, {**standing, "job": "host", "standing": False}]}}
    [found] = filters.unchecked_tasks(cluster)
    assert found == {
        "task": "worker:1",
        "address": "10.0.0.2:2222",
        "state": "not checked",
        "reason": "the host machine could not check it",
        "version": None,
        "gpus": [],
    }


@pytest.mark.parametrize(
    ("states", "allowed", "problem"),
    [
        ("-", 0, "Not every task of the cluster answers."),
        ("-", False, "Not every task of the cluster answers."),
        ("-", "1", ""),
        ("-", True, ""),
        ("-", "all", ""),
        ("--", 1, "2 tasks do not answer, but allow_missing is 1."),
        ("--", 2, ""),
        ("-", "some", "allow_missing is 'some'. Set how many tasks may be missing, as in 1, or all."),
        ("-", -1, "allow_missing is -1. Set how many tasks may be missing, as in 1, or all."),
        ("d", "all", "A task lacks a device that the program needs."),
    ],
)
def test_some_tasks_may_be_missing(states, allowed, problem):
    tasks = [{"state": {"-": "refused", "d": "no device"}[state]} for state in states] + [{"state": "answers"}]
    assert filters.missing_problem(tasks, allowed) == problem


def test_not_all_tasks_may_be_missing():
    assert filters.missing_problem([{"state": "refused"}], "all") == "No task of the cluster answers."
