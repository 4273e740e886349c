"""Make the verdict and the page of a collected run. Runs on the controller, in the action plugin write_report."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import math
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

import jinja2
from ansible.release import __version__ as ansible_core

from ..run.reason import last_tasks, names_in, remedy_of
from ..run.text import plain_lines
from . import benchmark_figure, profiles, trace_figure

TEMPLATES = Path(__file__).parent / "templates"
RUN_TIME = re.compile(r"\d{8}-\d{6}(?=-)")  # the beginning of a run's ID
NOT_COLLECTED = "could not be collected"
# Lines of a log that may show an error.
ERROR = re.compile(r"^[EF]\d{4} |\b[A-Z]\w*(Error|Exception)\b|\b(error|fatal|failed|killed|traceback)\b", re.IGNORECASE)
MAX_JSON_BYTES = 4_000_000  # of the program's JSON files; the objects need ten times as much memory
MAX_TRACE_BYTES = 200_000_000  # of trace.json; tracing stops after the step that exceeds about 40 MB
MAX_NAMES = 5  # of files that were not collected
MAX_DEPTH = 100  # of nested lists and objects in a result


def write(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write ``verdict.json``, ``report.html`` and ``summary.txt`` to the folder, and update the link ``latest`` beside it.

    ``facts``: ``outcome`` and ``tasks`` are the answers of the run and of the gate, ``required`` is whether a failed run fails
    the command (false for canceled and running runs), and ``skipped`` are the machines that --limit leaves out. Returns ``lines``
    (the summary), ``verdict`` and ``failure`` (a sentence if the command failed). Raises OSError if a file cannot be written.
    """
    verdict = make_verdict(folder, facts)
    drawn = add_trace(folder, facts["outcome"], verdict)
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    lines = summary(folder, facts["outcome"], verdict)
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    write_page(folder, facts["outcome"], verdict, drawn)
    point_latest(folder)
    failures = [sentence for sentence in verdict["failures"] if facts["required"] or NOT_COLLECTED in sentence]
    failure = f"{' '.join(failures)} The collected files are in {folder}." if failures else ""
    return {"lines": lines, "verdict": verdict, "failure": failure}


def point_latest(folder: Path) -> None:
    """Let ``latest`` point to the run, unless it points to a newer one: an older run may be collected again."""
    latest = folder.parent / "latest"
    if latest.is_dir() and latest.is_symlink():
        current = RUN_TIME.match(latest.readlink().name)
        own = RUN_TIME.match(folder.name)
        if current and own and current[0] > own[0]:
            return
    fresh = folder.parent / f".latest.{os.getpid()}"
    with contextlib.suppress(OSError):  # no link, for example on a file system without links: the command prints the folder
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.name)
        fresh.replace(latest)
    fresh.unlink(missing_ok=True)


