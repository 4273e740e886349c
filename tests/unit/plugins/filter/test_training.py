"""Trainings: which tasks take part, and ports that collide with nothing."""

import pytest
from project import load

cluster_spec = load("plugins/filter/cluster_spec.py").cluster_spec
filters = load("plugins/filter/training.py")


def cluster(**own_tasks):
    """Return a cluster of the machines a and b (worker) and c (ps, chief, host), with tf_tasks of their own where given."""
    groups = {"all": ["a", "b", "c"], "worker": ["a", "b"], "ps": ["c"], "chief": ["c"], "host": ["c"]}
    hostvars = {name: {"ansible_host": f"10.0.0.{place}"} for place, name in enumerate("abc", 1)}
    for name, tasks in own_tasks.items():
        hostvars[name]["tf_tasks"] = tasks
    found = cluster_spec(groups, hostvars)
    assert found["problems"] == []
    return found


def test_each_worker_takes_part_at_a_separate_port():
    found = filters.training(cluster(), "r1")
    assert found["problems"] == []
    assert found["cluster"] == {"worker": ["10.0.0.1:3222", "10.0.0.2:3222"]}
    assert found["control"] == "10.0.0.1:4222"
    assert found["chief"] == "worker:0"
    assert found["machines"] == {"worker:0": "a", "worker:1": "b"}
    assert (found["id"], found["restarts"], found["join"]) == ("r1", 0, 60)


@pytest.mark.parametrize("jobs", [["worker", "chief"], "chief,worker", ("chief", "worker")])
def test_the_chief_is_the_first_job(jobs):
    found = filters.training(cluster(), jobs=jobs)
    assert list(found["cluster"]) == ["chief", "worker"]
    assert found["chief"] == "chief:0"
    assert found["control"].startswith("10.0.0.3:")


def test_ports_of_tasks_and_of_the_training_are_skipped():
    busy = {"worker": [{"port": 2222}, {"port": 3222}, {"port": 4222}]}
    found = filters.training(cluster(a=busy))
    own = [int(entry.rpartition(":")[2]) for entry in found["cluster"]["worker"][:3]]
    control = int(found["control"].rpartition(":")[2])
    assert own == [3223, 4223, 5222]
    assert len({*own, control, 2222, 3222, 4222}) == 7


def test_parts_are_in_the_order_of_the_indices():
    found = filters.training(cluster(a={"worker": [{"index": 2}, {"index": 0, "port": 2300}]}))
    assert found["cluster"] == {"worker": ["10.0.0.1:3300", "10.0.0.2:3222", "10.0.0.1:3222"]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"jobs": ["ps"]}, ["train_jobs", "'ps'", "run_task=chief:0"]),
        ({"jobs": ["evaluator"]}, ["train_jobs", "chief and worker"]),
        ({"jobs": []}, ["train_jobs is empty"]),
        ({"offset": 63500}, ["train_port_offset is 63500", "smaller"]),
        ({"restarts": -1}, ["train_restarts is -1"]),
        ({"restarts": 2.7}, ["train_restarts is 2.7", "whole number"]),
        ({"restarts": True}, ["train_restarts is True"]),
        ({"join": "soon"}, ["train_join is 'soon'"]),
        ({"ends_with": "worker"}, ["train_ends_with is 'worker'", "all or chief"]),
    ],
)
def test_invalid_options_of_a_training_are_reported(given, words):
    offset = {"train_port_offset": given.pop("offset")} if "offset" in given else {}
    [sentence] = filters.training({**cluster(), **offset}, **given)["problems"]
    assert [word for word in words if word not in sentence] == []


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 0),
        ({"busy": ["worker:1"]}, 600),
        ({"busy": ["worker:1"], "queue_timeout": "20"}, 20),
        ({"busy": ["host:0"]}, 0),
        ({"busy": ["worker:1"], "reserved": {"names": ["worker:0"]}}, 0),
        ({"detached": True}, 600),
        ({"detached": True, "queue_timeout": "soon"}, 0),  # program_problems reports it
    ],
)
def test_parts_may_be_queued_if_other_trainings_use_their_tasks_or_nobody_waits(given, seconds):
    found = filters.training(cluster(), **given)
    assert (found["queue_timeout"], found["join"], found["problems"]) == (seconds, 60, [])


def test_a_job_without_machines_is_reported():
    seed = cluster_spec({"all": ["a"], "worker": ["a"], "host": ["a"]}, {"a": {}})
    [sentence] = filters.training(seed, jobs=["chief", "worker"])["problems"]
    assert "the group 'chief' has no machine" in sentence


def test_the_parts_of_a_machine_are_all_its_tasks_except_the_chief():
    found = filters.training(cluster(a={"worker": 2}), "r1")
    assert filters.training_parts(found, "a") == [{"task": "worker:1", "name": "worker-1", "id": "r1.worker-1"}]
    assert [part["name"] for part in filters.training_parts(found, "b")] == ["worker-2"]
    assert filters.training_parts(found, "c") == []
    assert filters.training_parts({}, "a") == []


