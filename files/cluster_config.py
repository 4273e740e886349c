"""Read and check ``config.json``, and say who holds a port. Standard library only.

``config.json`` is a TensorFlow cluster spec: an object of job name -> list of ``address:port``,
one entry a task, in the order of the task indices.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import socket
import sys
from pathlib import Path

# The tasks of these jobs belong to a run: its program starts their servers and ends them.
RUN_JOBS = ("host", "chief")
# The number under which a server keeps the file that says who it is: above those that it has opened by then.
CARD = 1000
PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


class ConfigError(Exception):
    """The cluster spec cannot be used; the message is one sentence for the person who wrote it."""


def split_address(entry: str) -> tuple[str, int]:
    """Split ``address:port`` into its parts; an IPv6 address stands in brackets.

    Raises ConfigError if there is no port from 1 to 65535.
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
        raise ConfigError(f"{entry!r} has {name!r} for an address: letters, digits, '.', '_' and '-' make a name")
    return name, int(port)


def load(path: str | Path) -> dict[str, list[str]]:
    """Return the cluster spec in the file ``path``: job -> list of ``address:port``.

    Raises ConfigError, with a sentence that names the file, when it is missing, is not JSON or is
    not a cluster spec.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the cluster spec with --config PATH") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    check(spec, path)
    return spec


def check(spec: object, path: str | Path) -> None:
    """Raise ConfigError unless ``spec`` is a usable cluster spec."""
    form = 'a cluster spec looks like {"worker": ["10.0.0.5:2222"], "host": ["10.0.0.6:2223"]}'
    if not isinstance(spec, dict) or not spec:
        raise ConfigError(f"{path} is not a cluster spec: {form}")
    seen: dict[str, str] = {}
    for job, tasks in spec.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", job):  # TensorFlow's own rule
            raise ConfigError(f"{path}: {job!r} cannot name a job: letters, digits and '_' can")
        if not isinstance(tasks, list) or not tasks:
            raise ConfigError(f"{path}: job {job!r} is not a list of tasks: {form}")
        for index, entry in enumerate(tasks):
            if not isinstance(entry, str):
                raise ConfigError(f"{path}: task {index} of job {job!r} is {entry!r}, not a text: {form}")
            try:
                split_address(entry)
            except ConfigError as error:
                raise ConfigError(f"{path}: task {index} of job {job!r}: {error}") from None
            if entry in seen:
                raise ConfigError(f"{path}: {entry} stands twice, as {seen[entry]} and as {job}:{index}")
            seen[entry] = f"{job}:{index}"


def task_entry(spec: dict[str, list[str]], job: str, index: int, path: str | Path) -> str:
    """Return the ``address:port`` of a task; raise ConfigError if the spec has no such task."""
    if job not in spec:
        raise ConfigError(f"{path} has no job {job!r}; it has {', '.join(sorted(spec))}")
    if not 0 <= index < len(spec[job]):
        raise ConfigError(f"{path} has no task {index} of job {job!r}; its indices are 0 to {len(spec[job]) - 1}")
    return spec[job][index]


def digest(spec: dict[str, list[str]]) -> str:
    """Return a short name for this cluster spec, the same for the same content."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on ``port`` on all interfaces (as TensorFlow does)."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == 98:  # EADDRINUSE; anything else: this family is not there
                return False
    return True


def listeners(ports: list[int]) -> list[dict]:
    """Return who listens on TCP ports: ``port``, ``user``, and ``pid`` and ``name`` as far as this user may see (0 and "")."""
    found = {}  # inode of the socket -> who has it
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            column = row.split()
            # Columns of proc(5): local address, remote address, state (0A: listening), ... uid, ... inode
            port = int(column[1].rpartition(":")[2], 16)
            if column[3] == "0A" and port in ports:
                try:
                    user = pwd.getpwuid(int(column[7])).pw_name
                except KeyError:
                    user = column[7]
                found[column[9]] = {"port": port, "user": user, "pid": 0, "name": ""}
    if found:
        _name_processes(found)
    return list(found.values())


def _name_processes(sockets: dict[str, dict]) -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            for fd in (folder / "fd").iterdir():
                who = sockets.get(os.readlink(fd).removeprefix("socket:[").removesuffix("]"))
                if who and not who["pid"]:
                    who["pid"], who["name"] = int(folder.name), (folder / "comm").read_text().strip()
        except OSError:
            continue


def port_holder(port: int) -> str:
    """Say who listens on ``port``: "nginx (process 812, user www-data)", as far as this user may see."""
    who = next(iter(listeners([port])), None)
    if not who:
        return "a process that this user cannot see"
    if not who["pid"]:
        return f"a process of user {who['user']} ('ss -ltnp' as root names it)"
    return f"{who['name']} (process {who['pid']}, user {who['user']})"


def leave_proxies() -> None:
    """Take the proxy variables out of this process: gRPC would send the cluster's traffic there."""
    for name in PROXY_VARIABLES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


def fail(sentence: str, status: int) -> None:
    """Print one sentence as this program's error and exit."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)
