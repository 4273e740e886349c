"""Put what a run left into one tar file, while its program may still write there.

The program's files are opened with the rights of its user, never through a link, and without waiting: since they were listed a
name may have become a link to a file of root's, or a pipe. What vanished meanwhile is not missed; a file that grows or shrinks
is packed with the size that it had when it was opened.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pwd
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

USER = "tensorflow"
MARGIN = 32 * 1024 * 1024  # bytes of the disk that stay free
HEADER = 1536  # bytes that a member takes beside its content, at most but for very long names
KINDS = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class NoRoomError(Exception):
    """The tar file would not fit on the disk; the message is a sentence."""


class Found(NamedTuple):
    """A file or folder of the program's: its name in the tar file, where it is, and its size (None: a folder)."""

    name: str
    path: Path
    size: int | None


@contextlib.contextmanager
def as_user() -> Iterator[None]:
    """Do something with the rights of the program's user; as we are where we are not root or there is no such user."""
    try:
        owner = pwd.getpwnam(USER)
    except KeyError:
        owner = None
    if os.geteuid() or not owner:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(owner.pw_gid)
    os.seteuid(owner.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def find(folder: Path, name: str, left: list[str], unwanted: frozenset[str] = frozenset()) -> list[Found]:
    """List what is below a folder, each folder before its content; add to ``left`` what cannot be packed, and why."""
    found, waiting = [], [(folder.resolve(), name)]  # resolved: the packer compares it with what it has opened
    while waiting:
        folder, name = waiting.pop()
        try:
            with as_user(), os.scandir(folder) as entries:
                inner = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries if entry.name not in unwanted]
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(f"{shown(name)} ({error.strerror})")
            continue
        for own, status in sorted(inner):
            its = f"{name}/{own}" if name else own
            if stat.S_ISDIR(status.st_mode):
                found.append(Found(its, folder / own, None))
                waiting.append((folder / own, its))
            elif stat.S_ISREG(status.st_mode):
                found.append(Found(its, folder / own, status.st_size))
            else:
                left.append(f"{shown(its)} ({KINDS.get(stat.S_IFMT(status.st_mode), 'a device')})")
    return found


def shown(name: str) -> str:
    """Return a file's name as it can be printed."""
    return name if name.isprintable() else ascii(name)


class Packer:
    """Puts files into a tar file, at most ``room`` bytes; adds to ``left`` what it leaves out, and why."""

    def __init__(self, tar: tarfile.TarFile, room: int, left: list[str]) -> None:
        self.tar, self.room, self.left = tar, room, left

    def add(self, found: Found) -> None:
        """Add a file or folder of the program's; where it is something else by now, note that it was left behind."""
        if found.size is None:
            member = tarfile.TarInfo(found.name)
            member.type = tarfile.DIRTYPE
            self.tar.addfile(member)
            return
        try:
            with as_user():
                descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError as error:
            self.left.append(f"{shown(found.name)} ({'a link' if error.errno == errno.ELOOP else error.strerror})")
            return
        with os.fdopen(descriptor, "rb") as file:
            # A folder above it may have become a link to another by now.
            if os.readlink(f"/proc/self/fd/{descriptor}") != str(found.path):
                self.left.append(f"{shown(found.name)} (moved)")
                return
            self.add_open(found.name, file)

    def add_open(self, name: str, file: io.BufferedReader) -> None:
        """Add an open file, if it is one and there is room for it."""
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            self.left.append(f"{shown(name)} ({KINDS.get(stat.S_IFMT(status.st_mode), 'a device')})")
            return
        self.room -= taken(status.st_size)
        if self.room < 0:
            raise NoRoomError(f"{shown(name)} has grown to {status.st_size} bytes while it was packed")
        member = tarfile.TarInfo(name)
        member.size, member.mtime = status.st_size, status.st_mtime
        self.tar.addfile(member, Padded(file))  # type: ignore[arg-type]  # tarfile always says how many bytes it reads

    def add_text(self, name: str, text: str) -> None:
        """Add a file with this text."""
        member, data = tarfile.TarInfo(name), text.encode()
        member.size = len(data)
        self.tar.addfile(member, io.BytesIO(data))


class Padded:
    """A file that goes on with zeros where it has become shorter."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file

    def read(self, count: int) -> bytes:
        """Return exactly so many bytes."""
        data = self.file.read(count)
        return data + bytes(count - len(data))


def taken(size: int | None) -> int:
    """Return how many bytes of the tar file a file of this size takes."""
    return HEADER + -(-(size or 0) // 512) * 512


def free(folder: Path) -> int:
    """Return how many bytes may be written there."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize - MARGIN
