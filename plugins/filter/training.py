"""Compute a training: its tasks, their machines and their ports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.spec.cluster_config import RUN_JOBS
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.ports import (
    TRAINING_JOBS,
    Cluster,
    all_training_ports,
    offset_problem,
    own_addresses,
    task_name,
    tasks_of,
    training_ports,
)
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.variables import number_of

LOSS_IS_THE_END = "a lost machine ends a training without tf_shared (in the inventory) and train_restarts."
MOST = 65535  # restarts, and seconds to join
ENDS = ("all", "chief")  # the tasks whose end is the training's


def training(
    cluster: Cluster,
    run_id: str = "",
    jobs: str | Iterable[str] = "worker",
    restarts: Any = 0,  # this, join and the cluster's offset are not validated yet
    join: Any = 60,
    ends_with: Any = "all",
    reserved: dict[str, Any] | None = None,
    busy: Iterable[str] = (),
    min_tasks: Any = "",
    queue_timeout: Any = 600,
    detached: bool = False,
) -> dict[str, Any]:
    """Return the training of the tasks of these jobs, or all problems of the options.

    ``reserved`` is the result of the function reservation. Of a number of workers, those that are ``busy`` come last.
    ``min_tasks`` is the number of tasks with which the training continues after machines were lost; empty: all. If one of its
    tasks is busy, and in a ``detached`` training, parts may be queued for ``queue_timeout`` seconds, 0 in the result otherwise.
    """
    jobs = [job.strip() for job in jobs.split(",")] if isinstance(jobs, str) else list(jobs)
    problems = [problem for job in jobs if (problem := _job_problem(job, cluster))]
    numbers = {"train_restarts": number_of(restarts), "train_join": number_of(join)}
    for name, value, kind, lowest in (("train_restarts", restarts, "whole number", 0), ("train_join", join, "number", 1)):
        if not lowest <= numbers[name] <= MOST or (kind == "whole number" and numbers[name] % 1):
            problems.append(f"{name} is {value!r}. Set a {kind} from {lowest} to {MOST}.")
    if ends_with not in ENDS:
        problems.append(f"train_ends_with is {ends_with!r}. Set {' or '.join(ENDS)}.")
    if not jobs:
        problems.append("train_jobs is empty. Set jobs, as in [worker].")
    reserved = reserved or {}
    chosen = _chosen(cluster, jobs, reserved, set(busy))
    if reserved.get("none"):
        problems.append("run_tasks is 0. A training needs at least one task.")
    problems += reserved.get("problems", []) or [
        f"run_tasks contains {name}, which is not a task of train_jobs ({', '.join(jobs)})."
        for name in reserved.get("names", [])
        if name.partition(":")[0] not in jobs
    ]
    if problems:
        return {"problems": problems}
    ports, control, highest = training_ports(cluster, jobs)
    if problems := offset_problem(cluster, highest):
        return {"problems": problems}
    tasks = [task for job in TRAINING_JOBS if job in jobs for task in tasks_of(cluster, job) if task_name(task) in chosen]
    least, survives = len(tasks), bool(cluster.get("shared")) and numbers["train_restarts"] > 0
    if min_tasks not in ("", None):
        text = str(min_tasks)
        least = int(text) if text.isdecimal() and not isinstance(min_tasks, bool) else 0
        if not 1 <= least <= len(tasks):
            return {"problems": [f"train_min_tasks is {min_tasks!r}. Set a number from 1 to {len(tasks)}, the number of tasks."]}
        if not survives:
            return {"problems": [f"train_min_tasks is {text}, but {LOSS_IS_THE_END} Set both, or remove train_min_tasks."]}
    entries = {task_name(task): f"{task['address']}:{ports[task_name(task)]}" for task in tasks}
    wait = number_of(queue_timeout)
    queue = wait if wait > 0 and (detached or not chosen.isdisjoint(busy)) else 0  # program_problems reports an invalid one
    chief = task_name(tasks[0])
    return {
        "problems": [],
        "id": run_id,
        "chief": chief,
        "control": f"{tasks[0]['address']}:{control[chief]}",
        "controls": {task_name(task): f"{task['address']}:{control[task_name(task)]}" for task in tasks},
        "cluster": {job: found for job in TRAINING_JOBS if (found := [entries[task_name(t)] for t in tasks if t["job"] == job])},
        "entries": entries,
        "machines": {task_name(task): task["machine"] for task in tasks},
        "restarts": int(numbers["train_restarts"]),
        "join": numbers["train_join"],
        "queue_timeout": queue,
        "ends_with": ends_with,
        "min_tasks": least,
        "survives": survives,
    }


def cluster_ports(cluster: Cluster, machine: str | None = None) -> list[int]:
    """Return the sorted ports of one or all machines: of tasks, of their trainings, and of programs that run at the same time."""
    own = [task for name, tasks in cluster["machines"].items() if machine in (None, name) for task in tasks]
    ports = {task["port"] for task in own}
    for parts, control, _highest in all_training_ports(cluster):
        ports |= {port for name, port in (*parts.items(), *control.items()) if machine in (None, cluster["tasks"][name])}
    for task in own:
        if task["job"] in RUN_JOBS:
            ports |= {int(entry.rpartition(":")[2]) for entry in own_addresses(cluster, task_name(task))}
    return sorted(ports)


def _chosen(cluster: Cluster, jobs: list[str], reserved: dict[str, Any], busy: set[str]) -> set[str]:
    """Return the names of the tasks that take part."""
    names = [task_name(task) for job in jobs if job in TRAINING_JOBS for task in tasks_of(cluster, job)]
    if reserved.get("names"):
        return set(reserved["names"]) | {name for name in names if name.startswith("chief:")}  # it has no server to reserve
    workers = sorted((name for name in names if name.startswith("worker:")), key=lambda name: name in busy)
    return {name for name in names if not name.startswith("worker:")} | set(workers[: reserved.get("count") or len(workers)])


def training_parts(training: dict[str, Any] | None, machine: str) -> list[dict[str, str]]:
    """Return the tasks of a training on one machine, without the chief's, each with the id of its part.

    The part of the first chief has the training's ID, also if another task is the chief now.
    """
    training = training or {}
    first = training.get("first_chief", training.get("chief"))
    return [
        {"task": task, "name": (name := task.replace(":", "-")), "id": training["id"] + ("" if task == first else f".{name}")}
        for task, its_machine in training.get("machines", {}).items()
        if its_machine == machine and task != training["chief"]
    ]


def training_home(parts: Mapping[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return ``run`` with ``machine`` and ``part`` (ID) of the part that has the training's results: that of its last chief.

    While the training continues, these are parts that take part in it. ``over``: whether it does not. ``parts`` is machine -> its
    parts of the training (tf_cluster.collect parts).
    """
    found = [{**part, "machine": machine} for machine, its in parts.items() for part in its]
    chiefs = [part["tasks"][0] for part in sorted(found, key=lambda part: int(part["attempts"])) if part["tasks"]]
    left = [part for part in found if not part["ended"]]
    over = not left or any(part.get("over", part["ended"]) for part in found)

    def rank(part: dict[str, Any]) -> tuple[bool, ...]:
        return part["task"] not in chiefs[-1:], part["id"] != run["id"], not part["ended"]

    home = min(found if over else left, key=rank, default=None)
    return {**run, "over": over, **({"machine": home["machine"], "part": home["id"]} if home else {"part": run["id"]})}


def _job_problem(job: str, cluster: Cluster) -> str:
    if job not in TRAINING_JOBS:
        hint = " For parameter servers, use playbooks/run.yml -e run_task=chief:0." if job == "ps" else ""
        return f"train_jobs contains '{job}'. The jobs of a training are {' and '.join(TRAINING_JOBS)}.{hint}"
    if not tasks_of(cluster, job):
        return f"train_jobs contains '{job}', but the group '{job}' has no machine."
    return ""


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "training_parts": training_parts,
            "training_home": training_home,
            "cluster_ports": cluster_ports,
        }
