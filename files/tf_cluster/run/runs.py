"""What is known of runs on the host machine: their folders, their notes, their units.

A run is a folder: ``run.json`` (what was asked and how it ended), ``stdout.log``, ``config.json`` (the cluster as it sees it),
``program/`` (its working directory), ``results/`` (``TF_RUN_DIR``) and ``checkpoints/`` (``TF_CHECKPOINT_DIR``, which is not
collected). Of a training each task's part is a run, with an id of its own but for the chief's.

A run that waits for its task, because another run has it, is noted as ``waiting``.

A run is executed in a transient unit that is named after the task that it takes, so systemd allows one at a time, limits its
time and notes how it ended, whoever still watches.
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
from typing import TYPE_CHECKING, Any

from .. import cli, lock
from ..spec import cluster_config

if TYPE_CHECKING:
    import argparse

RUNS = Path("/var/lib/tf-cluster/runs")
USER = "tensorflow"  # of the programs
RESERVE = 64 * 1024  # bytes that are kept for a run's last note: its program may fill the disk
FULL = (errno.ENOSPC, errno.EDQUOT)
BUSY = 30.0  # seconds that another call may lock a run, but for packing it
RETRY_SECONDS = 4.0  # seconds that systemd may need until it answers again, while it starts itself anew after an upgrade, say


class Run:
    """One run's folder and unit."""

    def __init__(self, run_id: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", run_id):
            cli.fail(f"{run_id!r} cannot name a run: letters, digits, '.', '_' and '-' can", 2)
        self.id, self.folder = run_id, RUNS / run_id

    def read(self) -> dict[str, Any]:
        """Return what is noted of the run."""
        try:
            noted: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            return noted
        except FileNotFoundError:
            cli.fail(f"there is no run {self.id} on this machine ({self.folder})", 2)
            raise
        except ValueError:
            raise cluster_config.ConfigError(
                f"what was noted of the run {self.id} is damaged ({self.folder}/run.json), as when a machine loses its power; "
                f"'ansible-playbook playbooks/collect.yml -e run={self.id}' brings what the run left"
            ) from None

    def restrict(self) -> None:
        """Let only root and the programs' user into the run's folder, by the number that the user has now."""
        with contextlib.suppress(KeyError):
            if os.geteuid() == 0:
                os.chown(self.folder, -1, pwd.getpwnam(USER).pw_gid)
        self.folder.chmod(0o750)

    def share(self, path: Path) -> None:
        """Let the programs' user read a file of the run, and nobody else."""
        os.chown(path, -1, self.folder.stat().st_gid)
        path.chmod(0o640)

    @contextlib.contextmanager
    def locked(self, what: str, patience: float = BUSY) -> Iterator[None]:
        """Keep out whoever locks the same of the run; by a file that is root's alone, or a program could hold the lock.

        Raises BlockingIOError where another call holds it for so many seconds: one that was stopped would hold it for ever.
        """
        path = self.folder / f"{what}.lock"
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
            if not lock.acquire(file, patience):
                raise BlockingIOError(f"{path} has been locked for {patience:g} s: 'lslocks' on its machine names the process")
            yield

    def reserve(self) -> None:
        """Take the space that a last note needs, while there is some."""
        (self.folder / "reserve").write_bytes(os.urandom(RESERVE))  # nothing that a file system could make smaller

    def note(self, **facts: object) -> dict[str, Any]:
        """Add to what is noted of the run, the file replaced as a whole; beside the time of day a clock that does not step."""
        facts = {**{f"{name}_clock": clock() for name in ("started", "ended") if name in facts}, **facts}
        with self.locked("note"):
            noted = {**(self.read() if (self.folder / "run.json").exists() else {}), **facts}
            try:
                self._write(noted)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                (self.folder / "reserve").unlink(missing_ok=True)
                self._write(noted)
        return noted

    def _write(self, noted: dict[str, Any]) -> None:
        fresh = self.folder / "run.new"
        fresh.write_text(json.dumps(noted, indent=1), encoding="utf-8")
        self.share(fresh)  # training.py reads it
        with fresh.open("rb") as file:
            os.fsync(file.fileno())  # a machine that loses its power would keep the new name and no content
        fresh.replace(self.folder / "run.json")


def clock() -> float:
    """Return seconds by a clock that nobody sets, since the machine was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def timed(noted: dict[str, Any]) -> dict[str, Any]:
    """Return what is noted of a run with ``started`` (when it was asked for, where it never started) and ``seconds``."""
    begun = noted.get("started") or noted["asked"]
    seconds = noted.get("ended", time.time()) - begun
    if "started_clock" in noted:
        lasted = (noted.get("ended_clock") or clock()) - noted["started_clock"]
        seconds = seconds if lasted < 0 else lasted  # the machine was started again
    return {**noted, "started": begun, "seconds": round(max(0.0, seconds), 2)}


def is_alive(unit: str, run: Run) -> bool:
    """Tell whether the unit still belongs to the run and has not ended, its last note included."""
    state = property_of(unit, "ActiveState")
    return state not in ("", "inactive", "failed") and property_of(unit, "Description") == f"run {run.id}"


def property_of(unit: str, name: str, patience: float = RETRY_SECONDS) -> str:
    """Return one property of a unit. Raises OSError where systemd does not answer, which says nothing of the unit."""
    command, deadline = ["systemctl", "show", f"--property={name}", "--value", unit], time.monotonic() + patience
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
        if time.monotonic() > deadline:
            raise OSError(f"systemd does not say how {unit} is: {' '.join(done.stderr.split())}; try again when it does")
        time.sleep(0.5)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what is neither a file nor a folder: links could point anywhere on the controller."""
    return member if (member.isfile() or member.isdir()) and not member.name.endswith(".pyc") else None


def answer(parser: argparse.ArgumentParser) -> None:
    """Answer one call: print the JSON object that the chosen function returns, or one sentence on standard error."""
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
