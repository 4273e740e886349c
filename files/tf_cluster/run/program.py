"""Run a user's program on a machine, under systemd.

    tf_cluster.run receive RUN --offset 0 < piece              part of a tar file that is too large for one call
    tf_cluster.run stage RUN --program demo.py < plan-and-tar  prepares a run and starts it; --hold: only prepares it
    tf_cluster.run start RUN                                   starts it when its task is free
    tf_cluster.run follow RUN --offset 0                       returns new output, and how the run ended
    tf_cluster.run cancel RUN --by NAME                        stops it

Standard input of stage: a line of JSON, which can be too long for a command line, and the tar file. The JSON object has
``arguments`` (of the program), ``training`` (see plugins/filter/training.py), ``servers`` (address -> incarnation, from the
gate), ``missing`` (addresses of tasks that the run excludes), ``held`` (addresses of tasks that hold state of earlier runs) and
``notify`` (see notify.py).

A run can be one task of a training; then training.py runs the program together with the others.

The action plugin tf_program calls this as root. Each call prints one JSON object within a few seconds (cancel: when the program
has stopped); ``next`` has the arguments of the next call. runs.py describes a run.
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
from . import notify, runs
from . import training as trainings
from .ending import note_ending
from .runs import USER, Run
from .text import plain_lines
from .unit import CONFIG, WRITABLE, layer_of, start_unit, task_of

# Confines runs and calls `finish` at their end: see the role server.
CONFINED = Path("/etc/systemd/system/tf-run-.service.d/confined.conf")
STALE_SECONDS = 3 * 24 * 3600  # age at which partly sent and unfetched files are removed
PACKAGES_TAR = "packages-of-the-run.tar"  # the program's additional packages
CLEARING_SECONDS = 10.0  # that a run may take to clear its servers after its end
GATE_AGE_SECONDS = 1.0  # in the queue, after which the servers are asked again
WAIT_SECONDS = 2.0  # that one call waits for output or a free task
REPORT_SECONDS = 10.0  # between two lines that report a queued run
MAX_OUTPUT_BYTES = 64 * 1024  # of output in one call


def stage(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare a run from a tar file on standard input, and start it unless ``hold`` is set."""
    run = Run(options.run)
    if not CONFINED.exists():
        cli.fail(f"{CONFINED} is missing, so the run would not be confined. Run 'ansible-playbook site.yml'.", 1)
    plan = json.loads(sys.stdin.buffer.readline())
    training = plan["training"]
    task_of(options.task, training["cluster"] if training else cluster_config.load(CONFIG))
    unpack(run)
    run.note(
        run_id=run.id, program=options.program, arguments=plan["arguments"], task=options.task, asked=time.time(),
        waiting=True, unit=f"tf-run-{options.task.replace(':', '-')}.service", limit=options.timeout, wait=options.wait,
        detached=options.detach, output_mb=options.output_mb, needs_result=options.needs_result, trace=options.trace,
        training=training, lost=options.lost, servers=plan["servers"], missing=plan["missing"],
        held=plan["held"], keep_state=options.keep_state, **notify.prepare(run, plan.get("notify", ""), options.task, training),
    )  # fmt: skip
    return {} if options.hold else start(argparse.Namespace(run=run.id, told=-1.0))


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Start a prepared run when its task is free."""
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
    """Start a queued run if its task is free; else return ``waited``, the waiting time at the last report.

    The original call and all calls that follow a queued run may do this; the run starts once.
    """
    with run.locked("launch"):
        noted = run.read()
        if not noted.get("waiting") or "ended" in noted:
            return {}
        if noted.get("queued", math.inf) > runs.clock():  # or the machine was rebooted
            noted = run.note(queued=runs.clock())
        # A training has its own servers: it clears none, so it leaves interrupted runs to the next run.
        interrupted = [] if noted["training"] else runs.interrupted(noted["task"])
        renew = renewal_of(noted, interrupted)
        if renew != noted.get("renew"):  # a note is written to the disk, and a queued run tries every two seconds
            noted = run.note(renew=renew)
        tried, other = start_unit(run), "another run"
        if tried.returncode:
            other = runs.property_of(noted["unit"], "Description") or other
        if tried.returncode == 0 or other == f"run {run.id}":
            run.note(waiting=False)
            for lost in interrupted:
                lost.note(ended=time.time(), failure=runs.LOST)
                notify.start(lost)
            return {"lines": ["installing the packages of the run"]} if layer_of(run).exists() else {}
    if "already" not in tried.stderr:
        return give_up(run, f"systemd could not start the run: {tried.stderr.strip()}")
    waited = runs.clock() - noted["queued"]
    clearing = is_over(other)
    if waited > noted["wait"] + (CLEARING_SECONDS if clearing else 0):
        return give_up(
            run,
            f"{noted['task']} is still used by {other} after {waited:.0f} s; try again later, or raise run_queue_timeout",
            forget=True,
        )
    time.sleep(0.1 if clearing else min(WAIT_SECONDS, max(0.1, noted["wait"] - waited)))
    if told >= 0 and waited - told < REPORT_SECONDS:
        return {"waited": told}
    return {"lines": [f"queued: {noted['task']} is used by {other} ({waited:.0f} s)"], "waited": waited}


def is_over(description: str) -> bool:
    """Return whether the run in a unit's description has ended and only clears its servers, which takes a second."""
    folder = runs.RUNS / description.removeprefix("run ")
    try:
        return runs.has_ended(folder)
    except OSError:
        return False


