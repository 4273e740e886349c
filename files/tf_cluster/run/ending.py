"""Determine how a run ended, as one sentence, from systemd, the program and the cluster's tasks."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import runs
from .reason import Reason, last_tasks, reason_of
from .runs import USER, Run
from .unit import CONFIG, INSTALL_TIMEOUT_SECONDS, PYTHON_MODULE, layer_of

CRASH_SIGNALS = ("SEGV", "ABRT", "BUS", "FPE", "ILL", "TRAP", "SYS")  # output.py exits by the program's signal
FULL_DISK_BYTES = 1024 * 1024  # a disk with less free space counts as full
OUTPUT_LOST = "74"  # exit status of output.py: the program succeeded, but output is lost
GATE_TIMEOUT_SECONDS = 4.0  # systemd allows ten seconds for ExecStopPost
MAX_PART_BYTES = 1024 * 1024
SHUT_DOWN = "the program was stopped because its machine was shut down or rebooted"


class Ending(NamedTuple):
    """The facts about the end of a run."""

    noted: dict[str, Any]  # the run's notes
    result: str  # systemd's: "success", "exit-code", "signal", "core-dump", "timeout", "oom-kill", ...
    status: str  # exit status, or the name of a signal without SIG
    part: dict[str, Any]  # of a training: the content of part.json
    task_lost: bool  # whether the run was stopped because a task did not answer
    result_missing: bool  # whether the required result.json is missing
    not_started: bool  # whether the preparation failed: servers could not be cleared, or packages not be installed
    disk_full: bool
    missing: str = ""  # the server for which the program waited, as a sentence without full stop
    not_shared: str = ""  # why the shared file system cannot be used
    lacks_packages: bool = False  # whether packages of the run are not installed
    shuts_down: Callable[[], bool] = lambda: False  # whether the machine does, which stops all units
    reason: Callable[[], Reason | None] = lambda: None  # that the program's output gives; read once, and only for a failure


# The first condition that is true selects the sentence. An empty sentence means success.
ENDINGS: tuple[tuple[Callable[[Ending], object], Callable[[Ending], str]], ...] = (
    (lambda end: end.noted.get("cancelled"), lambda end: end.noted["cancelled"]),
    (lambda end: end.not_started and end.not_shared, lambda end: f"the program was not started: {end.not_shared}"),
    (
        lambda end: end.not_started and end.noted.get("shared") and not (end.noted.get("clear_before") or end.lacks_packages),
        lambda end: f"the program was not started: {end.noted['shared']} (tf_shared) did not answer; see the run's output",
    ),
    (
        lambda end: end.not_started and not end.lacks_packages,
        lambda _end: "the program was not started: servers could not be cleared of earlier runs' state; see the run's output",
    ),
    (
        lambda end: end.not_started and end.result == "timeout",
        lambda _end: f"the program was not started: installing its packages took longer than {INSTALL_TIMEOUT_SECONDS} s",
    ),
    (
        lambda end: end.not_started,
        lambda _end: "the program was not started: installing its packages failed; see the run's output",
    ),
    (
        lambda end: end.task_lost,
        lambda end: (
            f"a task did not answer for {end.noted.get('abort_after_silence', 0):g} s, "
            "so the program was stopped (run_abort_after_silence)"
        ),
    ),
    (
        lambda end: end.result == "success" and end.result_missing,
        lambda _end: "the program succeeded but left no result.json (run_needs_result)",
    ),
    (lambda end: end.result == "success", lambda _end: ""),
    (
        lambda end: end.result == "exit-code" and end.disk_full and end.status == OUTPUT_LOST,
        lambda _end: "the program succeeded, but part of its output is lost",
    ),
    (
        lambda end: end.result == "exit-code",
        lambda end: end.part.get("failure") or f"the program exited with status {end.status}{because(end.reason())}",
    ),
    (
        lambda end: end.result in ("signal", "timeout") and end.shuts_down(),
        lambda _end: SHUT_DOWN,
    ),
    (lambda end: end.result == "signal", lambda end: f"the program was killed by SIG{end.status}"),
    (lambda end: end.result == "core-dump", lambda end: f"the program crashed with SIG{end.status}"),
    (
        lambda end: end.result == "timeout",
        lambda end: (
            f"the program was still running after {end.noted.get('timeout')} s and was stopped (run_timeout)"
            f"{f'; {end.missing}' if end.missing else ''}"
        ),
    ),
    (lambda end: end.result == "oom-kill", lambda _end: "the program was killed because the machine ran out of memory"),
    (lambda _end: True, lambda end: f"the program failed with systemd's result {end.result!r}"),
)


def note_ending(run: Run, environment: Mapping[str, str]) -> None:
    """Write how a run ended to run.json; ``environment`` has systemd's SERVICE_RESULT, EXIT_CODE and EXIT_STATUS."""
    noted, ended, seen = run.read(), time.time(), watch_report(run)
    end = ending_of(run, noted, environment, seen)
    failure = sentence(end)
    if failure and end.disk_full:
        failure += f"; the disk that holds {runs.RUNS} is full"
    more: dict[str, Any] = {"part": end.part} if end.part else {}
    # A program that was stopped did not fail for what its output shows.
    fails_itself = end.result in ("exit-code", "core-dump") and not (noted.get("cancelled") or end.task_lost)
    if failure and fails_itself and (reason := end.reason()):
        more["reason"] = reason._asdict()
    servers = noted.get("servers", {})
    reserved = noted.get("reserved", servers)  # a run of an older version uses all tasks
    servers = {entry: server for entry, server in servers.items() if entry in reserved}
    if failure not in ("", SHUT_DOWN) and servers and not noted.get("cancelled"):
        more["failed_tasks"] = failed_tasks(servers, seen["silent"])
    run.note(ended=ended, failure=failure, exit_status=end.status, **more)


