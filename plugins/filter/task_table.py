"""Format the gate's report as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.table import table

Task = dict[str, Any]  # as the gate reports it, see COLUMNS

NOT_CHECKED = {"state": "not checked", "reason": "the host machine could not check it"}
COLUMNS = ("task", "machine", "address", "state", "reason")


def with_machines(tasks: list[Task], machines: dict[str, str]) -> list[Task]:
    """Return the tasks, each with the name of its machine."""
    return [{**task, "machine": machines.get(task["task"], "")} for task in tasks]


def unchecked_tasks(cluster: dict[str, Any]) -> list[Task]:
    """Return a cluster's standing tasks as the gate would report tasks that it could not check."""
    tasks = [task for machine_tasks in cluster["machines"].values() for task in machine_tasks if task["standing"]]
    unknown: dict[str, Any] = {**NOT_CHECKED, "version": None, "gpus": []}
    return [
        {"task": f"{task['job']}:{task['index']}", "address": f"{task['address']}:{task['port']}", **unknown} for task in tasks
    ]


def task_table(tasks: list[Task], explained: Iterable[dict[str, Any]] = ()) -> list[str]:
    """Return a table of the tasks, and below it the state of their units from ``explained``."""
    rows = [COLUMNS, *([str(task[column] or "") for column in COLUMNS] for task in tasks)]
    lines = table(rows)
    for result in explained:
        for sentence in result.get("answer", {}).get("why", {}).values():
            lines.append(f"{result['item']['machine']}: {sentence}")
        if "answer" not in result and result.get("msg") and not result.get("unreachable"):
            lines.append(f"{result['item']['machine']}: {result['msg']}")
        if result.get("unreachable"):
            lines.append(f"{result['item']['machine']}: Ansible cannot reach it either. Check that the machine is up.")
    return lines


def missing_problem(tasks: list[Task], allowed: object, reserves: dict[str, Any] | None = None) -> str:
    """Return why a run cannot start without the missing tasks, or "".

    ``allowed`` is how many may be missing. ``reserves`` is what the run reserves, from the filter new_run: if it is a number of
    workers (``count``), all others may be missing, and if it is ``none``, all tasks.
    """
    missing = [task for task in tasks if task["state"] != "answers"]
    workers = (reserves or {}).get("count", 0)
    if workers:
        there = sum(task["task"].startswith("worker:") and task["state"] == "answers" for task in tasks)
        return "" if there >= workers else f"The run needs {workers} worker tasks (run_tasks), but {there} answer."
    text = str(allowed).lower()
    most = {"true": len(tasks), "all": len(tasks), "false": 0}.get(text, int(text) if text.isdecimal() else None)
    if most is None:
        return f"allow_missing is {allowed!r}. Set how many tasks may be missing, as in 1, or all."
    if any(task["state"] == "no device" for task in missing):
        return "A task lacks a device that the program needs."
    if (reserves or {}).get("none"):
        return ""
    if len(missing) == len(tasks):
        return "No task of the cluster answers."
    if len(missing) <= most:
        return ""
    return (
        f"{len(missing)} tasks do not answer, but allow_missing is {most}." if most else "Not every task of the cluster answers."
    )


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "missing_problem": missing_problem,
            "task_table": task_table,
            "unchecked_tasks": unchecked_tasks,
            "with_machines": with_machines,
        }
