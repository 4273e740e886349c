"""Plan a run: its ID, its folder, the task of its program and what it reserves."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.filter.program import task_problems
from ansible_collections.distributed.tensorflow.plugins.filter.reservation import reservation
from ansible_collections.distributed.tensorflow.plugins.filter.training import training
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.ports import Cluster, task_name, tasks_of

NO_TASK = "A training runs on all tasks of train_jobs. Select some with run_tasks, or run one program with playbooks/run.yml."


def new_run(
    cluster: Cluster,
    program: object,
    name: object = "",
    task: Any = None,
    tasks: Any = "",
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a run of a program, with a new ID, and all problems of these values.

    ``name``, ``task`` and ``tasks`` are the variables run_name, run_task (host:0 by default) and run_tasks. ``options`` has the
    options of a training (see the function training; None: its default); a training chooses the task itself.
    """
    given, task = task, "host:0" if task is None else task
    options = {option: value for option, value in (options or {}).items() if value is not None}
    run = run_name(program, cluster["output"], name)
    chiefs = [task_name(chief) for chief in tasks_of(cluster, "chief")] if "chief" in options.get("jobs", []) else []
    reserves = reservation(cluster, tasks, task if isinstance(task, str) else "", chiefs)
    plan = training(cluster, run["id"], reserved=reserves, **options) if options else {}
    if options and given is not None:
        plan = {"problems": [f"run_task is {given!r}. {NO_TASK}"]}
    task = plan.get("chief", task)
    return {
        **run,
        "task": task,
        "machine": cluster["tasks"].get(task, "") if isinstance(task, str) else "",
        "reserves": reserves,
        "training": plan,
        "problems": plan["problems"] if plan else task_problems(task, cluster) + reserves["problems"],
    }


def run_name(program: object, output: str | Path, name: object = "") -> dict[str, Any]:
    """Return a run's id, folder and start time. The id is unique, sorts by time and is safe in a path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", str(name) or _stem(program)).strip("-")[:40] or "program"
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{stem}-{secrets.token_hex(2)}"
    return {"id": run_id, "folder": str(Path(output).resolve() / run_id), "since": time.time() - 1}


def _stem(program: Any) -> str:
    """Return the name of a program without its extension, or "" if no file can have that name."""
    try:
        return Path(os.path.abspath(program)).stem if program else ""
    except (OSError, ValueError, TypeError, RuntimeError):
        return ""


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"new_run": new_run}
