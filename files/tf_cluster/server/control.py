"""Read and change the state of a running server through TensorFlow. Needs no access to its machine.

A server holds everything that a program left on it: variables, queues, tensors, memory. It also notes the runs that use it, as
run -> ``task`` (that the run's program is), ``since`` (seconds since the epoch) and ``kept`` (whether the next run finds the
state). A server that clears itself starts again in the same process ID, with nothing and with the memory of a new server.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ..tensorflow import capi
from . import identity

Users = dict[str, dict[str, Any]]  # run -> task, since, kept

DAMAGED: Users = {"?": {"task": "", "since": 0, "kept": False}}
GRAPH_VERSION = 1087


def session(
    library: capi.Library, task: str, entry: str, seconds: float, users: Users | None = None, via: str = ""
) -> capi.Session:
    """Open a session on the server of ``task`` ("worker:0", its name in the cluster) at ``entry``.

    Each step may take ``seconds``. ``via`` is the address of another server of the cluster that opens the session; this also
    works if the task's server waits for a task and opens none itself. The session's operations are ``identity`` and ``runs``
    (both return bytes), ``clear``, and ``note`` if ``users`` are given. Raises TensorFlowError if the server does not answer.
    """
    # A filter that matches no task leaves the server's own devices: the session waits for no other
    # task, and the devices show the server's real name.
    job, _colon, index = task.partition(":")
    filters = [f"/job:{job}/task:{index}"] if via else ["/job:nobody"]
    config = capi.message("config_pb2", "ConfigProto")(device_filters=filters, operation_timeout_in_ms=int(seconds * 1000))
    return library.session(f"grpc://{via or entry}", config.SerializeToString(), graph_of(task, users))


def graph_of(task: str, users: Users | None) -> bytes:
    """Return the serialised graph of a session."""
    job, _colon, index = task.partition(":")
    device = f"/job:{job}/replica:0/task:{index}/device:CPU:0"
    graph = capi.message("graph_pb2", "GraphDef")()
    graph.versions.producer = GRAPH_VERSION
    types = capi.message("types_pb2", "DataType")

    def text(name: str, content: bytes) -> str:
        node = graph.node.add(name=name, op="Const", device=device)
        node.attr["dtype"].type = types.Value("DT_STRING")
        node.attr["value"].tensor.dtype = types.Value("DT_STRING")
        node.attr["value"].tensor.tensor_shape.SetInParent()
        node.attr["value"].tensor.string_val.append(content)
        return name

    for name, path in (("identity", identity.IDENTITY_PATH), ("runs", identity.RUNS_PATH)):
        graph.node.add(name=f"{name}/read", op="ReadFile", input=[text(f"{name}/path", path.encode())], device=device)
        bytes_of = graph.node.add(name=name, op="DecodeRaw", input=[f"{name}/read"], device=device)
        bytes_of.attr["out_type"].type = types.Value("DT_UINT8")
    if users is not None:
        content = text("note/users", json.dumps(users).encode())
        graph.node.add(name="note", op="WriteFile", input=["runs/path", content], device=device)
    clear = graph.node.add(name="clear", op="Abort", device=device)
    clear.attr["error_msg"].s = b"clears itself"
    clear.attr["exit_without_error"].b = True
    serialised: bytes = graph.SerializeToString()
    return serialised


def read_users(opened: capi.Session) -> Users:
    """Return the runs that a server holds the state of. Programs can write there; what is invalid is DAMAGED."""
    text = opened.fetch_bytes("runs")
    try:
        users = json.loads(text or b"{}")
        return {
            str(run): {"task": str(user["task"]), "since": float(user["since"]), "kept": user["kept"] is True}
            for run, user in users.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return DAMAGED


def incarnation(opened: capi.Session) -> str:
    """Return the identifier of the server's process, which changes when it starts."""
    return next(iter(opened.devices().values()))


def note_users(library: capi.Library, task: str, entry: str, seconds: float, users: Users, via: str = "") -> None:
    """Replace the runs that a server notes. Raises TensorFlowError."""
    with contextlib.closing(session(library, task, entry, seconds, users, via)) as opened:
        opened.run("note")
