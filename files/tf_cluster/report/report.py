"""Turn a collected run into a verdict for programs and a page for people.

    report.py output/<run id> < facts.json

Runs on the controller. Standard input: ``{"outcome": {...}, "tasks": [...], "required": true, "skipped": [...]}``, what the run
and the gate answered, whether it is a failure of the command if the run failed (one that was cancelled, or is running, need
not be good), and the machines that --limit leaves out, of which nothing is collected. Writes ``verdict.json``, ``report.html``
and ``summary.txt`` into the folder, points ``latest`` beside it to it unless it points to a newer run, and answers with one JSON
object: ``lines`` (the summary), ``verdict``, ``failure`` (a sentence if the command failed).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
import os
import re
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import jinja2
from ansible.release import __version__ as ansible_core

from ..run.text import plain_lines
from . import benchmark_figure, trace_figure

TEMPLATES = Path(__file__).parent / "templates"
RUN_TIME = re.compile(r"\d{8}-\d{6}(?=-)")  # what a run's ID begins with
LOST = "could not be collected"  # what is said of what did not come home
# What a line of a log begins or says that a person looks for when something failed.
ERROR = re.compile(r"^[EF]\d{4} |\b[A-Z]\w*(Error|Exception)\b|\b(error|fatal|failed|killed|traceback)\b", re.IGNORECASE)
MOST_JSON = 4_000_000  # bytes of JSON of the program's that are read; its objects take ten times as many
MOST_TRACE = 200_000_000  # of trace.json; the tracer stops at some 40 MB, but finishes the step that it is at
FEW = 5  # names of what was left behind that are shown
MOST_LEVELS = 100  # of lists and objects within each other that a result may have


def main() -> None:
    """Write the files and answer."""
    folder = Path(sys.argv[1])
    facts = json.load(sys.stdin)
    verdict = make_verdict(folder, facts)
    drawn = add_trace(folder, facts["outcome"], verdict)
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    lines = summary(folder, facts["outcome"], verdict)
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    write_page(folder, facts["outcome"], verdict, drawn)
    point_latest(folder)
    failures = [sentence for sentence in verdict["failures"] if facts["required"] or LOST in sentence]
    failure = f"{' '.join(failures)} Everything that it left is in {folder}." if failures else ""
    print(json.dumps({"lines": lines, "verdict": verdict, "failure": failure}))


def point_latest(folder: Path) -> None:
    """Let ``latest`` point to a run, unless it points to a newer one: an older run may be collected again."""
    latest = folder.parent / "latest"
    if latest.is_dir() and latest.is_symlink():
        current = RUN_TIME.match(latest.readlink().name)
        own = RUN_TIME.match(folder.name)
        if current and own and current[0] > own[0]:
            return
    fresh = folder.parent / f".latest.{os.getpid()}"
    fresh.symlink_to(folder.name)
    fresh.replace(latest)


def make_verdict(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict; ``ok`` is true only if nothing failed."""
    collected = Collected(folder, facts)
    tasks = collected.training()
    result, unreadable = collected.result()
    failures = [*collected.program_failure(), *collected.uncollected(), *collected.failed_tasks(), *unreadable]
    failures += [*collected.missing_logs(), *collected.lost_parts(tasks)]
    outcome = facts["outcome"]
    started = datetime.datetime.fromtimestamp(outcome["started"], datetime.timezone.utc)
    shown = ("machine", "address", "state", "version", "gpus")
    verdict = {
        "ok": not failures,
        "failures": failures,
        "run_id": outcome["run_id"],
        "program": outcome["program"],
        "started": started.isoformat(timespec="seconds"),
        "seconds": outcome["seconds"],
        "tasks": {task["task"]: {name: task.get(name) for name in shown} for task in facts["tasks"]},
    }
    verdict |= {"training": tasks} if tasks else {}
    notes, left = [*collected.too_large(), *collected.not_collected()], collected.left_behind()
    verdict |= {name: lines for name, lines in (("notes", notes), ("left_behind", left)) if lines}
    if outcome.get("left_out"):
        verdict |= {"missing": outcome["left_out"], "names": outcome["names"]}
    return verdict if result is None else {**verdict, "result": result}


