"""Transfer files with rsync over the connection of a task."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import re
import selectors
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster import lock
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import archive, progress, ssh, transport

STUCK_SECONDS = 600  # without a byte, until a transfer or the wait for another one times out
REPORT_SECONDS = 10  # between two lines that report the waiting
PARTIAL = ".rsync-partial"  # as in tf_cluster/transfer/transfer.py
# On the machine and on the controller, everyone may read, and only the owner may write.
# Times are compared with nanoseconds: a file may change within a second.
COMMON = ["--protect-args", "--times", "--modify-window=-1", "--perms", "--chmod=Du=rwx,Dgo=rx,Fu=rwX,Fgo=rX", "--from0"]
COMMON += ["--info=progress2", "--no-human-readable", f"--timeout={STUCK_SECONDS}"]
PROGRESS = re.compile(rb"(\d+)\s+\d+%")
FULL = "No space left on device"
VANISHED = 24  # rsync's exit status: files were removed after they were listed


class Rsync:
    """Runs rsync on the controller; its other end is ``tf_cluster.transfer`` on the action's machine."""

    def __init__(self, action: ActionBase, python: tuple[str, ...]) -> None:
        self.action, self.python = action, python

    def check(self) -> None:
        """Raise if the connection cannot carry rsync."""
        ssh.check(self.action._connection, "transfer files")

    def send(self, path: Path, call: list[str], key: str, top: bool) -> None:
        """Send a file or folder to the store of the machine; ``top``: place the folder's content, not the folder."""
        listed = archive.listed(path)
        name = os.path.basename(os.path.abspath(path))
        call = [*call, key_of(key, name), encoded(name), *(["--top"] if top else [])]
        options = ["--recursive", "--copy-links", "--delete-after", "--delete-excluded", f"--partial-dir={PARTIAL}"]
        options += ["--exclude-from=-"]
        excluded = [pattern(f"/{name}/{inner}") for inner in listed.broken] + ["__pycache__", "*.pyc"]
        with tempfile.TemporaryFile() as names:
            names.write(b"\0".join(map(os.fsencode, excluded)))
            names.seek(0)
            shown = progress.Progress("sent", listed.size)
            self.run(options, [os.path.abspath(path), "machine:."], call, names, shown, str(path))

    def fetch(self, call: list[str], given: dict[str, Any], folder: Path) -> None:
        """Fetch files of a run into the folder, if it was not interrupted. A later call continues an interrupted one.

        ``given``: ``size`` in bytes, and ``parts``: lists of ``names`` below a folder ``from`` of the run. ``renamed`` maps names
        at the top to other ones. Each file is first written to a folder beside ``folder``, where an interrupted transfer stays.
        """
        part = part_of(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with only_one(part) as held:
                shown = progress.Progress("collected", given["size"])
                for each in given["parts"]:
                    names = [checked(name) for name in each["names"]]
                    place = part / ("run" if each["from"] == "." else "results")
                    place.mkdir(exist_ok=True)
                    self.fetch_part([*call, each["from"]], names, place, folder, shown, held)
                    publish(names, place, folder, each.get("renamed", {}))
                    shown.start_part()
                shutil.rmtree(part)  # before another call gets the lock
        except OSError as error:
            sentence = f"{error.filename or part} could not be written ({error.strerror})"
            raise AnsibleActionFail(unfinished(sentence, folder)) from None

    def fetch_part(
        self, call: list[str], names: list[str], place: Path, folder: Path, shown: progress.Progress, held: IO[bytes]
    ) -> None:
        """Fetch files into the folder ``place``, without those that ``folder`` has already."""
        options = ["--dirs", "--omit-dir-times", "--inplace", "--ignore-missing-args", "--files-from=-"]
        options += [f"--compare-dest={folder.absolute()}"]
        # Comparing blocks of a file that is wholly different takes five times as long as fetching it.
        options += [] if any(path.is_file() for path in place.rglob("*")) else ["--whole-file"]
        with tempfile.TemporaryFile() as listed:
            listed.write(b"".join(os.fsencode(name) + b"\0" for name in names))
            listed.seek(0)
            try:
                paths = ["machine:.", f"{place.absolute()}/"]
                what, accepted = f"The results of {folder.name}", (0, VANISHED)  # a running program may remove files
                self.run(options, paths, call, listed, shown, what, accepted, keep=[held.fileno()])
            except AnsibleActionFail as error:
                raise AnsibleActionFail(unfinished(error.message.rstrip("."), folder)) from None

    def run(
        self,
        options: list[str],
        paths: list[str],
        call: list[str],
        names: IO[bytes],
        shown: progress.Progress,
        what: str,
        accepted: tuple[int, ...] = (0,),
        keep: list[int] | None = None,
    ) -> None:
        """Run rsync; raise with a sentence if its exit status is not accepted. ``keep``: descriptors that it keeps open."""
        self.check()
        program = shutil.which("rsync")
        if not program:
            raise AnsibleActionFail("rsync is missing on the controller. Install it, for example with 'apt install rsync'.")
        with self.transport(call) as (shell, descriptor):
            command = [program, *COMMON, *options, f"--rsh={shell}", *paths]
            with subprocess.Popen(
                command, stdin=names, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[descriptor, *(keep or [])]
            ) as process:
                try:
                    errors = watch(process, shown)
                except BaseException:
                    process.terminate()
                    raise
        if process.returncode not in accepted:
            raise AnsibleActionFail(failure(errors, process.returncode, what))

    @contextlib.contextmanager
    def transport(self, call: list[str]) -> Iterator[tuple[str, int]]:
        """Yield rsync's remote shell, and the descriptor that it reads."""
        connection = self.action._connection
        line = shlex.join([*self.python, "tf_cluster.transfer", *call]) + f" --rsync={transport.PLACE}"
        password = ""
        # As in ActionBase._low_level_execute_command.
        users = self.action._get_remote_user(), self.action.get_become_option("become_user")
        if connection.become and (constants.BECOME_ALLOW_SAME_USER or users[0] != users[1] or not any(users)):
            line = connection.become.build_become_command(line, connection._shell)
            password = connection.become.get_option("become_pass", playcontext=self.action._play_context) or ""
        command = ["/bin/sh", "-c", line]
        if ssh.kind_of(connection) == "ssh":
            executable = self.action._play_context.executable
            line = f"{executable} -c {shlex.quote(line)}" if executable else line
            command = without_sshpass(ssh.command(self.action, line))
        read, write = os.pipe()
        try:
            with open(write, "w", encoding="utf-8") as file:
                json.dump({"command": command, "password": password}, file)
            yield shlex.join([sys.executable, "-I", os.path.abspath(transport.__file__), str(read)]), read
        finally:
            os.close(read)


def without_sshpass(words: list[str]) -> list[str]:
    """Return ssh's command line without sshpass: the master connection, which earlier tasks opened, needs no password."""
    if words[0] != "sshpass":
        return words
    return words[next(place for place, word in enumerate(words) if place and word.rpartition("/")[2].startswith("ssh")) :]


def watch(process: subprocess.Popen[bytes], shown: progress.Progress) -> str:
    """Show the progress of rsync until it exits, and return its messages."""
    errors, output = b"", b""
    with selectors.DefaultSelector() as selector:
        for pipe in filter(None, (process.stdout, process.stderr)):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            for key, _event in selector.select():
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    for line in data.splitlines():
                        if line.startswith(transport.WAITING):
                            progress.show_line(f"  {os.fsdecode(line).partition(': ')[2]}")
                    errors = (errors + data)[-65536:]
                else:
                    output = (output + data)[-200:]
                    found = PROGRESS.findall(output)
                    if found:
                        shown.show(int(found[-1]))
    process.wait()
    return errors.decode(errors="replace")


def failure(errors: str, status: int, what: str) -> str:
    """Return a sentence on why rsync failed."""
    lines = [line.strip() for line in errors.splitlines() if line.strip() and not line.startswith(transport.WAITING.decode())]
    own = [line.partition(": ")[2] for line in lines if line.startswith("tf_cluster.transfer: ")]
    if any("No module named" in line and "tf_cluster" in line for line in lines):
        return "tf_cluster.transfer is missing on this machine. Run 'ansible-playbook site.yml'."
    if own:
        return f"{own[-1]}."
    if any(FULL in line for line in lines):
        return f"{what} could not be transferred: {next(line for line in lines if FULL in line)}"
    if status == VANISHED:
        gone = next((line for line in lines if line.startswith("file has vanished: ")), "a file has vanished")
        return f"{what} changed while it was sent ({gone}). Run the command again."
    reasons = [line for line in lines if line.startswith(("rsync", "ssh", "sudo"))] or lines[-1:]
    return f"{what} could not be transferred: rsync exited with status {status}: {' '.join(reasons[:2])}"


def unfinished(sentence: str, folder: Path) -> str:
    """Return a sentence on an interrupted collection, with the remedy."""
    remedy = f"Run 'ansible-playbook playbooks/collect.yml -e run={folder.name}' to continue."
    return f"{sentence}. The results stay on the machine. {remedy}"


def encoded(name: str) -> str:
    """Return a name in URL-safe base64, which no shell has to quote."""
    return base64.urlsafe_b64encode(os.fsencode(name)).decode()


def key_of(path: str, name: str) -> str:
    """Return the name of the folder that keeps this path of this controller on a machine."""
    digest = hashlib.sha256(os.fsencode(f"{socket.gethostname()}:{os.path.abspath(path)}")).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')[:40] or 'data'}-{digest}"


def pattern(path: str) -> str:
    """Return rsync's pattern that matches only this path."""
    return re.sub(r"([*?\[\\])", r"\\\1", path) if re.search(r"[*?\[]", path) else path


def checked(name: str) -> str:
    """Return a name that a machine sent; raise if it is outside of the run's folder."""
    parts = name.split("/")
    if not name or "\0" in name or ".." in parts or "." in parts or not all(parts):
        raise AnsibleActionFail(f"the machine sent {name!r}, which does not belong in a run's folder")
    return name


def publish(names: list[str], place: Path, folder: Path, renamed: dict[str, str]) -> None:
    """Move the fetched files into the run's folder. Links and other special files stay: rsync was not told to create them."""
    for name in names:
        top, slash, rest = name.partition("/")
        target = folder / checked(renamed.get(top, top) + slash + rest)
        try:
            status = (place / name).lstat()
        except FileNotFoundError:
            continue  # removed on the machine, or unchanged here
        is_folder = stat.S_ISDIR(status.st_mode)
        if not is_folder and not stat.S_ISREG(status.st_mode):
            raise AnsibleActionFail(f"the machine sent {name!r}, which is neither a file nor a folder")
        archive.remove_conflict(folder, target, is_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            target.mkdir(exist_ok=True)
        else:
            (place / name).replace(target)


def part_of(folder: Path) -> Path:
    """Return the folder that receives the files for a run's folder."""
    return folder.parent / f".{folder.name}.part"


@contextlib.contextmanager
def only_one(part: Path) -> Iterator[IO[bytes]]:
    """Create the folder of a collection and hold its lock; raise if another one that holds it receives nothing."""
    path = part.with_name(f"{part.name}.lock")
    while True:
        with path.open("wb") as file:
            wait_for_other(file, part)
            if not os.fstat(file.fileno()).st_nlink:
                continue  # the other call has removed the lock
            part.mkdir(exist_ok=True)
            yield file
            if not part.exists():
                path.unlink()
            return


def wait_for_other(file: IO[bytes], part: Path) -> None:
    """Lock a file that another collection holds. Report the waiting, and raise if the other one receives nothing."""
    size, arrived, due = -1, time.monotonic(), time.monotonic() + REPORT_SECONDS

    def report() -> None:
        nonlocal size, arrived, due
        now, before, size = time.monotonic(), size, size_of(part)
        arrived = arrived if size == before else now
        if now - arrived > STUCK_SECONDS:
            raise AnsibleActionFail(
                f"{file.name} is locked by another ansible-playbook, which has received nothing for {STUCK_SECONDS} s. Find the "
                "process with 'lslocks', stop it, and collect the run again."
            )
        if now >= due:
            due = now + REPORT_SECONDS
            progress.show_line(f"  waiting for another ansible-playbook that collects the run ({size // 1_000_000} MB so far)")

    lock.acquire(file, math.inf, report)


def size_of(folder: Path) -> int:
    """Return the bytes that the files of a folder take on the disk."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * 512
    return total
