"""Return a machine's files of a run: the run's folder and the journals of its tasks.

    tf_cluster.collect outcome RUN                              how it ended, or that it is running
    tf_cluster.collect parts RUN                                the parts of a training on this machine
    tf_cluster.collect collect RUN --seconds 60 --results true --tasks worker-0
                                                            the run's folder, the journals of tasks
    tf_cluster.collect collected RUN                            notes that the controller has all files of an ended run
    tf_cluster.collect why worker-0                             the state of a task's unit

A few megabytes of results are a tar file in the answer. Of more, the answer has the names, and the controller fetches them with
rsync.

Called by the action plugin tf_program, as root, like program.py.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import subprocess
import tarfile
import time
from pathlib import PurePosixPath
from typing import Any

from ..preflight.shared import account, acting_as
from ..run import notify, runs, shared
from ..run.runs import Run
from ..spec import cluster_config
from . import archive as archives

SMALL_BYTES = 4_000_000  # of files in an answer
MAX_NAMES = 50  # of files that were not collected
END_SECONDS = 10.0  # that a part of a training has to end after the training
RESERVED = {"run.json", "stdout.log", "verdict.json", "report.html", "summary.txt", "program", "logs", "checkpoints"}


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Return this machine's files of a run: the journals of its tasks, and the run's folder if it is here."""
    lines = canceled(options)
    now = time.time()
    since, until = now - options.seconds, now - options.until if options.until else 0
    answer: dict[str, Any] = {"files": {f"logs/{name}.log": journal(name, since, until) for name in options.tasks}}
    if options.results != "true":
        return answer
    run = Run(options.run)
    notify.wait(run)
    run.restrict()  # an older version made it, or the user's ID has changed
    left: list[str] = []
    with run.locked(runs.COLLECTION, shared=True):
        noted, found = contents(run, left)
        small = packed(run, found, left)
        fetch = {"data": base64.b64encode(small).decode()} if small is not None else listed(run, found, left)
    names = left[:MAX_NAMES] + ([f"{len(left) - MAX_NAMES} more"] if len(left) > MAX_NAMES else [])
    notes = json.dumps({**noted, "left_behind": names}, indent=1)
    answer = {"fetch": fetch, "files": {**answer["files"], "run.json": notes}, "lines": lines}
    return {**answer, "next": ["collected", run.id]} if options.note == "true" else answer


def canceled(options: argparse.Namespace) -> list[str]:
    """Cancel a part of a training that does not end with it. Return lines for the user."""
    if not options.end:
        return []
    from ..run import program  # more than other calls need to load

    given = argparse.Namespace(run=[options.run], by=options.end, after=END_SECONDS, here=False)
    lines: list[str] = program.cancel(given)["lines"]
    return lines


def outcome(options: argparse.Namespace) -> dict[str, Any]:
    """Return a run's notes, its age in seconds, and the seconds since its end (0: it has not ended)."""
    noted, now = noted_of(Run(options.run)), time.time()
    if "ended" not in noted:
        noted["failure"] = f"the run is queued for {noted['task']}" if noted.get("waiting") else "the run is still running"
    return {
        "outcome": runs.outcome(noted),
        "age": now - noted["asked"],
        "ended": now - noted["ended"] if "ended" in noted else 0,
    }


def parts(options: argparse.Namespace) -> dict[str, Any]:
    """Return ``parts``: the run and its parts on this machine, each with the tasks of the last attempt as far as it knows them.

    ``over``: the whole training is, which can continue without a part that has ended.
    """
    found = []
    for folder in [Run(options.run).folder, *runs.RUNS.glob(f"{Run(options.run).id}.*")]:
        if (folder / "run.json").exists():
            noted = noted_of(Run(folder.name))
            last = last_attempt(noted)
            found.append(
                {
                    "id": folder.name, "task": noted["task"], "ended": "ended" in noted, "over": runs.is_over(noted),
                    "attempts": last["attempt"], "tasks": last["tasks"],
                }
            )  # fmt: skip
    return {"parts": found}


