#!/usr/bin/env python3
"""Run a program of the user's on the host machine, under systemd, and keep all that it makes.

    run_program.py start RUN --program demo.py < program.tar   puts it in place and starts it
    run_program.py follow RUN --offset 0                       its output since then, and how it ended
    run_program.py collect RUN --seconds 60 --results true --tasks worker-0
                                                               what this machine has of it: the run's folder as one
                                                               tar file, the journals of tasks
    run_program.py why worker-0                                what systemd says of a task

Called by the action plugin tf_program, as root; each call answers with one JSON object on standard
output, ends within seconds, and names in ``next`` what is to be called to go on. A run is a folder:
``run.json`` (what was asked and how it ended), ``stdout.log``, ``program/`` (its working directory) and
``results/`` (``TF_RUN_DIR``). The run itself is a transient unit named after the task that it takes, so
systemd allows one at a time, limits its time and notes how it ended, whoever still watches.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cluster_config

RUNS = Path("/var/lib/tf-cluster/runs")
STARTUP = Path("/opt/tf-cluster/startup")
CONFIG = Path("/etc/tf-cluster/config.json")
TASKS = Path("/etc/tf-cluster/tasks")
USER = "tensorflow"
WAIT = 2.0  # seconds that one call waits for news
MOST_SHOWN = 64 * 1024  # bytes of output that one call passes on
RESERVED = {"run.json", "stdout.log", "verdict.json", "report.html", "summary.txt", "program", "logs"}
CONFINED = (
    "NoNewPrivileges=true", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=true", "PrivateTmp=true",
    "PrivateDevices=true", "ProtectClock=true", "ProtectControlGroups=true", "ProtectHostname=true",
    "ProtectKernelLogs=true", "ProtectKernelModules=true", "ProtectKernelTunables=true", "LockPersonality=true",
    "RestrictRealtime=true", "RestrictSUIDSGID=true", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
)  # fmt: skip


class Run:
    """One run's folder and unit."""

    def __init__(self, run_id: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", run_id):
            cluster_config.fail(f"{run_id!r} cannot name a run: letters, digits, '.', '_' and '-' can", 2)
        self.id, self.folder = run_id, RUNS / run_id

    def read(self) -> dict:
        """Return what is noted of the run."""
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            cluster_config.fail(f"there is no run {self.id} on this machine ({self.folder})", 2)
            raise

    def note(self, **facts) -> dict:
        """Add to what is noted of the run, the file replaced as a whole."""
        path = self.folder / "run.json"
        noted = {**(self.read() if path.exists() else {}), **facts}
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(noted, indent=1), encoding="utf-8")
        temporary.replace(path)
        return noted


def start(options: argparse.Namespace) -> dict:
    """Put the program in place (from a tar file on standard input) and start it, when its task is free."""
    run = Run(options.run)
    unit = f"tf-run-{options.task.replace(':', '-')}.service"
    if not (run.folder / "run.json").exists():
        stage(run)
        run.note(run_id=run.id, program=options.program, task=options.task, unit=unit, asked=time.time())
    tried = launch(run, unit, options)
    if tried.returncode == 0:
        return {"started": time.time(), "next": ["follow", run.id, "--offset", "0"]}
    if "already" not in tried.stderr:
        cluster_config.fail(f"systemd could not start the run: {tried.stderr.strip()}", 1)
    waited = time.time() - run.read()["asked"]
    other = property_of(unit, "Description") or "another run"
    if waited > options.wait:
        shutil.rmtree(run.folder)
        cluster_config.fail(
            f"{other} still has the task {options.task} after {waited:.0f} s; try again later, or wait longer with run_wait", 1
        )
    time.sleep(min(WAIT, max(0.1, options.wait - waited)))
    again = ["start", run.id, "--program", options.program, "--task", options.task, "--timeout", str(options.timeout)]
    again += ["--wait", str(options.wait), *(f"--argument={text}" for text in options.argument)]
    return {"lines": [f"waits for the task {options.task}: {other} has it ({waited:.0f} s)"], "next": again}