class Collected:
    """A collected run: what of it failed, and what is missing."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.tasks, self.outcome = folder, facts["tasks"], facts["outcome"]
        # What was not collected of each machine that --limit leaves out.
        self.skipped: dict[str, list[str]] = {machine: [] for machine in facts.get("skipped", [])}
        parts = {f"{task}: ": collected_note(place) for task, place in parts_of(folder, self.outcome).items()}
        self.notes = {"": collected_note(folder), **parts}  # by the words that stand before a sentence on a task

    def program_failure(self) -> list[str]:
        """Return how the run failed."""
        failure = self.outcome["failure"]
        return [failure[0].upper() + failure[1:] + "."] if failure else []

    def uncollected(self) -> list[str]:
        """Return why output or results could not be collected."""
        return [f"{task}{noted['uncollected']}." for task, noted in self.notes.items() if noted.get("uncollected")]

    def failed_tasks(self) -> list[str]:
        """Return the tasks that did not work when the run failed."""
        failed = self.outcome.get("failed_tasks") or {}
        return [
            f"{task['task']} on machine {task['machine']} ({task['address']}) {failed[task['address']]}."
            for task in self.tasks
            if task["address"] in failed
        ]

    def result(self) -> tuple[object, list[str]]:
        """Return the program's result, None if there is none, and why it cannot be read."""
        path = self.folder / "result.json"
        try:
            return (None if too_large(path) else read_result(path)), []
        except FileNotFoundError:
            return None, []
        except (OSError, ValueError, RecursionError) as error:
            return None, [f"The program's result.json is not JSON: {error}."]

    def missing_logs(self) -> list[str]:
        """Return the tasks whose logs are missing."""
        failures = []
        for task in self.tasks:
            if task["machine"] in self.skipped:
                self.skipped[task["machine"]].append(f"the log of {task['task']}")
            elif task["address"] not in self.outcome.get("missing", []) and not log_of(self.folder, task["task"]).exists():
                failures.append(f"The log of {task['task']} could not be collected: is machine {task['machine']} still there?")
        return failures

    def training(self) -> dict[str, Any]:
        """Return how each task's part of a training ended; nothing if the run is none."""
        return training_outcome(self.folder, self.outcome) if self.outcome.get("training") else {}

    def lost_parts(self, training: dict[str, Any]) -> list[str]:
        """Return the tasks of a training whose part is missing; note in ``training`` those that --limit leaves out."""
        failures = []
        for task, part in training.get("tasks", {}).items():
            if part["outcome"] == LOST and part["machine"] in self.skipped:
                part["outcome"] = "was not collected (--limit)"
                self.skipped[part["machine"]].append(f"what {task} left")
            elif part["outcome"] == LOST:
                failures.append(f"What {task} left could not be collected: is machine {part['machine']} still there?")
        return failures

    def too_large(self) -> list[str]:
        """Return the files of JSON that are too large to be read."""
        return [sentence for name in ("result.json", "placement.json") if (sentence := too_large(self.folder / name))]

    def not_collected(self) -> list[str]:
        """Return what --limit leaves out."""
        return [
            f"Not collected, because --limit leaves out machine {machine}: {', '.join(what)}."
            for machine, what in self.skipped.items()
            if what
        ]

    def left_behind(self) -> list[str]:
        """Return the files that could not be collected, each with its task."""
        return [f"{task}{name}" for task, noted in self.notes.items() for name in noted.get("left_behind", [])]


def log_of(folder: Path, task: str) -> Path:
    """Return the path of a task's journal in a collected run."""
    return folder / "logs" / f"{task.replace(':', '-')}.log"


