"""Read and check ``config.json``. Standard library only.

``config.json`` is a TensorFlow cluster spec: an object of job name -> list of ``address:port``,
one entry per task, ordered by task index.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

# The tasks of these jobs belong to a run: its program starts and stops their servers.
RUN_JOBS = ("host", "chief")


class ConfigError(Exception):
    """The cluster spec is invalid. The message is one sentence for its author."""


def split_address(entry: str) -> tuple[str, int]:
    """Return address and port of ``address:port``; an IPv6 address must be in brackets.

    Raises ConfigError if the address or the port (1 to 65535) is invalid.
    """
    found = re.fullmatch(r"(.+):([1-9][0-9]{0,4})", entry)
    if not found or int(found[2]) > 65535:
        raise ConfigError(f"{entry!r} is not an address and a port from 1 to 65535, as in '10.0.0.5:2222'")
    address, port = found.groups()
    bare = re.fullmatch(r"\[([^\[\]]+)\]|([^\[\]:]+)", address)
    if not bare:
        raise ConfigError(f"{entry!r} has an IPv6 address without brackets: write '[{address.strip('[]')}]:{port}'")
    name = bare[1] or bare[2]
    if not re.fullmatch(r"[A-Za-z0-9._%:-]+", name):
        raise ConfigError(f"{entry!r} has the invalid address {name!r}: use letters, digits, '.', '_' and '-'")
    return name, int(port)


def standing_tasks(spec: dict[str, list[str]]) -> list[tuple[str, int, str]]:
    """Return job, index and ``address:port`` of each task that has a server, whether or not a run is in progress."""
    return [(job, index, entry) for job, entries in spec.items() if job not in RUN_JOBS for index, entry in enumerate(entries)]


def load(path: str | Path) -> dict[str, list[str]]:
    """Return the cluster spec in the file ``path``: job -> list of ``address:port``.

    Raises ConfigError if the file is missing, is not JSON or is not a cluster spec.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the cluster spec with --config PATH") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        spec: dict[str, list[str]] = json.loads(text)  # check() below verifies it
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    check(spec, path)
    return spec


def check(spec: object, path: str | Path) -> None:
    """Raise ConfigError unless ``spec`` is a valid cluster spec. ``path`` is used in the message."""
    form = 'a cluster spec looks like {"worker": ["10.0.0.5:2222"], "host": ["10.0.0.6:2223"]}'
    if not isinstance(spec, dict) or not spec:
        raise ConfigError(f"{path} is not a cluster spec: {form}")
    seen: dict[str, str] = {}
    for job, tasks in spec.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", job):  # TensorFlow's own rule
            raise ConfigError(f"{path}: {job!r} is not a valid job name: use letters, digits and '_'")
        if not isinstance(tasks, list) or not tasks:
            raise ConfigError(f"{path}: job {job!r} is not a list of tasks: {form}")
        for index, entry in enumerate(tasks):
            if not isinstance(entry, str):
                raise ConfigError(f"{path}: task {index} of job {job!r} is {entry!r}, not a string: {form}")
            try:
                split_address(entry)
            except ConfigError as error:
                raise ConfigError(f"{path}: task {index} of job {job!r}: {error}") from None
            if entry in seen:
                raise ConfigError(f"{path}: {entry} is used twice, by {seen[entry]} and {job}:{index}")
            seen[entry] = f"{job}:{index}"


def task_entry(spec: dict[str, list[str]], job: str, index: int, path: str | Path) -> str:
    """Return the ``address:port`` of a task; raise ConfigError if the spec has no such task."""
    if job not in spec:
        raise ConfigError(f"{path} has no job {job!r}; it has {', '.join(sorted(spec))}")
    if not 0 <= index < len(spec[job]):
        raise ConfigError(f"{path} has no task {index} of job {job!r}; its indices are 0 to {len(spec[job]) - 1}")
    return spec[job][index]


def digest(spec: dict[str, list[str]]) -> str:
    """Return a short digest of a cluster spec; equal specs have equal digests."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
