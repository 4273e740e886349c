#!/usr/bin/env python3
"""Give what a machine has of a run: the run's folder, the journals of its tasks.

    collect_run.py outcome RUN                              how it ended, or that it goes on
    collect_run.py collect RUN --seconds 60 --results true --tasks worker-0
                                                            the run's folder as one tar file, the journals of tasks
    collect_run.py piece RUN --offset 0                     a piece of that file
    collect_run.py why worker-0                             what systemd says of a task

Called by the action plugin tf_program, as root, like run_program.py.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path

import runs
from runs import Run

PIECE = 4 * 1024 * 1024  # bytes that one call gives
RESERVED = {"run.json", "stdout.log", "verdict.json", "report.html", "summary.txt", "program", "logs"}


def collect(options: argparse.Namespace) -> dict:
    """Return what this machine has of a run: the journals of its tasks, and the run's folder where it is here."""
    since = time.time() - options.seconds
    answer = {"files": {f"logs/{name}.log": journal(name, since) for name in options.tasks}}
    return {**answer, **pack(Run(options.run))} if options.results == "true" else answer


def outcome(options: argparse.Namespace) -> dict:
    """Return what is noted of a run, and for how many seconds it has been there."""
    noted = Run(options.run).read()
    if "ended" not in noted:
        noted["failure"] = "the run goes on"
    seconds = round(noted.get("ended", time.time()) - noted.get("started", noted["asked"]), 2)
    return {"outcome": {**noted, "seconds": seconds}, "age": time.time() - noted["asked"]}


def journal(name: str, since: float) -> str:
    """Return the end of the journal of a task."""
    command = ["journalctl", f"--unit=tf-server@{name}", f"--since=@{since:.0f}", "--output=short-iso-precise"]
    text = subprocess.run([*command, "--lines=5000", "--no-pager"], capture_output=True, check=False).stdout
    return text.decode(errors="replace")[-1_000_000:]


def archive(run: Run) -> Path:
    """Return the path of the tar file that a run is fetched as."""
    return runs.RUNS / f".{run.id}.tar"


def pack(run: Run) -> dict:
    """Put all that the run left into one tar file, and say how large it is.

    Of a run that has ended the file is made once, and is there until it was fetched: a collection that was interrupted goes
    on with the same file.
    """
    path, noted = archive(run), run.read()
    if not path.exists() or "ended" not in noted or path.stat().st_mtime < noted["ended"]:
        unfinished = path.with_suffix(f".{os.getpid()}")
        with tarfile.open(unfinished, "w") as tar:
            os.fchmod(tar.fileobj.fileno(), 0o600)
            training = noted.get("training")
            reserved = RESERVED | {"tasks"} if training else RESERVED
            same = training and noted["task"] != training["chief"]  # its program is the one that the chief has
            for name in ("run.json", "stdout.log", *([] if same else ["program"])):
                tar.add(run.folder / name, name, filter=runs.plain)
            for found in sorted((run.folder / "results").iterdir()):
                tar.add(found, f"program-{found.name}" if found.name in reserved else found.name, filter=runs.plain)
        unfinished.replace(path)
    found = path.stat()
    return {"fetch": {"call": ["piece", run.id], "size": found.st_size, "made": found.st_mtime_ns}, "next": ["discard", run.id]}


def piece(options: argparse.Namespace) -> dict:
    """Return a piece of the tar file, at most PIECE bytes in base64."""
    with archive(Run(options.run)).open("rb") as file:
        file.seek(options.offset)
        return {"data": base64.b64encode(file.read(PIECE)).decode()}


def discard(options: argparse.Namespace) -> dict:
    """Remove the tar file, once it was fetched."""
    archive(Run(options.run)).unlink(missing_ok=True)
    return {}


def why(options: argparse.Namespace) -> dict:
    """Return a sentence on the state of each task's unit, with its last words."""
    sentences = {}
    for name in options.tasks:
        unit = f"tf-server@{name}.service"
        state, since = runs.property_of(unit, "ActiveState"), runs.property_of(unit, "StateChangeTimestamp")
        command = ["journalctl", f"--unit={unit}", "--lines=40", "--output=cat", "--no-pager"]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        # A task that runs and is amiss has said why somewhere above its last line.
        telling = [line for line in lines if re.search(r"CUDA_ERROR|cuInit|failed|rror:", line)] if state == "active" else []
        last = [*lines, *telling][-1:]
        sentences[name] = f"{unit} is {state} since {since or 'never'}; last words: {last[0] if last else 'none'}"
    return {"why": sentences}


def main() -> None:
    """Answer one call."""
    parser = argparse.ArgumentParser(description="Give what a machine has of a run.")
    calls = parser.add_subparsers(required=True)
    for call in (outcome, collect, piece, discard):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is collect:
            sub.add_argument("--seconds", type=float, required=True, help="how long ago the run began")
            sub.add_argument("--results", choices=["true", "false"], required=True, help="whether the run's folder is here")
            sub.add_argument("--tasks", nargs="*", default=[], help="tasks of this machine, as in worker-0")
        if call is piece:
            sub.add_argument("--offset", type=int, required=True)
    sub = calls.add_parser("why")
    sub.add_argument("tasks", nargs="*")
    sub.set_defaults(call=why)
    runs.answer(parser)


if __name__ == "__main__":
    main()
