#!/usr/bin/env python3
"""What grows with the number of tasks: start, memory, connections, and the time that a session takes until it stands.

    .cache/bench/tensorflow/bin/python tests/bench/scale.py 8 32 128

Each number of tasks is that many of TensorFlow's servers on loopback, in two processes, with one thread each for operations. A
session is opened on the first of them, with device filters for two tasks and without, for the first time and again. Prints a
line of Markdown each; times in seconds, memory in MB. For docs/scale.md.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "files"))
from tf_cluster.tensorflow import capi

PROCESSES, SECONDS = 2, 120
COLUMNS = ("tasks", "start of all", "memory a task", "threads a task", "connections", "session", "again", "with filters", "again")


def server_def(spec: list[str], index: int) -> bytes:
    """Return the serialised ``ServerDef`` of a worker task."""
    message = capi.message("tensorflow_server_pb2", "ServerDef")()
    message.cluster.job.add(name="worker").tasks.update(enumerate(spec))
    message.job_name, message.task_index, message.protocol = "worker", index, "grpc"
    message.default_session_config.intra_op_parallelism_threads = 1
    message.default_session_config.inter_op_parallelism_threads = 1
    return message.SerializeToString()


def serve(spec: list[str], own: range) -> None:
    """Be the servers of some tasks until standard input ends."""
    library = capi.Library()
    for index in own:
        library.start_server(server_def(spec, index))
    print("up", flush=True)
    sys.stdin.read()
    os._exit(0)


def session_seconds(library: capi.Library, spec: list[str], filters: list[str]) -> float:
    """Return how long a session takes until it knows the devices of all tasks that it may use."""
    config = capi.message("config_pb2", "ConfigProto")(operation_timeout_in_ms=1000 * SECONDS, device_filters=filters)
    begun = time.monotonic()
    session = library.session(f"grpc://{spec[0]}", config.SerializeToString())
    found = len(session.devices())
    taken = time.monotonic() - begun
    session.close()
    assert found == (len(filters) or len(spec)), f"{found} devices"
    return taken


def connections(ports: set[int]) -> int:
    """Return how many connections lead to the ports."""
    rows = [row for table in ("tcp", "tcp6") for row in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]]
    ends = [row.split() for row in rows]
    return sum(1 for end in ends if end[3] == "01" and int(end[2].rpartition(":")[2], 16) in ports)


def free_ports(count: int) -> list[int]:
    """Return free ports."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _each in range(count)]


def measure(library: capi.Library, count: int) -> list[str]:
    """Return a row of figures for so many tasks."""
    ports = free_ports(count)
    spec = [f"127.0.0.1:{port}" for port in ports]
    begun = time.monotonic()
    servers = [
        subprocess.Popen(
            [sys.executable, __file__, "serve", str(number), *spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(PROCESSES)
    ]
    try:
        for server in servers:
            server.stdout.readline()
        started = time.monotonic() - begun
        folders = [Path("/proc", str(server.pid)) for server in servers]
        pages = sum(int((folder / "statm").read_text(encoding="ascii").split()[1]) for folder in folders)
        threads = sum(len(list((folder / "task").iterdir())) for folder in folders)
        two = ["/job:worker/task:0", "/job:worker/task:1"]
        sessions = [session_seconds(library, spec, filters) for filters in ([], [], two, two)]
        row = [count, f"{started:.1f}", f"{pages * 4096 / count / 1e6:.0f}", threads // count, connections(set(ports))]
        return [*map(str, row), *(f"{seconds:.3f}" for seconds in sessions)]
    finally:
        for server in servers:
            server.kill()
            server.wait()


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["serve"]:
        number, *spec = sys.argv[2:]
        serve(spec, range(int(number), len(spec), PROCESSES))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    library = capi.Library()
    for count in map(int, sys.argv[1:] or ["8", "32", "128"]):
        print("| " + " | ".join(measure(library, count)) + " |", flush=True)


if __name__ == "__main__":
    main()
