"""What a run leaves on the servers: nothing, unless it is asked to keep it."""

import json
import re
import signal
import time

import pytest
from conftest import said

# Writes a variable, fills a queue and holds 300 MB on worker:1; or reads what is there. Then it ends as its second argument says.
PROGRAM = """
import json, os, signal, sys, time
import tensorflow.compat.v1 as tf
tf.disable_eager_execution()
spec = json.load(open(os.environ["TF_CLUSTER_CONFIG"]))
server = tf.train.Server(spec, job_name="host", task_index=0)
with tf.device("/job:worker/task:1"):
    weights = tf.get_variable("weights", [75_000_000], initializer=tf.ones_initializer(), use_resource=True)
    known = tf.is_variable_initialized(weights)
    queue = tf.FIFOQueue(10, [tf.float32], shared_name="queue")
    size, put = queue.size(), queue.enqueue(1.0)
with tf.Session(server.target) as session:
    print("found", int(session.run(known)), session.run(size), flush=True)
    if sys.argv[1] == "write":
        session.run([weights.initializer, put])
        print("written", flush=True)
end = sys.argv[2]
if end == "fails":
    sys.exit(3)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
while end == "stays":
    time.sleep(1)
"""


@pytest.fixture
def program(tmp_path):
    """Return the path of the program."""
    path = tmp_path / "state.py"
    path.write_text(PROGRAM, encoding="utf-8")
    return path


def found(cluster, program, what="read", end="ends", *words, ok=True):
    """Run the program and return what it found: whether the variable was there, and the elements of the queue."""
    done, folder = cluster.run(program, f"--extra-vars=program_args='{what} {end}'", *words)
    assert (done.returncode == 0) is ok, said(done)
    line = re.search(r"(?m)^found (\d) (\d)$", (folder / "stdout.log").read_text(encoding="utf-8"))
    return int(line[1]), int(line[2])


def memory(cluster):
    """Return unit -> resident memory in MB of each server."""
    lines = r"for u in $(systemctl list-units --plain --no-legend 'tf-server@*' | cut -d' ' -f1); do "
    lines += "echo $u $(grep VmRSS /proc/$(systemctl show --property=MainPID --value $u)/status | tr -dc 0-9); done"
    rows = [line.split() for text in cluster.shell("lab", lines).values() for line in text.splitlines()]
    return {unit: int(kilobytes) / 1000 for unit, kilobytes in rows}


def test_a_run_does_not_find_the_state_of_the_previous_run(cluster, program, figures):
    """The outcome of the previous run does not matter. Servers use as much memory as new ones and are not restarted."""
    time.sleep(3)  # a run may have ended just now
    before, pids = memory(cluster), cluster.pids()
    for end, ok in (("fails", False), ("killed", False)):
        assert found(cluster, program, "write", end, ok=ok) == (0, 0), end
    assert found(cluster, program) == (0, 0)
    time.sleep(3)
    after = memory(cluster)
    assert {unit: size for unit, size in after.items() if size > 1.05 * before[unit] + 5} == {}, (before, after)
    assert cluster.pids() == pids
    restarts = cluster.shell("worker", "systemctl show --property=NRestarts --value 'tf-server@*'")
    assert set(" ".join(restarts.values()).split()) == {"0"}
    rows = [
        {"memory of a server in MB": unit, "new": round(before[unit]), "after three runs": round(after[unit])} for unit in after
    ]
    figures += rows


def test_run_keep_state_keeps_the_state_only_for_the_next_run(cluster, program):
    keep = "--extra-vars=run_keep_state=true"
    assert found(cluster, program, "write", "ends", keep) == (0, 0)
    status = cluster.playbook("playbooks/status.yml")
    assert status.returncode == 0, said(status)
    assert re.search(r"worker:1.*holds the state of run \S+ since \S+ The next run finds it", said(status)), said(status)
    assert found(cluster, program) == (1, 1)
    assert found(cluster, program) == (0, 0)
    assert "holds the state" not in said(cluster.playbook("playbooks/status.yml"))


def test_a_canceled_run_leaves_no_state(cluster, program):
    run, identity = begin(cluster, program)
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={identity}")
    assert "canceled" in said(done)
    run.communicate(timeout=120)
    assert found(cluster, program) == (0, 0)


def test_a_run_whose_machine_failed_leaves_no_state(cluster, program):
    """The failed machine could not clear the servers, so the next run clears them."""
    run, identity = begin(cluster, program)
    cluster.podman("restart", cluster.host, "--time=0")
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    cluster.wait_for(cluster.host)
    done, folder = cluster.run(program, "--extra-vars=program_args='read ends'")
    assert done.returncode == 0, said(done)
    output = (folder / "stdout.log").read_text(encoding="utf-8")
    assert "found 0 0" in output
    assert re.search(r"\[cluster\] worker:1 is cleared of the state of ", output)
    status = json.loads((cluster.output / folder.name / "run.json").read_text(encoding="utf-8"))
    assert status["clear_before"] == "lost"
    collected = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={identity}")
    assert "lost: its machine or its systemd was restarted" in said(collected), said(collected)


def begin(cluster, program):
    """Start a run that writes state and stays; return the command and the run's ID."""
    run = cluster.begin(
        "ansible-playbook", "playbooks/run.yml", f"--extra-vars=program={program}", "--extra-vars=program_args='write stays'"
    )
    identity, lines = "", []
    for line in run.stdout:
        lines.append(line)
        named = re.search(r"the run (\S+) is sent", line)
        identity = named[1] if named else identity
        if "written" in line:
            return run, identity
    raise AssertionError("".join(lines))