def stage(run: Run) -> None:
    """Make the run's folders; only the program's own two belong to its user."""
    os.umask(0o022)  # the program's user has to get there, whatever the caller's own files are like
    RUNS.mkdir(parents=True, exist_ok=True)
    run.folder.mkdir(mode=0o755)
    owner = pwd.getpwnam(USER)
    with tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read())) as tar:
        tar.extractall(run.folder / "program", members=[member for member in tar if plain(member)])
    for name in ("program", "results"):
        (run.folder / name).mkdir(exist_ok=True)
    config = run.folder / "program/config.json"
    if not config.exists():
        config.symlink_to(CONFIG)  # the seed's programs read it from where they are
    for path in [run.folder / "results", run.folder / "program", *(run.folder / "program").rglob("*")]:
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def launch(run: Run, unit: str, options: argparse.Namespace) -> subprocess.CompletedProcess:
    """Start the run's unit; fails with "already" while another run has the task."""
    spec = cluster_config.load(CONFIG)
    named = re.fullmatch(r"(\w+):([0-9]{1,9})", options.task, re.ASCII)
    if not named:
        raise cluster_config.ConfigError(f"{options.task!r} is not a task, as in 'host:0'")
    job, index = named[1], int(named[2])
    cluster_config.task_entry(spec, job, index, CONFIG)
    addresses = {cluster_config.split_address(entry)[0] for entries in spec.values() for entry in entries}
    environment = {
        "TF_CLUSTER_CONFIG": str(CONFIG),
        "TF_CONFIG": json.dumps({"cluster": spec, "task": {"type": job, "index": index}}),
        "TF_RUN_DIR": str(run.folder / "results"),
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "PYTHONPATH": str(STARTUP),
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 (the unit's own)
        "no_grpc_proxy": ",".join(sorted(addresses)),
    }
    log = run.folder / "stdout.log"
    log.touch()
    finish = shlex.join([sys.executable, str(Path(__file__).resolve()), "finish", run.id])
    properties = [
        f"Description=run {run.id}", f"User={USER}", f"WorkingDirectory={run.folder / 'program'}",
        f"StandardOutput=append:{log}", f"StandardError=append:{log}", f"RuntimeMaxSec={options.timeout}",
        "TimeoutStopSec=10", f"ExecStopPost=+{finish}", f"ReadWritePaths={run.folder / 'program'} {run.folder / 'results'}",
        f"EnvironmentFile=-{TASKS / f'{job}-{index}.env'}", *CONFINED,
    ]  # fmt: skip
    command = ["systemd-run", "--quiet", "--collect", f"--unit={unit}", "--service-type=exec", "--slice=tf-run.slice"]
    command += [f"--property={text}" for text in properties]
    command += [f"--setenv={name}={value}" for name, value in environment.items()]
    run.note(started=time.time(), limit=options.timeout)
    return subprocess.run(
        [*command, sys.executable, options.program, *options.argument], capture_output=True, text=True, check=False
    )


def finish(options: argparse.Namespace) -> None:
    """Note how the run ended; systemd calls this when the last process is gone."""
    run = Run(options.run)
    noted = run.read()
    result = os.environ.get("SERVICE_RESULT", "unknown")
    code, status = os.environ.get("EXIT_CODE", ""), os.environ.get("EXIT_STATUS", "")
    name = f"SIG{status}" if code in ("killed", "dumped") else status
    if result == "success" and code == "killed":
        result = "signal"  # systemd takes SIGTERM and some others for a clean end, but the program has not done its work
    failure = {
        "success": "",
        "exit-code": f"the program ended with exit status {status}",
        "signal": f"the program was killed by {name}",
        "core-dump": f"the program crashed with {name}",
        "timeout": f"the program was still running after {noted.get('limit')} s and was ended (run_timeout)",
        "oom-kill": "the machine ran out of memory and ended the program",
    }.get(result, f"the program ended as systemd calls {result!r}")
    run.note(ended=time.time(), failure=failure, exit_status=status)
    sys.exit()  # no answer: its output would go into the run's


def follow(options: argparse.Namespace) -> dict:
    """Return new output, waiting a little for some; and how the run ended, once it did."""
    run = Run(options.run)
    deadline = time.monotonic() + WAIT
    while True:
        noted = run.read()  # before the log, so that the last words are not missed
        text, offset = read_from(run.folder / "stdout.log", options.offset, whole="ended" in noted)
        if text or "ended" in noted or time.monotonic() > deadline:
            break
        time.sleep(0.03)
    size = (run.folder / "stdout.log").stat().st_size
    answer = {"lines": text.splitlines()}
    if "ended" not in noted and offset == options.offset and not is_alive(noted["unit"], run):
        noted = run.read()
        if "ended" not in noted:
            noted = run.note(ended=time.time(), failure="the run was lost: its machine or its systemd was restarted")
    if "ended" in noted and offset >= size:
        seconds = round(noted["ended"] - noted["started"], 2)
        answer["outcome"] = {**noted, "seconds": seconds}
    else:
        answer["next"] = ["follow", run.id, "--offset", str(offset)]
        answer["seconds"] = round(time.time() - noted["started"], 1)
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


def is_alive(unit: str, run: Run) -> bool:
    """Tell whether the unit still belongs to the run and has not ended, its last note included."""
    state = property_of(unit, "ActiveState")
    return state not in ("", "inactive", "failed") and property_of(unit, "Description") == f"run {run.id}"


def property_of(unit: str, name: str) -> str:
    """Return one property of a unit."""
    command = ["systemctl", "show", f"--property={name}", "--value", unit]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def collect(options: argparse.Namespace) -> dict:
    """Return what this machine has of a run: the journals of its tasks, and the run's folder where it is here."""
    since = time.time() - options.seconds
    answer = {"files": {f"logs/{name}.log": journal(name, since) for name in options.tasks}}
    return {**answer, **pack(Run(options.run))} if options.results == "true" else answer


def journal(name: str, since: float) -> str:
    """Return the end of the journal of a task."""
    command = ["journalctl", f"--unit=tf-server@{name}", f"--since=@{since:.0f}", "--output=short-iso-precise"]
    text = subprocess.run([*command, "--lines=5000", "--no-pager"], capture_output=True, check=False).stdout
    return text.decode(errors="replace")[-1_000_000:]


def discard(options: argparse.Namespace) -> dict:
    """Remove the tar file, once it was fetched."""
    archive(Run(options.run)).unlink(missing_ok=True)
    return {}


def archive(run: Run) -> Path:
    """Return the path of the tar file that a run is fetched as."""
    return RUNS / f".{run.id}.tar"


def pack(run: Run) -> dict:
    """Put all that the run left into one tar file that the person who asked may read."""
    path = archive(run)
    with tarfile.open(path, "w") as tar:
        os.fchmod(tar.fileobj.fileno(), 0o600)
        for name in ("run.json", "stdout.log", "program"):
            tar.add(run.folder / name, name, filter=plain)
        for found in sorted((run.folder / "results").iterdir()):
            tar.add(found, f"program-{found.name}" if found.name in RESERVED else found.name, filter=plain)
    os.chown(path, int(os.environ.get("SUDO_UID", "-1")), -1)
    return {"fetch": str(path), "next": ["discard", run.id]}


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is neither a file nor a folder: links could point anywhere on the controller."""
    return member if (member.isfile() or member.isdir()) and not member.name.endswith(".pyc") else None


def why(options: argparse.Namespace) -> dict:
    """Return a sentence on the state of each task's unit, with its last words."""
    sentences = {}
    for name in options.tasks:
        unit = f"tf-server@{name}.service"
        state, since = property_of(unit, "ActiveState"), property_of(unit, "StateChangeTimestamp")
        command = ["journalctl", f"--unit={unit}", "--lines=40", "--output=cat", "--no-pager"]
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        telling = [line for line in lines if re.search(r"CUDA_ERROR|cuInit|failed|rror:", line)] if state == "active" else []
        last = [*lines, *telling][-1:]
        sentences[name] = f"{unit} is {state} since {since or 'never'}; last words: {last[0] if last else 'none'}"
    return {"why": sentences}


def main() -> None:
    """Answer one call."""
    parser = argparse.ArgumentParser(description="Run a program on the host machine.")
    calls = parser.add_subparsers(required=True)
    for call in (start, follow, finish, collect, discard):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is start:
            sub.add_argument("--program", required=True, help="the file to run, within the tar file")
            sub.add_argument("--task", default="host:0")
            sub.add_argument("--timeout", type=float, default=600, help="seconds that the program may take")
            sub.add_argument("--wait", type=float, default=600, help="seconds to wait for another run")
            sub.add_argument("--argument", action="append", default=[])
        if call is follow:
            sub.add_argument("--offset", type=int, default=0)
        if call is collect:
            sub.add_argument("--seconds", type=float, required=True, help="how long ago the run began")
            sub.add_argument("--results", choices=["true", "false"], required=True, help="whether the run's folder is here")
            sub.add_argument("--tasks", nargs="*", default=[], help="tasks of this machine, as in worker-0")
    sub = calls.add_parser("why")
    sub.add_argument("tasks", nargs="*")
    sub.set_defaults(call=why)
    options = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        print(json.dumps(options.call(options)))
    except cluster_config.ConfigError as error:
        cluster_config.fail(str(error), 2)
    except OSError as error:
        cluster_config.fail(f"{error.filename}: {error.strerror}", 1)


if __name__ == "__main__":
    main()
