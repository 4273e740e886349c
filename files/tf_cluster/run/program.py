"""Run a program of the user's on the host machine, under systemd.

    tf_cluster.run receive RUN --offset 0 < piece              a piece of a tar file that is too large for one call
    tf_cluster.run stage RUN --program demo.py < plan-and-tar  puts it in place and starts it; --hold: does not
    tf_cluster.run start RUN                                   starts it, when its task is free
    tf_cluster.run follow RUN --offset 0                       its output since then, and how it ended
    tf_cluster.run cancel RUN --by NAME                        ends it

Standard input of stage: a line of JSON and the tar file. A large cluster's JSON is too long for a command line. It has
``arguments`` (the program's), ``training`` (what the run is a part of, plugins/filter/training.py), ``servers`` (address ->
incarnation, as the gate found the tasks) and ``missing`` (addresses of the tasks that the run leaves out).

A run may be one task's part of a training; then training.py runs the program together with the others.

Called by the action plugin tf_program, as root; each call answers with one JSON object on standard output, within a few
seconds (cancel: while the program has to end), and names in ``next`` what is to be called to go on. What a run is, runs.py says.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from .. import cli
from ..spec import cluster_config
from . import runs
from . import training as trainings
from .ending import note_ending
from .runs import USER, Run
from .text import plain_lines
from .unit import CONFIG, WRITABLE, layer_of, start_unit, task_of

# What a run may do, and what systemd calls when it has ended: see the role server.
CONFINED = Path("/etc/systemd/system/tf-run-.service.d/confined.conf")
FORGOTTEN = 3 * 24 * 3600  # seconds after which nobody comes back for what was half sent or not fetched
LAYER = "packages-of-the-run.tar"  # what a program needs beside the locked packages
WAIT = 2.0  # seconds that one call waits for news
TELL = 10.0  # seconds between two lines that say whom a run waits for
MOST_SHOWN = 64 * 1024  # bytes of output that one call passes on


def stage(options: argparse.Namespace) -> dict[str, Any]:
    """Put the program in place, from a tar file on standard input, and start it, unless it is held."""
    run = Run(options.run)
    if not CONFINED.exists():
        cli.fail(f"{CONFINED} is missing, and a run has to be confined: 'ansible-playbook site.yml' writes it", 1)
    plan = json.loads(sys.stdin.buffer.readline())
    training = plan["training"]
    task_of(options.task, training["cluster"] if training else cluster_config.load(CONFIG))
    unpack(run)
    run.note(
        run_id=run.id, program=options.program, arguments=plan["arguments"], task=options.task, asked=time.time(),
        waiting=True, unit=f"tf-run-{options.task.replace(':', '-')}.service", limit=options.timeout, wait=options.wait,
        detached=options.detach, output_mb=options.output_mb, needs_result=options.needs_result, trace=options.trace,
        training=training, lost=options.lost, servers=plan["servers"], missing=plan["missing"],
    )  # fmt: skip
    return {} if options.hold else start(argparse.Namespace(run=run.id, told=-1.0))


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Start a run that was put in place, when its task is free."""
    run = Run(options.run)
    answer = attempt(run, options.told)
    noted = run.read()
    if answer.get("waited") is not None:
        answer["next"] = ["start", run.id, "--told", str(answer.pop("waited"))]
    elif not noted["detached"]:
        answer["next"] = ["follow", run.id]
    elif noted.get("cancelled"):
        cli.fail(noted["failure"], 1)
    return answer


def attempt(run: Run, told: float) -> dict[str, Any]:
    """Start a run that waits, if its task is free by now; otherwise return ``waited``, when it was last said that it waits.

    Each call that follows a queued run may do this, as well as the call that asked for it: it is started once.
    """
    with run.locked("launch"):
        noted = run.read()
        if not noted.get("waiting") or "ended" in noted:
            return {}
        if noted.get("queued", math.inf) > runs.clock():  # or the machine was started again
            noted = run.note(queued=runs.clock())
        tried, other = start_unit(run), "another run"
        if tried.returncode:
            other = runs.property_of(noted["unit"], "Description") or other
        if tried.returncode == 0 or other == f"run {run.id}":
            run.note(waiting=False)
            return {"lines": ["installs the packages of the run"]} if layer_of(run).exists() else {}
    if "already" not in tried.stderr:
        return give_up(run, f"systemd could not start the run: {tried.stderr.strip()}")
    waited = runs.clock() - noted["queued"]
    if waited > noted["wait"]:
        return give_up(
            run,
            f"{other} still has the task {noted['task']} after {waited:.0f} s; try again later, or raise run_queue_timeout",
            forget=True,
        )
    time.sleep(min(WAIT, max(0.1, noted["wait"] - waited)))
    if told >= 0 and waited - told < TELL:
        return {"waited": told}
    return {"lines": [f"waits for the task {noted['task']}: {other} has it ({waited:.0f} s)"], "waited": waited}


