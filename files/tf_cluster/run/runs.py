"""The folder, the notes and the unit of a run on a machine.

A run is a folder: ``run.json`` (the notes: its options and how it ended), ``stdout.log``, ``config.json`` (its cluster spec),
``program/`` (working directory), ``results/`` (``TF_RUN_DIR``), ``checkpoints/`` (``TF_CHECKPOINT_DIR``) and
``given.json`` (the files that were sent). In a training, each task is a run with a separate ID; the chief's ID is the training's.

``waiting`` in the notes marks a run that has not started; with ``number``, it is in the queue (queue.py).

A run executes in a transient unit that is named after its task and the run. So systemd enforces the time limit and records the
end, also if the controller is disconnected.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import cli, lock
from ..spec import cluster_config

if TYPE_CHECKING:
    import argparse

RUNS = Path("/var/lib/tf-cluster/runs")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
OLD_NAMES = {"limit": "timeout", "wait": "queue_timeout", "lost": "abort_after_silence"}  # in notes of version 0.9
USER = "tensorflow"  # runs the programs
ENDED = b'"ended":'  # in the notes of a run that has ended; in a value, a quotation mark would be escaped
RESERVED_BYTES = 64 * 1024  # reserved for the last note, because a program may fill the disk
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
LOCK_TIMEOUT_SECONDS = 30.0
LOST = "the run was lost: its machine or its systemd was restarted"
COLLECTION = "collect"  # the lock of a run while its files are collected: prune.py must not delete them
RETRY_SECONDS = 4.0  # systemd does not answer while it restarts itself, for example after an upgrade


class Run:
    """The folder and the unit of one run."""

    def __init__(self, run_id: str) -> None:
        if not RUN_ID.fullmatch(run_id):
            cli.fail(f"{run_id!r} is not a valid run ID: use letters, digits, '.', '_' and '-'", 2)
        self.id, self.folder = run_id, RUNS / run_id

    def read(self) -> dict[str, Any]:
        """Return the run's notes; exit with a message if there is no such run. Raises ConfigError if they are damaged."""
        try:
            noted: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            return {OLD_NAMES.get(name, name): value for name, value in noted.items()}
        except FileNotFoundError:
            cli.fail(f"there is no run {self.id} on this machine ({self.folder})", 2)
            raise
        except (ValueError, AttributeError):
            raise cluster_config.ConfigError(
                f"{self.folder}/run.json is damaged, for example by a power failure. "
                f"Run 'ansible-playbook playbooks/collect.yml -e run={self.id}' to collect the results."
            ) from None

    def restrict(self) -> None:
        """Let only root and the programs' user access the run's folder; uses the user's current ID."""
        with contextlib.suppress(KeyError):
            if os.geteuid() == 0:
                os.chown(self.folder, -1, pwd.getpwnam(USER).pw_gid)
        self.folder.chmod(0o750)

    def share(self, path: Path) -> None:
        """Let only root and the programs' user read a file of the run."""
        os.chown(path, -1, self.folder.stat().st_gid)
        path.chmod(0o640)

    @contextlib.contextmanager
    def locked(self, what: str, timeout_seconds: float = LOCK_TIMEOUT_SECONDS, shared: bool = False) -> Iterator[IO[bytes]]:
        """Hold a lock of the run, and yield its file. The file belongs to root, so that a program cannot hold it.

        Raises BlockingIOError after ``timeout_seconds``, because a suspended process would hold it forever.
        """
        with lock.held(self.folder / f"{what}.lock", timeout_seconds, shared) as file:
            yield file

    def reserve(self) -> None:
        """Reserve disk space for the last note."""
        (self.folder / "reserve").write_bytes(os.urandom(RESERVED_BYTES))  # random, so that no file system compresses it

    def note(self, **facts: object) -> dict[str, Any]:
        """Add facts to the run's notes atomically and return them. Adds the boot clock to ``started`` and ``ended``."""
        facts = {**{f"{name}_clock": clock() for name in ("started", "ended") if name in facts}, **facts}
        with self.locked("note"):
            noted = {**(self.read() if (self.folder / "run.json").exists() else {}), **facts}
            try:
                self._write(noted)
            except OSError as error:
                if error.errno not in DISK_FULL_ERRORS:
                    raise
                (self.folder / "reserve").unlink(missing_ok=True)
                self._write(noted)
        return noted

    def note_given(self) -> None:
        """Note the files in ``program/`` before the program starts: those that it does not change are not collected."""
        given, waiting = {}, [(self.folder / "program", "program")]
        while waiting:
            folder, name = waiting.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((Path(entry.path), f"{name}/{entry.name}"))
                    else:
                        status = entry.stat(follow_symlinks=False)
                        given[f"{name}/{entry.name}"] = [status.st_size, status.st_mtime_ns]
        path = self.folder / "given.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(given, file)

    def given(self) -> dict[str, list[int]]:
        """Return size and modification time of each file that was sent; empty for a run of an older version."""
        try:
            found: dict[str, list[int]] = json.loads((self.folder / "given.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _write(self, noted: dict[str, Any]) -> None:
        fresh = self.folder / "run.new"
        fresh.write_text(json.dumps(noted, indent=1), encoding="utf-8")
        self.share(fresh)  # training.py reads it
        with fresh.open("rb") as file:
            os.fsync(file.fileno())  # a power failure would otherwise keep the new name without content
        fresh.replace(self.folder / "run.json")


def clock() -> float:
    """Return seconds since the machine's boot; this clock is never adjusted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def timed(noted: dict[str, Any]) -> dict[str, Any]:
    """Return the notes with ``started`` (time of the request if it never started) and ``seconds``."""
    begun = noted.get("started") or noted["asked"]
    seconds = noted.get("ended", time.time()) - begun
    if "started_clock" in noted:
        lasted = (noted.get("ended_clock") or clock()) - noted["started_clock"]
        seconds = seconds if lasted < 0 else lasted  # the machine was rebooted
    return {**noted, "started": begun, "seconds": round(max(0.0, seconds), 2)}


def outcome(noted: dict[str, Any]) -> dict[str, Any]:
    """Return the notes as the outcome of a run, with ``over``. Of a training, each part that is over knows the outcome."""
    training, found = noted.get("training"), {**timed(noted), "over": is_over(noted)}
    if not training:
        return found
    plan = {**training, "chief": noted["task"], "first_chief": training["chief"]}
    return {**found, "run_id": training["id"], "training": plan}


def is_over(noted: dict[str, Any]) -> bool:
    """Return whether a run has ended, of a training that survives the loss of a task: the whole training."""
    survives = (noted.get("training") or {}).get("survives")
    return "ended" in noted and bool(not survives or noted.get("cancelled") or noted.get("part", {}).get("final"))


def is_shutting_down() -> bool:
    """Return whether systemd stops all units because the machine is shut down or rebooted."""
    done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "stopping"


def is_alive(unit: str, run: Run) -> bool:
    """Return whether the unit still belongs to the run and is active or about to start, including ExecStopPost."""
    if property_of(unit, "ActiveState") in ("", "inactive", "failed") and property_of(unit, "Job") in ("", "0"):
        return False
    return property_of(unit, "Description") == f"run {run.id}"


def has_ended(folder: Path) -> bool:
    """Return whether the run in a folder has ended. Raises OSError if it has no notes."""
    return ENDED in (folder / "run.json").read_bytes()


def property_of(unit: str, name: str, timeout_seconds: float = RETRY_SECONDS) -> str:
    """Return one property of a unit. Raises OSError if systemd does not answer."""
    return show(unit, f"--property={name}", "--value", unit, timeout_seconds=timeout_seconds).strip()


def show(subject: str, *words: str, timeout_seconds: float = RETRY_SECONDS) -> str:
    """Return what ``systemctl show`` prints. Raises OSError, which names the subject, if systemd does not answer."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        done = subprocess.run(["systemctl", "show", *words], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if time.monotonic() > deadline:
            raise OSError(f"systemd did not report the state of {subject}: {' '.join(done.stderr.split())}; try again later")
        time.sleep(0.5)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return regular files and folders, else None: links could point anywhere on the controller."""
    return member if (member.isfile() or member.isdir()) and not member.name.endswith(".pyc") else None


def answer(parser: argparse.ArgumentParser) -> None:
    """Call the chosen function and print its result as JSON, or exit with a sentence on standard error."""
    options = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        print(json.dumps(options.call(options)))
    except cluster_config.ConfigError as error:
        cli.fail(str(error), 2)
    except (OSError, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.filename and error.strerror:
            cli.fail(f"{error.filename}: {error.strerror}", 1)
        cli.fail(str(error) or repr(error), 1)
