"""The queue of a machine's runs: which run starts next, and with which tasks.

    python -m tf_cluster.run.queue          starts the runs whose turn it is; called when the machine starts
    python -m tf_cluster.run.queue RUN      the same, by the unit of RUN at its end

A run reserves its tasks until it has ended and cleared them: all tasks, the named ones, or a number of worker tasks. In a
training, each part reserves its own task on its own machine. A run also reserves an address for its program's own server.

Runs start in the order in which they were requested. A run starts before an earlier one only if it needs no task that the
earlier one could use. systemd calls this, so nobody needs to be connected.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .. import lock
from ..spec import cluster_config
from ..status.systemd import parse_show
from . import ending, notify, runs
from .runs import Run
from .text import listed
from .unit import CONFIG, start_unit

PROPERTIES = "Id,ActiveState,Description,Job"
MAX_PHRASES = 3  # of what a run waits for
SHUTDOWN = "its machine is shutting down"
PART_SECONDS = 60  # in addition to its limit, after which a queued part of a training is useless: the others have given up
END_SECONDS = 5.0  # that the end of a run waits for the lock: systemd allows ten
LOCK = ".queue.lock"  # in the folder of the runs
Notes = dict[str, Any]  # the content of a run.json


class Waiting(NamedTuple):
    """What a queued run waits for."""

    position: int  # from 1
    reason: str  # a sentence without full stop
    over: bool  # whether all runs that use its tasks have ended and only clear them, which takes a second


class Wanted(NamedTuple):
    """What a run could reserve."""

    own: list[str]  # addresses for its program's server; empty in a training
    tasks: dict[str, str]  # address -> name
    needed: int  # number of the tasks


class Choice(NamedTuple):
    """What a run reserves."""

    own: str  # address of its program's server; empty in a training
    tasks: list[str]  # addresses


class RefusedError(Exception):
    """The run can never start. The message is a sentence without full stop."""


class ShutdownError(Exception):
    """The machine is shutting down, so systemd starts no unit."""


@contextlib.contextmanager
def locked(seconds: float = runs.LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
    """Hold the machine's lock of the queue. Raises BlockingIOError if another process holds it for long."""
    with lock.held(runs.RUNS / LOCK, seconds):
        yield


def enter(run: Run) -> None:
    """Put a run at the end of the queue, unless it is in it or has ended."""
    with locked():
        noted = run.read()
        if "number" not in noted and "ended" not in noted:
            last = max((other.get("number", 0) for _run, other in unfinished()), default=0)
            run.note(number=last + 1, queued=runs.clock())


def dispatch(ended: Run | None = None) -> dict[str, Waiting]:
    """Start all runs whose turn it is. Return what the others wait for. ``ended`` is a run whose unit calls this at its end."""
    if not runs.RUNS.exists():
        return {}  # nothing ever ran here
    with locked(END_SECONDS if ended else runs.LOCK_TIMEOUT_SECONDS):
        if ended:
            settle(ended)
        active = active_runs() - ({ended.id} if ended else set())
        taken: dict[str, str] = {}  # address -> ID of the run that reserves it
        queued: list[tuple[Run, Notes]] = []
        for run, noted in unfinished():
            if run.id in active:
                taken |= dict.fromkeys(reserved(noted), run.id)
            elif "ended" in noted:
                continue
            elif not noted.get("waiting") and not resumes(noted):
                end(run, runs.LOST)
            elif "number" in noted:
                queued.append((run, noted))
        return start_in_order(sorted(queued, key=lambda each: each[1]["number"]), taken)


def resumes(noted: Notes) -> bool:
    """Return whether a run that was lost with its machine starts again: a part of a training, which continues without it."""
    training = noted.get("training")
    return bool(training and training.get("survives") and noted.get("shared") and not noted.get("cancelled"))


def start_in_order(queued: Sequence[tuple[Run, Notes]], taken: dict[str, str]) -> dict[str, Waiting]:
    """Start the queued runs that can start; return what the others wait for. Adds their reservations to ``taken``."""
    waiting: dict[str, Waiting] = {}
    claimed: dict[str, str] = {}  # address -> ID of the first queued run that could use it
    for place, (run, noted) in enumerate(queued):
        try:
            wanted = wanted_by(noted)
            choice = chosen({**claimed, **taken}, wanted)
            if choice:
                start(run, noted, choice)
                taken |= dict.fromkeys((choice.own, *choice.tasks), run.id)
            else:
                waiting[run.id] = explained(noted["task"], wanted, taken, claimed, len(waiting) + 1)
                claimed = {**dict.fromkeys(wanted.tasks, run.id), **claimed}
        except (RefusedError, cluster_config.ConfigError) as error:
            end(run, str(error), refused=True, uncleared=[])
        except ShutdownError:
            left = [other.id for other, _its in queued[place:]]
            return waiting | {name: Waiting(number, SHUTDOWN, False) for number, name in enumerate(left, len(waiting) + 1)}
    return waiting


