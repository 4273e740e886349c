"""Compute a training: its tasks, their machines and their ports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Cluster = dict[str, Any]  # as the filter cluster_spec returns it
Task = dict[str, Any]  # one of its tasks

JOBS = ("chief", "worker")  # of MultiWorkerMirroredStrategy; the first task of the first job is the chief
ENDS = ("all", "chief")  # the tasks whose end is the training's
MAX_PORT = 65535


def training(
    cluster: Cluster,
    run_id: str = "",
    jobs: str | Iterable[str] = "worker",
    restarts: Any = 0,  # this, join and the cluster's offset are not validated yet
    join: Any = 60,
    ends_with: Any = "all",
) -> dict[str, Any]:
    """Return the training of the tasks of these jobs, or all problems of the options."""
    jobs = [job.strip() for job in jobs.split(",")] if isinstance(jobs, str) else list(jobs)
    problems = [problem for job in jobs if (problem := _job_problem(job, cluster))]
    numbers: dict[str, Any] = {}
    offset = cluster["train_port_offset"]
    for name, value, lowest in (("train_port_offset", offset, 1), ("train_restarts", restarts, 0), ("train_join", join, 1)):
        try:
            numbers[name] = float(value) if name == "train_join" else int(value)
        except (TypeError, ValueError):
            numbers[name] = lowest - 1
        if not lowest <= numbers[name] <= MAX_PORT:
            problems.append(f"{name} is {value!r}. Set a number from {lowest} to {MAX_PORT}.")
    if ends_with not in ENDS:
        problems.append(f"train_ends_with is {ends_with!r}. Set {' or '.join(ENDS)}.")
    if not jobs:
        problems.append("train_jobs is empty. Set jobs, as in [worker].")
    if problems:
        return {"problems": problems}
    tasks = [task for job in JOBS if job in jobs for task in _tasks(cluster, job)]
    free = _Ports(cluster, numbers["train_port_offset"])
    entries = {_name(task): f"{task['address']}:{free.port(task, task['port'])}" for task in tasks}
    control = free.port(tasks[0], tasks[0]["port"] + numbers["train_port_offset"])
    if free.highest > MAX_PORT:
        return {"problems": [f"train_port_offset is {offset}, which leads to port {free.highest}. Set a smaller number."]}
    return {
        "problems": [],
        "id": run_id,
        "chief": _name(tasks[0]),
        "control": f"{tasks[0]['address']}:{control}",
        "cluster": {job: [entries[_name(task)] for task in _tasks(cluster, job)] for job in JOBS if job in jobs},
        "machines": {_name(task): task["machine"] for task in tasks},
        "restarts": numbers["train_restarts"],
        "join": numbers["train_join"],
        "ends_with": ends_with,
    }


def cluster_ports(cluster: Cluster, machine: str | None = None) -> list[int]:
    """Return the sorted ports of the tasks of one or all machines, including the ports of their trainings."""
    own = [task for name, tasks in cluster["machines"].items() if machine in (None, name) for task in tasks]
    ports = {task["port"] for task in own}
    jobs = [job for job in JOBS if _tasks(cluster, job)]
    for chosen in {(job,) for job in jobs} | {tuple(jobs)}:
        plan = training(cluster, jobs=chosen)
        if plan["problems"]:
            raise ValueError(" ".join(plan["problems"]))
        entries = [(task, entry) for job in plan["cluster"] for task, entry in _entries(plan, job)]
        entries += [(plan["chief"], plan["control"])]
        ports |= {int(entry.rpartition(":")[2]) for task, entry in entries if machine in (None, plan["machines"][task])}
    return sorted(ports)


def _entries(plan: dict[str, Any], job: str) -> list[tuple[str, str]]:
    return [(f"{job}:{index}", entry) for index, entry in enumerate(plan["cluster"][job])]


def training_parts(training: dict[str, Any] | None, machine: str) -> list[dict[str, str]]:
    """Return the tasks of a training on one machine, without the chief's, each with the id of its part."""
    training = training or {}
    return [
        {"task": task, "name": task.replace(":", "-"), "id": f"{training['id']}.{task.replace(':', '-')}"}
        for task, its_machine in training.get("machines", {}).items()
        if its_machine == machine and task != training["chief"]
    ]


class _Ports:
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


def _job_problem(job: str, cluster: Cluster) -> str:
    if job not in JOBS:
        hint = " For parameter servers, use playbooks/run.yml -e run_task=chief:0." if job == "ps" else ""
        return f"train_jobs contains '{job}'. The jobs of a training are {' and '.join(JOBS)}.{hint}"
    if not _tasks(cluster, job):
        return f"train_jobs contains '{job}', but the group '{job}' has no machine."
    return ""


def _tasks(cluster: Cluster, job: str) -> list[Task]:
    found = [task for tasks in cluster["machines"].values() for task in tasks if task["job"] == job]
    return sorted(found, key=lambda task: task["index"])


def _name(task: Task) -> str:
    return f"{task['job']}:{task['index']}"


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"training": training, "training_parts": training_parts, "cluster_ports": cluster_ports}
