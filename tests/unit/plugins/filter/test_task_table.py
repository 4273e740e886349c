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


def test_the_columns_are_aligned():
    heading, first, second = filters.task_table(TASKS)
    assert heading.index("state") == first.index("answers") == second.index("refused")
    assert heading.index("machine") == first.index("a  ") == second.index("a-longer-name")


def test_no_line_has_trailing_spaces():
    assert all(line == line.rstrip() for line in filters.task_table(TASKS))


def test_unknown_values_are_left_empty():
    assert "None" not in filters.task_table([{**TASKS[0], "machine": None, "reason": None}])[1]


def test_the_table_without_tasks_has_only_the_heading():
    assert len(filters.task_table([])) == 1


def test_explanations_of_systemd_are_below_the_table_with_the_machine_name():
    explained = [{"item": {"machine": "m1"}, "answer": {"why": {"worker-0": "it is failed", "worker-1": "it is masked"}}}]
    assert filters.task_table(TASKS, explained)[3:] == ["m1: it is failed", "m1: it is masked"]


def test_the_error_message_of_a_machine_is_below_the_table():
    explained = [{"item": {"machine": "m1"}, "msg": "python is missing on this machine", "failed": False}]
    assert filters.task_table(TASKS, explained)[3:] == ["m1: python is missing on this machine"]


def test_an_unreachable_machine_is_reported_below_the_table():
    [line] = filters.task_table(TASKS, [{"item": {"machine": "m2"}, "unreachable": True}])[3:]
    assert line.startswith("m2: ")
    assert "cannot reach" in line


def test_with_machines_adds_the_machine_and_keeps_the_other_values():
    tasks = [{"task": "worker:0", "state": "hangs"}, {"task": "ps:0", "state": "hangs"}]
    assert filters.with_machines(tasks, {"worker:0": "m1"}) == [
        {"task": "worker:0", "state": "hangs", "machine": "m1"},
        {"task": "ps:0", "state": "hangs", "machine": ""},
    ]
    assert "machine" not in tasks[0]


def test_unchecked_tasks_are_listed_from_the_cluster_spec():
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
def test_allow_missing_limits_the_number_of_missing_tasks(states, allowed, problem):
    tasks = [{"state": {"-": "refused", "d": "no device"}[state]} for state in states] + [{"state": "answers"}]
    assert filters.missing_problem(tasks, allowed) == problem


def test_a_run_that_reserves_no_task_needs_none():
    assert filters.missing_problem([{"state": "refused"}], 0, {"none": True, "count": 0}) == ""
    assert filters.missing_problem([{"state": "no device"}], 0, {"none": True}) == "A task lacks a device that the program needs."


def test_a_cluster_without_an_answering_task_is_a_problem():
    assert filters.missing_problem([{"state": "refused"}], "all") == "No task of the cluster answers."
