"""Check that a path is the same file system on all machines, and prepare the project's folder in it. Standard library only.

Each machine writes a file, then each lists the files of all, then each removes its own. Root may have no rights on a network
file system (root_squash), so each step is tried as root, then as the programs' user.

A step runs in a separate process with a time limit, because a file system whose server is down does not answer.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pwd
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

USER = "tensorflow"
FOLDER = "tf-cluster"  # the project's folder in the shared one
PROBE = ".tf-cluster-check-"  # a machine's file is named after this, the token of the check and the machine
PROBE_BYTES = 64 * 1024  # a full file system accepts an empty file
STALE_SECONDS = 3600.0  # age of a file that an interrupted check has left
TIMEOUT_SECONDS = 30.0
REFUSALS = (errno.EACCES, errno.EPERM)
PHRASES = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is not a folder",
    errno.EROFS: "is read-only",
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full: the quota is exceeded",
    errno.ESTALE: "is a stale mount",
    errno.EACCES: f"cannot be written to, neither by root nor by the user {USER}",
    errno.EPERM: f"cannot be written to, neither by root nor by the user {USER}",
}


def limited(step: Callable[..., dict[str, Any]], *words: Any) -> dict[str, Any]:
    """Return the result of a step, with ``problem``: a phrase that follows the path, empty if there is none."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, step, words), daemon=True)
    process.start()
    sender.close()
    try:
        late = {"problem": f"does not answer within {TIMEOUT_SECONDS:g} s"}
        found: dict[str, Any] = receiver.recv() if receiver.poll(TIMEOUT_SECONDS) else late
    except EOFError:
        found = {"problem": "could not be checked"}
    process.kill()
    return found


def _send(sender: Any, step: Callable[..., dict[str, Any]], words: tuple[Any, ...]) -> None:
    try:
        sender.send({"problem": "", **step(*words)})
    except OSError as error:
        sender.send({"problem": PHRASES.get(error.errno or 0, f"failed with {error.strerror or error!r}")})


def check(path: str, machine: str, token: str, write: bool) -> dict[str, Any]:
    """Check the path on this machine, and write its file unless ``write`` is false; return ``mount``: what is mounted there."""
    if not os.path.isdir(path):
        raise OSError(errno.ENOTDIR if os.path.lexists(path) else errno.ENOENT, "")
    found, mount = os.statvfs(path), mounted(path)
    if found.f_flag & os.ST_RDONLY:
        return {"problem": PHRASES[errno.EROFS], "mount": mount}
    if not found.f_bavail or (found.f_files and not found.f_favail):
        return {"problem": PHRASES[errno.ENOSPC], "mount": mount}
    if write:
        clean(path, machine, "")
        as_any_user(places(path), lambda place: write_probe(place, probe(machine, token)))
    return {"mount": mount}


def seen(path: str, token: str) -> dict[str, Any]:
    """Return ``machines``: those whose files this machine sees."""
    start, names = f"{PROBE}{token}.", set()
    for place in places(path):
        with contextlib.suppress(OSError):
            names |= set(as_any_user([place], os.listdir))
    return {"machines": sorted(name[len(start) :] for name in names if name.startswith(start))}


def clean(path: str, machine: str, token: str) -> dict[str, Any]:
    """Remove this machine's file, and those that interrupted checks have left."""
    for place in places(path):
        with contextlib.suppress(OSError):
            for name in as_any_user([place], os.listdir):
                if name == probe(machine, token) or (name.startswith(PROBE) and is_old(place / name)):
                    with contextlib.suppress(OSError):
                        as_any_user([place / name], os.unlink)
    return {}


def prepare(path: str, write: bool) -> dict[str, Any]:
    """Create the project's folder, which belongs to the programs' user; return whether that is a change."""
    folder, owner = Path(path, FOLDER), account()
    status = folder.stat() if folder.is_dir() else None
    if status and owner and status.st_uid == owner.pw_uid:
        return {"changed": False}
    if not write:
        return {"changed": True}
    if not owner:
        raise KeyError(USER)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        if folder.is_dir():
            return {"problem": f"has a folder {FOLDER} that belongs to the user ID {folder.stat().st_uid}. On its server, "
                    f"change the owner to {owner.pw_uid}:{owner.pw_gid}"}  # fmt: skip
        try:
            with acting_as(owner):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            return {"problem": f"cannot be written to, and so lacks the folder {FOLDER}. On its server, create it with the owner "
                    f"{owner.pw_uid}:{owner.pw_gid}"}  # fmt: skip
    return {"changed": True}


def places(path: str) -> list[Path]:
    """Return where a machine may write its file."""
    return [Path(path), Path(path, FOLDER)]


def probe(machine: str, token: str) -> str:
    """Return the name of a machine's file."""
    return f"{PROBE}{token}.{machine}"


def is_old(path: Path) -> bool:
    """Return whether a file is from an earlier check."""
    try:
        return time.time() - path.lstat().st_mtime > STALE_SECONDS
    except OSError:
        return False


def write_probe(place: Path, name: str) -> None:
    """Write a file to disk; remove it if that fails."""
    path = place / name
    try:
        with path.open("wb") as file:
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def as_any_user(paths: list[Path], act: Callable[[Path], Any]) -> Any:
    """Return the result for the first path for which it works, as this user or as the programs' user."""
    refused: OSError | None = None
    owner = account()
    for path in paths:
        for user in (None, owner) if owner else (None,):
            try:
                with acting_as(user):
                    return act(path)
            except OSError as error:
                if refused and error.errno == errno.ENOENT:
                    break  # the project's folder is not created yet
                if error.errno not in REFUSALS:
                    raise
                refused = error
    raise refused or OSError(errno.EACCES, "")


def account() -> pwd.struct_passwd | None:
    """Return the account of the programs' user; None if it is missing."""
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        return None


@contextlib.contextmanager
def acting_as(user: pwd.struct_passwd | None) -> Iterator[None]:
    """Act with the rights of a user; None: of this process's own, as does a process without root's rights."""
    if user is None or os.geteuid():
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def mounted(path: str) -> str:
    """Return what is mounted at a path, as in "10.0.0.1:/export (nfs4)"."""
    own, found = os.path.realpath(path), ("", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _dash, source = line.partition(" - ")
        point, words = mount.split()[4], source.split()
        if (own == point or own.startswith(point.rstrip("/") + "/")) and len(point) >= len(found[0]):
            found = (point, f"{words[1]} ({words[0]})")
    return found[1]