def test_the_closed_ports_are_those_of_tasks_and_trainings():
    """Also if a training skips the port of a task. Each task of a training can become its chief."""
    assert filters.cluster_ports(cluster(), "a") == [2222, 3222, 4222]
    assert filters.cluster_ports({**cluster(), "train_port_offset": 7000, "run_slots": 2}) == [
        2222, 2223, 2224, 2225, 9222, 9224, 16222, 16224, 23223, 23224,
    ]  # fmt: skip
    busy = cluster(a={"worker": [{"port": 2222}, {"port": 3222}]})
    plan = filters.training(busy)
    wanted = {int(entry.rpartition(":")[2]) for entry in plan["cluster"]["worker"][:2]}
    assert wanted <= set(filters.cluster_ports(busy, "a"))
    assert int(plan["control"].rpartition(":")[2]) in filters.cluster_ports(busy, "a")


def test_a_training_survives_a_lost_machine_with_a_shared_folder_and_restarts():
    shared = {**cluster(), "shared": "/mnt/cluster"}
    assert filters.training(shared, restarts=1, min_tasks="1")["min_tasks"] == 1
    found = filters.training(shared, restarts=1)
    assert (found["survives"], found["min_tasks"]) == (True, 2)
    assert found["controls"] == {"worker:0": "10.0.0.1:4222", "worker:1": "10.0.0.2:4222"}
    assert filters.training(shared)["survives"] is filters.training(cluster(), restarts=1)["survives"] is False


@pytest.mark.parametrize("least", [0, 3, "x", True, -1, 1.5])
def test_an_invalid_train_min_tasks_is_reported(least):
    [sentence] = filters.training({**cluster(), "shared": "/mnt/cluster"}, restarts=1, min_tasks=least)["problems"]
    assert sentence == f"train_min_tasks is {least!r}. Set a number from 1 to 2, the number of tasks."


@pytest.mark.parametrize(("shared", "restarts"), [("", 1), ("/mnt/cluster", 0)])
def test_train_min_tasks_requires_a_shared_folder_and_restarts(shared, restarts):
    [sentence] = filters.training({**cluster(), "shared": shared}, restarts=restarts, min_tasks=1)["problems"]
    assert sentence.startswith("train_min_tasks is 1, but a lost machine ends a training without tf_shared")


def part(task, ended=True, attempts=0, tasks=(), over=None):
    """Return a part of a training as tf_cluster.collect lists it."""
    own = "" if task == "worker:0" else f".{task.replace(':', '-')}"
    over = ended if over is None else over
    return {"id": f"r1{own}", "task": task, "ended": ended, "attempts": attempts, "tasks": list(tasks), "over": over}


@pytest.mark.parametrize(
    ("parts", "home"),
    [
        ({}, ("a", "r1")),
        ({"a": [part("worker:0", ended=False)], "b": [part("worker:1", ended=False)]}, ("a", "r1")),
        ({"a": [part("worker:0", attempts=1, tasks=["worker:0"])], "b": [part("worker:1")]}, ("a", "r1")),
        ({"a": [part("worker:0", ended=False)], "b": [part("worker:1", attempts=2, tasks=["worker:1"])]}, ("b", "r1.worker-1")),
        ({"b": [part("worker:1", attempts=2, tasks=["worker:1"])]}, ("b", "r1.worker-1")),
        ({"b": [part("worker:1", attempts=2, tasks=["worker:0", "worker:1"])]}, ("b", "r1.worker-1")),
        # The training continues without the unit of the first chief.
        ({"a": [part("worker:0", over=False)], "b": [part("worker:1", ended=False)]}, ("b", "r1.worker-1")),
        # The first chief is back and takes part after the next restart.
        (
            {
                "a": [part("worker:0", ended=False, attempts=2, tasks=["worker:1", "worker:2"])],
                "b": [part("worker:1", ended=False, attempts=2, tasks=["worker:1", "worker:2"])],
            },
            ("b", "r1.worker-1"),
        ),
    ],
)
def test_the_results_are_those_of_the_last_chief(parts, home):
    found = filters.training_home(parts, {"id": "r1", "machine": "a"})
    assert (found["machine"], found["part"]) == home


def test_a_training_is_over_if_a_part_says_so_or_all_have_ended():
    ended, running = part("worker:0", over=False), part("worker:1", ended=False)
    for parts, over in (([ended, running], False), ([ended], True), ([part("worker:0"), running], True), ([], True)):
        assert filters.training_home({"a": parts}, {"id": "r1", "machine": "a"})["over"] is over


def test_the_first_chief_is_a_part_like_the_others_if_another_task_is_the_chief():
    plan = {**filters.training(cluster(), "r1"), "chief": "worker:1", "first_chief": "worker:0"}
    assert filters.training_parts(plan, "a") == [{"task": "worker:0", "name": "worker-0", "id": "r1"}]
    assert filters.training_parts(plan, "b") == []
