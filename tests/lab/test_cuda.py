"""The real packages of the driver and of CUDA on a machine without a GPU: they install, load, and say the truth."""

import json

import pytest
import yaml
from conftest import ROOT, said

# Loads each library of each of NVIDIA's packages and prints those that do not load, and how many there are.
LOAD = """
import ctypes, glob, json, sysconfig
failed, libraries = {}, glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib/*.so*")
for path in libraries:
    try:
        ctypes.CDLL(path)
    except OSError as error:
        failed[path] = str(error)
print(json.dumps({"failed": failed, "count": len(libraries), "packages": sorted({path.split("/")[-3] for path in libraries})}))
"""
# What the wheel says of itself, without importing it.
BUILD = """
import importlib.util, json, sysconfig
path = sysconfig.get_paths()["purelib"] + "/tensorflow/python/platform/build_info.py"
spec = importlib.util.spec_from_file_location("build_info", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(dict(module.build_info)))
"""


@pytest.fixture(scope="module")
def machine(cluster):
    """Return a function that runs a Python program on the machine and returns its JSON."""
    done = cluster.playbook("tests/lab/cuda.yml", seconds=1800)
    assert done.returncode == 0, said(done)
    return lambda program: cluster.python("cuda-a", program)


def test_the_drivers_packages_are_installed_and_held(cluster, machine):
    held = cluster.shell("cuda-a", "apt-mark showhold")["cuda-a"].split()
    assert {"nvidia-smi", "libcuda1", "nvidia-persistenced"} <= set(held)


def test_each_cuda_library_loads(machine):
    found = machine(LOAD)
    assert found["failed"] == {}
    assert found["count"] >= 20
    assert {"cublas", "cuda_runtime", "cudnn", "cufft", "cusolver", "cusparse", "nccl"} <= set(found["packages"])


def test_tensorflow_opens_each_cuda_library(cluster, machine):
    """The installation links libraries that TensorFlow would not find. Without the link of cuSOLVER, it would use no GPU."""
    site = cluster.shell("cuda-a", "echo /opt/tf-cluster/venv/lib/python3*/site-packages")["cuda-a"]
    program = (ROOT / "files/tf_cluster/tensorflow/cuda_libraries.py").read_text(encoding="utf-8")
    cluster.write("cuda-a", "/tmp/cuda_libraries.py", program)
    check = f"/opt/tf-cluster/venv/bin/python -I -S /tmp/cuda_libraries.py {site}"
    found = json.loads(cluster.inside("cuda-a", check))
    assert found["libraries"] >= 20
    assert (found["linked"], found["failures"]) == ([], [])
    link = f"{site}/nvidia/cuda_runtime/lib/libcusolver.so.11"
    assert cluster.inside("cuda-a", f"readlink {link}").strip() == "../../cusolver/lib/libcusolver.so.11"
    repaired = json.loads(cluster.inside("cuda-a", f"rm {link}; {check}"))
    assert (repaired["linked"], repaired["failures"]) == (["libcusolver.so.11"], [])


def test_the_wheel_was_built_for_the_roles_compute_capabilities(machine):
    needs = yaml.safe_load((ROOT / "roles/cuda/vars/main.yml").read_text(encoding="utf-8"))["__cuda_needs"]
    assert sorted(machine(BUILD)["cuda_compute_capabilities"]) == sorted(needs["built_for"])


def test_nvidia_smi_reports_a_missing_driver(cluster, machine):
    assert "couldn't communicate with the NVIDIA driver" in cluster.shell("cuda-a", "nvidia-smi; true")["cuda-a"]


def test_a_server_of_the_gpu_wheel_starts_without_a_gpu(cluster, machine):
    program = (ROOT / "files/tf_cluster/tensorflow/capi.py").read_text(encoding="utf-8") + (
        '\nlibrary = Library()\nconfig = message("tensorflow_server_pb2", "ServerDef")(job_name="worker", protocol="grpc")\n'
        'config.cluster.job.add(name="worker").tasks[0] = "127.0.0.1:2222"\nlibrary.start_server(config.SerializeToString())\n'
        'session = library.session("grpc://127.0.0.1:2222", b"")\nimport json\nprint(json.dumps(list(session.devices())))\n'
    )
    assert machine(program) == ["/job:worker/replica:0/task:0/device:CPU:0"]


def test_site_reports_a_missing_gpu(cluster, machine):
    done = cluster.playbook("site.yml")
    assert done.returncode != 0
    assert "cuda-a: worker-0 requires a GPU, but the machine has no NVIDIA GPU" in said(done), said(done)