def renewal_of(noted: dict[str, Any], interrupted: list[Run]) -> str:
    """Return why the servers may hold state of earlier runs, for renew.py; empty if they are known to hold none."""
    if noted["training"]:
        return ""  # its tasks have their own servers
    if any(not run.read().get("keep_state") for run in interrupted):
        return "lost"
    # What the gate found may have changed since.
    return "held" if noted["held"] or runs.clock() - noted["queued"] > GATE_AGE_SECONDS else ""


def give_up(run: Run, sentence: str, forget: bool = False) -> dict[str, Any]:
    """Exit with a sentence. In a training, note it and tell the coordinator instead, because other tasks wait."""
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
    """Return the path of the file that receives the pieces."""
    return runs.RUNS / f".{run.id}.sent"


def receive(options: argparse.Namespace) -> dict[str, Any]:
    """Write a piece of a tar file at its offset."""
    path = inbox(Run(options.run))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if options.offset else "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.seek(options.offset)
        file.write(sys.stdin.buffer.read())
    return {}


def unpack(run: Run) -> None:
    """Create the run's folder, all or nothing; the program's user owns only the WRITABLE parts."""
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
    """Remove old files of interrupted calls: partly sent files and unfetched tar files."""
    for path in runs.RUNS.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def create_run_layout(run: Run) -> None:
    """Create the other files and folders of a run beside its program."""
    owner = pwd.getpwnam(USER)
    run.restrict()
    layer = run.folder / "program" / PACKAGES_TAR
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
        config.symlink_to(run.folder / "config.json")  # the seed's programs read it from the working directory
    for name in ("part.json", "stdout.log"):
        (run.folder / name).touch()
    run.share(run.folder / "stdout.log")
    run.reserve()
    own = [run.folder / name for name in WRITABLE]
    for path in [*own, *(run.folder / "program").rglob("*")]:
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def finish(options: argparse.Namespace) -> None:
    """Note how the run ended; systemd calls this after the last process exits."""
    run = Run(options.run)
    note_ending(run, os.environ)
    notify.start(run)
    sys.exit()  # prints nothing: it would become part of the run's output


def follow(options: argparse.Namespace) -> dict[str, Any]:
    """Return new output, after a short wait for it, and how the run ended. Start the run if it is queued."""
    run = Run(options.run)
    if run.read().get("waiting"):
        waits = attempt(run, options.told)
        if "waited" in waits:
            return {**waits, "next": ["follow", run.id, "--told", str(waits.pop("waited"))]}
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        noted = run.read()  # before the log, so that no output is missed
        text, offset = read_from(run.folder / "stdout.log", options.offset, whole="ended" in noted)
        if text or "ended" in noted or time.monotonic() > deadline:
            break
        time.sleep(0.03)
    size = (run.folder / "stdout.log").stat().st_size
    answer: dict[str, Any] = {"lines": plain_lines(text)}
    if "ended" not in noted and offset == options.offset and not runs.is_alive(noted["unit"], run):
        noted = run.read()
        if "ended" not in noted:
            noted = run.note(ended=time.time(), failure=runs.LOST)
            notify.start(run)
    if "ended" in noted and offset >= size:
        answer["outcome"] = runs.timed(noted)
    else:
        answer["next"] = ["follow", run.id, "--offset", str(offset)]
        answer["seconds"] = runs.timed(noted)["seconds"]
    return answer


