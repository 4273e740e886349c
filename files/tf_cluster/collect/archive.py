"""Find a run's files and pack them into a tar file, while its program may still write to them.

The program's files are opened with the rights of its user, without following links and without blocking, because a listed name
may have become a link to a file of root, or a pipe. Deleted files are ignored; a file that changes is packed with the size that
it had when it was opened.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..preflight.shared import account, acting_as

OVERHEAD_BYTES = 1536  # of a member, without very long names
KINDS = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class TooLargeError(Exception):
    """The tar file would be too large."""


class Found(NamedTuple):
    """A file or folder of the program: name for the controller, path, size in bytes (None: a folder), and time of change."""

    name: str
    path: Path
    size: int | None
    changed: int = 0


def find(folder: Path, name: str, left: list[str], unwanted: frozenset[str] = frozenset()) -> list[Found]:
    """Return the content of a folder, each folder before its content; add unpackable files with the reason to ``left``."""
    found, waiting = [], [(folder.resolve(), name)]  # the packer compares the resolved path with the opened file
    while waiting:
        folder, name = waiting.pop()
        try:
            with acting_as(account()), os.scandir(folder) as entries:
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
                found.append(Found(its, folder / own, status.st_size, status.st_mtime_ns))
            else:
                left.append(f"{shown(its)} ({KINDS.get(stat.S_IFMT(status.st_mode), 'a device')})")
    return found


def shown(name: str) -> str:
    """Return a file's name in printable form."""
    return name if name.isprintable() else ascii(name)


@contextlib.contextmanager
def opened(found: Found, left: list[str]) -> Iterator[io.BufferedReader | None]:
    """Yield a file of the program, opened; None if it has become something else or cannot be read."""
    try:
        with acting_as(account()):
            descriptor = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        left.append(f"{shown(found.name)} ({'a link' if error.errno == errno.ELOOP else error.strerror})")
        yield None
        return
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}") != str(found.path):
            left.append(f"{shown(found.name)} (moved)")  # a parent folder may have become a link
        elif not stat.S_ISREG(status.st_mode):
            left.append(f"{shown(found.name)} ({KINDS.get(stat.S_IFMT(status.st_mode), 'a device')})")
        else:
            yield file
            return
    yield None


class Packer:
    """Adds files to a tar file, at most ``room`` bytes; adds skipped files with the reason to ``left``."""

    def __init__(self, tar: tarfile.TarFile, room: int, left: list[str]) -> None:
        self.tar, self.room, self.left = tar, room, left

    def add(self, found: Found) -> None:
        """Add a file or folder of the program; skip it if it has become something else."""
        if found.size is None:
            member = tarfile.TarInfo(found.name)
            member.type = tarfile.DIRTYPE
            self.tar.addfile(member)
            return
        with opened(found, self.left) as file:
            if file:
                self.add_open(found.name, file)

    def add_open(self, name: str, file: io.BufferedReader) -> None:
        """Add an open file. Raises TooLargeError if there is no room for it."""
        status = os.fstat(file.fileno())
        self.room -= taken(status.st_size)
        if self.room < 0:
            raise TooLargeError(name)
        member = tarfile.TarInfo(name)
        member.size, member.mtime = status.st_size, status.st_mtime
        self.tar.addfile(member, Padded(file))  # type: ignore[arg-type]  # tarfile always passes a byte count


class Padded:
    """A file that is padded with zeros if it has become shorter."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file

    def read(self, count: int) -> bytes:
        """Return exactly ``count`` bytes."""
        data = self.file.read(count)
        return data + bytes(count - len(data))


def taken(size: int | None) -> int:
    """Return the bytes that a file of this size takes in the tar file."""
    return OVERHEAD_BYTES + -(-(size or 0) // 512) * 512