def training_outcome(folder: Path, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return how each task's part of a training ended; the chief's own is the run's."""
    parts, plan, places = {}, outcome["training"], parts_of(folder, outcome)
    for task, machine in plan["machines"].items():
        noted = (collected_note(places[task]) or {"part": {"outcome": LOST}}) if task in places else outcome
        job, index = task.split(":")
        own = noted.get("part", {}).get("outcome") or noted.get("failure") or "goes on"
        parts[task] = {"machine": machine, "address": plan["cluster"][job][int(index)], "outcome": own}
    return {"chief": plan["chief"], "attempts": outcome.get("part", {}).get("attempts", 1), "tasks": parts}


def parts_of(folder: Path, outcome: dict[str, Any]) -> dict[str, Path]:
    """Return task -> folder of its part, for the tasks of a training but its chief."""
    plan = outcome.get("training") or {"machines": {}, "chief": ""}
    return {task: folder / "tasks" / task.replace(":", "-") for task in plan["machines"] if task != plan["chief"]}


def collected_note(folder: Path) -> dict[str, Any]:
    """Return what the machine noted of a run when it was collected, nothing where it was not."""
    try:
        noted: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return noted
    except (OSError, ValueError):
        return {}


def too_large(path: Path) -> str:
    """Return a sentence on a JSON file that is too large to be read, nothing for others."""
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    limit = f"more than the {MOST_JSON // 1_000_000} MB that are read of it"
    return f"{path.name} has {size / 1e6:.0f} MB, {limit}: it is a file of the run alone." if size > MOST_JSON else ""


def add_trace(folder: Path, outcome: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any] | None:
    """Put into the verdict what the run's trace holds, or why there is none; return what the page needs to draw it."""
    path = folder / "trace.json"
    if path.exists() and path.stat().st_size > MOST_TRACE:
        verdict["trace"] = {"missing": f"The trace is too large to be shown: trace.json has {path.stat().st_size / 1e6:.0f} MB."}
        return None
    try:
        trace = trace_figure.read(path)
        if trace and trace.bars:
            drawn = drawing(trace, machines_of(outcome, verdict), verdict.get("names", {}))
            verdict["trace"] = trace_figure.totals(trace)
            return drawn
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # a program may have written into it
        verdict["trace"] = {"missing": f"The trace cannot be shown: {error}."}
        return None
    if outcome.get("trace"):
        reason = "it did not import TensorFlow"
        if trace:
            reason = "it ran no step of a session, and TensorFlow keeps no step statistics of what runs eagerly"
        elif path.exists():
            reason = "the trace.json that it left is its own"
        verdict["trace"] = {"missing": f"The program left no trace: {reason}."}
    return None


def machines_of(outcome: dict[str, Any], verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return machine -> task -> what is known of it, the program's own task among them."""
    machines: dict[str, dict[str, Any]] = {}
    for name, task in verdict["tasks"].items():
        machines.setdefault(task["machine"] or "", {})[name] = task
    if outcome.get("task") and outcome.get("machine"):
        machines.setdefault(outcome["machine"], {})[outcome["task"]] = {"state": "ran the program"}
    return machines


def known_as(verdict: dict[str, Any], task: str) -> str:
    """Return what the cluster calls a task of the run, which numbers anew where it goes on without some."""
    names: dict[str, str] = verdict.get("names", {})
    return names.get(task, task)


def read_result(path: Path) -> object:
    """Return a program's result; NaN, infinite numbers and half surrogate pairs, which other readers refuse, are replaced."""

    def finite(text: str) -> float | None:
        number = float(text)
        return number if math.isfinite(number) else None

    def levels(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(levels, inner), default=0)

    result = json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=lambda _name: None)
    if levels(result) > MOST_LEVELS:
        raise ValueError(f"it is nested more than {MOST_LEVELS} levels deep")
    return json.loads(json.dumps(result, ensure_ascii=False).encode(errors="replace"))


def placement(folder: Path) -> dict[str, Any]:
    """Return operation -> device, where the program left TensorFlow's own record."""
    try:
        path = folder / "placement.json"
        found = {} if too_large(path) else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def summary(folder: Path, outcome: dict[str, Any], verdict: dict[str, Any]) -> list[str]:
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
        machine = verdict["tasks"].get(known_as(verdict, task), {}).get("machine", "the host")
        lines.append(f"{task} on {machine} computed {', '.join(sorted(operations))}")
    if "trace" in verdict:
        lines.append(verdict["trace"].get("missing") or traced(verdict["trace"]))
    left = verdict.get("left_behind", [])
    if left:
        more = f" and {len(left) - FEW} more" if len(left) > FEW else ""
        lines.append(f"Left behind, for they are no files or could not be read: {', '.join(left[:FEW])}{more}")
    lines += verdict.get("notes", [])
    lines += verdict["failures"]
    if verdict["failures"]:
        lines += ["The last lines of its output:", *(f"    {line}" for line in tail(folder / "stdout.log", 15))]
    for task, part in verdict.get("training", {"tasks": {}})["tasks"].items():
        log = folder / "tasks" / task.replace(":", "-") / "stdout.log"
        if verdict["failures"] and log.exists() and part["outcome"].startswith(("ended with", "was killed")):
            lines += [f"The last lines of the output of {task}:", *(f"    {line}" for line in tail(log, 15))]
    ended = "Done" if verdict["ok"] else "Cancelled" if outcome.get("cancelled") else "Failed"
    lines.append(f"{ended if 'ended' in outcome else 'Not done'} after {verdict['seconds']} s; everything is in {folder}")
    return plain_lines("\n".join(lines))


def traced(found: dict[str, Any]) -> str:
    """Return a sentence on what was traced."""
    counts = ", ".join(
        f"{found[what]} {what if found[what] != 1 else what[:-1]}" for what in ("steps", "operations", "transfers")
    )
    return f"Traced {counts} of {trace_figure.size(found['bytes'])}: report.html shows them"


def as_text(row: object) -> str:
    """Return a row of numbers as a person reads it, with the digits that a 32-bit number has."""
    if not isinstance(row, list):
        return str(row)
    return "  ".join(f"{value:10.7g}" if isinstance(value, float) else f"{value!s:>10}" for value in row)


def as_json(result: object) -> str:
    """Return a result as JSON that a person reads: a row of numbers is one line."""
    text = json.dumps(result, indent=2)
    return re.sub(r'\[\n\s+[^"\[\]{}]*?\n\s+\]', lambda row: " ".join(row[0].split()).replace("[ ", "[").replace(" ]", "]"), text)


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a text file, however large it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 200_000))
            return plain_lines(file.read().decode(errors="replace"))[-count:]
    except OSError:
        return []


