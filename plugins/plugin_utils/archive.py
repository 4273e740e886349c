"""Tar files between the controller and machines: what may go, and what may come."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ansible.errors import AnsibleActionFail


def pack(paths: Iterable[Path], file: IO[bytes]) -> None:
    """Write files and folders into a tar file; the content of a folder that comes first, without its name."""
    with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
        for place, path in enumerate(paths):
            if not path.exists():
                raise AnsibleActionFail(f"{path} does not exist on the controller")
            # The name that it was given, also where that is a link: by this name the program is started.
            add(tar, path, "." if path.is_dir() and place == 0 else Path(os.path.abspath(path)).name)


def add(tar: tarfile.TarFile, path: Path, name: str, above: tuple[Path, ...] = ()) -> None:
    """Add a file, or a folder with its content; what links lead to as if it lay here. ``above``: the folders that it lies in."""
    real = path.resolve()
    if real in above:
        raise AnsibleActionFail(f"{path} is a link to a folder that it lies in: it can be sent without the link alone")
    if path.name == "__pycache__" or not path.exists():
        return  # a link that leads nowhere, as editors make them
    tar.add(path, name, recursive=False)
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            add(tar, inner, f"{name}/{inner.name}", (*above, real))


def check_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of a tar file from a machine, or raise: only files and folders, and nothing outside."""
    parts = member.name.split("/")
    if not (member.isfile() or member.isdir()) or ".." in parts or not parts[0]:
        raise AnsibleActionFail(f"the machine sent {member.name!r}, which does not belong into a run's folder")
    member.mode, member.uid, member.gid = 0o755 if member.isdir() else 0o644, os.getuid(), os.getgid()
    member.uname = member.gname = ""
    return member


def remove_conflicts(folder: Path, members: Iterable[tarfile.TarInfo]) -> None:
    """Remove what was collected earlier as a file where a folder comes now, or the other way round; never the folder itself."""
    for member in members:
        path = folder / member.name
        if folder in path.parents and os.path.lexists(path) and path.is_dir() != member.isdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_below(folder: Path, name: str, text: str) -> None:
    """Write a file below the folder and nowhere else."""
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:
        raise AnsibleActionFail(f"{name} lies outside {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