def because(reason: Reason | None) -> str:
    """Return the end of a sentence on a failed program."""
    return f": {reason}" if reason else ""


def ending_of(run: Run, noted: dict[str, Any], environment: Mapping[str, str], seen: dict[str, Any]) -> Ending:
    """Return the facts about the end of a run."""
    status = environment.get("EXIT_STATUS", "")
    training, part = noted.get("training") or {}, part_of(run)
    tasks = last_tasks(training, part)
    chief = tasks[0] if tasks else noted.get("task")
    return Ending(
        noted=noted,
        result=result_of(noted, environment.get("SERVICE_RESULT", "unknown"), environment.get("EXIT_CODE", ""), status),
        status=status,
        part=part,
        task_lost=seen["lost"],
        missing=seen["missing"],
        result_missing=bool(noted.get("needs_result")) and noted.get("task") == chief and not has_result(run),
        not_started=bool(layer_of(run).exists() or noted.get("clear_before") or noted.get("shared"))
        and not main_started(noted["unit"]),
        not_shared=not_shared(run),
        reason=functools.cache(lambda: known_reason(run, noted, tasks, status)),
        shuts_down=runs.is_shutting_down,
        lacks_packages=layer_of(run).exists() and not any(layer_of(run).glob("packages/*")),
        disk_full=disk_is_full(run),
    )


def known_reason(run: Run, noted: dict[str, Any], tasks: Sequence[str], status: str) -> Reason | None:
    """Return the reason in a run's output, with the task's name in the cluster: a run without some tasks numbers the others."""
    found = reason_of(run.folder / "stdout.log", noted.get("task", ""), tasks, status)
    return found and found._replace(task=noted.get("names", {}).get(found.task, found.task))


def result_of(noted: dict[str, Any], result: str, code: str, status: str) -> str:
    """Return systemd's result, corrected for killed programs that it counts as success and vice versa."""
    if result == "success" and code == "killed":
        result = "signal"  # systemd counts SIGTERM and some other signals as success
    if result == "timeout" and (code, status) == ("exited", "0") and main_seconds(noted["unit"]) < noted["timeout"]:
        result = "success"  # the program succeeded; only its leftover processes ignored SIGTERM
    return "core-dump" if result == "signal" and status in CRASH_SIGNALS else result


