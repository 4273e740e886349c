"""Return a machine's files of a run: the run's folder and the journals of its tasks.

    tf_cluster.collect outcome RUN                              how it ended, or that it is running
    tf_cluster.collect collect RUN --seconds 60 --results true --tasks worker-0
                                                            the run's folder as one tar file, the journals of tasks
    tf_cluster.collect pack RUN                                 that tar file, if packing it takes long
    tf_cluster.collect piece RUN --made 17 --offset 0           a piece of that file
    tf_cluster.collect collected RUN RUN.worker-1               notes that the controller has all files of ended runs
    tf_cluster.collect why worker-0                             the state of a task's unit

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

from ..run import notify, runs
from ..run.runs import Run
from ..spec import cluster_config
from . import archive as archives

PIECE_BYTES = 4 * 1024 * 1024  # in one call
ANNOUNCED_BYTES = 100 * 1000 * 1000  # packing more than this is reported
REPORT_SECONDS = 10.0  # between two reports that another call packs the same run
PACK_TIMEOUT_SECONDS = 1800  # that all calls wait for another
TAIL_BYTES = 64 * 1024  # of output that are collected from a full disk
MAX_NAMES = 50  # of files that were not collected
RESERVED = {"run.json", "stdout.log", "verdict.json", "report.html", "summary.txt", "program", "logs"}


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Return this machine's files of a run: the journals of its tasks, and the run's folder if it is here."""
    now = time.time()
    since, until = now - options.seconds, now - options.until if options.until else 0
    answer = {"files": {f"logs/{name}.log": journal(name, since, until) for name in options.tasks}}
    if options.results != "true":
        return answer
    notify.wait(Run(options.run))
    Run(options.run).restrict()  # an older version made it, or the user's ID has changed
    size = sum(found.size or 0 for found in contents(Run(options.run), [])[1])
    if size < ANNOUNCED_BYTES:
        packed = pack_waiting(Run(options.run), 0)
        return {**packed, "files": {**answer["files"], **packed.get("files", {})}}
    return {**answer, "lines": [f"packing {size // 1_000_000} MB on the machine"], "next": ["pack", options.run]}


def outcome(options: argparse.Namespace) -> dict[str, Any]:
    """Return a run's notes, its age in seconds, and the seconds since its end (0: it has not ended)."""
    noted, now = noted_of(Run(options.run)), time.time()
    if "ended" not in noted:
        noted["failure"] = f"the run is queued for {noted['task']}" if noted.get("waiting") else "the run is still running"
    return {
        "outcome": runs.timed(noted),
        "age": now - noted["asked"],
        "ended": now - noted["ended"] if "ended" in noted else 0,
    }


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


def archive(run: Run) -> Path:
    """Return the path of a run's tar file."""
    return runs.RUNS / f".{run.id}.tar"


def contents(run: Run, left: list[str]) -> tuple[dict[str, Any], list[archives.Found]]:
    """Return a run's notes and the files to pack; add unpackable files with the reason to ``left``."""
    noted = noted_of(run)
    training = noted.get("training")
    reserved = RESERVED | {"tasks"} if training else RESERVED
    found = renamed(archives.find(run.folder / "results", "", left), reserved)
    if not training or noted["task"] == training["chief"]:  # all tasks of a training have the same program
        found.append(archives.Found("program", run.folder / "program", None))
        found += archives.find(run.folder / "program", "program", [], frozenset({"__pycache__"}))
    return noted, found


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


def pack(options: argparse.Namespace) -> dict[str, Any]:
    """Pack a run's files into one tar file; return it, its size, or a report that another call packs it."""
    return pack_waiting(Run(options.run), options.waited)