def wanted_by(noted: Notes) -> Wanted:
    """Return what a run could reserve. Raises RefusedError if the cluster does not have it."""
    if "wants" not in noted:
        raise RefusedError("an older version of this project prepared the run. Run the program again")
    training, wants = noted["training"], noted["wants"]
    if training:
        late = runs.clock() - noted["queued"] > noted.get("queue_timeout", math.inf) + PART_SECONDS
        if late and noted["task"] != training["chief"] and not noted.get("started"):
            raise RefusedError("the training did not wait longer for this task")
        return Wanted([], {training["entries"][noted["task"]]: noted["task"]}, 1)
    standing = {entry: f"{job}:{index}" for job, index, entry in cluster_config.standing_tasks(cluster_config.load(CONFIG))}
    missing = set(noted["missing"])
    there = {entry: name for entry, name in standing.items() if entry not in missing}
    if wants["tasks"]:
        gone = [entry for entry in wants["tasks"] if entry not in standing]
        if gone:
            raise RefusedError(f"the cluster has changed and has no task at {' and '.join(gone)}")
        there = {entry: there[entry] for entry in wants["tasks"] if entry in there}
    if wants.get("none"):
        there = {}
    if not wants["count"]:
        return Wanted(wants["own"], there, len(there))
    workers = {entry: name for entry, name in there.items() if name.startswith("worker:")}
    if len(workers) < wants["count"]:
        raise RefusedError(f"the run needs {wants['count']} worker tasks (run_tasks), but the cluster has {len(workers)}")
    return Wanted(wants["own"], workers, wants["count"])


def chosen(taken: Mapping[str, str], wanted: Wanted) -> Choice | None:
    """Return what a run would reserve now; None if too little is free."""
    free = [entry for entry in wanted.tasks if entry not in taken]
    left = [entry for entry in wanted.own if entry not in taken]
    enough = len(free) >= wanted.needed and (left or not wanted.own)
    return Choice(left[0] if left else "", free[: wanted.needed]) if enough else None


def explained(task: str, wanted: Wanted, taken: Mapping[str, str], claimed: Mapping[str, str], position: int) -> Waiting:
    """Return what a run of the program's ``task`` waits for."""
    users: dict[str, list[str]] = {}
    for entry, name in wanted.tasks.items():
        if entry in taken:
            users.setdefault(taken[entry], []).append(name)
    phrases = [f"{listed(used)} {'is' if len(used) == 1 else 'are'} used by run {run}" for run, used in users.items()]
    if wanted.own and all(entry in taken for entry in wanted.own):
        users |= {taken[entry]: [] for entry in wanted.own}
        phrases = phrases or [f"{task} runs {len(wanted.own)} programs (run_slots)"]
    first = next((claimed[entry] for entry in wanted.tasks if entry in claimed and entry not in taken), None)
    phrases += [f"run {first} is before it"] if first and not phrases else []
    return Waiting(position, "; ".join(phrases[:MAX_PHRASES]), bool(users) and all(is_clearing(run) for run in users))


def start(run: Run, noted: Notes, choice: Choice) -> None:
    """Start a run. Raises RefusedError if systemd does not, and ShutdownError if the run can start after a reboot."""
    # Until its servers are cleared; a training has its own servers.
    dirty = [] if noted["training"] or noted["keep_state"] else choice.tasks
    before = noted.get("started") or 0
    begun: dict[str, Any] = {"started": time.time()}
    if before:  # its machine was rebooted, and the clock started again
        begun = {"resumed": True, "started_clock": runs.clock() - (time.time() - before)}
    cleared = cleared_since(noted["asked"])
    clear_before = clearing_before(run, noted, choice.tasks, cleared)
    # The gate found these servers before others were started in their place, by earlier runs or at this start.
    servers = noted.get("servers", {})
    renewed = choice.tasks if clear_before else cleared & servers.keys()
    noted = run.note(
        **begun, waiting=False, own=choice.own, reserved=choice.tasks, uncleared=dirty, clear_before=clear_before,
        servers={**servers, **dict.fromkeys(renewed, "")},
    )  # fmt: skip
    try:
        tried = start_unit(run, noted)
    except OSError as error:  # the disk is full, or the command line is too long
        raise RefusedError(f"the run could not be started: {error.strerror or error} ({error.filename or run.folder})") from None
    if tried.returncode:
        if runs.is_shutting_down():
            run.note(started=before, waiting=True, own="", reserved=[], uncleared=[])
            raise ShutdownError
        raise RefusedError(f"systemd could not start the run: {tried.stderr.strip()}")


