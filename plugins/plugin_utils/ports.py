"""The ports of a cluster's tasks, of their trainings and of the servers of programs that run at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Cluster = dict[str, Any]  # as the filter cluster_spec returns it
Task = dict[str, Any]  # one of its tasks

TRAINING_JOBS = ("chief", "worker")  # of MultiWorkerMirroredStrategy; the first task of the first job is the chief
MAX_PORT = 65535


class Ports:
    """Assigns free ports of machines."""

    def __init__(self, cluster: Cluster, offset: int) -> None:
        self.offset, self.highest = offset, 0
        self.taken = {machine: {task["port"] for task in tasks} for machine, tasks in cluster["machines"].items()}

    def port(self, task: Task, base: int) -> int:
        """Return a free port of the task's machine, at least ``offset`` above ``base``."""
        taken, port = self.taken[task["machine"]], base + self.offset
        while port in taken:
            port += 1
        taken.add(port)
        self.highest = max(self.highest, port)
        return port


def tasks_of(cluster: Cluster, job: str) -> list[Task]:
    """Return the tasks of a job, by index."""
    found = [task for tasks in cluster["machines"].values() for task in tasks if task["job"] == job]
    return sorted(found, key=lambda task: int(task["index"]))


def task_name(task: Task) -> str:
    """Return a task's name, as in "worker:0"."""
    return f"{task['job']}:{task['index']}"


def training_ports(cluster: Cluster, jobs: Sequence[str]) -> tuple[dict[str, int], dict[str, int], int]:
    """Return task -> port of its part of a training, task -> port of the coordinator if it is the chief, and the highest port."""
    offset = cluster["train_port_offset"]
    tasks, free = [task for job in TRAINING_JOBS if job in jobs for task in tasks_of(cluster, job)], Ports(cluster, offset)
    parts = {task_name(task): free.port(task, task["port"]) for task in tasks}
    control = {task_name(task): free.port(task, task["port"] + offset) for task in tasks}
    return parts, control, free.highest


def all_training_ports(cluster: Cluster) -> list[tuple[dict[str, int], dict[str, int], int]]:
    """Return the ports of each training that the cluster can run: of one of the jobs, and of both."""
    return [training_ports(cluster, jobs) for jobs in (*([job] for job in TRAINING_JOBS), TRAINING_JOBS)]


def offset_problem(cluster: Cluster, highest: int) -> list[str]:
    """Return a sentence if the highest port of trainings does not exist."""
    if highest <= MAX_PORT:
        return []
    return [f"train_port_offset is {cluster['train_port_offset']}, which leads to port {highest}. Set a smaller number."]


def own_addresses(cluster: Cluster, name: str) -> list[str]:
    """Return the addresses for the servers of programs that run as this task at the same time; the first one is the task's own.

    The others are above the ports of trainings. Ports above 65535 are left out.
    """
    found = [task for tasks in cluster["machines"].values() for task in tasks if task_name(task) == name]
    if not found:
        return []
    [task], offset = found, cluster["train_port_offset"]
    free = Ports(cluster, offset)
    for parts, control, _highest in all_training_ports(cluster):
        for other, port in (*parts.items(), *control.items()):
            free.taken[cluster["tasks"][other]].add(port)
    ports = [task["port"], *(free.port(task, task["port"] + 2 * offset) for _slot in range(1, int(cluster["run_slots"])))]
    return [f"{task['address']}:{port}" for port in ports if port <= MAX_PORT]
