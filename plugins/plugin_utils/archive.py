"""Pack tar files for machines, and check tar files from machines."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ansible.errors import AnsibleActionFail


def pack(paths: Iterable[Path], file: IO[bytes]) -> None:
    """Write files and folders into a tar file. If the first path is a folder, its content is at the top level."""
    with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
        for position, path in enumerate(paths):
            if not path.exists():
                raise AnsibleActionFail(f"{path} does not exist on the controller")
            # Not the target of a link: the program is started by the given name.
            add(tar, path, "." if path.is_dir() and position == 0 else Path(os.path.abspath(path)).name)


def add(tar: tarfile.TarFile, path: Path, name: str, above: tuple[Path, ...] = ()) -> None:
    """Add a file, or a folder with its content. Links are followed. ``above`` are the folders that contain the path."""
    real = path.resolve()
    if real in above:
        raise AnsibleActionFail(f"{path} is a link to a folder that contains it. Remove the link.")
    if path.name == "__pycache__" or not path.exists():
        return  # a broken link, as editors create them
    tar.add(path, name, recursive=False)
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            add(tar, inner, f"{name}/{inner.name}", (*above, real))


def check_member(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of a tar file from a machine. Raise if it is not a file or folder inside the run's folder."""
    parts = member.name.split("/")
    if not (member.isfile() or member.isdir()) or ".." in parts or not parts[0]:
        raise AnsibleActionFail(f"the machine sent {member.name!r}, which does not belong in a run's folder")
    member.mode, member.uid, member.gid = 0o755 if member.isdir() else 0o644, os.getuid(), os.getgid()
    member.uname = member.gname = ""
    return member


def remove_conflicts(folder: Path, members: Iterable[tarfile.TarInfo]) -> None:
    """Remove files of earlier collections where a member is a folder, and the reverse. Keep the folder itself."""
    for member in members:
        path = folder / member.name
        if folder in path.parents and os.path.lexists(path) and path.is_dir() != member.isdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_below(folder: Path, name: str, text: str) -> None:
    """Write a file inside the folder. Raise if its path is outside."""
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:
        raise AnsibleActionFail(f"{name} is outside {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
