"""Compute what a run reserves: tasks, and addresses for its program's own server."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.filter.training import training_parts
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.ports import (
    Cluster,
    Task,
    own_addresses,
    task_name,
    tasks_of,
)

PLACES = "Set a number of worker tasks, as in 2, or a list of tasks, as in [worker:0, worker:1]."


def reservation(cluster: Cluster, wanted: Any = "", task: str = "host:0", others: Collection[str] = ()) -> dict[str, Any]:
    """Return what a run of the program's ``task`` reserves, or all problems of ``wanted`` (the variable run_tasks).

    ``others``: tasks that may be named although they have no standing server, such as a training's chief.

    ``names`` and ``tasks`` (addresses) are empty without a list, ``count`` is 0 without a number: then it reserves all tasks,
    or with ``none`` no standing task.
    """
    standing = {
        task_name(found): f"{found['address']}:{found['port']}"
        for tasks in cluster["machines"].values()
        for found in tasks
        if found["standing"]
    }
    own = own_addresses(cluster, task)
    result = {"problems": [], "count": 0, "names": [], "tasks": [], "none": False, "own": own}
    if wanted in ("", None):
        return result
    # Only with the task's own address, which is left to a run of all tasks, can its sessions share variables (partial.py).
    result["own"] = own[1:] + own[:1]
    text = str(wanted).strip()
    if text.isdecimal() and not isinstance(wanted, bool):
        workers = len(tasks_of(cluster, "worker"))
        if int(text) <= workers:
            return {**result, "count": int(text), "none": int(text) == 0}
        return {**result, "problems": [f"run_tasks is {text}. Set a number up to {workers}, the number of worker tasks."]}
    names = [name.strip() for name in text.split(",")] if isinstance(wanted, str) else wanted
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and ":" in name for name in names):
        return {**result, "problems": [f"run_tasks is {wanted!r}. {PLACES}"]}
    known = ", ".join(list(standing)[:8])
    problems = [
        f"run_tasks contains {name}, which has no standing server. Set tasks such as {known}."
        for name in names
        if name not in standing and name not in others
    ]
    if not problems and not set(names) & set(standing):
        problems = [f"run_tasks contains only {', '.join(names)}. Add tasks such as {known}."]
    if problems:
        return {**result, "problems": problems}
    names = [name for name in dict.fromkeys(names) if name in standing]
    return {**result, "names": names, "tasks": [standing[name] for name in names]}


def run_collection(
    machines: dict[str, list[Task]], run: dict[str, Any], outcome: dict[str, Any], present: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return what each machine has of a run, and what to do with it. Machines with nothing of the run are left out.

    ``run`` (tf_run): its ``machine`` has the run's folder; a training may continue without a part that has ended (``over``).
    ``outcome``: the run's notes. ``present``: the machines that can be reached.

    For each machine: ``tasks`` and ``parts`` of the run, ``results`` (whether it has the run's folder), ``end`` (whether its
    parts have to end), ``note`` (whether to note that the run is collected) and ``optional`` (whether it may be unreachable).
    """
    training, over = outcome.get("training") or {}, "ended" in outcome and run.get("over", True)
    history = outcome.get("part", {}).get("history")
    last = [training["machines"][task] for task in history[-1]["tasks"]] if history else list(machines)
    found = {}
    for machine, tasks in machines.items():
        reserved = _reserved_tasks(tasks, outcome)
        parts = training_parts(training, machine)
        if machine == run["machine"] or parts or any(task["standing"] for task in reserved):
            found[machine] = {
                "tasks": reserved,
                "parts": parts,
                "results": machine == run["machine"],
                "end": over,
                # Left out by the run, or lost by a training. The report names missing results.
                "optional": machine != run["machine"] and bool(outcome.get("missing") or machine not in last),
            }
    # A run that is not noted is kept, and status.yml lists it: also if a machine with a part of it is unreachable.
    note = over and all(machine in present for machine, its in found.items() if its["parts"])
    return {machine: {**its, "note": note} for machine, its in found.items()}


def _reserved_tasks(tasks: list[Task], outcome: dict[str, Any]) -> list[Task]:
    """Return the tasks of a machine that a run has reserved: all, unless it has reserved a part of the cluster.

    Version 0.9 notes no reservations.
    """
    if outcome.get("training"):
        return [task for task in tasks if task_name(task) in outcome["training"]["machines"]]
    if not outcome.get("names") or "reserved" not in outcome:
        return tasks
    return [task for task in tasks if f"{task['address']}:{task['port']}" in outcome["reserved"]]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"run_collection": run_collection}
