"""Check each GPU of a task: compare its result with the processor's, through the task's server."""

from __future__ import annotations

import random
import re
import struct
import time

from ..tensorflow import capi

SIZE = 256  # of the square matrices
TOLERANCE = 1e-2  # recent GPUs multiply in TF32 with 10 bits: sums of 256 products of up to 1 differ by less


def problem(library: capi.Library, target: str, devices: list[str], deadline: float) -> str:
    """Return a sentence if a device's result differs from the processor's, else an empty string.

    ``devices`` are full names of one task's devices; ``deadline`` is for all of them, by the monotonic clock. The product
    of two random 256x256 float32 matrices may differ by 1 % of its largest element.
    """
    processor = devices[0].rpartition("/")[0] + "/device:CPU:0"
    left = max(1.0, deadline - time.monotonic())
    config = capi.message("config_pb2", "ConfigProto")(device_filters=["/job:nobody"], operation_timeout_in_ms=int(left * 1000))
    config.graph_options.optimizer_options.opt_level = -1  # constant folding would compute on another device
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    try:
        session = library.session(target, config.SerializeToString(), graph([processor, *devices]))
        expected = numbers(session.fetch_bytes("product0"))
        for place, device in enumerate(devices, start=1):
            found = numbers(session.fetch_bytes(f"product{place}"))
            limit = TOLERANCE * max(map(abs, expected))
            wrong = [b for a, b in zip(expected, found) if not abs(a - b) <= limit]  # `not <=`: a NaN is wrong too
            if wrong:
                return f"{device} computes incorrectly: {len(wrong)} of {len(found)} numbers differ, the first is {wrong[0]:.3g}"
    except capi.TensorFlowError as error:
        return f"a GPU does not compute: {reason(error)}"
    return ""


def reason(error: Exception) -> str:
    """Return TensorFlow's error message on one line of at most 300 characters.

    An error of a remote task begins with its origin ("From /job:worker/replica:0/task:0:"). If several operations failed,
    the first reason is numbered "(0)". Operation names in brackets and the server's log follow.
    """
    text = re.split(r"\n\s*\(1\) |\nRecent warning and error logs:", str(error))[0]
    lines = [re.sub(r"^\(0\) ", "", line.strip()) for line in text.splitlines()]
    reasons = [
        line for line in lines if line and not re.fullmatch(r"From /job:\S+:|\d+ root error\(s\) found\.|\[\[.*\]\]", line)
    ]
    return " ".join(reasons or lines)[:300]


def graph(devices: list[str]) -> bytes:
    """Return a serialised graph that computes the same product on each device, as "product0", "product1", ..."""
    result = capi.message("graph_pb2", "GraphDef")()
    result.versions.producer = 1087
    types = capi.message("types_pb2", "DataType")
    number = types.Value("DT_FLOAT")
    chance = random.Random(SIZE)  # noqa: S311 (the same numbers every time)
    for name in ("a", "b"):
        node = result.node.add(name=name, op="Const", device=devices[0])
        node.attr["dtype"].type = number
        tensor = node.attr["value"].tensor
        tensor.dtype = number
        for _dimension in range(2):
            tensor.tensor_shape.dim.add(size=SIZE)
        tensor.tensor_content = struct.pack(f"<{SIZE * SIZE}f", *(chance.uniform(-1, 1) for _each in range(SIZE * SIZE)))
    for place, device in enumerate(devices):
        node = result.node.add(name=f"product{place}", op="MatMul", input=["a", "b"], device=device)
        node.attr["T"].type = number
    serialised: bytes = result.SerializeToString()
    return serialised


def numbers(data: bytes) -> tuple[float, ...]:
    """Return the numbers in the raw bytes of a float32 tensor."""
    return struct.unpack(f"<{len(data) // 4}f", data)
