#!/usr/bin/env python3
"""What runs cost on a cluster: time around a program, memory of servers after many runs, the queue, runs at the same time.

    .venv/bin/python tests/bench/runs.py -i inventory/lab

Needs a cluster with an even number of workers; the options are those of ``ansible-playbook``. Prints lines of Markdown for
docs/performance.md. ``ROUNDS`` in the environment: how often what takes seconds is measured (5).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROUNDS = int(os.environ.get("ROUNDS", "5"))
RUNS_WITH_MEMORY, QUEUED, SECONDS = 20, 10, 5
MEGABYTES = 600
FILL = f"""
import tensorflow.compat.v1 as tf
import tf_cluster
tf.disable_eager_execution()
variables = []
for task in tf_cluster.tasks("worker"):
    with tf.device(task):
        variables.append(tf.get_variable(f"big{{len(variables)}}", [{MEGABYTES} * 250_000], initializer=tf.ones_initializer()))
with tf_cluster.session(deadline=120) as session:
    session.run([variable.initializer for variable in variables])
"""
COUNT = """
import time
import tensorflow.compat.v1 as tf
import tf_cluster
tf.disable_eager_execution()
products = []
for task in tf_cluster.tasks("worker"):
    with tf.device(task):
        matrix = tf.random.uniform([400, 400])
        products.append(tf.reduce_sum(tf.matmul(matrix, matrix)))
end = time.monotonic() + 20
with tf_cluster.session(deadline=60) as session:
    while time.monotonic() < end:
        session.run(products)
        time.sleep(0.1)
"""


class Cluster:
    """Commands on the cluster."""

    def __init__(self, options: list[str], folder: Path) -> None:
        self.options, self.folder = options, folder

    def call(self, *words: str, **given: object) -> float:
        """Run one of Ansible's commands and return how long it took; exit with its output if it fails."""
        command = [str(BIN / words[0]), *self.options, *words[1:]]
        command += ["-e", json.dumps({"tf_output": str(self.folder), **given})] if words[0] == "ansible-playbook" else []
        begun = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return time.perf_counter() - begun

    def run(self, text: str, **given: object) -> float:
        """Run a program and return how long the command took."""
        path = self.folder / "program.py"
        path.write_text(text, encoding="utf-8")
        return self.call("ansible-playbook", "playbooks/run.yml", program=str(path), **given)

    def memory(self) -> dict[str, int]:
        """Return task -> resident memory of its server in MB."""
        self.call("ansible-playbook", "playbooks/status.yml")
        tasks = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))["tasks"]
        return {task["task"]: task["memory_mb"] for task in tasks if task["memory_mb"]}

    def runs(self) -> list[dict[str, float]]:
        """Return all runs in the order of their requests."""
        self.call("ansible-playbook", "playbooks/runs.yml")
        found = json.loads((self.folder / "runs.json").read_text(encoding="utf-8"))["runs"]
        return sorted(found, key=lambda run: float(run["requested"]))

    def finished(self, count: int) -> list[dict[str, float]]:
        """Wait until the last runs have ended and return them."""
        while any(run["ended"] is None for run in self.runs()[-count:]):
            time.sleep(5)
        return self.runs()[-count:]


def listed(values: list[float]) -> str:
    """Return the median, and all values in brackets."""
    return f"{statistics.median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"


def main() -> None:
    """Measure and print."""
    options = sys.argv[1:] or ["-i", "inventory/lab"]
    with tempfile.TemporaryDirectory() as name:
        cluster = Cluster(options, Path(name))
        around, pings = [], []
        for _round in range(ROUNDS):
            pings.append(cluster.call("ansible", "all", "-m", "ping"))
            whole = cluster.call("ansible-playbook", "run_demo.yml")
            verdict = json.loads((cluster.folder / "latest/verdict.json").read_text(encoding="utf-8"))
            around.append(whole - verdict["seconds"])
        print(f"| `run_demo.yml` without its program | {listed(around)} s, with a ping of {listed(pings)} s |", flush=True)

        time.sleep(3)  # the servers were just cleared
        cluster.run("pass")
        time.sleep(3)
        before = cluster.memory()
        for _run in range(RUNS_WITH_MEMORY):
            cluster.run(FILL)
        time.sleep(3)
        after = cluster.memory()
        growth = ", ".join(f"{task} {before[task]} -> {after[task]} MB" for task in before)
        print(f"| memory of servers before and after {RUNS_WITH_MEMORY} runs of {MEGABYTES} MB | {growth} |", flush=True)

        for _run in range(QUEUED):
            cluster.run(f"import time; time.sleep({SECONDS})", detach=True)
        time.sleep(QUEUED * SECONDS)
        runs = cluster.finished(QUEUED)
        gaps = [other["started"] - one["ended"] for one, other in pairwise(runs) if other["requested"] < one["ended"]]
        print(f"| from the end of a queued run to the start of the next | {listed(gaps)} s |", flush=True)

        half = len(before) // 2
        cluster.run(COUNT, run_tasks=half, detach=True)
        cluster.run(COUNT, run_tasks=half, detach=True)
        both = cluster.finished(2)
        at_once = max(run["ended"] for run in both) - min(run["started"] for run in both)
        cluster.run(COUNT, detach=True)
        cluster.run(COUNT, detach=True)
        both = cluster.finished(2)
        in_turn = max(run["ended"] for run in both) - min(run["started"] for run in both)
        print(f"| two runs of 20 s on {half} tasks each; one after the other | {at_once:.1f} s; {in_turn:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
