"""How a run ended: one sentence, by what systemd, the program and the cluster's tasks say."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import runs
from .runs import USER, Run
from .unit import CONFIG, INSTALL, MODULE, layer_of

CRASHES = ("SEGV", "ABRT", "BUS", "FPE", "ILL", "TRAP", "SYS")  # signals that mean it, as output.py passes them on
ALMOST_NOTHING = 1024 * 1024  # bytes of a disk that is full
OUTPUT_LOST = "74"  # how output.py ends where a program ended well, and output is lost of which it could not even say so
ASKED = 4.0  # seconds that the tasks have to answer after a failure; systemd gives the last note ten
MOST_READ = 64 * 1024  # bytes of part.json that are read


class Ending(NamedTuple):
    """What is known of the end of a run."""

    noted: dict[str, Any]  # the run's notes
    result: str  # systemd's: "success", "exit-code", "signal", "core-dump", "timeout", "oom-kill", ...
    status: str  # exit status, or the name of a signal without SIG
    part: dict[str, Any]  # of a training: what its process left
    task_lost: bool  # whether the run was ended because a task was silent
    promised: bool  # whether a result.json that the run has to leave is missing
    not_started: bool  # whether the program's packages could not be installed
    disk_full: bool


# The first that holds says how the run ended. An empty sentence: well.
ENDINGS: tuple[tuple[Callable[[Ending], object], Callable[[Ending], str]], ...] = (
    (lambda end: end.noted.get("cancelled"), lambda end: end.noted["cancelled"]),
    (
        lambda end: end.not_started and end.result == "timeout",
        lambda _end: f"the program was not started: installing its packages was not done after {INSTALL} s",
    ),
    (
        lambda end: end.not_started,
        lambda _end: "the program was not started: installing its packages failed, as the run's output says",
    ),
    (
        lambda end: end.task_lost,
        lambda end: (
            f"a task was silent for {end.noted.get('lost', 0):g} s, and the program was ended for it (run_abort_after_silence)"
        ),
    ),
    (
        lambda end: end.result == "success" and end.promised,
        lambda _end: "the program ended well but left no result.json, which it has to (run_needs_result)",
    ),
    (lambda end: end.result == "success", lambda _end: ""),
    (
        lambda end: end.result == "exit-code" and end.disk_full and end.status == OUTPUT_LOST,
        lambda _end: "the program ended well, but output of it is lost",
    ),
    (
        lambda end: end.result == "exit-code",
        lambda end: end.part.get("failure") or f"the program ended with exit status {end.status}",
    ),
    (lambda end: end.result == "signal", lambda end: f"the program was killed by SIG{end.status}"),
    (lambda end: end.result == "core-dump", lambda end: f"the program crashed with SIG{end.status}"),
    (
        lambda end: end.result == "timeout",
        lambda end: f"the program was still running after {end.noted.get('limit')} s and was ended (run_timeout)",
    ),
    (lambda end: end.result == "oom-kill", lambda _end: "the machine ran out of memory and ended the program"),
    (lambda _end: True, lambda end: f"the program ended as systemd calls {end.result!r}"),
)


def note_ending(run: Run, environment: Mapping[str, str]) -> None:
    """Note how a run ended; ``environment`` is what systemd gives to ExecStopPost (SERVICE_RESULT, EXIT_CODE, EXIT_STATUS)."""
    noted, ended, seen = run.read(), time.time(), seen_of(run)
    end = ending_of(run, noted, environment, seen)
    failure = sentence(end)
    if failure and end.disk_full:
        failure += f"; the disk that holds {runs.RUNS} is full"
    more: dict[str, Any] = {"part": end.part} if end.part else {}
    if failure and noted.get("servers") and not noted.get("cancelled"):
        more["failed_tasks"] = failed_tasks(noted["servers"], seen["silent"])
    run.note(ended=ended, failure=failure, exit_status=end.status, **more)


def ending_of(run: Run, noted: dict[str, Any], environment: Mapping[str, str], seen: dict[str, Any]) -> Ending:
    """Return what is known of a run's end."""
    status = environment.get("EXIT_STATUS", "")
    chief = (noted.get("training") or {}).get("chief", noted.get("task"))
    return Ending(
        noted=noted,
        result=result_of(noted, environment.get("SERVICE_RESULT", "unknown"), environment.get("EXIT_CODE", ""), status),
        status=status,
        part=part_of(run),
        task_lost=seen["lost"],
        promised=bool(noted.get("needs_result")) and noted.get("task") == chief and not has_result(run),
        not_started=layer_of(run).exists() and not main_began(noted["unit"]),
        disk_full=disk_is_full(run),
    )