def make_verdict(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the verdict; ``ok`` is true only if nothing failed."""
    collected = Collected(folder, facts)
    tasks = collected.training()
    result, unreadable = collected.result()
    failures = [*collected.program_failure(), *collected.failed_tasks(), *unreadable]
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
        "tasks": {task["task"]: {name: task.get(name) for name in shown} for task in collected.tasks},
    }
    verdict |= {"training": tasks} if tasks else {}
    if notified := collected.notification():
        verdict |= {"notified": notified}
    notes, left = [*collected.too_large(), *collected.not_collected()], collected.left_behind()
    verdict |= {name: lines for name, lines in (("notes", notes), ("left_behind", left)) if lines}
    verdict |= {"missing": outcome["left_out"]} if outcome.get("left_out") else {}
    names = outcome.get("names") or training_names(outcome)
    verdict |= {"names": names} if names else {}
    return verdict if result is None else {**verdict, "result": result}


def training_names(outcome: dict[str, Any]) -> dict[str, str]:
    """Return the names of a training's tasks in its last attempt -> their names in the cluster; empty if they are the same."""
    names = names_in(last_tasks(outcome.get("training") or {}, outcome.get("part") or {}))
    return names if any(name != known for name, known in names.items()) else {}


def tasks_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the gate's tasks that belong to the run: those that it reserved, and those that did not answer before it."""
    outcome, tasks = facts["outcome"], list(facts["tasks"])
    if outcome.get("training"):
        return [task for task in tasks if task["task"] in outcome["training"]["machines"]]
    if not outcome.get("names"):
        return tasks
    own = {*outcome["reserved"], *outcome.get("missing", [])}
    return [task for task in tasks if task["address"] in own]


class Collected:
    """A collected run: its failures and its missing parts."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.tasks, self.outcome = folder, tasks_of(facts), facts["outcome"]
        # machine that --limit leaves out -> its uncollected parts
        self.skipped: dict[str, list[str]] = {machine: [] for machine in facts.get("skipped", [])}
        self.lost: dict[str, list[str]] = {machine: [] for machine in lost_machines(self.outcome)}  # the same
        parts = {f"{task}: ": collected_note(place) for task, place in parts_of(folder, self.outcome).items()}
        self.notes = {"": collected_note(folder), **parts}  # prefix of a sentence on a task -> notes

    def program_failure(self) -> list[str]:
        """Return a sentence on the run's failure, if it failed."""
        failure = self.outcome["failure"]
        if not failure:
            return []
        reason = self.outcome.get("reason") or {}
        task = reason.get("task", "")
        named = f"{task} on machine {self.machine_of(task)}"
        failure = failure.replace(f"({task})", f"({named})") if task and self.machine_of(task) else failure
        return [f"{failure[0].upper()}{failure[1:]}.", *remedy_of(self.outcome)]

    def machine_of(self, task: str) -> str:
        """Return the machine of a task; empty if unknown."""
        found = [each["machine"] for each in self.tasks if each["task"] == task]
        return found[0] if found else ""

    def failed_tasks(self) -> list[str]:
        """Return a sentence for each task that did not work when the run failed."""
        failed = self.outcome.get("failed_tasks") or {}
        return [
            f"{task['task']} on machine {task['machine']} ({task['address']}) {failed[task['address']]}."
            for task in self.tasks
            if task["address"] in failed
        ]

    def result(self) -> tuple[object, list[str]]:
        """Return the program's result (None if there is none), and sentences on why it cannot be read."""
        path = self.folder / "result.json"
        try:
            return (None if too_large(path) else read_result(path)), []
        except FileNotFoundError:
            return None, []
        except (OSError, ValueError, RecursionError) as error:
            return None, [f"The program's result.json is not JSON: {error}."]

    def missing_logs(self) -> list[str]:
        """Return a sentence for each task whose log is missing."""
        failures = []
        for task in self.tasks:
            if task["machine"] in self.skipped:
                self.skipped[task["machine"]].append(f"the log of {task['task']}")
            elif task["address"] in self.outcome.get("missing", []) or log_of(self.folder, task["task"]).exists():
                continue
            elif task["machine"] in self.lost:
                self.lost[task["machine"]].append(f"the log of {task['task']}")
            else:
                failures.append(f"The log of {task['task']} could not be collected: is machine {task['machine']} reachable?")
        return failures

    def training(self) -> dict[str, Any]:
        """Return the outcome of each task of a training; empty if the run is no training."""
        return training_outcome(self.folder, self.outcome) if self.outcome.get("training") else {}

    def lost_parts(self, training: dict[str, Any]) -> list[str]:
        """Return a sentence for each task of a training without results; mark those that --limit leaves out in ``training``."""
        failures = []
        for task, part in training.get("tasks", {}).items():
            if part["outcome"] == NOT_COLLECTED and part["machine"] in self.skipped:
                part["outcome"] = "was not collected (--limit)"
                self.skipped[part["machine"]].append(f"the results of {task}")
            elif part["outcome"] == NOT_COLLECTED and part["machine"] in self.lost:
                part["outcome"] = "was lost"
                self.lost[part["machine"]].append(f"the results of {task}")
            elif part["outcome"] == NOT_COLLECTED:
                failures.append(f"The results of {task} could not be collected: is machine {part['machine']} reachable?")
        return failures

    def too_large(self) -> list[str]:
        """Return a sentence for each JSON file that is too large to read."""
        return [sentence for name in ("result.json", "placement.json") if (sentence := too_large(self.folder / name))]

    def not_collected(self) -> list[str]:
        """Return a sentence for each machine that --limit leaves out or that was lost."""
        skipped = [
            f"Not collected, because --limit leaves out machine {machine}: {', '.join(what)}."
            for machine, what in self.skipped.items()
            if what
        ]
        again = f"When it is back: ansible-playbook playbooks/collect.yml -e run={self.outcome['run_id']}"
        return skipped + [
            f"Not collected, because machine {machine} was lost: {', '.join(what)}. {again}"
            for machine, what in self.lost.items()
            if what
        ]

    def notification(self) -> dict[str, Any]:
        """Return to which server the run's machine posted the verdict and the outcome; empty if to none."""
        noted = {**self.outcome, **self.notes[""]}
        if not noted.get("notify") or "ended" not in self.outcome:
            return {}
        pending = {"ok": False, "outcome": "pending", "attempts": 0}
        found = noted.get("notified")
        return {"to": noted["notify"], **pending, **(found if isinstance(found, dict) else {})}

    def left_behind(self) -> list[str]:
        """Return the files that could not be collected, each with its task."""
        return [f"{task}{name}" for task, noted in self.notes.items() for name in noted.get("left_behind", [])]


def log_of(folder: Path, task: str) -> Path:
    """Return the path of a task's journal in a collected run."""
    return folder / "logs" / f"{task.replace(':', '-')}.log"


def training_outcome(folder: Path, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of each task of a training; the chief's outcome is the run's."""
    parts, plan, places = {}, outcome["training"], parts_of(folder, outcome)
    if "entries" not in plan:  # of a version before 0.9.0: each index is the position
        plan["entries"] = {f"{job}:{index}": entry for job in plan["cluster"] for index, entry in enumerate(plan["cluster"][job])}
    for task, machine in plan["machines"].items():
        noted = (collected_note(places[task]) or {"part": {"outcome": NOT_COLLECTED}}) if task in places else outcome
        own = noted.get("part", {}).get("outcome") or noted.get("failure") or "still running"
        parts[task] = {"machine": machine, "address": plan["entries"][task], "outcome": own}
    own = outcome.get("part", {})
    history = {"history": own["history"]} if own.get("history") else {}
    return {"chief": plan["chief"], "attempts": own.get("attempts", 1), **history, "tasks": parts}


def lost_machines(outcome: dict[str, Any]) -> list[str]:
    """Return the machines of a training that had no task in its last attempt, because they were lost."""
    history = outcome.get("part", {}).get("history") or []
    machines = (outcome.get("training") or {}).get("machines", {})
    there = {machines.get(task) for task in history[-1]["tasks"]} if history else set(machines.values())
    return sorted(set(machines.values()) - there)


def parts_of(folder: Path, outcome: dict[str, Any]) -> dict[str, Path]:
    """Return task -> folder of its results, for the tasks of a training except the chief."""
    plan = outcome.get("training") or {"machines": {}, "chief": ""}
    return {task: folder / "tasks" / task.replace(":", "-") for task in plan["machines"] if task != plan["chief"]}


def collected_note(folder: Path) -> dict[str, Any]:
    """Return a collected run's notes, empty if they were not collected."""
    try:
        noted: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return noted
    except (OSError, ValueError):
        return {}


def too_large(path: Path) -> str:
    """Return a sentence if a JSON file is too large to read, else an empty string."""
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    limit = f"more than the limit of {MAX_JSON_BYTES // 1_000_000} MB"
    return f"{path.name} has {size / 1e6:.0f} MB, {limit}, and was not read." if size > MAX_JSON_BYTES else ""


def add_trace(folder: Path, outcome: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any] | None:
    """Add a summary of the trace, or why there is none, to the verdict; return the data for the page."""
    path = folder / "trace.json"
    if path.exists() and path.stat().st_size > MAX_TRACE_BYTES:
        verdict["trace"] = {"missing": f"The trace is too large to show: trace.json has {path.stat().st_size / 1e6:.0f} MB."}
        return None
    try:
        profiles.gather(folder)
        recorded = trace_figure.read(path)
        names, task = verdict.get("names", {}), outcome.get("task", "")
        own = next((name for name, known in names.items() if known == task), task)
        trace = recorded if recorded and recorded.bars else profiles.read(folder, own)
        if trace and trace.bars:
            drawn = drawing(trace, machines_of(outcome, verdict), names)
            verdict["trace"] = trace_figure.totals(trace)
            return drawn
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # a program may have changed them
        verdict["trace"] = {"missing": f"The trace cannot be shown: {error}."}
        return None
    if outcome.get("trace"):
        reason = "it did not import TensorFlow"
        if recorded:
            reason = "it ran neither a session step nor an eager operation, or used TensorFlow's profiler itself"
        elif path.exists():
            reason = "the program wrote its own trace.json"
        verdict["trace"] = {"missing": f"The program left no trace: {reason}."}
    return None


def machines_of(outcome: dict[str, Any], verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return machine -> task -> facts, including the program's task."""
    machines: dict[str, dict[str, Any]] = {}
    for name, task in verdict["tasks"].items():
        machines.setdefault(task["machine"] or "", {})[name] = task
    if outcome.get("task") and outcome.get("machine"):
        machines.setdefault(outcome["machine"], {})[outcome["task"]] = {"state": "ran the program"}
    return machines


def known_as(verdict: dict[str, Any], task: str) -> str:
    """Return a task's name in the cluster; a run without some tasks renumbers the others."""
    names: dict[str, str] = verdict.get("names", {})
    return names.get(task, task)


def read_result(path: Path) -> object:
    """Return a program's result; replace NaN, infinite numbers and lone surrogates, which other JSON readers reject."""

    def finite(text: str) -> float | None:
        number = float(text)
        return number if math.isfinite(number) else None

    def levels(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + max(map(levels, inner), default=0)

    result = json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=lambda _name: None)
    if levels(result) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    return json.loads(json.dumps(result, ensure_ascii=False).encode(errors="replace"))


def placement(folder: Path) -> dict[str, Any]:
    """Return operation -> device from placement.json, empty if there is none."""
    try:
        path = folder / "placement.json"
        found = {} if too_large(path) else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def summary(folder: Path, outcome: dict[str, Any], verdict: dict[str, Any]) -> list[str]:
    """Return the summary of a run as lines."""
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
        more = f" and {len(left) - MAX_NAMES} more" if len(left) > MAX_NAMES else ""
        lines.append(f"Not collected: special or unreadable files: {', '.join(left[:MAX_NAMES])}{more}")
    lines += attempts(verdict)
    lines += [*verdict.get("notes", []), *notified(verdict), *verdict["failures"]]
    if verdict["failures"]:
        lines += ["The last lines of the output:", *(f"    {line}" for line in tail(folder / "stdout.log", 15))]
    for task, part in verdict.get("training", {"tasks": {}})["tasks"].items():
        log = folder / "tasks" / task.replace(":", "-") / "stdout.log"
        if verdict["failures"] and log.exists() and part["outcome"].startswith(("exited with", "was killed")):
            lines += [f"The last lines of the output of {task}:", *(f"    {line}" for line in tail(log, 15))]
    ended = "Done" if verdict["ok"] else "Canceled" if outcome.get("cancelled") else "Failed"
    lines.append(f"{ended if 'ended' in outcome else 'Not finished'} after {verdict['seconds']} s; everything is in {folder}")
    return plain_lines("\n".join(lines))


def attempts(verdict: dict[str, Any]) -> list[str]:
    """Return a sentence for each attempt of a training, if there were several."""
    found = verdict.get("training", {}).get("history", [])
    sentences = []
    for each in found if len(found) > 1 else []:
        step = "" if each["first_step"] is None else f" from step {each['first_step']}"
        sentences.append(f"Attempt {each['attempt']}{step} with {', '.join(each['tasks'])}: {each['ended'] or 'not finished'}.")
    return sentences


def notified(verdict: dict[str, Any]) -> list[str]:
    """Return a sentence on the notification, if there is one."""
    found = verdict.get("notified")
    if not found:
        return []
    tries = f" after {found['attempts']} attempts" if found["attempts"] > 1 else ""
    how = "Notified" if found["ok"] else "Notifying" if found["outcome"] == "pending" else "Could not notify"
    return [f"{how} {found['to']}: {found['outcome']}{tries}"]


def traced(found: dict[str, Any]) -> str:
    """Return a sentence on the content of the trace."""
    counts = ", ".join(
        f"{found[what]} {what if found[what] != 1 else what[:-1]}" for what in ("steps", "operations", "transfers")
    )
    amount = f" of {trace_figure.size(found['bytes'])}" if "bytes" in found else ""
    return f"Traced {counts}{amount}: report.html shows them"


def as_text(row: object) -> str:
    """Return a row of numbers as text, with the precision of 32-bit numbers."""
    if not isinstance(row, list):
        return str(row)
    return "  ".join(f"{value:10.7g}" if isinstance(value, float) else f"{value!s:>10}" for value in row)


def as_json(result: object) -> str:
    """Return a result as indented JSON, with each row of numbers on one line."""
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
    """Return each line with "error" or ""; a traceback is marked as a whole."""
    shown, within = [], False
    for line in lines:
        matches = bool(ERROR.search(line))
        shown.append((line, "error" if matches or (within and line.startswith(" ")) else ""))
        within = line.startswith("Traceback") or (within and line.startswith(" "))
    return shown


def write_page(folder: Path, outcome: dict[str, Any], verdict: dict[str, Any], drawn: dict[str, Any] | None) -> None:
    """Write ``report.html``, one file that needs no server and no network."""
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
        verdict=verdict, notified=attempts(verdict) + notified(verdict),
        result=as_json(verdict["result"]) if "result" in verdict else "",
        placement=placement(folder), output=marked(tail(folder / "stdout.log", 2000)), logs=logs, files=files[:500],
        machines=machines_of(outcome, verdict), versions={name: text for name, text in versions.items() if text}, drawing=drawn,
        links=links, scripts=scripts(*["trace.js"] * bool(drawn), *["benchmark.js"] * bool(links)),
    )  # fmt: skip
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def links_of(verdict: dict[str, Any]) -> dict[str, Any] | None:
    """Return the data to draw the links of a benchmark, None if there is none."""
    found = benchmark_figure.read(verdict.get("result"))
    try:
        return found and {
            "figure": data(benchmark_figure.figure(found)),
            "findings": [str(sentence) for sentence in found["findings"]],
            "computed": [{**row} for row in found["computed"]],
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # another program's result in a similar format
        return None


def scripts(*names: str) -> list[dict[str, str]]:
    """Return plotly.js and the named scripts, each with its hash for the page's policy; empty without names."""
    from plotly.offline import get_plotlyjs

    texts = [get_plotlyjs(), *((TEMPLATES / name).read_text(encoding="utf-8") for name in names)] if names else []
    return [{"text": text, "hash": base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()} for text in texts]


def data(text: str) -> str:
    """Return JSON that can be embedded in a script element."""
    return text.replace("<", "\\u003c")


def drawing(trace: trace_figure.Trace, machines: dict[str, dict[str, Any]], names: dict[str, str]) -> dict[str, Any]:
    """Return the data to draw the trace. ``names``: task name in the run -> name in the cluster, if different."""
    machine_of = {task: machine for machine, tasks in machines.items() for task in tasks}
    machine_of |= {task: machine_of.get(known, "") for task, known in names.items()}
    views = trace_figure.views(trace)
    return {
        "figure": data(trace_figure.figure(trace, machine_of)),
        "views": views,
        "spans": data(json.dumps([view["range"] for view in views])),
        "by_task": trace_figure.by_task(trace),
        "routes": trace_figure.by_route(trace),
        "longest": trace_figure.longest(trace),
        "profiled": trace.profiled,
        "left_out": max(0, len(trace.bars) - trace_figure.MAX_BARS),
        "about": trace.about,
    }
