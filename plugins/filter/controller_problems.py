"""List what is missing on the controller, before a play needs it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable

INSTALLERS = ("apt-get", "dnf", "zypper", "brew")


def controller_problems(collections: Iterable[str], packages: Iterable[str] = (), rsync: str = "") -> list[str]:
    """Return a sentence each on missing collections, on missing Python packages and on rsync.

    ``rsync`` is the oldest version that will do; empty: rsync is not checked.
    """
    problems = []
    missing = [name for name in collections if not _can_import(f"ansible_collections.{name}")]
    if missing:
        problems.append(
            f"Missing Ansible collections on the controller: {', '.join(missing)}. "
            f"Run 'ansible-galaxy collection install {' '.join(missing)}'."
        )
    missing = [name for name in packages if not _can_import(name)]
    if missing:
        python = shlex.quote(sys.executable)
        problems.append(
            f"Missing Python packages on the controller, for {sys.executable}: {', '.join(missing)}. "
            f"Run '{python} -m pip install {' '.join(missing)}'."
        )
    return problems + ([problem] if rsync and (problem := _rsync_problem(rsync)) else [])


def _rsync_problem(wanted: str) -> str:
    program = shutil.which("rsync")
    installer = next((name for name in INSTALLERS if shutil.which(name)), None)
    remedy = f"Run '{installer} install rsync' as an administrator." if installer else "Install it."
    if not program:
        return f"Missing program on the controller: rsync, which transfers data and results. {remedy}"
    printed = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"rsync +version v?(\d+(?:\.\d+)*)", printed)
    if not version or _numbers(version[1]) < _numbers(wanted):
        found = version[1] if version else "of an unknown version"
        return f"{program} on the controller is {found}, but {wanted} or newer is required. {remedy}"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _can_import(name: str) -> bool:
    """Return whether Python finds a module, without loading it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., list[str]]]:
        """Return the filters by name."""
        return {"controller_problems": controller_problems}
