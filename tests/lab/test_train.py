"""Trainings: all tasks start, end and are collected together."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import folder_of, said, verdict


@pytest.fixture(scope="session")
def train(cluster):
    """Return a function that trains and returns the command and the run's folder."""

    def train(program, seconds=300, **values):
        words = {"program": str(program), "run_timeout": 120, **values}
        done = cluster.playbook("playbooks/train.yml", f"--extra-vars={json.dumps(words)}", seconds=seconds)
        return done, folder_of(done)

    return train


@pytest.fixture
def program(tmp_path):
    """Return a function that writes a program which knows its task, and returns its path."""

    def write(text, name="program.py"):
        head = "import json, os, sys, time\ntask = json.loads(os.environ['TF_CONFIG'])['task']\n"
        (tmp_path / name).write_text(head + text, encoding="utf-8")
        return tmp_path / name

    return write


def workers(cluster):
    """Return the machines of the workers in the order of their tasks."""
    listed = cluster.command("ansible", "worker", "--list-hosts").stdout
    return listed.split()[2:]


# Batches from a generator of the chief, which the workers ask for: they still prefetch when the program exits.
GENERATOR = """
import os
import tensorflow as tf
os.environ.setdefault("GRPC_FAIL_FAST", "use_caller")
strategy = tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
def numbers():
    yield from map(float, range(1000))
def batches(_context):
    signature = tf.TensorSpec((), tf.float32)
    return tf.data.Dataset.from_generator(numbers, output_signature=signature).batch(10).repeat()
@tf.function
def step(iterator):
    return tf.reduce_sum(next(iterator))
iterator = iter(coordinator.create_per_worker_dataset(lambda: strategy.distribute_datasets_from_function(batches)))
values = [coordinator.schedule(step, args=(iterator,)) for _ in range(20)]
coordinator.join()
print("smallest sum", min(value.fetch() for value in values), flush=True)
"""


def test_a_program_with_a_python_generator_for_parameter_servers_exits(cluster, tmp_path):
    (tmp_path / "generator.py").write_text(GENERATOR, encoding="utf-8")
    for _time in range(3):  # without _leave_functions of run/startup, every second run hangs
        done, folder = cluster.run(tmp_path / "generator.py", "--extra-vars=run_task=chief:0", "--extra-vars=run_timeout=40")
        assert done.returncode == 0, said(done)
        assert "smallest sum 45.0" in (folder / "stdout.log").read_text(encoding="utf-8")


def running(cluster):
    """Return the units of runs that there are on the machines."""
    line = "systemctl list-units --all --plain --no-legend 'tf-run-*.service' | cut -d' ' -f1"
    return " ".join(cluster.shell("lab", line).values()).split()


def test_a_failing_task_stops_the_training_and_is_named(cluster, train, program):
    failing = program("print('begun', flush=True)\nif task['index'] == 1: time.sleep(3); sys.exit(3)\ntime.sleep(600)")
    begun = time.monotonic()
    done, folder = train(failing)
    assert done.returncode != 0
    assert time.monotonic() - begun < 30
    assert "A lost machine ends this training, because its checkpoints are not shared (tf_shared in the inventory)." in said(done)
    found = verdict(folder)
    assert found["failures"] == [f"The program of worker:1 on machine {workers(cluster)[1]} exited with status 3."]
    assert found["seconds"] < 10
    assert [task["outcome"] for task in found["training"]["tasks"].values()] == [
        "was stopped with the others",
        "exited with status 3",
    ]
    assert "begun" in (folder / "tasks/worker-1/stdout.log").read_text(encoding="utf-8")
    assert running(cluster) == []


def test_a_failing_training_stops_after_the_allowed_restarts(train, program):
    done, folder = train(program("sys.exit(task['index'])"), train_restarts=2)
    assert done.returncode != 0
    assert verdict(folder)["training"]["attempts"] == 3


@pytest.mark.parametrize(("machine", "port", "words"), [(1, 3222, "its port 3222"), (0, 4222, "Port 4222, which coordinates")])
def test_a_port_in_use_is_reported(cluster, train, program, machine, port, words):
    name = workers(cluster)[machine]
    cluster.shell(name, f"systemd-run --quiet --unit=stranger python3 -m http.server {port}; sleep 1; echo done")
    try:
        begun = time.monotonic()
        done, folder = train(program("time.sleep(600)"))
        assert time.monotonic() - begun < 40
    finally:
        cluster.shell(name, "systemctl stop stranger; echo done")
    assert done.returncode != 0
    [failure] = verdict(folder)["failures"]
    assert re.search(rf"{words} .*is in use by", failure), failure
    assert "train_port_offset" in failure
    assert running(cluster) == []


@pytest.mark.parametrize(("seconds", "limit", "succeeds"), [(12, 600, True), (600, 2, False)])
def test_a_training_waits_for_the_tasks_that_another_one_uses(cluster, train, program, seconds, limit, succeeds):
    """The chief's task is free, so that the chief waits for the other part."""
    other, _folder = train(program(f"time.sleep({seconds})"), run_tasks=["worker:1"], detach=True)
    run = re.search(r"The run (\S+) continues", said(other))[1]
    try:
        done, folder = train(program("print('hello')"), run_queue_timeout=limit, train_join=4)
    finally:
        cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")
    assert f"worker:1 is used by run {run}" in (said(done) if succeeds else verdict(folder)["failures"][0])
    assert (done.returncode == 0) == succeeds, said(done)


