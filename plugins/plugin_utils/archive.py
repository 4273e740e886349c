"""Pack tar files for machines, and check tar files from machines."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ansible.errors import AnsibleActionFail
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.collect.archive import taken


class Listed(NamedTuple):
    """What a path on the controller contains: the bytes of its files, those of a tar file, and broken links, relative to it."""

    size: int
    packed: int
    broken: list[str]


def pack(paths: Iterable[Path], file: IO[bytes], program: Path) -> None:
    """Write files and folders into a tar file. The content of a program's folder is at the top level.

    Files of data, that is all except the program's, get no write permission: as those that rsync sends, the program may only
    read them.
    """
    with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
        for path in paths:
            # Not the target of a link: the program is started by the given name.
            name = "." if path is program and path.is_dir() else Path(os.path.abspath(path)).name
            for found, inner in walk(path, []):
                member = tar.gettarinfo(found, f"{name}/{inner}" if inner else name)
                if not member:  # a socket
                    continue
                if member.isdir():
                    tar.addfile(member)
                elif member.isfile():
                    member.mode = member.mode if path is program else member.mode & 0o555 | 0o444
                    with found.open("rb") as content:
                        tar.addfile(member, content)


def listed(path: Path) -> Listed:
    """Return what a path contains."""
    broken: list[str] = []
    sizes = [found.stat().st_size if found.is_file() else 0 for found, _name in walk(path, broken)]
    return Listed(sum(sizes), sum(taken(size) for size in sizes), broken)


def walk(path: Path, broken: list[str], name: str = "", above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str]]:
    """Yield a file, or a folder and its content, each with its name below the first path. Links are followed.

    Broken links, as editors create them, are added to ``broken``. ``above`` are the folders that contain the path.
    """
    if not above and not path.exists():
        raise AnsibleActionFail(f"{path} does not exist on the controller")
    real = path.resolve()
    if real in above:
        raise AnsibleActionFail(f"{path} is a link to a folder that contains it. Remove the link.")
    if path.name == "__pycache__" or path.suffix == ".pyc":
        return
    if not path.exists():
        broken.append(name)
        return
    yield path, name
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            yield from walk(inner, broken, f"{name}/{inner.name}" if name else inner.name, (*above, real))


def check_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of a tar file from a machine. Raise if it is not a file or folder inside the run's folder."""
    parts = member.name.split("/")
    if not (member.isfile() or member.isdir()) or ".." in parts or not parts[0]:
        raise AnsibleActionFail(f"the machine sent {member.name!r}, which does not belong in a run's folder")
    member.mode, member.uid, member.gid = 0o755 if member.isdir() else 0o644, os.getuid(), os.getgid()
    member.uname = member.gname = ""
    return member


def remove_conflicts(folder: Path, members: Iterable[tarfile.TarInfo]) -> None:
    """Remove files of earlier collections where a member is a folder, and the reverse."""
    for member in members:
        remove_conflict(folder, folder / member.name, member.isdir())


def remove_conflict(folder: Path, path: Path, is_folder: bool) -> None:
    """Remove a file where there will be a folder, or the reverse. Keep ``folder`` itself."""
    if folder in path.parents and os.path.lexists(path) and path.is_dir() != is_folder:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_below(folder: Path, name: str, text: str) -> None:
    """Write a file inside the folder. Raise if its path is outside."""
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:
        raise AnsibleActionFail(f"{name} is outside {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
