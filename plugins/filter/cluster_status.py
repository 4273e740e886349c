"""Compute the state of the whole cluster, as data and as a table."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.filter.task_table import NOT_CHECKED
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.table import table

Task = dict[str, Any]  # of the cluster, as the filter cluster_spec returns it
State = dict[str, Any]  # of a machine: units, runs, firewall

COLUMNS = {
    "task": "task", "machine": "machine", "address": "address", "unit": "unit", "state": "state", "since": "since",
    "restarts": "restarts", "memory_mb": "MB", "version": "TensorFlow", "run": "run", "reason": "reason",
}  # fmt: skip
MAX_UNCOLLECTED = 10  # runs that are listed


def cluster_status(
    cluster: dict[str, Any],
    gate: list[dict[str, Any]],
    states: dict[str, State],
    problems: dict[str, str] | None = None,
    unguarded: Collection[str] = (),
    gate_problem: str = "",
) -> dict[str, Any]:
    """Return the state of each task, and whether the cluster is complete."""
    answers = {task["task"]: task for task in gate}
    reason = NOT_CHECKED["reason"] + (f": {gate_problem}" if gate_problem else "")
    tasks = []
    for machine, machine_tasks in cluster["machines"].items():
        state, problem = states.get(machine), (problems or {}).get(machine, "")
        for task in machine_tasks:
            name = f"{task['job']}:{task['index']}"
            answer = answers.get(name, {})
            runs = [run["run"] for run in (state or {}).get("runs", []) if run["task"] == name]
            tasks.append(
                {
                    "task": name,
                    "machine": machine,
                    "address": f"{task['address']}:{task['port']}",
                    **_unit(task, state, problem),
                    **_answer(task, {**NOT_CHECKED, "reason": reason, **answer}, state, problem, runs),
                    "version": answer.get("version"),
                    "gpus": answer.get("gpus", []),
                    "holds": answer.get("runs", {}),
                    "run": ", ".join(runs) or None,
                }
            )
    order = {job: place for place, job in enumerate(cluster["spec"])}
    tasks.sort(key=lambda task: (order[task["task"].partition(":")[0]], int(task["task"].partition(":")[2])))
    firewalls = {machine: state["firewall"] for machine, state in states.items() if "firewall" in state}
    broken = [name for name, firewall in firewalls.items() if name not in unguarded and not _is_intact(firewall)]
    unwanted = [name for name, firewall in firewalls.items() if name in unguarded and (firewall["version"] or firewall["wanted"])]
    disabled = [name for name in firewalls if name in unguarded and name not in unwanted]
    unknown = [name for name in cluster["machines"] if name not in states]
    complete = all(task["state"] in ("answers", "free", "runs") for task in tasks) and not (broken or unwanted or unknown)
    active = {run["run"] for state in states.values() for run in state.get("runs", [])}
    uncollected = _uncollected(states)
    return {
        "ok": complete,
        "open": _firewall_problems(broken, unwanted, disabled, unknown),
        "held": _held_states(tasks, active),
        "uncollected": _uncollected_lines(uncollected),
        "uncollected_runs": uncollected,
        "tasks": tasks,
    }


def _held_states(tasks: list[dict[str, Any]], active: Collection[str]) -> list[str]:
    """Return a sentence for each run that is over and whose state is still on servers."""
    held: dict[str, dict[str, Any]] = {}
    on: dict[str, list[str]] = {}
    for task in tasks:
        for run, user in task["holds"].items():
            if run not in active:
                held[run] = user
                on.setdefault(run, []).append(task["task"])
    return [
        f"{', '.join(on[run])}: holds the state of run {run} since {_moment(user['since'])}. The next run "
        f"{'finds it (run_keep_state)' if user['kept'] else 'clears it'}."
        for run, user in held.items()
    ]


def _uncollected(states: dict[str, State]) -> list[dict[str, Any]]:
    """Return the runs that have ended and were never collected, oldest first, each with the machines that have it."""
    found: dict[str, dict[str, Any]] = {}
    for machine, state in states.items():
        for run in state.get("uncollected", []):
            found.setdefault(run["run"], {**run, "machines": []})["machines"].append(machine)
    return sorted(found.values(), key=lambda run: run["ended"] or 0)


def _uncollected_lines(found: list[dict[str, Any]]) -> list[str]:
    """Return lines on the runs that were never collected, or nothing."""
    if not found:
        return []
    runs = "1 run has ended and was" if len(found) == 1 else f"{len(found)} runs have ended and were"
    kept = "it is" if len(found) == 1 else "they are"
    shown = [
        f"  {run['run']} on {', '.join(run['machines'])}, ended {_moment(run['ended']) if run['ended'] else 'at an unknown time'}"
        for run in found[:MAX_UNCOLLECTED]
    ]
    more = [f"  and {len(found) - len(shown)} more: see uncollected_runs in status.json"] if len(found) > len(shown) else []
    command = f"ansible-playbook playbooks/collect.yml -e run={found[0]['run']}"
    return [f"{runs} never collected, so {kept} not deleted. To collect the oldest: {command}", *shown, *more]


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="seconds")


def _is_intact(firewall: dict[str, Any]) -> bool:
    return firewall["version"] is not None and firewall["version"] == firewall["wanted"] and firewall.get("whole", False)


def _firewall_problems(broken: list[str], unwanted: list[str], disabled: list[str], unknown: list[str]) -> list[str]:
    sentences = []
    if disabled:
        sentences.append(
            f"OPEN: {', '.join(disabled)}: firewall_enabled is false. Anyone who can reach the tasks over the network can run "
            "code there."
        )
    if broken:
        sentences.append(
            f"OPEN: {', '.join(broken)}: the firewall rules are missing or were changed. Run 'ansible-playbook site.yml'."
        )
    if unwanted:
        sentences.append(
            f"{', '.join(unwanted)}: the firewall is active, but firewall_enabled is false. Run 'ansible-playbook site.yml' to "
            "remove it."
        )
    if unknown:
        sentences.append(f"{', '.join(unknown)}: the state of the firewall is unknown, because Ansible could not get it.")
    return sentences


def _unit(task: Task, state: State | None, problem: str) -> dict[str, Any]:
    if state is None:
        return {"unit": "unknown" if problem else "unreachable", "since": None, "restarts": None, "memory_mb": None}
    if not task["standing"]:
        return {"unit": None, "since": None, "restarts": None, "memory_mb": None}
    unknown = {"unit": "unknown", "since": None, "restarts": None, "memory_mb": None}
    found: dict[str, Any] = state["units"].get(task["name"], unknown)
    return found


def _answer(task: Task, answer: dict[str, Any], state: State | None, problem: str, runs: list[str]) -> dict[str, Any]:
    if task["standing"]:
        return {"state": answer["state"], "reason": problem or answer["reason"]}
    if problem:
        return {"state": "unknown", "reason": problem}
    if state is None:
        return {"state": "unreachable", "reason": "Ansible cannot reach its machine"}
    return {"state": "runs" if runs else "free", "reason": ""}


def status_table(status: dict[str, Any]) -> list[str]:
    """Return the tasks as lines of a table, without empty columns."""
    rows = [[_text(task[name]) for name in COLUMNS] for task in status["tasks"]]
    rows = [list(COLUMNS.values()), *rows]
    kept = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows[1:])]
    return table([[row[place] for place in kept] for row in rows])


def _text(value: object) -> str:
    return "" if value is None else str(value)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"cluster_status": cluster_status, "status_table": status_table}
