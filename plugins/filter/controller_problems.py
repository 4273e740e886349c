"""List what is missing on the controller, before a play needs it."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterable


def controller_problems(collections: Iterable[str], packages: Iterable[str] = ()) -> list[str]:
    """Return a sentence on missing collections and one on missing Python packages."""
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
    return problems


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
