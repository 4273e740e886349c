"""The stand-in for the NVIDIA driver (tests/stand_in): which GPUs a process sees, and what is recorded of it."""

import json
import os
import subprocess
import sys

import gpu_machines
import pytest
from project import ROOT

sys.path.append(str(ROOT / "tests/stand_in"))
import stand_in

pytestmark = pytest.mark.skipif(not stand_in.compiler(), reason="no C compiler (Debian's package gcc)")
UUIDS = [line.split(", ")[2] for line in gpu_machines.EIGHT.splitlines()]
NO_DEVICE, UNKNOWN = 100, 999
# Prints the result of cuInit and the UUIDs of the devices; allocates as many bytes as it is told on the first one.
PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
error, count, uuids = cuda.cuInit(0), ctypes.c_int(), []
cuda.cuDeviceGetCount(ctypes.byref(count))
for device in range(count.value):
    raw = ctypes.create_string_buffer(16)
    assert cuda.cuDeviceGetUuid_v2(raw, device) == 0
    digits = raw.raw.hex()
    uuids.append("GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))
print(error, *uuids)
if len(sys.argv) > 1:
    context, start, free, total = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_size_t(), ctypes.c_size_t()
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == cuda.cuCtxSetCurrent(context) == 0
    print(cuda.cuMemAlloc_v2(ctypes.byref(start), ctypes.c_size_t(int(sys.argv[1]))))
    cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    print(total.value - free.value)
    sys.stdout.flush()
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Compile the libraries and return their folder."""
    folder = tmp_path_factory.mktemp("libraries")
    stand_in.build(folder)
    return folder


@pytest.fixture
def machine(tmp_path, libraries):
    """Return the environment of a process on a machine with eight GPUs, whose device files are plain files."""
    (tmp_path / "gpus.csv").write_text(gpu_machines.EIGHT, encoding="utf-8")
    for name in ("ctl", "-uvm", *range(8)):
        (tmp_path / f"nvidia{name}").touch()
    places = {"GPUS": tmp_path / "gpus.csv", "DEVICES": tmp_path, "RECORD": tmp_path / "record"}
    environment = {f"STAND_IN_{name}": str(path) for name, path in places.items()}
    return {**os.environ, **environment, "LD_LIBRARY_PATH": str(libraries)}


def begin(machine, *words, **settings):
    """Start a process that asks CUDA for its devices."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        env={**machine, **settings},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def visible(machine, **settings):
    """Return what cuInit answers, and the UUIDs that a process sees."""
    error, *uuids = begin(machine, **settings).communicate(timeout=30)[0].split()
    return int(error), uuids


def smi(machine, *words):
    """Return what nvidia-smi prints."""
    command = [sys.executable, ROOT / "tests/stand_in/nvidia-smi", *words]
    return subprocess.run(command, env=machine, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("setting", "indexes"),
    [
        (UUIDS[2], [2]),
        (f"{UUIDS[3]},{UUIDS[1]}", [3, 1]),
        (f"{UUIDS[3]},GPU-00000000-0000-0000-0000-000000000000,{UUIDS[1]}", [3]),
        ("GPU-a1000005", [5]),
        ("GPU-a1", []),
        ("6,0", [6, 0]),
        ("0,8,1", [0]),
        ("-1", []),
        ("", []),
    ],
)
def test_cuda_visible_devices_selects_gpus_in_the_given_order(machine, setting, indexes):
    expected = (0 if indexes else NO_DEVICE, [UUIDS[index] for index in indexes])
    assert visible(machine, CUDA_VISIBLE_DEVICES=setting) == expected


def test_all_gpus_are_visible_without_cuda_visible_devices(machine):
    machine.pop("CUDA_VISIBLE_DEVICES", None)
    assert visible(machine) == (0, UUIDS)


@pytest.mark.parametrize(("name", "error"), [("ctl", NO_DEVICE), ("-uvm", UNKNOWN), ("2", NO_DEVICE)])
def test_a_missing_device_file_is_a_cuda_error(machine, tmp_path, name, error):
    (tmp_path / f"nvidia{name}").unlink()
    assert visible(machine, CUDA_VISIBLE_DEVICES=UUIDS[2])[0] == error


def test_the_memory_of_a_process_is_recorded_while_it_runs(machine):
    process = begin(machine, str(100 << 20), CUDA_VISIBLE_DEVICES=UUIDS[4])
    assert [process.stdout.readline().strip() for _line in range(3)] == [f"0 {UUIDS[4]}", "0", str((100 + 4) << 20)]
    query = "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits"
    assert f"{UUIDS[4]}, 104" in smi(machine, *query)
    assert smi(machine, "--query-compute-apps=gpu_uuid,pid,used_memory").split() == [f"{UUIDS[4]},", f"{process.pid},", "100"]
    process.communicate(timeout=30)
    assert f"{UUIDS[4]}, 4" in smi(machine, *query)
    assert smi(machine, "--query-compute-apps=gpu_uuid,pid") == ""
    (entry,) = map(json.loads, smi(machine, "--record").splitlines())
    assert (entry["pid"], entry["gpu"], entry["lives"], entry["first"]) == (process.pid, UUIDS[4], False, 100 << 20)


def test_a_process_cannot_have_more_memory_than_the_gpu(machine):
    """CUDA_ERROR_OUT_OF_MEMORY."""
    out, _err = begin(machine, str(40961 << 20), CUDA_VISIBLE_DEVICES=UUIDS[4]).communicate(timeout=30)
    assert out.splitlines()[1] == "2"


def test_nvidia_smi_lists_gpus_and_error_lines(machine, tmp_path):
    (tmp_path / "gpus.csv").write_text(gpu_machines.H100 + gpu_machines.LOST, encoding="utf-8")
    assert smi(machine, "--list-gpus").startswith("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5f2d8c1a")
    assert smi(machine, "--query-gpu=index", "--format=csv,noheader,nounits") == f"0\n{gpu_machines.LOST}"
