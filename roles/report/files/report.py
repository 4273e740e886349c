#!/usr/bin/env python3
"""Turn a collected run into a verdict for programs and a page for people.

    report.py output/<run id> < facts.json

Runs on the controller. Standard input: ``{"outcome": {...}, "tasks": [...]}``, what the run and the gate
answered. Writes ``verdict.json``, ``report.html`` and ``summary.txt`` into the folder, points ``latest`` beside it to
it, and answers with one JSON object: ``lines`` (the summary), ``verdict``, ``failure`` (a sentence if the run failed).
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
import urllib.parse
from pathlib import Path

import jinja2

LOST = "could not be collected"  # what is said of a task's part of a training
MOST_LEVELS = 100  # of lists and objects within each other that a result may have


def main() -> None:
    """Write the files and answer."""
    folder = Path(sys.argv[1])
    facts = json.load(sys.stdin)
    verdict = make_verdict(folder, facts)
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    lines = summary(folder, verdict)
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_page(folder, verdict)
    latest = folder.parent / "latest"
    fresh = folder.parent / f".latest.{os.getpid()}"
    fresh.symlink_to(folder.name)
    fresh.replace(latest)
    failure = "" if verdict["ok"] else f"{' '.join(verdict['failures'])} Everything that it left is in {folder}."
    print(json.dumps({"lines": lines, "verdict": verdict, "failure": failure}))


def make_verdict(folder: Path, facts: dict) -> dict:
    """Return the verdict; ``ok`` is true only if nothing failed."""
    outcome = facts["outcome"]
    failures = [outcome["failure"][0].upper() + outcome["failure"][1:] + "."] if outcome["failure"] else []
    result = None
    try:
        result = read_result(folder / "result.json")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        failures.append(f"The program's result.json is not JSON: {error}.")
    failures += [
        f"The log of {task['task']} could not be collected: is machine {task['machine']} still there?"
        for task in facts["tasks"]
        if not (folder / "logs" / f"{task['task'].replace(':', '-')}.log").exists()
    ]
    told = ("machine", "address", "state", "version", "gpus")
    tasks = {task["task"]: {name: task.get(name) for name in told} for task in facts["tasks"]}
    started = datetime.datetime.fromtimestamp(outcome["started"], datetime.timezone.utc)
    verdict = {
        "ok": not failures,
        "failures": failures,
        "run_id": outcome["run_id"],
        "program": outcome["program"],
        "started": started.isoformat(timespec="seconds"),
        "seconds": outcome["seconds"],
        "tasks": tasks,
    }
    if outcome.get("training"):
        verdict["training"] = training_outcome(folder, outcome)
        for task, part in verdict["training"]["tasks"].items():
            if part["outcome"] == LOST:
                failures.append(f"What {task} left could not be collected: is machine {part['machine']} still there?")
        verdict["ok"] = not failures
    return verdict if result is None else {**verdict, "result": result}


def training_outcome(folder: Path, outcome: dict) -> dict:
    """Return how each task's part of a training ended; the chief's own is the run's."""
    parts, plan = {}, outcome["training"]
    for task, machine in plan["machines"].items():
        noted = outcome
        if task != plan["chief"]:
            try:
                noted = json.loads((folder / "tasks" / task.replace(":", "-") / "run.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                noted = {"part": {"outcome": LOST}}
        job, index = task.split(":")
        own = noted.get("part", {}).get("outcome") or noted.get("failure") or "goes on"
        parts[task] = {"machine": machine, "address": plan["cluster"][job][int(index)], "outcome": own}
    return {"chief": plan["chief"], "attempts": outcome.get("part", {}).get("attempts", 1), "tasks": parts}


def read_result(path: Path) -> object:
    """Return a program's result; NaN and infinite numbers, which JSON does not have, become null."""

    def finite(text: str) -> float | None:
        number = float(text)
        return number if math.isfinite(number) else None

    def levels(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(levels, inner), default=0)

    result = json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=lambda _name: None)
    if levels(result) > MOST_LEVELS:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    return result


def placement(folder: Path) -> dict:
    """Return operation -> device, where the program left TensorFlow's own record."""
    try:
        found = json.loads((folder / "placement.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def summary(folder: Path, verdict: dict) -> list[str]:
    """Return the lines that a run ends with."""
    lines = []
    result = verdict.get("result")
    if isinstance(result, dict) and isinstance(result.get("matrix"), list):
        lines += ["The result:", *(f"    {as_text(row)}" for row in result["matrix"])]
    by_task: dict[str, list[str]] = {}
    for operation, device in placement(folder).items():
        parts = dict(part.split(":", 1) for part in str(device).strip("/").split("/") if ":" in part)
        by_task.setdefault(f"{parts.get('job', '?')}:{parts.get('task', '?')}", []).append(str(operation))
    for task, operations in sorted(by_task.items()):
        machine = verdict["tasks"].get(task, {}).get("machine", "the host")
        lines.append(f"{task} on {machine} computed {', '.join(sorted(operations))}")
    lines += verdict["failures"]
    if verdict["failures"]:
        lines += ["The last lines of its output:", *(f"    {line}" for line in tail(folder / "stdout.log", 15))]
    for task, part in verdict.get("training", {"tasks": {}})["tasks"].items():
        log = folder / "tasks" / task.replace(":", "-") / "stdout.log"
        if verdict["failures"] and log.exists() and part["outcome"].startswith(("ended with", "was killed")):
            lines += [f"The last lines of the output of {task}:", *(f"    {line}" for line in tail(log, 15))]
    lines.append(f"{'Done' if verdict['ok'] else 'Failed'} after {verdict['seconds']} s; everything is in {folder}")
    return lines


def as_text(row: object) -> str:
    """Return a row of numbers as a person reads it, with the digits that a 32-bit number has."""
    if not isinstance(row, list):
        return str(row)
    return "  ".join(f"{value:10.7g}" if isinstance(value, float) else f"{value!s:>10}" for value in row)


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a text file, however large it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200_000))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def write_page(folder: Path, verdict: dict) -> None:
    """Write ``report.html``: one file, no server, no network."""
    logs = {path.stem: "\n".join(tail(path, 400)) for path in sorted((folder / "logs").glob("*.log"))}
    files = [
        (name.encode(errors="replace").decode(), urllib.parse.quote(os.fsencode(name)), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := str(path.relative_to(folder))) != "report.html"
    ]
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.j2")
    page = template.render(
        verdict=verdict, result=json.dumps(verdict.get("result"), indent=2) if "result" in verdict else "",
        placement=placement(folder), output="\n".join(tail(folder / "stdout.log", 2000)), logs=logs, files=files[:500],
    )  # fmt: skip
    (folder / "report.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