def give_up(run: Run, sentence: str, forget: bool = False) -> dict[str, Any]:
    """Fail with a sentence; where others wait for this task of their training, note it and tell them instead."""
    noted = run.read()
    training, task = noted["training"], noted["task"]
    if not training or task == training["chief"]:
        if forget:
            shutil.rmtree(run.folder)
        cli.fail(sentence, 1)
    run.note(ended=time.time(), failure=sentence, part={"failure": sentence, "outcome": "was not started", "attempts": 0})
    try:
        trainings.refuse(training, task, sentence)
    except OSError as error:
        cli.fail(f"{sentence}; {error}", 1)
    return {"lines": [f"{task}: {sentence}"]}


def inbox(run: Run) -> Path:
    """Return the path of the file that pieces are put together in."""
    return runs.RUNS / f".{run.id}.sent"


def receive(options: argparse.Namespace) -> dict[str, Any]:
    """Put a piece of a tar file at its place."""
    path = inbox(Run(options.run))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if options.offset else "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.seek(options.offset)
        file.write(sys.stdin.buffer.read())
    return {}


def unpack(run: Run) -> None:
    """Make the run's folders, all or nothing; only what the program writes to belongs to its user."""
    runs.RUNS.mkdir(parents=True, exist_ok=True)
    sweep()
    run.folder.mkdir(mode=0o700)
    sent = inbox(run)
    try:
        with sent.open("rb") if sent.exists() else io.BytesIO(sys.stdin.buffer.read()) as file, tarfile.open(fileobj=file) as tar:
            tar.extractall(run.folder / "program", members=[member for member in tar if runs.plain(member)])
        create_run_layout(run)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    finally:
        sent.unlink(missing_ok=True)


def sweep() -> None:
    """Remove what interrupted calls left long ago: files half sent, and packed ones that nobody fetched."""
    for path in runs.RUNS.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and time.time() - path.stat().st_mtime > FORGOTTEN:
                path.unlink()


def create_run_layout(run: Run) -> None:
    """Put beside a program what belongs to its run."""
    owner = pwd.getpwnam(USER)
    run.restrict()
    layer = run.folder / "program" / LAYER
    if layer.exists():
        with tarfile.open(layer) as tar:
            tar.extractall(run.folder / "layer", members=[member for member in tar if runs.plain(member)])
        layer.unlink()
        (run.folder / "layer/packages").mkdir()
        os.chown(run.folder / "layer/packages", owner.pw_uid, owner.pw_gid)
    for name in ("program", "results", "checkpoints"):
        (run.folder / name).mkdir(exist_ok=True)
    config = run.folder / "program/config.json"
    if not config.exists():
        config.symlink_to(run.folder / "config.json")  # the seed's programs read it from where they are
    for name in ("part.json", "stdout.log"):
        (run.folder / name).touch()
    run.share(run.folder / "stdout.log")
    run.reserve()
    own = [run.folder / name for name in WRITABLE]
    for path in [*own, *(run.folder / "program").rglob("*")]:
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def finish(options: argparse.Namespace) -> None:
    """Note how the run ended; systemd calls this when the last process is gone."""
    note_ending(Run(options.run), os.environ)
    sys.exit()  # no answer: its output would go into the run's


