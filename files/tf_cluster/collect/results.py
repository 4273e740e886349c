"""Give what a machine has of a run: the run's folder, the journals of its tasks.

    tf_cluster.collect outcome RUN                              how it ended, or that it is running
    tf_cluster.collect collect RUN --seconds 60 --results true --tasks worker-0
                                                            the run's folder as one tar file, the journals of tasks
    tf_cluster.collect pack RUN                                 that tar file, where making it takes a while
    tf_cluster.collect piece RUN --made 17 --offset 0           a piece of that file
    tf_cluster.collect why worker-0                             what systemd says of a task

Called by the action plugin tf_program, as root, like program.py.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

from ..run import runs
from ..run.runs import Run
from ..spec import cluster_config
from . import archive as archives

PIECE = 4 * 1024 * 1024  # bytes that one call gives
SLOW = 100 * 1000 * 1000  # bytes of which it is said that they are packed
TELL = 10.0  # seconds that one call waits for another that packs the same run, before it says so
LONGEST = 1800  # seconds that all of them wait
LAST = 64 * 1024  # bytes of output that come home from a full disk
MOST_NAMED = 50  # names of what was left behind that are noted
RESERVED = {"run.json", "stdout.log", "verdict.json", "report.html", "summary.txt", "program", "logs"}


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Return what this machine has of a run: the journals of its tasks, and the run's folder where it is here."""
    now = time.time()
    since, until = now - options.seconds, now - options.until if options.until else 0
    answer = {"files": {f"logs/{name}.log": journal(name, since, until) for name in options.tasks}}
    if options.results != "true":
        return answer
    Run(options.run).restrict()  # by an older version, or before the user had another number
    size = sum(found.size or 0 for found in contents(Run(options.run), [])[1])
    if size < SLOW:
        packed = pack_waiting(Run(options.run), 0)
        return {**packed, "files": {**answer["files"], **packed.get("files", {})}}
    return {**answer, "lines": [f"packs {size // 1_000_000} MB on the machine"], "next": ["pack", options.run]}


