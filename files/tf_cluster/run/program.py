"""Run a user's program on a machine, under systemd.

    tf_cluster.run stage RUN --program demo.py < plan-and-tar  prepares a run and queues it; --hold: only prepares it
    tf_cluster.run place RUN < tar                             only places the program and its data, for the machine's servers
    tf_cluster.run start RUN                                   puts it into the queue, or starts it
    tf_cluster.run follow RUN --offset 0                       returns new output, and how the run ended
    tf_cluster.run cancel RUN ... --by NAME                    stops runs, or removes them from the queue

Standard input of stage: a line of JSON, which can be too long for a command line, and a tar file with the program and its data.
What is too large for it was sent with rsync before (see ../transfer/transfer.py). The JSON object has
``arguments`` (of the program), ``training`` (see plugins/filter/training.py), ``servers`` (address -> incarnation, from the
gate), ``missing`` (addresses of tasks that do not answer), ``held`` (addresses of tasks that hold state of earlier runs),
``wants`` (what the run reserves, see the filter new_run), ``user`` (who requested the run) and ``notify`` (see notify.py).

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
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from .. import cli
from ..spec import cluster_config
from ..transfer.transfer import inbox
from . import notify, queue, runs
from .ending import note_ending
from .runs import USER, Run
from .text import plain_lines
from .unit import CONFIG, WRITABLE, layer_of, task_of

# Confines runs and calls `finish` at their end: see the role server.
CONFINED = Path("/etc/systemd/system/tf-run-.service.d/confined.conf")
STALE_SECONDS = 3 * 24 * 3600  # age at which what was sent for a run that was not staged is removed
PACKAGES_TAR = "packages-of-the-run.tar"  # the program's additional packages
CLEARING_SECONDS = 10.0  # that a run may take to clear its servers after its end
WAIT_SECONDS = 2.0  # that one call waits for output or in the queue
POLL_SECONDS = 0.1
REPORT_SECONDS = 10.0  # between two lines that report a queued run
MAX_OUTPUT_BYTES = 64 * 1024  # of output in one call


def stage(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare a run from a tar file on standard input, and put it into the queue unless ``hold`` is set."""
    run = Run(options.run)
    if not CONFINED.exists():
        cli.fail(f"{CONFINED} is missing, so the run would not be confined. Run 'ansible-playbook site.yml'.", 1)
    plan = json.loads(sys.stdin.buffer.readline())
    job, index = task_of(options.task, cluster_config.load(CONFIG))
    unpack(run)
    run.note(
        run_id=run.id, program=options.program, arguments=plan["arguments"], task=options.task, asked=time.time(),
        waiting=True, unit=f"tf-run-{job}-{index}-{run.id}.service", timeout=options.timeout, queue_timeout=options.queue_timeout,
        detached=options.detach, output_mb=options.output_mb, needs_result=options.needs_result, trace=options.trace,
        abort_after_silence=options.abort_after_silence, training=plan["training"], servers=plan["servers"],
        missing=plan["missing"], held=plan["held"], keep_state=options.keep_state, keras=options.keras, wants=plan["wants"],
        user=plan["user"],
        **notify.prepare(run, plan.get("notify", ""), options.task, plan["training"]),
    )  # fmt: skip
    return {} if options.hold else start(argparse.Namespace(run=run.id, reported=-1.0))


def start(options: argparse.Namespace) -> dict[str, Any]:
    """Put a prepared run into the queue, and start it if it is its turn. Wait for that unless it is detached."""
    run = Run(options.run)
    queue.enter(run)
    answer = wait(run, options.reported)
    noted = run.read()
    if "waited" in answer:
        if not noted["detached"]:
            answer["next"] = ["start", run.id, "--reported", str(answer.pop("waited"))]
    elif noted.get("cancelled"):
        cli.fail(noted["failure"], 1)
    elif not noted["detached"] and not noted["training"]:
        answer["next"] = ["follow", run.id]
    return answer


