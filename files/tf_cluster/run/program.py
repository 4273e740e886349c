"""Run a program of the user's on the host machine, under systemd.

    tf_cluster.run receive RUN --offset 0 < piece              a piece of a tar file that is too large for one call
    tf_cluster.run stage RUN --program demo.py < plan-and-tar  puts it in place and goes on to start; --hold: does not
    tf_cluster.run start RUN                                   starts it, when its task is free
    tf_cluster.run follow RUN --offset 0                       its output since then, and how it ended
    tf_cluster.run cancel RUN --by NAME                        ends it

Standard input of stage: a line of JSON and the tar file. A large cluster's JSON is too long for a command line. It has
``arguments`` (the program's), ``training`` (what the run is a part of, plugins/filter/training.py), ``servers`` (address ->
incarnation, as the gate found the tasks) and ``missing`` (addresses of the tasks that the run goes on without).

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
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from .. import cli
from ..spec import cluster_config
from . import runs
from . import training as trainings
from .runs import Run
from .text import plain_lines

STARTUP = Path(__file__).resolve().with_name("startup")
# Isolated (-I): neither the folder nor the environment of a program decides what is imported.
MODULE = (sys.executable, "-I", "-m")
KEEPER = Path(__file__).resolve().with_name("output.py")
CONFIG = Path("/etc/tf-cluster/config.json")
TASKS = Path("/etc/tf-cluster/tasks")
# What a run may do, and what systemd calls when it has ended: see the role server.
CONFINED = Path("/etc/systemd/system/tf-run-.service.d/confined.conf")
USER = runs.USER
WRITABLE = ("program", "results", "checkpoints", "part.json")  # what of a run's folder belongs to its program
FORGOTTEN = 3 * 24 * 3600  # seconds after which nobody comes back for what was half sent or not fetched
LAYER = "packages-of-the-run.tar"  # what a program needs beside the locked packages
CRASHES = ("SEGV", "ABRT", "BUS", "FPE", "ILL", "TRAP", "SYS")  # signals that mean it, as output.py passes them on
WAIT = 2.0  # seconds that one call waits for news
TELL = 10.0  # seconds between two lines that say whom a run waits for
INSTALL = 1800  # seconds that installing packages may take; of systemd's own limit, 90 s, large ones need more
ALMOST_NOTHING = 1024 * 1024  # bytes of a disk that is full
OUTPUT_LOST = "74"  # how output.py ends where a program ended well, and output is lost of which it could not even say so
ASKED = 4.0  # seconds that the tasks have to answer after a failure; systemd gives the last note ten
MOST_SHOWN = 64 * 1024  # bytes of output that one call passes on


def stage(options: argparse.Namespace) -> dict:
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


def start(options: argparse.Namespace) -> dict:
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


def attempt(run: Run, told: float) -> dict:
    """Start a run that waits, if its task is free by now; otherwise return ``waited``, when it was last said that it waits.

    Whoever follows a run that waits may do this besides the one who asked for it: it is started once.
    """
    with run.locked("launch"):
        noted = run.read()
        if not noted.get("waiting") or "ended" in noted:
            return {}
        if noted.get("queued", math.inf) > runs.clock():  # or the machine was started again
            noted = run.note(queued=runs.clock())
        tried, other = launch(run), "another run"
        if tried.returncode:
            other = runs.property_of(noted["unit"], "Description") or other
        if tried.returncode == 0 or other == f"run {run.id}":
            run.note(waiting=False)
            return {"lines": ["installs the packages of the run"]} if (run.folder / "layer").exists() else {}
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


def give_up(run: Run, sentence: str, forget: bool = False) -> dict:
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


def receive(options: argparse.Namespace) -> dict:
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


def task_of(text: str, spec: dict) -> tuple[str, int]:
    """Return job and index of a task of the cluster; raise ConfigError if it has no such task."""
    named = re.fullmatch(r"(\w+):([0-9]{1,9})", text, re.ASCII)
    if not named:
        raise cluster_config.ConfigError(f"{text!r} is not a task, as in 'host:0'")
    cluster_config.task_entry(spec, named[1], int(named[2]), CONFIG)
    return named[1], int(named[2])


def spec_of_run(spec: dict, job: str, index: int) -> dict:
    """Return the cluster as a run sees it: without the tasks of other runs, on whose ports nothing listens.

    A session waits for all tasks of its cluster spec, so with one of them it would wait for ever.
    """
    shown = {name: entries for name, entries in spec.items() if name == job or name not in cluster_config.RUN_JOBS}
    return {**shown, job: shown[job][: index + 1]} if job in cluster_config.RUN_JOBS and job in shown else shown


def spec_without(spec: dict, missing: list[str]) -> tuple[dict, dict[str, str]]:
    """Return the cluster without the tasks at some addresses, and how the tasks are called then: name -> name in the cluster."""
    kept = {job: [entry for entry in entries if entry not in missing] for job, entries in spec.items()}
    names = {f"{job}:{place}": f"{job}:{spec[job].index(entry)}" for job in kept for place, entry in enumerate(kept[job])}
    return {job: entries for job, entries in kept.items() if entries}, names


def launch(run: Run) -> subprocess.CompletedProcess:
    """Start the run's unit; fails with "already" while another run has the task."""
    noted = run.read()
    training, whole = noted["training"], cluster_config.load(CONFIG)
    job, index = task_of(noted["task"], training["cluster"] if training else whole)
    missing = noted.get("missing", [])
    spec, names = spec_without(spec_of_run(whole, job, index), missing)
    (run.folder / "config.json").write_text(json.dumps(spec, indent=4) + "\n", encoding="utf-8")
    own = training["cluster"] if training else spec
    addresses = {cluster_config.split_address(entry)[0] for entries in (*whole.values(), *own.values()) for entry in entries}
    layer = run.folder / "layer"
    environment = {
        "TF_RUN_ID": run.id,
        "TF_CLUSTER_CONFIG": str(run.folder / "config.json"),
        "TF_CONFIG": json.dumps({"cluster": own, "task": {"type": job, "index": index}}),
        "TF_RUN_DIR": str(run.folder / "results"),
        "TF_CHECKPOINT_DIR": str(run.folder / "checkpoints"),
        "GRPC_FAIL_FAST": "use_caller",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "PYTHONPATH": f"{STARTUP}:{layer / 'packages'}",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 (the unit's own)
        "no_grpc_proxy": ",".join(sorted(addresses)),
    }
    if noted.get("trace"):
        # TensorFlow warns of each traced step that a processor has no GPU's trace: errors alone are shown then.
        environment |= {"TF_CLUSTER_TRACE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    if missing:
        left_out = [f"{job}:{place}" for job in whole for place, entry in enumerate(whole[job]) if entry in missing]
        environment |= {"TF_CLUSTER_MISSING": ",".join(left_out)}
        run.note(names=names, left_out=left_out)
    log = run.folder / "stdout.log"
    properties = [
        f"Description=run {run.id}", f"User={USER}", f"WorkingDirectory={run.folder / 'program'}",
        f"StandardOutput=append:{log}", f"StandardError=append:{log}", f"RuntimeMaxSec={noted['limit']}",
        "TimeoutStopSec=10", f"ReadWritePaths={' '.join(str(run.folder / name) for name in WRITABLE)}",
        f"EnvironmentFile=-{TASKS / f'{job}-{index}.env'}",
    ]  # fmt: skip
    if layer.exists():  # by the run's own user, within its limits, its words in the run's log
        install = [f"{Path(sys.executable).parent}/uv", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache"]
        install += ["--python", sys.executable, "--target", f"{layer}/packages", "--find-links", f"{layer}/wheels"]
        properties.append(f"ExecStartPre={shlex.join([*install, '-r', f'{layer}/requirements.txt'])}")
        properties += [f"ReadWritePaths={layer}/packages", f"TimeoutStartSec={INSTALL}"]
    command = ["systemd-run", "--quiet", "--collect", f"--unit={noted['unit']}", "--service-type=exec", "--slice=tf-run.slice"]
    command += [f"--property={text}" for text in properties]
    command += ["--no-block"] if layer.exists() else []  # whoever follows the run waits for the packages
    command += ["--property=KillMode=mixed"] if training else []  # training.py ends the program, and tells the others
    command += [f"--setenv={name}={value}" for name, value in environment.items()]
    words = [sys.executable, "-I", "-S", str(KEEPER), f"--most={round(noted['output_mb'] * 1_000_000)}"]
    words += [] if training else [f"--watch={noted['lost']}"]
    program = (
        f"./{noted['program']}" if noted["program"].startswith("-") else noted["program"]
    )  # or Python takes it for an option
    words += [sys.executable, program, *noted["arguments"]]
    run.note(started=time.time(), command=words)
    # systemd puts the values of variables into a command; of a dollar that is meant as one, it takes two.
    command += [*MODULE, "tf_cluster.run.training", run.id] if training else [word.replace("$", "$$") for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def finish(options: argparse.Namespace) -> None:
    """Note how the run ended; systemd calls this when the last process is gone."""
    run = Run(options.run)
    noted = run.read()
    result = os.environ.get("SERVICE_RESULT", "unknown")
    code, status = os.environ.get("EXIT_CODE", ""), os.environ.get("EXIT_STATUS", "")
    name = f"SIG{status}" if code in ("killed", "dumped") else status
    if result == "success" and code == "killed":
        result = "signal"  # systemd takes SIGTERM and some others for a clean end, but the program has not done its work
    if result == "timeout" and (code, status) == ("exited", "0") and main_seconds(noted["unit"]) < noted["limit"]:
        result = "success"  # the program had ended well; what it left behind would not end at SIGTERM
    if result == "signal" and status in CRASHES:
        result = "core-dump"
    ended, seen = time.time(), seen_of(run)
    part, chief = part_of(run), (noted.get("training") or {}).get("chief", noted.get("task"))
    promised = noted.get("needs_result") and noted.get("task") == chief and not has_result(run)
    lacking = (run.folder / "layer").exists() and not main_began(noted["unit"])
    lost = f"a task was silent for {noted.get('lost', 0):g} s, and the program was ended for it (run_abort_after_silence)"
    failure = (
        noted.get("cancelled")
        or (seen["lost"] and lost)
        or {
            "success": "the program ended well but left no result.json, which it has to (run_needs_result)" if promised else "",
            "exit-code": part.get("failure") or f"the program ended with exit status {status}",
            "signal": f"the program was killed by {name}",
            "core-dump": f"the program crashed with {name}",
            "timeout": f"the program was still running after {noted.get('limit')} s and was ended (run_timeout)",
            "oom-kill": "the machine ran out of memory and ended the program",
        }.get(result, f"the program ended as systemd calls {result!r}")
    )
    if lacking and not noted.get("cancelled"):
        late = f"was not done after {INSTALL} s" if result == "timeout" else "failed, as the run's output says"
        failure = f"the program was not started: installing its packages {late}"
    full = bool(failure) and disk_is_full(run)
    if full and result == "exit-code" and status == OUTPUT_LOST:
        failure = "the program ended well, but output of it is lost"
    if full:
        failure += f"; the disk that holds {runs.RUNS} is full"
    more = {"part": part} if part else {}
    asks = failure and noted.get("servers") and not noted.get("cancelled")
    more |= {"failed_tasks": failed_tasks(noted["servers"], seen["silent"])} if asks else {}
    run.note(ended=ended, failure=failure, exit_status=status, **more)
    sys.exit()  # no answer: its output would go into the run's


def left_in_part(run: Run) -> dict:
    """Return what stands in part.json, which belongs to the program's user: it may be anything, or not be JSON."""
    with (run.folder / "part.json").open(encoding="utf-8") as file:  # the folder is root's: it cannot be a link
        return json.loads(file.read(MOST_SHOWN))


def part_of(run: Run) -> dict:
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


def seen_of(run: Run) -> dict:
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
        own = {"user": USER, "group": USER, "extra_groups": ()}
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


def follow(options: argparse.Namespace) -> dict:
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
    answer = {"lines": plain_lines(text)}
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


def cancel(options: argparse.Namespace) -> dict:
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