def last_attempt(noted: dict[str, Any]) -> dict[str, Any]:
    """Return number and tasks of a training's last attempt: 0 and none if they are not known.

    While a training runs, they are known if it survives the loss of its coordinator.
    """
    unknown: dict[str, Any] = {"attempt": 0, "tasks": []}
    history = noted.get("part", {}).get("history")
    folder = shared.folder_of(noted) if "ended" not in noted and (noted.get("training") or {}).get("survives") else None
    if history or not folder:
        return history[-1] if history else unknown
    import asyncio  # which most calls do not need

    from ..run.coordination import Terms

    try:
        with acting_as(account()):
            newest = asyncio.run(Terms(folder / "coordinators").read())
        last = newest.content["attempts"][-1] if newest else unknown
        return {"attempt": int(last["attempt"]), "tasks": list(last["tasks"])}
    except (OSError, ValueError, LookupError, TypeError):
        return unknown


def noted_of(run: Run) -> dict[str, Any]:
    """Return a run's notes; if they are damaged, derive them from its files, as for a lost run."""
    try:
        return run.read()
    except cluster_config.ConfigError:
        begun, ended = run.folder.joinpath("program").stat().st_mtime, run.folder.joinpath("stdout.log").stat().st_mtime
        return {
            "run_id": run.id, "program": "?", "task": "?", "asked": min(begun, ended), "ended": ended, "damaged": True,
            "failure": f"{run.folder}/run.json on {os.uname().nodename} is damaged",
        }  # fmt: skip


def journal(name: str, since: float, until: float) -> str:
    """Return the end of a task's journal between ``since`` and ``until`` (seconds since 1970; 0: now)."""
    command = ["journalctl", f"--unit=tf-server@{name}", f"--since=@{since:.0f}", "--output=short-iso-precise"]
    command += [f"--until=@{until:.0f}"] if until else []
    text = subprocess.run([*command, "--lines=5000", "--no-pager"], capture_output=True, check=False).stdout
    return text.decode(errors="replace")[-1_000_000:]


def contents(run: Run, left: list[str]) -> tuple[dict[str, Any], list[archives.Found]]:
    """Return a run's notes and what it produced; add files that cannot be collected with the reason to ``left``."""
    noted = noted_of(run)
    reserved = RESERVED | {"tasks"} if noted.get("training") else RESERVED
    found = renamed(archives.find(run.folder / "results", "", left), reserved)
    return noted, found + produced(run, left) + checkpoints(run, left)


def checkpoints(run: Run, left: list[str]) -> list[archives.Found]:
    """Return the run's checkpoints on this machine, with their folder if there are any. Those in a shared folder stay there."""
    found = archives.find(run.folder / "checkpoints", "checkpoints", left)
    return [archives.Found("checkpoints", run.folder / "checkpoints", None), *found] if found else []


def produced(run: Run, left: list[str]) -> list[archives.Found]:
    """Return the files that the run created or changed in its working directory, and their folders."""
    missed: list[str] = []
    found = archives.find(run.folder / "program", "program", missed, frozenset({"__pycache__"}))
    left += [text for text in missed if not text.startswith("program/config.json (")]  # the link to the run's config.json
    given = run.given()
    files = [each for each in found if each.size is not None and given.get(each.name) != [each.size, each.changed]]
    names = {each.name for each in files} | {str(parent) for each in files for parent in PurePosixPath(each.name).parents}
    top = [archives.Found("program", run.folder / "program", None)] if files else []
    return top + [each for each in found if each.name in names]


def renamed(found: list[archives.Found], reserved: set[str]) -> list[archives.Found]:
    """Return the program's files; prefix names that the project reserves with ``program-`` until they are free."""
    tops = {each.name.partition("/")[0] for each in found}
    others = {}
    for top in tops & reserved:
        others[top] = f"program-{top}"
        while others[top] in tops | reserved:
            others[top] = f"program-{others[top]}"
    parts = [each.name.partition("/") for each in found]
    return [each._replace(name=others.get(top, top) + slash + rest) for each, (top, slash, rest) in zip(found, parts)]