def outcome(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is noted of a run, for how many seconds it has been there, and how long ago it ended (0: it goes on)."""
    noted, now = noted_of(Run(options.run)), time.time()
    if "ended" not in noted:
        noted["failure"] = f"the run waits for the task {noted['task']}" if noted.get("waiting") else "the run goes on"
    return {
        "outcome": runs.timed(noted),
        "age": now - noted["asked"],
        "ended": now - noted["ended"] if "ended" in noted else 0,
    }


def noted_of(run: Run) -> dict[str, Any]:
    """Return what is noted of a run; where that is damaged, what its files tell, as of a run that was lost."""
    try:
        return run.read()
    except cluster_config.ConfigError:
        begun, ended = run.folder.joinpath("program").stat().st_mtime, run.folder.joinpath("stdout.log").stat().st_mtime
        return {
            "run_id": run.id, "program": "?", "task": "?", "asked": min(begun, ended), "ended": ended, "damaged": True,
            "failure": f"what was noted of the run on its machine is damaged ({run.folder}/run.json)",
        }  # fmt: skip


def journal(name: str, since: float, until: float) -> str:
    """Return the end of the journal of a task, up to the moment ``until`` (0: up to now)."""
    command = ["journalctl", f"--unit=tf-server@{name}", f"--since=@{since:.0f}", "--output=short-iso-precise"]
    command += [f"--until=@{until:.0f}"] if until else []
    text = subprocess.run([*command, "--lines=5000", "--no-pager"], capture_output=True, check=False).stdout
    return text.decode(errors="replace")[-1_000_000:]


def archive(run: Run) -> Path:
    """Return the path of the tar file that a run is fetched as."""
    return runs.RUNS / f".{run.id}.tar"


def contents(run: Run, left: list[str]) -> tuple[dict[str, Any], list[archives.Found]]:
    """Return what is noted of a run and what of its program's files is packed; add to ``left`` what cannot be."""
    noted = noted_of(run)
    training = noted.get("training")
    reserved = RESERVED | {"tasks"} if training else RESERVED
    found = renamed(archives.find(run.folder / "results", "", left), reserved)
    if not training or noted["task"] == training["chief"]:  # the others' program is the one that the chief has
        found.append(archives.Found("program", run.folder / "program", None))
        found += archives.find(run.folder / "program", "program", [], frozenset({"__pycache__"}))
    return noted, found


def renamed(found: list[archives.Found], reserved: set[str]) -> list[archives.Found]:
    """Return the program's files with other names for those that bear one of the project's own: ``program-`` until it is free."""
    tops = {each.name.partition("/")[0] for each in found}
    others = {}
    for top in tops & reserved:
        others[top] = f"program-{top}"
        while others[top] in tops | reserved:
            others[top] = f"program-{others[top]}"
    parts = [each.name.partition("/") for each in found]
    return [each._replace(name=others.get(top, top) + slash + rest) for each, (top, slash, rest) in zip(found, parts)]


def pack(options: argparse.Namespace) -> dict[str, Any]:
    """Put all that the run left into one tar file, and give it or say how large it is, or that another call does this."""
    return pack_waiting(Run(options.run), options.waited)


def pack_waiting(run: Run, waited: float) -> dict[str, Any]:
    """Pack the run; where another call does, say so and ask to be called again: two at once would need the space twice."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(run.locked("pack", TELL))
        except BlockingIOError as error:
            waited += TELL
            if waited >= LONGEST:
                raise OSError(f"{error}; it packs the run, and was waited for {waited:.0f} s") from None
            line = f"waits for another collection that packs the run ({waited:.0f} s)"
            return {"lines": [line], "next": ["pack", run.id, f"--waited={waited}"]}
        return pack_locked(run)


def pack_locked(run: Run) -> dict[str, Any]:
    """Put all that the run left into one tar file, and give it, or where it is large, say how large it is.

    Of a run that has ended a large file is made once, and is there until it was fetched: a collection that was interrupted goes
    on with the same file, which is noted: one that was made before the end may be there too. Where the disk has no room for it,
    what is needed most comes as it is.
    """
    path = archive(run)
    unfinished = path.with_name(f"{path.name}.new")  # an older one, of a machine that was switched off, is overwritten
    noted = noted_of(run)
    try:
        if not path.exists() or noted.get("packed") != path.stat().st_mtime_ns:
            write(run, unfinished)
            if "ended" in noted and not noted.get("damaged"):
                run.note(packed=unfinished.stat().st_mtime_ns)
            unfinished.replace(path)
    except archives.NoRoomError as error:
        return without_room(run, f"What the program left could not be collected: {error}")
    finally:
        unfinished.unlink(missing_ok=True)
    found = path.stat()
    fetch = {"size": found.st_size, "made": found.st_mtime_ns}
    if found.st_size > PIECE:
        return {"fetch": {**fetch, "call": ["piece", run.id]}, "next": ["discard", run.id]}
    # With this answer: of what comes in one piece there is nothing to go on with, and two calls are saved.
    data = path.read_bytes()
    path.unlink()
    return {"fetch": {**fetch, "data": base64.b64encode(data).decode()}}


def write(run: Run, path: Path) -> None:
    """Write the tar file, with the run's notes of what was left behind. Raises NoRoomError before it fills the disk."""
    left: list[str] = []
    noted, found = contents(run, left)
    log, room = run.folder / "stdout.log", archives.free(path.parent)
    needed = sum(archives.taken(each.size) for each in found) + archives.taken(log.stat().st_size)
    if needed > room:
        have = f"{max(0, room) / 1e6:.0f} MB"
        raise archives.NoRoomError(
            f"packing it needs {needed / 1e6:.0f} MB in {path.parent} of its machine, which has {have} free"
        )
    with tarfile.open(path, "w") as tar:
        os.fchmod(tar.fileobj.fileno(), 0o600)  # type: ignore[attr-defined]  # a file, for it has a path
        packer = archives.Packer(tar, room, left)
        with log.open("rb") as file:
            packer.add_open("stdout.log", file)
        for each in found:
            packer.add(each)
        told = left[:MOST_NAMED] + ([f"{len(left) - MOST_NAMED} more"] if len(left) > MOST_NAMED else [])
        packer.add_text("run.json", json.dumps({**noted, "left_behind": told}, indent=1))


def without_room(run: Run, sentence: str) -> dict[str, Any]:
    """Return the run's notes and the end of its output as they are, for nothing more can be written here."""
    with (run.folder / "stdout.log").open("rb") as log:
        log.seek(max(0, log.seek(0, 2) - LAST))
        text = log.read().decode(errors="replace")
    noted = json.dumps({**noted_of(run), "uncollected": sentence}, indent=1)
    return {"lines": [sentence], "files": {"run.json": noted, "stdout.log": text}}


def piece(options: argparse.Namespace) -> dict[str, Any]:
    """Return a piece of the tar file, at most PIECE bytes in base64; nothing where it is not there any more, or another."""
    with contextlib.suppress(FileNotFoundError), archive(Run(options.run)).open("rb") as file:
        if os.fstat(file.fileno()).st_mtime_ns != options.made:
            return {"data": ""}
        file.seek(options.offset)
        return {"data": base64.b64encode(file.read(PIECE)).decode()}
    return {"data": ""}


def discard(options: argparse.Namespace) -> dict[str, Any]:
    """Remove the tar file, once it was fetched."""
    archive(Run(options.run)).unlink(missing_ok=True)
    return {}


def why(options: argparse.Namespace) -> dict[str, Any]:
    """Return a sentence on the state of each task's unit, with its last words."""
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
        # A task that runs and does not work has logged why somewhere above its last line.
        telling = [line for line in lines if re.search(r"CUDA_ERROR|cuInit|failed|rror:", line)] if state == "active" else []
        last = [*lines, *telling][-1:]
        sentences[name] = f"{unit} is {state} since {since or 'never'}; last words: {last[0] if last else 'none'}"
    return {"why": sentences}


def main() -> None:
    """Answer one call."""
    parser = argparse.ArgumentParser(description="Give what a machine has of a run.")
    calls = parser.add_subparsers(required=True)
    for call in (outcome, collect, pack, piece, discard):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is collect:
            sub.add_argument("--seconds", type=float, required=True, help="how long ago the run began")
            sub.add_argument("--until", type=float, default=0, help="how long ago it ended; 0: it goes on")
            sub.add_argument("--results", choices=["true", "false"], required=True, help="whether the run's folder is here")
            sub.add_argument("--tasks", nargs="*", default=[], help="tasks of this machine, as in worker-0")
        if call is pack:
            sub.add_argument("--waited", type=float, default=0, help="seconds that earlier calls have waited for another")
        if call is piece:
            sub.add_argument("--offset", type=int, required=True)
            sub.add_argument("--made", type=int, required=True, help="when the file was made, as pack said")
    sub = calls.add_parser("why")
    sub.add_argument("tasks", nargs="*")
    sub.set_defaults(call=why)
    runs.answer(parser)