def sentence(end: Ending) -> str:
    """Return how a run failed, as a sentence without full stop; empty if it succeeded."""
    return next(say(end) for holds, say in ENDINGS if holds(end))


def read_part(run: Run) -> Any:
    """Return the content of part.json. The program's user owns it, so it can be invalid."""
    with (run.folder / "part.json").open(encoding="utf-8") as file:  # the folder belongs to root, so the file is not a link
        return json.loads(file.read(MAX_PART_BYTES))


def part_of(run: Run) -> dict[str, Any]:
    """Return how this task's part of a training ended, from part.json (Member.run in training.py)."""
    try:
        part = read_part(run)
        found = {"failure": str(part["failure"]), "outcome": str(part["outcome"]), "attempts": int(part["attempts"])}
        found["final"] = part.get("final") is True
        history = [
            {
                "attempt": int(each["attempt"]),
                "tasks": [str(task) for task in each["tasks"]],
                "first_step": None if each["first_step"] is None else int(each["first_step"]),
                "ended": str(each["ended"]),
            }
            for each in part.get("history", [])
        ]
        return {**found, **({"history": history} if history else {})}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


def not_cleared(run: Run) -> list[str]:
    """Return why servers that the run used were not cleared after its end (clear.py); empty: all were cleared."""
    try:
        report = read_part(run)
        return [] if report["cleared"] is True else [str(problem) for problem in report["problems"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ["clear.py did not report"]


def not_shared(run: Run) -> str:
    """Return why the run could not use the shared file system (shared.py), empty if it could."""
    try:
        return str(read_part(run).get("shared", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def has_result(run: Run) -> bool:
    """Return whether the run has a result.json that can be collected; links are not."""
    path = run.folder / "results/result.json"
    return path.is_file() and not path.is_symlink()


def disk_is_full(run: Run) -> bool:
    """Return whether the disk of the run is full."""
    disk = os.statvfs(run.folder)
    return disk.f_bavail * disk.f_frsize < FULL_DISK_BYTES


def main_started(unit: str) -> bool:
    """Return whether the main process of a unit was started; True if systemd does not answer."""
    try:
        return int(runs.property_of(unit, "ExecMainStartTimestampMonotonic", 1.0) or 0) > 0
    except OSError:
        return True


def watch_report(run: Run) -> dict[str, Any]:
    """Return the report of watch.py: address -> seconds without an answer, whether that stopped the run, a missing server."""
    try:
        left = read_part(run)
        silent = {str(entry): float(seconds) for entry, seconds in left["silent"].items()}
        return {"silent": silent, "lost": left["lost"] is True, "missing": str(left.get("missing", ""))}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {"silent": {}, "lost": False, "missing": ""}


def failed_tasks(servers: dict[str, str], silent: dict[str, float]) -> dict[str, str]:
    """Check the tasks after a failure; return address -> problem, a phrase that follows the task's name.

    ``servers`` is address -> incarnation of the server before the run (see gate.py); empty: it is not known.
    """
    command = [*PYTHON_MODULE, "tf_cluster.ready", "--json", f"--config={CONFIG}", f"--timeout={GATE_TIMEOUT_SECONDS}"]
    try:
        # Not as root, because it reads data from the network.
        own: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": ()}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * GATE_TIMEOUT_SECONDS, **own)
        tasks = json.loads(done.stdout)["tasks"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return {}
    found = {entry: f"did not answer for {seconds:.0f} s during the run" for entry, seconds in silent.items()}
    for task in tasks:
        entry = task["address"]
        if task["state"] != "answers" and entry in servers:
            found[entry] = f"does not answer: {task['state']}, {task['reason']}"
        elif servers.get(entry) and task["incarnation"] != servers[entry]:
            found[entry] = "was restarted during the run: sessions opened before fail permanently, new sessions work"
    return found


def main_seconds(unit: str) -> float:
    """Return the seconds that the main process of a unit ran; infinite if systemd does not answer."""
    try:
        begin, end = (int(runs.property_of(unit, f"ExecMain{name}TimestampMonotonic", 1.0) or 0) for name in ("Start", "Exit"))
    except OSError:
        return math.inf
    return (end - begin) / 1e6