def marked(lines: list[str]) -> list[tuple[str, str]]:
    """Return each line with "error" where it tells of one, a traceback as a whole."""
    shown, within = [], False
    for line in lines:
        told = bool(ERROR.search(line))
        shown.append((line, "error" if told or (within and line.startswith(" ")) else ""))
        within = line.startswith("Traceback") or (within and line.startswith(" "))
    return shown


def write_page(folder: Path, outcome: dict[str, Any], verdict: dict[str, Any], drawn: dict[str, Any] | None) -> None:
    """Write ``report.html``: one file, no server, no network."""
    logs = {path.stem: marked(tail(path, 400)) for path in sorted((folder / "logs").glob("*.log"))}
    files = [
        (name.encode(errors="replace").decode(), urllib.parse.quote(os.fsencode(name)), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := str(path.relative_to(folder))) != "report.html"
    ]
    about, links = drawn["about"] if drawn else {}, links_of(verdict)
    versions = {"Python": about.get("python"), "TensorFlow of the program": about.get("tensorflow")}
    versions["ansible-core"] = ansible_core
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
    environment.filters |= {"size": trace_figure.size, "seconds": trace_figure.seconds}
    page = environment.get_template("report.html.j2").render(
        verdict=verdict, result=as_json(verdict["result"]) if "result" in verdict else "",
        placement=placement(folder), output=marked(tail(folder / "stdout.log", 2000)), logs=logs, files=files[:500],
        machines=machines_of(outcome, verdict), versions={name: text for name, text in versions.items() if text}, drawing=drawn,
        links=links, scripts=scripts(*["trace.js"] * bool(drawn), *["benchmark.js"] * bool(links)),
    )  # fmt: skip
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def links_of(verdict: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the page needs to draw the links of a benchmark, None where there is none."""
    found = benchmark_figure.read(verdict.get("result"))
    try:
        return found and {
            "figure": data(benchmark_figure.figure(found)),
            "findings": [str(sentence) for sentence in found["findings"]],
            "computed": [{**row} for row in found["computed"]],
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # a program's own, that only looks like one
        return None


def scripts(*names: str) -> list[dict[str, str]]:
    """Return the scripts that draw, after plotly.js, each with its hash, for no others may run; none where there is none."""
    from plotly.offline import get_plotlyjs

    texts = [get_plotlyjs(), *((TEMPLATES / name).read_text(encoding="utf-8") for name in names)] if names else []
    return [{"text": text, "hash": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()} for text in texts]


def data(text: str) -> str:
    """Return JSON as it may stand in the page: nothing in it can end the script that it stands in."""
    return text.replace("<", "\\u003c")


def drawing(trace: trace_figure.Trace, machines: dict[str, dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    """Return what the page needs to draw the trace. ``names``: what the run calls a task -> what the cluster does, if another."""
    machine_of = {task: machine for machine, tasks in machines.items() for task in tasks}
    machine_of |= {task: machine_of.get(known, "") for task, known in names.items()}
    views = trace_figure.views(trace)
    return {
        "figure": data(trace_figure.figure(trace, machine_of)),
        "views": views,
        "spans": data(json.dumps([view["range"] for view in views])),
        "by_task": trace_figure.by_task(trace),
        "routes": trace_figure.by_route(trace),
        "left_out": max(0, len(trace.bars) - trace_figure.MOST_BARS),
        "about": trace.about,
    }
