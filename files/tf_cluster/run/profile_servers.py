"""Profile servers of the cluster for an eager program, until standard input ends.

    python -m tf_cluster.run.profile_servers FOLDER < tasks

profile.py starts this as a separate process, so that neither gRPC nor the profiles load the program. Standard input has one JSON
object per line, task -> address of its server. Each server's profiler service (part of every TensorFlow server) records from
then until standard input ends or SIGTERM arrives, and its profile is written to FOLDER as ``<job>-<index>.xplane.pb``.

The wheel has no Python messages of the service, so this encodes the few fields that are needed (profiler_service.proto). The
profile is part of the answer (``emit_xspace``): a server would write it to a file on its own machine otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .. import xplane

MAX_SECONDS = 120.0  # for a server that gets no request to stop
ANSWER_SECONDS = 20.0  # that a server has to return its profile
HOST_TRACER_LEVEL = 2  # as in the program, where TensorFlow 2.21 ignores this option
# Fields of ProfileRequest, ProfileOptions, ProfileResponse and TerminateRequest.
DURATION_MS, OPTIONS, SESSION_ID, EMIT_XSPACE = 1, 4, 6, 9
INCLUDE_DATASET_OPS, HOST_LEVEL, DEVICE_LEVEL, VERSION, OPTIONS_DURATION_MS = 1, 2, 3, 5, 9
XSPACE, TERMINATE_SESSION_ID = 8, 1
SERVICE = "/tensorflow.ProfilerService/"


def number(field: int, value: int) -> bytes:
    """Return an encoded field of a number."""
    return varint(field << 3 | xplane.VARINT) + varint(value)


def content(field: int, value: bytes) -> bytes:
    """Return an encoded field of text or of a message."""
    return varint(field << 3 | xplane.BYTES) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """Return an encoded number."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def request(session: str) -> bytes:
    """Return an encoded ProfileRequest."""
    milliseconds = int(MAX_SECONDS * 1000)
    options = number(INCLUDE_DATASET_OPS, 1) + number(HOST_LEVEL, HOST_TRACER_LEVEL) + number(DEVICE_LEVEL, 1)
    options += number(VERSION, 1) + number(OPTIONS_DURATION_MS, milliseconds)
    duration = number(DURATION_MS, milliseconds)
    return duration + content(OPTIONS, options) + content(SESSION_ID, session.encode()) + number(EMIT_XSPACE, 1)


class Server:
    """The profiler service of one task's server."""

    def __init__(self, task: str, address: str, session: str) -> None:
        import grpc  # type: ignore[import-untyped]

        self.task, self.session = task, session
        # A profile may be larger than gRPC's limit of 4 MB.
        options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.answer = self.call("Profile", request(session), MAX_SECONDS + ANSWER_SECONDS)

    def call(self, method: str, message: bytes, seconds: float) -> Any:
        """Begin a call of the service; return its future."""
        return self.channel.unary_unary(SERVICE + method).future(message, timeout=seconds)

    def stop(self) -> None:
        """Ask the server to end the profile."""
        message = content(TERMINATE_SESSION_ID, self.session.encode())
        self.ending = self.call("Terminate", message, ANSWER_SECONDS)  # a call without a reference to it is canceled

    def save(self, folder: Path) -> None:
        """Write the profile to its file; raise OSError or grpc.RpcError if that fails."""
        fields = dict(xplane.fields(self.answer.result(timeout=ANSWER_SECONDS)))
        profile = fields.get(XSPACE)
        if isinstance(profile, bytes):
            write(folder / f"{self.task.replace(':', '-')}.xplane.pb", profile)


def write(path: Path, data: bytes) -> None:
    """Write a file, all or nothing."""
    partial = path.with_name(f".{path.name}")
    partial.write_bytes(data)
    partial.replace(path)


def main() -> None:
    """Profile the servers that standard input names; report those that return no profile."""
    import grpc

    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))
    servers: list[Server] = []
    with contextlib.suppress(OSError):
        for line in sys.stdin:
            servers += [Server(task, address, folder.name) for task, address in json.loads(line).items()]
    for server in servers:
        server.stop()
    for server in servers:
        try:
            server.save(folder)
        except Exception as error:
            reason = error.details() if isinstance(error, grpc.RpcError) else repr(error)
            print(f"[trace] {server.task} returned no profile: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