def follow(options: argparse.Namespace) -> dict[str, Any]:
    """Return new output, waiting a little for some; and how the run ended, once it did. Start it, where it still waits."""
    run = Run(options.run)
    if run.read().get("waiting"):
        waits = attempt(run, options.told)
        if "waited" in waits:
            return {**waits, "next": ["follow", run.id, "--told", str(waits.pop("waited"))]}
    deadline = time.monotonic() + WAIT
    while True:
        noted = run.read()  # before the log, so that the last words are not missed
        text, offset = read_from(run.folder / "stdout.log", options.offset, whole="ended" in noted)
        if text or "ended" in noted or time.monotonic() > deadline:
            break
        time.sleep(0.03)
    size = (run.folder / "stdout.log").stat().st_size
    answer: dict[str, Any] = {"lines": plain_lines(text)}
    if "ended" not in noted and offset == options.offset and not runs.is_alive(noted["unit"], run):
        noted = run.read()
        if "ended" not in noted:
            noted = run.note(ended=time.time(), failure="the run was lost: its machine or its systemd was restarted")
    if "ended" in noted and offset >= size:
        answer["outcome"] = runs.timed(noted)
    else:
        answer["next"] = ["follow", run.id, "--offset", str(offset)]
        answer["seconds"] = runs.timed(noted)["seconds"]
    return answer


def read_from(path: Path, offset: int, whole: bool) -> tuple[str, int]:
    """Return output from ``offset`` in whole lines, at most MOST_SHOWN bytes, and where it ends."""
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        skipped = max(0, size - offset - MOST_SHOWN)
        log.seek(offset + skipped)
        data = log.read()
    if not whole or skipped:
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1  # a progress bar ends its lines with a return
        data = data[:cut] if cut or len(data) < MOST_SHOWN else data
    end = offset + skipped + len(data)
    text = data.decode(errors="replace")
    return (f"... {skipped} bytes are in stdout.log alone ...\n{text}" if skipped else text), end


def cancel(options: argparse.Namespace) -> dict[str, Any]:
    """End a run that goes on; what it left stays and can be collected."""
    run = Run(options.run)
    sentence = f"the run was cancelled by {options.by}"
    with run.locked("launch"):  # it is not started between our look and our note
        noted = run.read()
        if noted.get("waiting") and "ended" not in noted and not runs.is_alive(noted["unit"], run):
            run.note(cancelled=sentence, ended=time.time(), failure=sentence)
            return {"lines": [f"run {run.id}, which waited for its task, was cancelled"]}
    deadline = time.monotonic() + options.after
    while "ended" not in noted and runs.is_alive(noted["unit"], run) and time.monotonic() < deadline:
        time.sleep(0.1)
        noted = run.read()
    if "ended" in noted or not runs.is_alive(noted["unit"], run):
        return {} if options.after else {"lines": [f"run {run.id} has ended already"]}
    run.note(cancelled=sentence)
    # "stop" waits until systemd has noted the end, ten seconds and a moment at most: then the program is killed.
    subprocess.run(["systemctl", "stop", noted["unit"]], capture_output=True, check=False)
    return {"lines": [f"run {run.id} was cancelled"]}


def number(text: str) -> float:
    """Return the number that a text is; raise ValueError where it is none that can be counted to."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def main() -> None:
    """Answer one call."""
    os.umask(0o022)  # the program's user has to get there, whatever the caller's own files are like
    parser = argparse.ArgumentParser(description="Run a program on the host machine.")
    calls = parser.add_subparsers(required=True)
    for call in (receive, stage, start, follow, finish, cancel):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is stage:
            sub.add_argument("--program", required=True, help="the file to run, within the tar file")
            sub.add_argument("--task", default="host:0")
            sub.add_argument("--timeout", type=number, default=600, help="seconds that the program may take")
            sub.add_argument("--wait", type=number, default=600, help="seconds to wait for another run")
            sub.add_argument("--lost", type=number, default=0, help="seconds of a task's silence that end the run; 0: never")
            sub.add_argument("--output-mb", type=number, default=100, help="megabytes of its output that are kept, and its end")
            sub.add_argument("--needs-result", action="store_true", help="whether a missing result.json is a failure")
            sub.add_argument("--detach", action="store_true", help="do not name in next what follows the run")
            sub.add_argument("--hold", action="store_true", help="do not go on to start it")
            sub.add_argument("--trace", action="store_true", help="record TensorFlow's step statistics of all tasks")
        if call in (receive, follow):
            sub.add_argument("--offset", type=int, default=0)
        if call in (start, follow):
            sub.add_argument("--told", type=float, default=-1, help="seconds of waiting when it was last said")
        if call is cancel:
            sub.add_argument("--by", default="somebody")
            sub.add_argument("--after", type=float, default=0, help="seconds that it has to end by itself")
    runs.answer(parser)
