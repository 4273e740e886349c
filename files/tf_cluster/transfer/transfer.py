"""The machine's end of a transfer with rsync.

    tf_cluster.transfer store RUN KEY NAME --rsync=ARGUMENTS     receives a file or folder and links it into the run
    tf_cluster.transfer results RUN FOLDER --rsync=ARGUMENTS     sends files of a run's folder

The transport of the action plugin tf_program (plugins/plugin_utils/transport.py) starts this as root and connects it with the
controller's rsync. ``--rsync`` has the arguments of rsync's server as JSON in URL-safe base64, which no shell has to quote.

The data of runs is kept in DATA, so that unchanged data is sent once and stored once: a folder ``<key>`` per path on a
controller, with one file or folder. Runs have hard links to its files. rsync replaces a changed file and never writes to it, so
earlier runs keep their version. Only root may write to the files: runs cannot change each other's data. The folder's
modification time is the time of its last use. It is unused if no file in it has another link. ``.<key>.lock`` is locked while it
changes.
"""

from __future__ import annotations

import argparse
import base64
import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from .. import cli, lock
from ..run import runs
from ..run.runs import Run

DATA = runs.RUNS.with_name("data")
PARTIAL = ".rsync-partial"  # of the controller's --partial-dir
READY, BEGIN = "tf_cluster.transfer: ready", "tf_cluster.transfer: begin"
WAITING = "tf_cluster.transfer: waiting for another command that sends the same data"
WAIT_SECONDS, REPORT_SECONDS = 3600.0, 10.0  # for another command; between two reports
UNLINKABLE = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP)  # no hard links here, or too many of this file


def handshake() -> None:
    """Tell the transport that this program runs, and skip its input until rsync's begins.

    Login scripts and sudo print before this program starts, and sudo leaves the password unread if it needs none.
    """
    print(READY, flush=True)
    line = b""
    while line.strip() != BEGIN.encode():
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(0, 1)  # one at a time: the next bytes are rsync's
            if not byte:
                cli.fail("the controller closed the connection", 1)
            line += byte


def rsync(options: argparse.Namespace) -> list[str]:
    """Return the command line of rsync's server."""
    program = shutil.which("rsync")
    if not program:
        cli.fail("rsync is missing on this machine. Run 'ansible-playbook site.yml', or install it", 1)
    arguments: list[str] = json.loads(base64.urlsafe_b64decode(options.rsync))
    return [program, *arguments[1:]]


def store(options: argparse.Namespace) -> None:
    """Receive a file or folder, and link it into the folder that becomes the run's program."""
    run, command = Run(options.run), rsync(options)
    entry = DATA / options.key
    entry.mkdir(parents=True, exist_ok=True)
    entry.chmod(0o700)
    with entry.with_name(f".{options.key}.lock").open("wb") as file:
        waited = 0.0
        while not lock.acquire(file, REPORT_SECONDS):
            waited += REPORT_SECONDS
            print(f"{WAITING} ({waited:.0f} s)", flush=True)
            if waited >= WAIT_SECONDS:
                cli.fail(f"timed out after {waited:.0f} s waiting for another command that sends the same data", 1)
        os.utime(entry)
        # Comparing blocks of a file that is wholly different takes five times as long as sending it.
        command += [] if any(entry.rglob(PARTIAL)) else ["--whole-file"]
        handshake()
        status = subprocess.run(command, cwd=entry, check=False).returncode
        if status == 0:
            target = inbox(run)
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            link(entry / options.name, target if options.top else target / options.name)
            os.utime(entry)
    sys.exit(status)


def inbox(run: Run) -> Path:
    """Return the folder of what was sent for a run that is not staged yet."""
    return runs.RUNS / f".{run.id}.sent"


def link(source: Path, target: Path) -> None:
    """Make hard links to a file, or to all files of a folder. Copy files that cannot be linked."""
    waiting = [(source, target)]
    while waiting:
        source, target = waiting.pop()
        if source.is_dir():
            target.mkdir(exist_ok=True)
            target.chmod(0o755)
            waiting += [(inner, target / inner.name) for inner in source.iterdir() if inner.name != PARTIAL]
            continue
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in UNLINKABLE:
                raise
            shutil.copy2(source, target)


def results(options: argparse.Namespace) -> None:
    """Send files of a run's folder with the rights of the programs' user, who may replace them by links at any time."""
    command, run = rsync(options), Run(options.run)
    with run.locked(runs.COLLECTION, shared=True) as lock_file:
        os.set_inheritable(lock_file.fileno(), True)  # rsync holds the lock until it exits
        if os.geteuid() == 0:
            owner = pwd.getpwnam(runs.USER)
            os.setgroups([])
            os.setgid(owner.pw_gid)
            os.setuid(owner.pw_uid)
        os.chdir(run.folder / options.folder)
        handshake()
        os.execv(command[0], command)  # noqa: S606 (rsync replaces this process)


def main() -> None:
    """Serve one transfer."""
    os.umask(0o022)
    parser = argparse.ArgumentParser(description="The machine's end of a transfer with rsync.")
    calls = parser.add_subparsers(required=True)
    for call in (store, results):
        sub = calls.add_parser(call.__name__)
        sub.add_argument("run")
        sub.set_defaults(call=call)
        if call is store:
            sub.add_argument("key", help="name of the folder in the store")
            sub.add_argument("name", type=decoded, help="name of the file or folder, in URL-safe base64")
            sub.add_argument("--top", action="store_true", help="place the content of the folder, not the folder")
        else:
            sub.add_argument("folder", choices=[".", "results"])
        sub.add_argument("--rsync", required=True, help="arguments of rsync's server")
    options = parser.parse_args()
    try:
        options.call(options)
    except OSError as error:
        cli.fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)


def decoded(text: str) -> str:
    """Return a name that was sent in URL-safe base64."""
    return os.fsdecode(base64.urlsafe_b64decode(text))