def test_trainings_on_different_tasks_run_at_the_same_time(cluster, train, program):
    """If a training requests a number of workers, it gets free ones. Each training has indices from 0."""
    text = "print(json.loads(os.environ['TF_CONFIG']), flush=True); time.sleep(8)"
    first, _folder = train(program(text), run_tasks=1, detach=True)
    done, folder = train(program(text), run_tasks=1)
    assert done.returncode == 0, said(done)
    assert "queued" not in said(done)
    [task] = verdict(folder)["training"]["tasks"]
    assert task == "worker:1"
    assert "'task': {'type': 'worker', 'index': 0}" in (folder / "stdout.log").read_text(encoding="utf-8")
    run = re.search(r"The run (\S+) continues", said(first))[1]
    attached = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert attached.returncode == 0, said(attached)
    assert list(verdict(folder_of(attached))["training"]["tasks"]) == ["worker:0"]
    assert verdict(folder_of(attached))["started"] < verdict(folder)["started"]


def test_a_queued_training_starts_without_a_connected_controller(cluster, train, program):
    runs = []
    for _each in range(2):
        done, _folder = train(program("time.sleep(8)"), detach=True)
        assert done.returncode == 0, said(done)
        runs.append(re.search(r"The run (\S+) continues", said(done))[1])
    assert "queued at position 1: worker:0 is used by run " + runs[0] in said(done)
    attached = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={runs[1]}")
    assert attached.returncode == 0, said(attached)


def test_two_trainings_started_at_the_same_time_run_one_after_the_other(train, program):
    long = program("print('here', flush=True); time.sleep(8)")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda _each: train(long)[0], range(2)))
    assert [each.returncode for each in done] == [0, 0], said(done[0]) + said(done[1])
    assert "queued at position 1: worker:0 is used by run 2" in said(done[0]) + said(done[1])


def test_the_time_limit_stops_all_tasks_of_a_training(cluster, train, program):
    done, folder = train(program("time.sleep(600)"), run_timeout=4)
    assert done.returncode != 0
    assert "was stopped after 4 s (run_timeout); still running: worker:0, worker:1" in verdict(folder)["failures"][0]
    assert running(cluster) == []


def test_a_detached_training_can_be_canceled(cluster, train, program):
    done, _folder = train(program("print('here', flush=True); time.sleep(600)"), detach=True)
    assert done.returncode == 0, said(done)
    run = re.search(r"The run (\S+) continues", said(done))[1]
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    found = verdict(folder_of(done))
    assert "was canceled by" in found["failures"][0]
    assert [task["outcome"] for task in found["training"]["tasks"].values()] == [
        "was stopped from outside",
        "was stopped with the others",
    ]
    assert "here" in (folder_of(done) / "tasks/worker-1/stdout.log").read_text(encoding="utf-8")
    assert running(cluster) == []


def test_a_training_is_collected_while_the_host_machine_is_unreachable(cluster, train, program):
    """All results are on the machines of the training."""
    done, _folder = train(program("print('here', flush=True)"), detach=True)
    assert done.returncode == 0, said(done)
    run = re.search(r"The run (\S+) continues", said(done))[1]
    cluster.podman("pause", cluster.host)
    try:
        done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    finally:
        cluster.podman("unpause", cluster.host)
    assert "here" in (folder_of(done) / "tasks/worker-1/stdout.log").read_text(encoding="utf-8"), said(done)
    assert verdict(folder_of(done))["failures"] == []
    for machine, part in zip(cluster.machines("worker"), (run, f"{run}.worker-1")):
        assert "collected" in json.loads(cluster.inside(machine, f"cat /var/lib/tf-cluster/runs/{part}/run.json"))


def test_a_separate_chief_takes_part_in_a_training(cluster, train, program):
    text = "print(task, sorted(json.loads(os.environ['TF_CONFIG'])['cluster']))"
    done, folder = train(program(text), train_jobs=["chief", "worker"])
    assert done.returncode == 0, said(done)
    found = verdict(folder)["training"]
    assert found["chief"] == "chief:0"
    assert found["tasks"]["chief:0"]["machine"] == cluster.host
    assert (folder / "stdout.log").read_text(encoding="utf-8") == "{'type': 'chief', 'index': 0} ['chief', 'worker']\n"
    assert {path.name for path in (folder / "tasks").iterdir()} == {"worker-0", "worker-1"}


def test_a_run_on_the_host_task_does_not_wait_for_a_missing_chief(cluster):
    done = cluster.playbook("run_demo.yml", "--extra-vars=run_timeout=30")
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize(
    ("playbook", "values", "words"),
    [
        ("train.yml", {"train_jobs": ["ps"]}, "run_task=chief:0"),
        ("train.yml", {"train_port_offset": 64000}, "train_port_offset is 64000"),
        ("run.yml", {"run_task": "worker:0"}, "which has a standing server"),
        ("run.yml", {"run_task": "chief:7"}, "which is not a task of the cluster"),
    ],
)
def test_invalid_variables_are_reported_before_a_run_starts(cluster, program, playbook, values, words):
    values = {"program": str(program("pass")), **values}
    done = cluster.playbook(f"playbooks/{playbook}", f"--extra-vars={json.dumps(values)}")
    assert done.returncode != 0
    assert words in said(done), said(done)
    assert folder_of(done) is None
