"""Runs at the same time on different tasks, and runs in the queue."""

import itertools
import json
import re
import time

import pytest
from conftest import folder_of, said, verdict

# Counts in a variable on its worker:0 for some seconds; all runs give the variable the same name.
COUNT = """
import sys, time
import tensorflow.compat.v1 as tf
import tf_cluster
tf.disable_eager_execution()
first, seconds = map(float, sys.argv[1:])
with tf.device(tf_cluster.on("worker", 0)):
    total = tf.get_variable("total", initializer=first)
    more = tf.assign_add(total, 1.0)
count, end = 0, time.monotonic() + seconds
with tf_cluster.session(deadline=60) as session:
    session.run(total.initializer)
    print("step 1", flush=True)
    while time.monotonic() < end:
        found, count = session.run(more), count + 1
        time.sleep(0.05)
tf_cluster.save_result({"first": float(found) - count, "spec": tf_cluster.cluster()})
"""


@pytest.fixture
def request_run(cluster, tmp_path):
    """Return a function that requests a detached run and returns its ID and what the command said."""

    def request_run(text, **variables):
        path = tmp_path / "program.py"
        path.write_text(text, encoding="utf-8")
        given = json.dumps({"program": str(path), "detach": True, **variables})
        done = cluster.playbook("playbooks/run.yml", f"--extra-vars={given}")
        assert done.returncode == 0, said(done)
        return re.search(r"The run (\S+) continues", said(done))[1], said(done)

    return request_run


def listed(cluster):
    """Return the runs that runs.yml lists, run -> description."""
    done = cluster.playbook("playbooks/runs.yml")
    assert done.returncode == 0, said(done)
    runs = json.loads((cluster.output / "runs.json").read_text(encoding="utf-8"))["runs"]
    return {run["run"]: run for run in runs}


def notes(cluster, run):
    """Return the notes of a run."""
    return json.loads(cluster.shell(cluster.host, f"cat /var/lib/tf-cluster/runs/{run}/run.json")[cluster.host])


def collect(cluster, run, ok=True):
    """Wait for the end of a run and return its verdict."""
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert (done.returncode == 0) is ok, said(done)
    return verdict(folder_of(done))


def test_runs_on_different_tasks_are_isolated_and_run_at_the_same_time(cluster, request_run):
    first, _said = request_run(COUNT, run_tasks=1, program_args=[100, 25])
    second, words = request_run(COUNT, run_tasks=["worker:1"], program_args=[5, 20])
    third, _said = request_run("print('all')")
    assert "queued" not in words
    runs = listed(cluster)
    assert [(runs[run]["state"], runs[run]["tasks"]) for run in (first, second)] == [
        ("running", ["worker:0"]),
        ("running", ["worker:1"]),
    ]
    assert (runs[third]["state"], runs[third]["position"]) == ("queued", 1)
    assert runs[third]["reason"] == f"worker:0 is used by run {first}; worker:1 is used by run {second}"
    found = {run: collect(cluster, run) for run in (first, second)}
    assert [found[run]["result"]["first"] for run in (first, second)] == [100.0, 5.0]
    assert [list(found[run]["tasks"]) for run in (first, second)] == [["worker:0"], ["worker:1"]]
    hosts = {found[run]["result"]["spec"]["host"][0] for run in found}
    assert len(hosts) == 2  # a separate server for each
    assert {len(found[run]["result"]["spec"]["worker"]) for run in found} == {1}
    assert collect(cluster, third)["ok"]


def test_canceling_a_run_does_not_affect_another(cluster, request_run):
    first, _said = request_run(COUNT, run_tasks=1, program_args=[100, 300])
    second, _said = request_run(COUNT, run_tasks=1, program_args=[5, 12])
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={first}")
    assert done.returncode == 0, said(done)
    assert collect(cluster, second)["result"]["first"] == 5.0


def test_detached_runs_start_in_order_without_a_connected_controller(cluster, request_run, figures):
    text = "import os, time; open(os.environ['TF_CLUSTER_CONFIG']).read(); time.sleep(9)"
    runs = [request_run(text)[0] for _each in range(4)]
    seen = listed(cluster)
    positions = [seen[run]["position"] for run in runs if seen[run]["state"] == "queued"]
    assert positions == list(range(1, len(positions) + 1))
    assert positions
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and "ended" not in notes(cluster, runs[-1]):
        time.sleep(0.5)
    found = [notes(cluster, run) for run in runs]
    pairs = [(one, other) for one, other in itertools.pairwise(found) if other["queued"] < one["ended_clock"]]
    gaps = [other["started"] - one["ended"] for one, other in pairs]
    figures.append({"seconds from a run's end to the start of the next in the queue": [round(gap, 2) for gap in gaps]})
    assert [each["failure"] for each in found] == [""] * 4
    assert all(0 < gap < 5 for gap in gaps), gaps


def test_several_runs_are_canceled_with_one_command(cluster, request_run):
    runs = [request_run("import time; time.sleep(300)")[0] for _each in range(3)]
    last, _said = request_run("print('last')")
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={','.join(runs)}")
    assert done.returncode == 0, said(done)
    assert f"run {runs[0]} was canceled" in said(done)
    assert all(f"queued run {run} was canceled" in said(done) for run in runs[1:])
    assert collect(cluster, last)["ok"]
    assert "was canceled by" in collect(cluster, runs[0], ok=False)["failures"][0]
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={runs[0]},no-such-run")
    assert done.returncode != 0
    assert "no-such-run: there is no such run on " in said(done)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (3, "run_tasks is 3. Set a number up to 2, the number of worker tasks."),
        (["worker:7"], "run_tasks contains worker:7, which has no standing server."),
        ("many", "run_tasks is 'many'. Set a number of worker tasks, as in 2, or a list of tasks"),
    ],
)
def test_invalid_run_tasks_are_refused(cluster, tmp_path, wanted, words):
    (tmp_path / "program.py").write_text("print('never')", encoding="utf-8")
    done, folder = cluster.run(tmp_path / "program.py", f"--extra-vars={json.dumps({'run_tasks': wanted})}")
    assert done.returncode != 0
    assert folder is None
    assert words in said(done)


def test_a_run_needs_only_its_own_tasks(cluster, tmp_path):
    (tmp_path / "program.py").write_text(COUNT, encoding="utf-8")
    machine = cluster.machines("worker")[1]
    cluster.shell(machine, "systemctl stop tf-server@worker-1; echo done")
    try:
        given = {"program_args": [7, 1], "run_tasks": ["worker:0"]}
        done, folder = cluster.run(tmp_path / "program.py", f"--extra-vars={json.dumps(given)}")
        assert done.returncode == 0, said(done)
        assert verdict(folder)["result"]["first"] == 7.0
        done, folder = cluster.run(tmp_path / "program.py", f"--extra-vars={json.dumps({**given, 'run_tasks': 2})}")
        assert done.returncode != 0
        assert "The run needs 2 worker tasks (run_tasks), but 1 answer" in said(done), said(done)
    finally:
        cluster.shell(machine, "systemctl start tf-server@worker-1; echo done")
