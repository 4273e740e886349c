"""The state of the whole cluster, for people and for programs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.table import table

Task = dict[str, Any]  # of the cluster, as the filter cluster_spec makes it
State = dict[str, Any]  # of a machine: units, runs, firewall

COLUMNS = {
    "task": "task", "machine": "machine", "address": "address", "unit": "unit", "state": "state", "since": "since",
    "restarts": "restarts", "memory_mb": "MB", "version": "TensorFlow", "run": "run", "reason": "reason",
}  # fmt: skip


def cluster_status(
    cluster: dict[str, Any],
    gate: list[dict[str, Any]],
    states: dict[str, State],
    problems: dict[str, str] | None = None,
    unguarded: Collection[str] = (),
    gate_problem: str = "",
) -> dict[str, Any]:
    """Return the state of each task of the cluster and whether all is well."""
    asked = {task["task"]: task for task in gate}
    not_asked = f"the host machine could not ask{': ' if gate_problem else ''}{gate_problem}"
    tasks = []
    for machine, own in cluster["machines"].items():
        state, problem = states.get(machine), (problems or {}).get(machine, "")
        for task in own:
            name = f"{task['job']}:{task['index']}"
            answer = asked.get(name, {})
            runs = [run["run"] for run in (state or {}).get("runs", []) if run["task"] == name]
            tasks.append(
                {
                    "task": name,
                    "machine": machine,
                    "address": f"{task['address']}:{task['port']}",
                    **_unit(task, state, problem),
                    **_answer(task, {"reason": not_asked, **answer}, state, problem, runs),
                    "version": answer.get("version"),
                    "gpus": answer.get("gpus", []),
                    "run": ", ".join(runs) or None,
                }
            )
    order = {job: place for place, job in enumerate(cluster["spec"])}
    tasks.sort(key=lambda task: (order[task["task"].partition(":")[0]], int(task["task"].partition(":")[2])))
    walls = {machine: state["firewall"] for machine, state in states.items() if "firewall" in state}
    fallen = [machine for machine, wall in walls.items() if machine not in unguarded and not _stands(wall)]
    besides = [machine for machine, wall in walls.items() if machine in unguarded and (wall["version"] or wall["wanted"])]
    without = [machine for machine in walls if machine in unguarded and machine not in besides]
    whole = all(task["state"] in ("answers", "free", "runs") for task in tasks) and not fallen and not besides
    return {"ok": whole, "open": _open(fallen, besides, without), "tasks": tasks}


def _stands(wall: dict[str, Any]) -> bool:
    return wall["version"] is not None and wall["version"] == wall["wanted"] and wall.get("whole", False)


def _open(fallen: list[str], besides: list[str], without: list[str]) -> list[str]:
    sentences = []
    if without:
        sentences.append(
            f"OPEN: whoever reaches the tasks of {', '.join(without)} over the network may run what he likes there, for the "
            "firewall is switched off (firewall_enabled)."
        )
    if fallen:
        sentences.append(
            f"OPEN: the rules of the firewall of {', '.join(fallen)} are not at work as they were loaded, somebody took them "
            "away or changed them: 'ansible-playbook site.yml' loads them."
        )
    if besides:
        sentences.append(
            f"The firewall of {', '.join(besides)} is at work, and the inventory switches it off (firewall_enabled): "
            "'ansible-playbook site.yml' takes it away."
        )
    return sentences


def _unit(task: Task, state: State | None, problem: str) -> dict[str, Any]:
    if state is None:
        return {"unit": "not known" if problem else "machine is away", "since": None, "restarts": None, "memory_mb": None}
    if not task["standing"]:
        return {"unit": None, "since": None, "restarts": None, "memory_mb": None}
    unknown = {"unit": "unknown", "since": None, "restarts": None, "memory_mb": None}
    found: dict[str, Any] = state["units"].get(task["name"], unknown)
    return found


def _answer(task: Task, answer: dict[str, Any], state: State | None, problem: str, runs: list[str]) -> dict[str, Any]:
    if task["standing"]:
        reason = problem or answer["reason"]
        return {"state": answer.get("state", "not asked"), "reason": reason}
    if problem:
        return {"state": "not known", "reason": problem}
    if state is None:
        return {"state": "unreachable", "reason": "its machine cannot be reached by Ansible"}
    return {"state": "runs" if runs else "free", "reason": ""}


def status_table(status: dict[str, Any]) -> list[str]:
    """Return the tasks as lines of a table; columns in which nothing stands are left out."""
    rows = [[_text(task[name]) for name in COLUMNS] for task in status["tasks"]]
    rows = [list(COLUMNS.values()), *rows]
    kept = [place for place in range(len(COLUMNS)) if any(row[place] for row in rows[1:])]
    return table([[row[place] for place in kept] for row in rows])


def _text(value: object) -> str:
    return "" if value is None else str(value)


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"cluster_status": cluster_status, "status_table": status_table}
