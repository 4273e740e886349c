"""What NVIDIA's tools, the kernel and TensorFlow print on machines of all kinds, for the tests of the finder and of traces."""

import json
from pathlib import Path
from types import SimpleNamespace

MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.183\n"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is "
    "installed and running.\n\n"
)
TOO_OLD = 'Field "compute_cap" is not a valid field to query.\n\n'
LOST = "Unable to determine the device handle for GPU 0000:0B:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
PROPRIETARY = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Sat Feb 24 22:27:25 UTC 2024
GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs-builder@U16-I1-N07-12-3)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
H100 = "0, NVIDIA H100 80GB HBM3, GPU-5f2d8c1a-0000-4b1e-9d57-3a61c0e7f9b0, 00000000:17:00.0, 81559, 4, 31, 9.0, 535.161.08, Disabled\n"
TITAN_X = "0, NVIDIA TITAN X (Pascal), GPU-0d6c7b52-1111-4c3a-8e7e-9a9d1f2b3c4d, 00000000:02:00.0, 12288, 10, 45, 6.1, 535.161.08, [N/A]\n"
OLD = "0, Tesla K80, GPU-77aa0011-2222-4d5e-9f00-aabbccddeeff, 00000000:00:1E.0, 11441, 0, 40, 3.7, 470.57.02, [N/A]\n"
BLACKWELL = (
    "0, NVIDIA B200, GPU-b2000000-3333-4e5f-8a00-000000000001, 00000000:1B:00.0, 183359, 4, 33, 10.0, 570.86.15, Disabled\n"
)
RTX_5090 = "0, NVIDIA GeForce RTX 5090, GPU-50900000-4444-4f00-8b00-000000000002, 00000000:01:00.0, 32607, 2, 38, 12.0, 570.86.15, [N/A]\n"
BUSES = ["07", "0F", "47", "4E", "87", "90", "B7", "BD"]
EIGHT = "".join(
    f"{i}, NVIDIA A100-SXM4-40GB, GPU-a100000{i}-5555-4a00-8c00-00000000000{i}, 00000000:{bus}:00.0, 40960, {i}, 3{i}, 8.0, "
    "535.161.08, Disabled\n"
    for i, bus in enumerate(BUSES)
)
SPLIT = "0, NVIDIA A100-SXM4-40GB, GPU-a1000000-5555-4a00-8c00-000000000000, 00000000:07:00.0, 40960, 0, 30, 8.0, 535.161.08, Enabled\n"
SPLIT_LIST = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-a1000000-5555-4a00-8c00-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 2g.10gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
"""


class _Devices:
    """A repeated field of TensorFlow's messages: each iteration creates new elements."""

    def __init__(self, devices):
        self.devices = devices

    def __iter__(self):
        for device in self.devices:
            yield SimpleNamespace(device=device["device"], node_stats=[_node(node) for node in device["node_stats"]])


def _node(entry):
    description = SimpleNamespace(
        allocation_description=SimpleNamespace(requested_bytes=entry.get("bytes", 0)), dtype=0, shape=SimpleNamespace(dim=[])
    )
    return SimpleNamespace(
        **{"all_start_nanos": 0, "all_end_rel_nanos": 0, "scheduled_nanos": 0, "memory": [], **entry},
        output=[SimpleNamespace(tensor_description=description)] if "bytes" in entry else [],
    )


def step_statistics():
    """Return TensorFlow's statistics of a real step: two tasks that share an NVIDIA H200, driver 580.159.04, TensorFlow 2.21."""
    text = Path(__file__).with_name("recorded").joinpath("gpu_step_stats.json").read_text(encoding="utf-8")
    return SimpleNamespace(dev_stats=_Devices(json.loads(text)))
