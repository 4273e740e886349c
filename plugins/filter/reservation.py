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


def run_collection(machines: dict[str, list[Task]], run: dict[str, Any], outcome: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each machine has of a run, and what to do with it. Machines with nothing of the run are left out.

    ``run`` (tf_run): its ``machine`` has the run's folder; a training may continue without a part that has ended (``over``).
    ``outcome``: the run's notes.

    For each machine: ``tasks`` and ``parts`` of the run, ``results`` (whether it has the run's folder), ``runs`` (the IDs under
    which it has something of the run), ``end`` (whether its parts have to end), ``optional`` (whether it may be unreachable), and
    ``note`` (whether to note at once that the run is collected; not with several parts: all have to be collected before).
    """
    training, over = outcome.get("training") or {}, "ended" in outcome and run.get("over", True)
    history = outcome.get("part", {}).get("history")
    last = [training.get("machines", {}).get(task) for task in history[-1]["tasks"]] if history else list(machines)
    found = {}
    for machine, tasks in machines.items():
        reserved = _reserved_tasks(tasks, outcome)
        parts = training_parts(training, machine)
        home = machine == run["machine"]
        if home or parts or any(task["standing"] for task in reserved):
            found[machine] = {
                "tasks": reserved,
                "parts": parts,
                "results": home,
                "runs": [part["id"] for part in parts] + ([run.get("part") or run["id"]] if home else []),
                "end": over,
                # Left out by the run, or lost by a training. The report names missing results.
                "optional": not home and bool(outcome.get("missing") or machine not in last),
            }
    note = over and not any(its["parts"] for its in found.values())
    return {machine: {**its, "note": note} for machine, its in found.items()}


def machines_to_note(collection: dict[str, dict[str, Any]], results: dict[str, dict[str, Any]]) -> list[str]:
    """Return the machines on which to note that a run with several parts is collected; none unless all parts are.

    A run that is not noted is kept, and status.yml lists it. ``collection``: the result of run_collection. ``results``:
    machine -> result of its collection, a loop over what it has.
    """
    machines = {machine: its for machine, its in collection.items() if its["runs"]}
    complete = all(
        # By machine: each one is asked for the run, of which it may have journals only.
        its["end"] and not its["note"] and _collected(results.get(machine, {})).issuperset(its["runs"])
        for machine, its in machines.items()
    )
    return list(machines) if complete else []


def _collected(result: dict[str, Any]) -> set[str]:
    """Return the IDs that the collection from one machine has succeeded for."""
    calls = result.get("results", [])
    return {call["item"]["id"] for call in calls if not call.get("failed") and not call.get("unreachable")}


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
        return {"run_collection": run_collection, "machines_to_note": machines_to_note}