def end(run: Run, failure: str, **facts: object) -> None:
    """Note that a run has ended that its unit does not finish, with more facts."""
    run.note(waiting=False, ended=time.time(), failure=failure, **facts)
    notify.start(run)


def clearing_before(run: Run, noted: Notes, tasks: list[str], cleared: set[str]) -> str:
    """Return why the servers may hold state of earlier runs, for clear.py; empty if they are known to hold none.

    ``cleared`` are the tasks that runs have cleared since the request.
    """
    if noted["training"]:
        return ""  # its tasks have their own servers
    others = [(other, its) for other, its in unfinished() if other.id != run.id]
    if any(set(its.get("uncleared", ())) & set(tasks) for _other, its in others):
        return "lost"
    held = set(noted["held"]) & set(tasks)  # as the gate found it
    return "held" if held - cleared else ""


def cleared_since(asked: float) -> set[str]:
    """Return the addresses of the tasks that runs have cleared since then."""
    found: set[str] = set()
    for path in runs.RUNS.glob("[!.]*/run.json"):
        with contextlib.suppress(OSError, ValueError):
            if path.stat().st_mtime >= asked:
                noted = json.loads(path.read_bytes())
                found |= set(noted["reserved"]) if noted.get("cleared", 0) >= asked else set()
    return found


def settle(run: Run) -> None:
    """Note after a run's end whether its servers are cleared (clear.py)."""
    noted = run.read()
    if not noted.get("uncleared"):
        return
    problems = ending.not_cleared(run)
    if problems:
        run.note(clearing=problems)
    else:
        run.note(cleared=time.time(), uncleared=[])
        for other, its in unfinished():
            if set(its.get("uncleared", ())) & set(noted["reserved"]):
                other.note(uncleared=sorted(set(its["uncleared"]) - set(noted["reserved"])))


def unfinished() -> list[tuple[Run, Notes]]:
    """Return the runs that have not ended, or whose servers may hold their state, with their notes."""
    found = []
    active = b'"uncleared": [\n'  # of a list that is not empty
    for path in runs.RUNS.glob("[!.]*/run.json"):
        with contextlib.suppress(OSError, ValueError):  # removed meanwhile, or damaged
            text = path.read_bytes()
            if runs.ENDED not in text or active in text:
                found.append((Run(path.parent.name), json.loads(text)))
    return found


def reserved(noted: Notes) -> list[str]:
    """Return the addresses that a run has reserved. A run of an older version uses all tasks."""
    if "reserved" not in noted:
        training = noted.get("training")
        return [training["entries"][noted["task"]]] if training else list(itertools.chain(*cluster_config.load(CONFIG).values()))
    return [*noted["reserved"], *([noted["own"]] if noted.get("own") else [])]


def uses(run_id: str) -> list[str]:
    """Return the addresses of the tasks that a run uses: all of them if its notes cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return reserved(json.loads((runs.RUNS / run_id / "run.json").read_bytes()))
    with contextlib.suppress(cluster_config.ConfigError):
        return list(itertools.chain(*cluster_config.load(CONFIG).values()))
    return []


def is_clearing(run_id: str) -> bool:
    """Return whether a run has ended and only clears its servers."""
    try:
        return runs.has_ended(runs.RUNS / run_id)
    except OSError:
        return False


def active_runs() -> set[str]:
    """Return the IDs of the runs whose units are active, including their clearing. Raises OSError if systemd does not answer."""
    shown = runs.show("the runs", f"--property={PROPERTIES}", "tf-run-*.service")
    return {
        unit["Description"].removeprefix("run ")
        for unit in parse_show(shown).values()
        if unit["ActiveState"] not in ("inactive", "failed") or unit.get("Job")
    }


def main() -> None:
    """Start the runs whose turn it is. Prints nothing: it would become part of a run's output."""
    if len(sys.argv) == 1:  # tf-runs.service
        dispatch()
        notify.start_missed()
        return
    try:
        dispatch(Run(sys.argv[1]))
    except OSError:  # systemd or the lock did not answer in time: tf-runs.service tries again until it succeeds
        subprocess.run(["systemctl", "start", "--no-block", "tf-runs.service"], check=True, capture_output=True)


if __name__ == "__main__":
    main()