def wait(run: Run, reported: float, follows: bool = False) -> dict[str, Any]:
    """Start the runs whose turn it is. If this one is still queued, wait a moment, and return ``waited``.

    ``reported`` and ``waited`` are the waiting time in seconds at the last report. A detached run has no limit, and a call that
    only ``follows`` a run does not end it. For a detached run, only such a call waits.
    """
    waits = queue.dispatch().get(run.id)
    noted = run.read()
    if noted.get("refused"):
        return give_up(run, noted["failure"])
    if not waits:
        return {"lines": ["installing the packages of the run"]} if layer_of(run).exists() and "ended" not in noted else {}
    waited = max(0.0, runs.clock() - noted["queued"])  # negative after a reboot
    if noted["detached"] and not follows:
        return {"lines": [f"queued at position {waits.position}: {waits.reason}"], "waited": waited}
    limit = math.inf if noted["detached"] or follows else noted["queue_timeout"]
    if waited > limit + (CLEARING_SECONDS if waits.over else 0):
        sentence = f"still queued after {waited:.0f} s: {waits.reason}; try again later, or raise run_queue_timeout"
        with queue.locked():  # prevents a start in between
            late = run.read().get("waiting")
            if late:
                run.note(waiting=False, ended=time.time(), failure=sentence)
        return give_up(run, sentence, forget=True) if late else {}
    deadline = time.monotonic() + min(WAIT_SECONDS, max(POLL_SECONDS, limit - waited))
    while run.read().get("waiting") and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if reported >= 0 and waited - reported < REPORT_SECONDS:
        return {"waited": reported}
    return {"lines": [f"queued at position {waits.position}: {waits.reason} ({waited:.0f} s)"], "waited": waited}


def give_up(run: Run, sentence: str, forget: bool = False) -> dict[str, Any]:
    """Exit with a sentence. In a training, note it and tell the coordinator instead, because other tasks wait."""
    noted = run.read()
    training, task = noted["training"], noted["task"]
    if not training or task == training["chief"]:
        if forget:
            shutil.rmtree(run.folder)
        cli.fail(sentence, 1)
    part = {"failure": sentence, "outcome": "was not started", "attempts": 0}
    queue.end(run, sentence, part=part)
    from .training import refuse  # loads asyncio, which most calls do not need

    try:
        refuse(training, task, sentence)
    except OSError as error:
        cli.fail(f"{sentence}; {error}", 1)
    return {"lines": [f"{task}: {sentence}"]}


def place(options: argparse.Namespace) -> dict[str, Any]:
    """Place the program and its data for the servers of this machine, at the path that the run has on the host machine."""
    run = Run(options.run)
    if not run.folder.exists():  # the host machine may have a server too
        unpack(run)
    return {}


def unpack(run: Run) -> None:
    """Create the run's folder, all or nothing; the program's user owns only the WRITABLE parts."""
    runs.RUNS.mkdir(parents=True, exist_ok=True)
    sweep()
    run.folder.mkdir(mode=0o700)
    sent, program = inbox(run), run.folder / "program"
    try:
        if sent.exists():
            sent.rename(program)
        with io.BytesIO(sys.stdin.buffer.read()) as file, tarfile.open(fileobj=file) as tar:
            tar.extractall(program, members=[member for member in tar if runs.plain(member)])
        create_run_layout(run)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        shutil.rmtree(sent, ignore_errors=True)
        raise


def sweep() -> None:
    """Remove old files and folders of interrupted calls."""
    for path in runs.RUNS.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            # Not the queue's lock: a process that holds a removed lock does not exclude others.
            if path.name != queue.LOCK and time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    with run.locked(runs.COLLECTION):
        pass  # its file must exist before the disk is full
    (run.folder / "program").chmod(0o755)
    for path in [*(run.folder / name for name in WRITABLE), *(run.folder / "program").rglob("*")]:
        status = path.lstat()
        # Data belongs to root: without write permission from the tar file, or linked to the machine's store.
        if not stat.S_ISREG(status.st_mode) or (status.st_mode & 0o222 and status.st_nlink == 1):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    run.note_given()


def finish(options: argparse.Namespace) -> None:
    """Note how the run ended; systemd calls this after the last process exits."""
    run = Run(options.run)
    if queue.resumes(run.read()) and runs.is_shutting_down():
        run.note(waiting=True, resumed=True)  # tf-runs.service starts it after the boot
        sys.exit()
    note_ending(run, os.environ)
    notify.start(run)
    sys.exit()  # prints nothing: it would become part of the run's output