def read_from(path: Path, offset: int, whole: bool) -> tuple[str, int]:
    """Return output from ``offset`` in whole lines, at most MAX_OUTPUT_BYTES, and the next offset."""
    with path.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        skipped = max(0, size - offset - MAX_OUTPUT_BYTES)
        log.seek(offset + skipped)
        data = log.read()
    if not whole or skipped:
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1  # progress bars end lines with a carriage return
        data = data[:cut] if cut or len(data) < MAX_OUTPUT_BYTES else data
    end = offset + skipped + len(data)
    text = data.decode(errors="replace")
    return (f"... {skipped} bytes are only in stdout.log ...\n{text}" if skipped else text), end


def cancel(options: argparse.Namespace) -> dict[str, Any]:
    """Stop a queued or running run; its results can still be collected."""
    run = Run(options.run)
    sentence = f"the run was canceled by {options.by}"
    with run.locked("launch"):  # prevents a start between reading and writing the notes
        noted = run.read()
        if noted.get("waiting") and "ended" not in noted and not runs.is_alive(noted["unit"], run):
            run.note(cancelled=sentence, ended=time.time(), failure=sentence)
            notify.start(run)
            return {"lines": [f"queued run {run.id} was canceled"]}
    deadline = time.monotonic() + options.after
    while "ended" not in noted and runs.is_alive(noted["unit"], run) and time.monotonic() < deadline:
        time.sleep(0.1)
        noted = run.read()
    if "ended" in noted or not runs.is_alive(noted["unit"], run):
        return {} if options.after else {"lines": [f"run {run.id} has already ended"]}
    run.note(cancelled=sentence)
    # "stop" waits for ExecStopPost; systemd kills the program after ten seconds.
    subprocess.run(["systemctl", "stop", noted["unit"]], capture_output=True, check=False)
    return {"lines": [f"run {run.id} was canceled"]}


def number(text: str) -> float:
    """Return a text as a number; raise ValueError if it is not finite."""
    if not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def main() -> None:
    """Answer one call."""
    os.umask(0o022)  # the program's user needs access, whatever the caller's umask is
    parser = argparse.ArgumentParser(description="Run a program on this machine.")
    calls = parser.add_subparsers(required=True)
    for call in (receive, stage, start, follow, finish, cancel):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is stage:
            sub.add_argument("--program", required=True, help="the file to run, in the tar file")
            sub.add_argument("--task", default="host:0")
            sub.add_argument("--timeout", type=number, default=600, help="seconds that the program may take")
            sub.add_argument("--wait", type=number, default=600, help="seconds to wait for another run")
            sub.add_argument(
                "--lost", type=number, default=0, help="seconds without an answer of a task that stop the run; 0: never"
            )
            sub.add_argument("--output-mb", type=number, default=100, help="megabytes of output to keep, plus its end")
            sub.add_argument("--needs-result", action="store_true", help="whether a missing result.json is a failure")
            sub.add_argument("--detach", action="store_true", help="do not follow the run")
            sub.add_argument("--hold", action="store_true", help="do not start it")
            sub.add_argument("--keep-state", action="store_true", help="leave the servers' state to the next run")
            sub.add_argument("--trace", action="store_true", help="record TensorFlow's step statistics of all tasks")
        if call in (receive, follow):
            sub.add_argument("--offset", type=int, default=0)
        if call in (start, follow):
            sub.add_argument("--told", type=float, default=-1, help="seconds of waiting at the last report")
        if call is cancel:
            sub.add_argument("--by", default="somebody")
            sub.add_argument("--after", type=float, default=0, help="seconds that it has to finish by itself")
    runs.answer(parser)