def packed(run: Run, found: list[archives.Found], left: list[str]) -> bytes | None:
    """Return a tar file of what was found and the output; None if it is not small."""
    log = run.folder / "stdout.log"
    if sum(archives.taken(each.size) for each in found) + log.stat().st_size > SMALL_BYTES:
        return None
    missed: list[str] = []
    with io.BytesIO() as file, tarfile.open(fileobj=file, mode="w") as tar:
        packer = archives.Packer(tar, 2 * SMALL_BYTES, missed)
        try:
            with log.open("rb") as output:
                packer.add_open("stdout.log", output)
            for each in found:
                packer.add(each)
        except archives.TooLargeError:  # it has grown
            return None
        tar.close()
        left += missed
        return file.getvalue()


def listed(run: Run, found: list[archives.Found], left: list[str]) -> dict[str, Any]:
    """Return the names of what was found and of the output, for rsync; add unreadable files with the reason to ``left``."""
    names, renamed_tops, size = [], {}, (run.folder / "stdout.log").stat().st_size
    others = ["stdout.log"]
    for each in found:
        if each.size is not None:
            with archives.opened(each, left) as file:
                if not file:
                    continue
            size += each.size
        own = os.path.relpath(each.path, (run.folder / "results").resolve())
        if own.startswith("../"):  # of program or checkpoints
            others.append(each.name)
            continue
        names.append(own)
        if own.partition("/")[0] != each.name.partition("/")[0]:
            renamed_tops[own.partition("/")[0]] = each.name.partition("/")[0]
    return {
        "call": ["results", run.id],
        "size": size,
        "parts": [{"from": "results", "names": names, "renamed": renamed_tops}, {"from": ".", "names": others}],
    }


def collected(options: argparse.Namespace) -> dict[str, Any]:
    """Note that the controller has all files of a run, if it has ended; prune.py may delete it later."""
    run = Run(options.run)
    try:
        if "ended" in run.read():
            run.note(collected=time.time())
    except (OSError, cluster_config.ConfigError) as error:
        return {"lines": [f"{os.uname().nodename} keeps the run as one that is not collected: {error}"]}
    return {}


def why(options: argparse.Namespace) -> dict[str, Any]:
    """Return a sentence on the state of each task's unit, with a line of its journal."""
    sentences = {}
    for name in options.tasks:
        unit = f"tf-server@{name}.service"
        try:
            state, since = runs.property_of(unit, "ActiveState"), runs.property_of(unit, "StateChangeTimestamp")
        except OSError as error:
            sentences[name] = str(error)
            continue
        command = ["journalctl", f"--unit={unit}", "--lines=40", "--output=cat", "--no-pager"]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        # A running task that does not work has logged the reason above its last line.
        error_lines = [line for line in lines if re.search(r"CUDA_ERROR|cuInit|failed|rror:", line)] if state == "active" else []
        last = [*lines, *error_lines][-1:]
        sentences[name] = f"{unit} is {state} since {since or 'never'}; last log line: {last[0] if last else 'none'}"
    return {"why": sentences}


def main() -> None:
    """Answer one call."""
    parser = argparse.ArgumentParser(description="Return a machine's files of a run.")
    calls = parser.add_subparsers(required=True)
    for call in (outcome, parts, collect, collected):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is collect:
            sub.add_argument("--seconds", type=float, required=True, help="seconds since the run started")
            sub.add_argument("--until", type=float, default=0, help="seconds since it ended; 0: it has not ended")
            sub.add_argument(
                "--results", choices=["true", "false"], required=True, help="whether the run's folder is on this machine"
            )
            sub.add_argument("--end", metavar="WHO", default="", help="cancels the run before, unless it ends by itself")
            sub.add_argument("--note", choices=["true", "false"], default="false", help="whether the call collected follows")
            sub.add_argument("--tasks", nargs="*", default=[], help="tasks of this machine, such as worker-0")
    sub = calls.add_parser("why")
    sub.add_argument("tasks", nargs="*")
    sub.set_defaults(call=why)
    runs.answer(parser)