def result_of(noted: dict[str, Any], result: str, code: str, status: str) -> str:
    """Return systemd's result, corrected where it takes a killed program for a good one, or a good one for a late one."""
    if result == "success" and code == "killed":
        result = "signal"  # systemd takes SIGTERM and some others for a clean end, but the program has not done its work
    if result == "timeout" and (code, status) == ("exited", "0") and main_seconds(noted["unit"]) < noted["limit"]:
        result = "success"  # the program had ended well; what it left behind would not end at SIGTERM
    return "core-dump" if result == "signal" and status in CRASHES else result


def sentence(end: Ending) -> str:
    """Return how a run ended, as a sentence without its full stop; nothing if it ended well."""
    return next(say(end) for holds, say in ENDINGS if holds(end))


def left_in_part(run: Run) -> Any:
    """Return what stands in part.json, which belongs to the program's user: it may be anything, or not be JSON."""
    with (run.folder / "part.json").open(encoding="utf-8") as file:  # the folder is root's: it cannot be a link
        return json.loads(file.read(MOST_READ))


def part_of(run: Run) -> dict[str, Any]:
    """Return what training.py left on this task's part of a training: outcome, attempts, failure."""
    try:
        part = left_in_part(run)
        return {"failure": str(part["failure"]), "outcome": str(part["outcome"]), "attempts": int(part["attempts"])}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


def has_result(run: Run) -> bool:
    """Tell whether the run has a result.json that will be collected: a link will not."""
    path = run.folder / "results/result.json"
    return path.is_file() and not path.is_symlink()


def disk_is_full(run: Run) -> bool:
    """Tell whether the program could write next to nothing any more."""
    disk = os.statvfs(run.folder)
    return disk.f_bavail * disk.f_frsize < ALMOST_NOTHING


def main_began(unit: str) -> bool:
    """Tell whether the main process of a unit was ever there; where systemd does not say, that it was."""
    try:
        return int(runs.property_of(unit, "ExecMainStartTimestampMonotonic", 1.0) or 0) > 0
    except OSError:
        return True


def seen_of(run: Run) -> dict[str, Any]:
    """Return what watch.py left: address -> seconds that its task was silent, and whether the run was ended for it."""
    try:
        left = left_in_part(run)
        return {"silent": {str(entry): float(seconds) for entry, seconds in left["silent"].items()}, "lost": left["lost"] is True}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {"silent": {}, "lost": False}


def failed_tasks(servers: dict[str, str], silent: dict[str, float]) -> dict[str, str]:
    """Ask the tasks how they are after a failure; return address -> what is wrong, as it follows the task's name.

    ``servers`` is address -> what the gate knew its server by before the run (gate.py's incarnation).
    """
    command = [*MODULE, "tf_cluster.ready", "--json", f"--config={CONFIG}", f"--timeout={ASKED}"]
    try:
        # As the servers' own user: what it reads is what others say over the network.
        own: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": ()}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * ASKED, **own)
        tasks = json.loads(done.stdout)["tasks"]
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired):
        return {}
    found = {entry: f"did not answer for {seconds:.0f} s while the run went on" for entry, seconds in silent.items()}
    for task in tasks:
        entry = task["address"]
        if task["state"] != "answers" and entry in servers:
            found[entry] = f"does not answer: {task['state']}, {task['reason']}"
        elif task["incarnation"] != servers.get(entry, task["incarnation"]):
            found[entry] = "was restarted while the run went on: sessions from before fail for good, a new one works"
    return found


def main_seconds(unit: str) -> float:
    """Return for how many seconds the main process of a unit was there, once it has ended; as far as systemd says it."""
    try:
        begin, end = (int(runs.property_of(unit, f"ExecMain{name}TimestampMonotonic", 1.0) or 0) for name in ("Start", "Exit"))
    except OSError:
        return math.inf
    return (end - begin) / 1e6
