"""The real thing, on a machine with an NVIDIA GPU and its driver: finder, assignment, servers, gate, proof, demo.

    make test-gpu

Needs no root and no systemd; GPU_PYTHON names a Python that has tensorflow[and-cuda] (make test-gpu makes one).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gpu_problems
import pytest
import task_environments
import yaml
from tf_cluster.cuda import gpus as finder

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("GPU_PYTHON", sys.executable)

pytestmark = pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="no nvidia-smi here: this test is for machines with a GPU")
ROLE = yaml.safe_load((ROOT / "roles/cuda/vars/main.yml").read_text(encoding="utf-8"))["__cuda_needs"]
NEEDS = {**ROLE, "installs": False, "builds": True, "known": True}


def free_ports(count):
    """Return free ports."""
    held = [socket.create_server(("127.0.0.1", 0)) for _each in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


@pytest.fixture(scope="module")
def tasks():
    """Return two worker tasks that share the machine's first GPU, with what was found of it."""
    found = finder.find()
    assert found["gpus"], found["error"]
    options = {"gpus": [0], "gpu_memory_fraction": 0.2, "gpu_allow_growth": True}
    own = [{"job": "worker", "index": i, "name": f"worker-{i}", "options": options, "standing": True} for i in range(2)]
    assert gpu_problems.gpu_problems(own, "this one", found, NEEDS) == []
    return gpu_problems.with_gpus(own, found)


@pytest.fixture(scope="module")
def cluster(tasks, tmp_path_factory):
    """Start a server for each task, with what its environment file says, and return the folder with config.json."""
    folder = tmp_path_factory.mktemp("cluster")
    ports = free_ports(3)
    spec = {"worker": [f"127.0.0.1:{port}" for port in ports[:2]], "host": [f"127.0.0.1:{ports[2]}"]}
    (folder / "config.json").write_text(json.dumps(spec), encoding="utf-8")
    servers = []
    for task, environment in zip(tasks, task_environments.task_environments(tasks, "")):
        lines = [line for line in environment["files"][0]["content"].splitlines() if "=" in line]
        given = {name: value.strip('"') for name, value in (line.split("=", 1) for line in lines)}
        command = [PYTHON, ROOT / "files/create_server.py", f"--task={task['index']}", f"--config={folder / 'config.json'}"]
        servers.append(subprocess.Popen([*map(str, command)], env={**os.environ, **given}))
    yield folder
    for server in servers:
        server.terminate()
        assert server.wait(timeout=20) == 0


def test_the_gate_finds_the_gpu_of_each_task_and_checks_that_it_computes(cluster):
    """The gate of site.yml without the server's identity, which only servers under systemd publish."""
    program = (
        "import json, sys, time; sys.path.append(sys.argv[1])\n"
        "from tf_cluster.ready import gpu_check; from tf_cluster.tensorflow import capi; library = capi.Library()\n"
        "found = {}\n"
        "import socket\n"
        "def wait(entry):\n"
        "    for _attempt in range(600):\n"
        "        try:\n"
        "            return socket.create_connection(entry.split(':')).close()\n"
        "        except OSError:\n"
        "            time.sleep(0.2)\n"
        "for entry in json.load(open(sys.argv[2]))['worker']:\n"
        "    wait(entry)\n"
        "    config = capi.message('config_pb2', 'ConfigProto')(operation_timeout_in_ms=60000)\n"
        "    config.device_filters.append('/job:nobody')\n"
        "    devices = library.session('grpc://' + entry, config.SerializeToString()).devices()\n"
        "    gpus = [name for name in devices if '/device:GPU:' in name]\n"
        "    found[entry] = [gpus, gpu_check.problem(library, 'grpc://' + entry, gpus, time.monotonic() + 60)]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", program, ROOT / "files", cluster / "config.json"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for gpus, problem in json.loads(done.stdout.splitlines()[-1]).values():
        assert len(gpus) == 1
        assert problem == ""


def test_the_demo_runs_on_the_gpus(cluster):
    environment = {**os.environ, "TF_CLUSTER_CONFIG": str(cluster / "config.json"), "TF_RUN_DIR": str(cluster)}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the host's own task has none
    done = subprocess.run(
        [PYTHON, ROOT / "files/demo.py"], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ran = json.loads((cluster / "placement.json").read_text(encoding="utf-8"))
    assert ran["c"].endswith("/task:0/device:GPU:0")
    assert ran["log"].endswith("/task:1/device:GPU:0")
    matrix = json.loads((cluster / "result.json").read_text(encoding="utf-8"))["matrix"]
    assert matrix[0] == pytest.approx([26.80402, 32.85203], rel=1e-3)
    print(json.dumps(ran))
