"""Merge the machines' lists of runs and format them as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.table import table

COLUMNS = ("run", "state", "program", "user", "since", "seconds", "tasks", "verdict", "MB")
MAX_FINISHED = 20  # in the table
MAX_NAMES = 4  # of tasks in a cell
MAX_CHARACTERS = 80  # of a sentence


def merged_runs(machines: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of all machines (machine -> output of tf_cluster.run.listing), each with its ``machine``."""
    runs = [{**run, "machine": machine} for machine, found in machines.items() for run in found["runs"]]
    order = ("finished", "running", "queued")
    return sorted(runs, key=lambda run: (order.index(run["state"]), run["position"] or 0, run["since"]))


def runs_table(runs: list[dict[str, Any]], path: str = "") -> list[str]:
    """Return the runs as lines of a table: the newest finished ones, the running ones, the queue. ``path`` has all of them."""
    finished = [run for run in runs if run["state"] == "finished"]
    shown = [*finished[-MAX_FINISHED:], *(run for run in runs if run["state"] != "finished")]
    lines = table([COLUMNS, *(_row(run) for run in shown)]) if shown else ["There are no runs."]
    left_out = len(runs) - len(shown)
    return [*lines, *([f"{left_out} earlier runs are in {path}."] if left_out else [])]


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    place = f" {run['position']}" if run["position"] else ""
    more = f" and {len(run['tasks']) - MAX_NAMES} more" if len(run["tasks"]) > MAX_NAMES else ""
    verdict = run["reason"] if run["failure"] is None else run["failure"] or "ok"
    seconds = "" if run["seconds"] is None else f"{run['seconds']:.0f}"
    return (
        run["run"], f"{run['state']}{place}", run["program"], run["user"], run["since"], seconds,
        ", ".join(run["tasks"][:MAX_NAMES]) + more, _short(verdict), f"{run['bytes'] / 1e6:.1f}",
    )  # fmt: skip


def _short(sentence: str) -> str:
    return sentence if len(sentence) <= MAX_CHARACTERS else f"{sentence[: MAX_CHARACTERS - 3]}..."


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"merged_runs": merged_runs, "runs_table": runs_table}