def follow(options: argparse.Namespace) -> dict[str, Any]:
    """Return new output, after a short wait for it, and how the run ended. Start the run if it is queued."""
    run = Run(options.run)
    noted = run.read()
    if noted.get("waiting") and "number" in noted:
        waits = wait(run, options.reported, follows=True)
        if "waited" in waits:
            return {**waits, "next": ["follow", run.id, "--reported", str(waits.pop("waited"))]}
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
        queue.dispatch()  # notes that the run was lost
        noted = run.read()
    if "ended" in noted and offset >= size:
        answer["outcome"] = runs.outcome(noted)
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
    """Stop queued or running runs; their results can still be collected. Returns the IDs of those that are on this machine."""
    there = [Run(name) for name in options.run]
    if options.here:
        there = [run for run in there if (run.folder / "run.json").exists()]
        there += [Run(path.name) for name in options.run for path in runs.RUNS.glob(f"{Run(name).id}.*") if path.is_dir()]
    sentence = f"the run was canceled by {options.by}"
    lines, units, problems = [], [], []
    for run in there:
        try:
            line, unit = cancel_one(run, sentence, options.after)
        except (OSError, cluster_config.ConfigError) as error:  # the others are canceled nevertheless
            problems.append(str(error))
            continue
        lines += [line] if line else []
        units += [unit] if unit else []
    if units:
        # "stop" waits for ExecStopPost; systemd kills the programs after ten seconds.
        subprocess.run(["systemctl", "stop", *units], capture_output=True, check=False)
    answer = {"lines": lines, "found": [run.id for run in there]}
    if lines or not problems:
        queue.dispatch()  # a later run may have waited for a queued one
    return {**answer, **({"failure": "; ".join(problems)} if problems else {})}


def cancel_one(run: Run, sentence: str, after: float) -> tuple[str, str]:
    """Remove a run from the queue. Return a line for the user, and the unit to stop if it runs."""
    with queue.locked():  # prevents a start between reading and writing the notes
        noted = run.read()
        if noted.get("waiting") and "ended" not in noted:
            queue.end(run, sentence, cancelled=sentence)
            return f"queued run {run.id} was canceled", ""
    deadline = time.monotonic() + after
    while "ended" not in noted and runs.is_alive(noted["unit"], run) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        noted = run.read()
    if "ended" in noted or not runs.is_alive(noted["unit"], run):
        return "" if after else f"run {run.id} has already ended", ""
    run.note(cancelled=sentence)
    return f"run {run.id} was canceled", noted["unit"]


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
    for call in (stage, place, start, follow, finish, cancel):
        sub = calls.add_parser(call.__name__)
        if call is cancel:
            sub.add_argument("run", nargs="+")
            sub.add_argument(
                "--here", action="store_true", help="only those that are on this machine, and the parts of trainings"
            )
        else:
            sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is stage:
            sub.add_argument("--program", required=True, help="the file to run, in the tar file")
            sub.add_argument("--task", default="host:0")
            sub.add_argument("--timeout", type=number, default=600, help="seconds that the program may take")
            sub.add_argument("--queue-timeout", type=number, default=600, help="seconds to wait for another run")
            sub.add_argument(
                "--abort-after-silence", type=number, default=0, help="seconds without an answer of a task; 0: never"
            )
            sub.add_argument("--output-mb", type=number, default=100, help="megabytes of output to keep, plus its end")
            sub.add_argument("--needs-result", action="store_true", help="whether a missing result.json is a failure")
            sub.add_argument("--detach", action="store_true", help="do not follow the run")
            sub.add_argument("--hold", action="store_true", help="do not start it")
            sub.add_argument("--keep-state", action="store_true", help="leave the servers' state to the next run")
            sub.add_argument("--keras", type=int, choices=(2, 3), default=3, help="the Keras that is tf.keras")
            sub.add_argument("--trace", action="store_true", help="record what ran where")
        if call is follow:
            sub.add_argument("--offset", type=int, default=0)
        if call in (start, follow):
            sub.add_argument("--reported", type=float, default=-1, help="seconds of waiting at the last report")
        if call is cancel:
            sub.add_argument("--by", default="somebody")
            sub.add_argument("--after", type=float, default=0, help="seconds that it has to finish by itself")
    runs.answer(parser)
