"""The GPU check reports a GPU whose results differ from the processor's. The devices are simulated."""

import struct
import time

import pytest
from project import load

gpu_check = load("tf_cluster.ready.gpu_check")
# What TensorFlow 2.21 says where cuBLAS does not start.
SEVERAL = """\
From /job:worker/replica:0/task:0:
2 root error(s) found.
  (0) INTERNAL: No blas support for stream
\t [[{{node product1}}]]
\t [[product1_G6]]
  (1) INTERNAL: No blas support for stream
\t [[{{node product1}}]]
0 successful operations.
0 derived errors ignored.
Recent warning and error logs:
  E0000 00:00:1795678429.991299     440 cuda_blas.cc:196] failed to create cublas handle: the library was not initialized
"""
GPU = "/job:worker/replica:0/task:0/device:GPU:0"


class Device:
    """Stands for TensorFlow's library: the processor's product is ones, the GPU's as given."""

    def __init__(self, product):
        self.product = product

    def session(self, *_words):
        """Return a session."""
        return self

    def fetch_bytes(self, name):
        """Return a product."""
        if isinstance(self.product, Exception):
            raise self.product
        numbers = [1.0] * 4 if name == "product0" else self.product
        return struct.pack("<4f", *numbers)


@pytest.fixture
def problem(monkeypatch):
    """Return a function that proves a GPU whose product is given."""
    message = type(
        "M", (), {"__init__": lambda self, **_more: None, "__getattr__": lambda self, _name: self, "SerializeToString": bytes}
    )
    monkeypatch.setattr(gpu_check.capi, "message", lambda *_names: message)
    monkeypatch.setattr(gpu_check, "graph", lambda _devices: b"")
    return lambda product: gpu_check.problem(Device(product), "grpc://x", [GPU], time.monotonic() + 5)


@pytest.mark.parametrize("product", [[1.0] * 4, [1.005, 0.995, 1.0, 1.0]])
def test_results_close_to_those_of_the_processor_are_correct(problem, product):
    assert problem(product) == ""


@pytest.mark.parametrize("product", [[1.0, 1.0, 1.0, 1.2], [0.0] * 4, [1.0, float("nan"), 1.0, 1.0], [float("inf")] * 4])
def test_results_that_differ_from_those_of_the_processor_are_reported(problem, product):
    assert f"{GPU} computes incorrectly" in problem(product)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("CUDA_ERROR_LAUNCH_FAILED\nmore", "CUDA_ERROR_LAUNCH_FAILED more"),
        ("From /job:worker/replica:0/task:0:\nBlas GEMM failed\n\t [[{{node p1}}]]", "Blas GEMM failed"),
        (SEVERAL, "INTERNAL: No blas support for stream"),
        ("From /job:worker/replica:0/task:0:", "From /job:worker/replica:0/task:0:"),
        ("x" * 400, "x" * 300),
    ],
)  # fmt: skip
def test_a_failing_gpu_is_reported_with_the_reason(problem, said, reason):
    assert problem(gpu_check.capi.TensorFlowError(13, said)) == f"a GPU does not compute: {reason}"