def pack_waiting(run: Run, waited: float) -> dict[str, Any]:
    """Pack the run; while another call does, return a report and the next call. Two at once would need double space."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(run.locked("pack", REPORT_SECONDS))
        except BlockingIOError as error:
            waited += REPORT_SECONDS
            if waited >= PACK_TIMEOUT_SECONDS:
                raise OSError(f"timed out after {waited:.0f} s waiting for another collection. {error}") from None
            line = f"waiting for another collection of this run ({waited:.0f} s)"
            return {"lines": [line], "next": ["pack", run.id, f"--waited={waited}"]}
        return pack_locked(run)


def pack_locked(run: Run) -> dict[str, Any]:
    """Pack a run's files into one tar file; return it, or its size if it is large.

    For a run that has ended, a large file is kept until it is fetched, so that an interrupted collection can continue. Its time
    is noted, because a file from before the end may exist too. If the disk has no space, only the most important files are
    returned.
    """
    path = archive(run)
    unfinished = path.with_name(f"{path.name}.new")  # overwrites an unfinished file, for example after a power failure
    noted = noted_of(run)
    try:
        if not path.exists() or noted.get("packed") != path.stat().st_mtime_ns:
            write(run, unfinished)
            if "ended" in noted and not noted.get("damaged"):
                run.note(packed=unfinished.stat().st_mtime_ns)
            unfinished.replace(path)
    except archives.NoRoomError as error:
        return without_room(run, f"The results could not be collected: {error}")
    finally:
        unfinished.unlink(missing_ok=True)
    found = path.stat()
    fetch = {"size": found.st_size, "made": found.st_mtime_ns}
    if found.st_size > PIECE_BYTES:
        return {"fetch": {**fetch, "call": ["piece", run.id]}, "next": ["discard", run.id]}
    # A file of one piece is part of this answer, which saves two calls.
    data = path.read_bytes()
    path.unlink()
    return {"fetch": {**fetch, "data": base64.b64encode(data).decode()}}


def write(run: Run, path: Path) -> None:
    """Write the tar file; the notes in it list the skipped files. Raises NoRoomError before it fills the disk."""
    left: list[str] = []
    noted, found = contents(run, left)
    log, room = run.folder / "stdout.log", archives.free(path.parent)
    needed = sum(archives.taken(each.size) for each in found) + archives.taken(log.stat().st_size)
    if needed > room:
        have = f"{max(0, room) / 1e6:.0f} MB"
        raise archives.NoRoomError(f"packing needs {needed / 1e6:.0f} MB in {path.parent} of its machine, which has {have} free")
    with tarfile.open(path, "w") as tar:
        os.fchmod(tar.fileobj.fileno(), 0o600)  # type: ignore[attr-defined]  # a real file, because it has a path
        packer = archives.Packer(tar, room, left)
        with log.open("rb") as file:
            packer.add_open("stdout.log", file)
        for each in found:
            packer.add(each)
        names = left[:MAX_NAMES] + ([f"{len(left) - MAX_NAMES} more"] if len(left) > MAX_NAMES else [])
        packer.add_text("run.json", json.dumps({**noted, "left_behind": names}, indent=1))


def without_room(run: Run, sentence: str) -> dict[str, Any]:
    """Return the run's notes and the end of its output, without a tar file, because the disk is full."""
    with (run.folder / "stdout.log").open("rb") as log:
        log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
        text = log.read().decode(errors="replace")
    noted = json.dumps({**noted_of(run), "uncollected": sentence}, indent=1)
    return {"lines": [sentence], "files": {"run.json": noted, "stdout.log": text}, "uncollected": sentence}


def piece(options: argparse.Namespace) -> dict[str, Any]:
    """Return a piece of the tar file in base64, at most PIECE_BYTES; empty if the file is missing or another one."""
    with contextlib.suppress(FileNotFoundError), archive(Run(options.run)).open("rb") as file:
        if os.fstat(file.fileno()).st_mtime_ns != options.made:
            return {"data": ""}
        file.seek(options.offset)
        return {"data": base64.b64encode(file.read(PIECE_BYTES)).decode()}
    return {"data": ""}


def discard(options: argparse.Namespace) -> dict[str, Any]:
    """Remove the tar file after it is fetched."""
    archive(Run(options.run)).unlink(missing_ok=True)
    return {}


def collected(options: argparse.Namespace) -> dict[str, Any]:
    """Note that the controller has all files of these runs, if they have ended; prune.py may delete them later."""
    for run in map(Run, options.runs):
        if "ended" in run.read():
            run.note(collected=time.time())
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
    for call in (outcome, collect, pack, piece, discard):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is collect:
            sub.add_argument("--seconds", type=float, required=True, help="seconds since the run started")
            sub.add_argument("--until", type=float, default=0, help="seconds since it ended; 0: it has not ended")
            sub.add_argument(
                "--results", choices=["true", "false"], required=True, help="whether the run's folder is on this machine"
            )
            sub.add_argument("--tasks", nargs="*", default=[], help="tasks of this machine, such as worker-0")
        if call is pack:
            sub.add_argument("--waited", type=float, default=0, help="seconds that earlier calls waited")
        if call is piece:
            sub.add_argument("--offset", type=int, required=True)
            sub.add_argument("--made", type=int, required=True, help="time of the file, from pack")
    sub = calls.add_parser("collected")
    sub.add_argument("runs", nargs="+")
    sub.set_defaults(call=collected)
    sub = calls.add_parser("why")
    sub.add_argument("tasks", nargs="*")
    sub.set_defaults(call=why)
    runs.answer(parser)
