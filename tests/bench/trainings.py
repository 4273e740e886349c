#!/usr/bin/env python3
"""Steps per second of a training: deployed on all workers, started by hand on them, and deployed on one.

    .venv/bin/python tests/bench/trainings.py -i inventory/lab

Needs a cluster; the options are those of ``ansible-playbook``. Prints a line of Markdown for docs/performance.md. ``ROUNDS`` in
the environment: how often each is measured, in turn (3).
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from runs import BIN, ROOT, Cluster

ROUNDS = int(os.environ.get("ROUNDS", "3"))
PORT = 4900  # of the processes that are started by hand
PYTHON = "/opt/tf-cluster/venv/bin/python"
PROGRAM = """
import time
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    weights = [tf.Variable(tf.random.stateless_normal([512, 512], [1, each]) / 512) for each in range(4)]
data = tf.random.stateless_normal([256, 512], [2, 2])

@tf.function
def step():
    def replica():
        with tf.GradientTape() as tape:
            value = data
            for weight in weights:
                value = tf.tanh(value @ weight)
            loss = tf.reduce_mean(value**2)
        context = tf.distribute.get_replica_context()
        for weight, gradient in zip(weights, tape.gradient(loss, weights)):
            weight.assign_sub(0.1 * context.all_reduce(tf.distribute.ReduceOp.MEAN, gradient))
    strategy.run(replica)

for _each in range(20):
    step()
begun = time.perf_counter()
for _each in range(300):
    step()
print(f"{300 / (time.perf_counter() - begun):.2f} steps/s", flush=True)
"""


def rate(text: str) -> float:
    """Return the steps per second that a program has printed."""
    found = re.search(r"([0-9.]+) steps/s", text)
    if not found:
        sys.exit(f"the program printed no rate:\n{text[-3000:]}")
    return float(found[1])


def deployed(cluster: Cluster, **given: object) -> float:
    """Run the program with train.yml and return its rate."""
    cluster.call("ansible-playbook", "playbooks/train.yml", program=str(cluster.folder / "training.py"), **given)
    return rate((cluster.folder / "latest/stdout.log").read_text(encoding="utf-8"))


def by_hand(cluster: Cluster, addresses: dict[str, str]) -> float:
    """Start the program with a shell on each worker at the same time and return its rate. ``addresses``: machine -> address."""
    entries = [f"{address}:{PORT}" for address in addresses.values()]
    processes = []
    for index, machine in enumerate(addresses):
        config = json.dumps({"cluster": {"worker": entries}, "task": {"type": "worker", "index": index}})
        command = [str(BIN / "ansible"), *cluster.options, machine, "--become", "-m", "shell"]
        command += ["-a", f"TF_CONFIG='{config}' TF_CPP_MIN_LOG_LEVEL=1 {PYTHON} /tmp/training.py"]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    return rate(outputs[0])


def main() -> None:
    """Measure and print."""
    options = sys.argv[1:] or ["-i", "inventory/lab"]
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(options, Path(name))
        (cluster.folder / "training.py").write_text(PROGRAM, encoding="utf-8")
        cluster.call(
            "ansible", "worker", "--become", "-m", "copy", "-a", f"src={cluster.folder}/training.py dest=/tmp/training.py"
        )
        cluster.call("ansible-playbook", "playbooks/status.yml")
        status = json.loads((cluster.folder / "status.json").read_text(encoding="utf-8"))["tasks"]
        workers = [task for task in status if task["task"].startswith("worker:")]
        addresses = {task["machine"]: task["address"].rpartition(":")[0] for task in workers}
        opened = {"firewall_enabled": False}
        cluster.call("ansible-playbook", "site.yml", **opened)  # for the port of the processes that are started by hand
        found: dict[str, list[float]] = {"deployed": [], "by hand": [], "one worker": []}
        for _round in range(ROUNDS):
            found["deployed"].append(deployed(cluster, **opened))
            found["by hand"].append(by_hand(cluster, addresses))
            found["one worker"].append(deployed(cluster, run_tasks=1, **opened))
        cluster.call("ansible-playbook", "site.yml")
        for what, values in found.items():
            shown = ", ".join(f"{value:.1f}" for value in values)
            print(f"| training, {what} | {statistics.median(values):.1f} steps/s ({shown}) |", flush=True)


if __name__ == "__main__":
    main()
