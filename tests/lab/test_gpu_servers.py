"""Servers of the real GPU wheels on a machine with the stand-in for the NVIDIA driver: first with one GPU, then with eight.

TensorFlow opens the GPUs, allocates their memory and copies to it as with NVIDIA's driver. The stand-in records which process
opened which GPU and how much memory it took. It computes nothing, so the GPU check of site.yml has to fail.
"""

import json
import re
import sys
import time

import pytest
import yaml
from conftest import ROOT, Cluster, said, verdict

sys.path.append(str(ROOT / "tests/unit"))
sys.path.append(str(ROOT / "tests/stand_in"))
import gpu_machines
import stand_in

UUID = gpu_machines.H100.split(", ")[2]
UUIDS = [line.split(", ")[2] for line in gpu_machines.EIGHT.splitlines()]
MEMORY = 81559 << 20
FRACTION, SMALL_FRACTION = 0.25, 0.01  # as in the scenario's inventory
FIRST_OF_GROWTH = 2 << 20  # what TensorFlow allocates first where memory grows
PROGRAM = ROOT / "tests/lab/programs/gpu_memory.py"
WITHOUT_CHECK = "--extra-vars=ready_gpu_check_timeout=0"
IMPORT = """
import json
import tensorflow
print(json.dumps([device.name for device in tensorflow.config.list_physical_devices("GPU")]))
"""


class Driver:
    """What the stand-in knows of the processes that opened its GPUs."""

    def __init__(self, cluster):
        self.cluster = cluster

    def record(self):
        """Return all entries, in the order in which processes made them."""
        return [json.loads(line) for line in self.cluster.inside("gpus-a", "nvidia-smi --record").splitlines()]

    def opened(self, task):
        """Return what a task's server opened, GPU -> entry, and what it could not open, GPU -> reason."""
        pid = int(self.cluster.inside("gpus-a", f"systemctl show --value --property=MainPID tf-server@{task}"))
        own = [entry for entry in self.record() if entry["pid"] == pid and entry["lives"]]
        return ({e["gpu"]: e for e in own if not e["error"]}, {e["gpu"]: e["error"] for e in own if e["error"]})

    def used(self, gpu=0):
        """Return MiB in use of a GPU, as nvidia-smi prints it."""
        query = "nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits"
        return int(self.cluster.inside("gpus-a", query).splitlines()[gpu])


@pytest.fixture(scope="module")
def driver(cluster):
    """Install the stand-in with one GPU."""
    cluster.inside("gpus-a", stand_in.install_script(gpu_machines.H100))
    return Driver(cluster)


@pytest.fixture(scope="module")
def one(cluster, driver, figures):
    """Return the output of site.yml for the machine with one GPU."""
    begun = time.monotonic()
    done = cluster.playbook("site.yml", seconds=1800)
    figures.append({"site.yml on a machine with": "one GPU", "seconds": round(time.monotonic() - begun)})
    return done


def change(cluster, folder, tasks, gpus):
    """Give the machine other GPUs and its inventory other tasks, and run site.yml on it."""
    cluster.inside("gpus-a", stand_in.gpus_script(gpus))
    path = folder / "tasks.yml"
    path.write_text(yaml.safe_dump({"all": {"hosts": {"gpus-a": {"tf_tasks": {"worker": tasks}}}}}), encoding="utf-8")
    cluster.inventory = (*Cluster.inventory, f"--inventory={path}")
    done = cluster.playbook("site.yml", WITHOUT_CHECK)
    assert done.returncode == 0, said(done)


@pytest.fixture(scope="module")
def eight(cluster, one, figures, tmp_path_factory):
    """Give the machine eight GPUs with a task each."""
    begun = time.monotonic()
    change(cluster, tmp_path_factory.mktemp("eight"), "per_gpu", gpu_machines.EIGHT)
    figures.append({"site.yml on a machine with": "eight GPUs, packages installed", "seconds": round(time.monotonic() - begun)})


@pytest.fixture(scope="module")
def pair(cluster, eight, tmp_path_factory):
    """Give one task two GPUs, not in their order."""
    change(cluster, tmp_path_factory.mktemp("pair"), [{"gpus": [3, 1]}], gpu_machines.EIGHT)


def gate(cluster, *words):
    """Return the tasks as the gate on the host's machine sees them."""
    command = "/opt/tf-cluster/venv/bin/python -I -m tf_cluster.ready --json --config=/etc/tf-cluster/config.json"
    answer = json.loads(cluster.inside("gpus-b", f"{command} {' '.join(words)} 2>/dev/null || true"))
    return {task["task"]: task for task in answer["tasks"]}


def devices(task, *names):
    """Return full names of a worker task's devices."""
    return [f"/job:worker/replica:0/task:{task}/device:{name}" for name in ("CPU:0", *names)]


def run(cluster, device, sizes, *words, keep=True):
    """Run the program that copies tensors to a device; return the command and the program's result.

    The servers keep what they hold, so that it can be looked at, unless ``keep`` is false.
    """
    arguments = json.dumps({"program_args": [device, *map(str, sizes)], "run_keep_state": keep})
    done, folder = cluster.run(PROGRAM, f"--extra-vars={arguments}", *words)
    return done, verdict(folder)["result"] if folder and done.returncode == 0 else None


def test_the_gpu_check_fails_with_tensorflows_reason(one):
    assert one.returncode != 0
    for index, port in enumerate((2222, 2224)):
        row = f"worker:{index} gpus-a 10.89.87.10:{port} no GPU a GPU does not compute: INTERNAL: No blas support for stream"
        assert row in said(one), said(one)


def test_site_passes_without_the_gpu_check_and_changes_nothing(cluster, one):
    done = cluster.playbook("site.yml", WITHOUT_CHECK)
    assert done.returncode == 0, said(done)
    assert not re.search(r"changed=[1-9]", done.stdout)


def test_two_tasks_share_the_gpu(cluster, driver, one):
    found = gate(cluster)
    for index in range(2):
        task = found[f"worker:{index}"]
        assert (task["state"], task["devices"], task["gpus"]) == ("answers", devices(index, "GPU:0"), [UUID])
    (first, first_denied), (second, second_denied) = driver.opened("worker-0"), driver.opened("worker-1")
    assert list(first) == list(second) == [UUID]
    assert first[UUID]["pid"] != second[UUID]["pid"]
    assert first_denied == second_denied == {}


def test_memory_fraction_and_memory_growth_are_passed_to_the_driver(cluster, driver, one):
    """Both tasks have computed or tried to compute. TensorFlow rounds down to 256 bytes."""
    taken, growing = driver.opened("worker-0")[0][UUID], driver.opened("worker-1")[0][UUID]
    assert (taken["count"], taken["first"]) == (1, int(FRACTION * MEMORY) // 256 * 256)
    assert (growing["count"], growing["first"]) == (1, FIRST_OF_GROWTH)


def test_a_program_uses_the_gpu_that_it_requests(cluster, driver, one):
    """Its memory grows as needed, up to the task's share."""
    device, fits, exceeds = "/job:worker/task:1/device:GPU:0", 64 << 20, int(SMALL_FRACTION * MEMORY) + (64 << 20)
    before = driver.opened("worker-0")[0][UUID]["bytes"]
    done, result = run(cluster, device, [fits, exceeds], f"--extra-vars=ready_needs={device}")
    assert done.returncode == 0, said(done)
    assert result[str(fits)] == fits // 4
    assert "Dst tensor is not initialized" in result[str(exceeds)]  # TensorFlow's words for a copy that finds no memory
    assert "'CUDA_ERROR_LAUNCH_FAILED'" in result["exp"]
    entry = driver.opened("worker-1")[0][UUID]
    assert fits < entry["peak"] <= SMALL_FRACTION * MEMORY
    assert driver.opened("worker-0")[0][UUID]["bytes"] == before


def test_a_program_that_needs_a_missing_gpu_does_not_start(cluster, one):
    device = "/job:worker/task:1/device:GPU:1"
    done, result = run(cluster, device, [1024], f"--extra-vars=ready_needs={device}")
    assert done.returncode != 0
    assert result is None
    assert "A task lacks a device that the program needs." in said(done)
    assert f"no device the program needs {device}; the task has " in said(done), said(done)


def test_a_program_that_uses_a_missing_gpu_gets_tensorflows_error(cluster, one):
    done, result = run(cluster, "/job:worker/task:1/device:GPU:1", [1024])
    assert done.returncode == 0, said(done)
    assert "/job:worker/replica:0/task:1/device:GPU:0" in result["1024"]
    assert result["1024"].startswith("InvalidArgumentError: ")


def test_the_status_shows_gpu_memory_and_both_tasks(cluster, driver, one):
    done = cluster.playbook("playbooks/status.yml")
    assert done.returncode == 0, said(done)
    used = driver.used()
    assert used > FRACTION * 81559
    assert f"gpus-a 0 NVIDIA H100 80GB HBM3 {used} of 81559 MB 31 worker-0, worker-1" in said(done), said(done)


def test_a_killed_server_frees_its_memory_and_restarts(cluster, driver, one):
    before = driver.used()
    cluster.inside("gpus-a", "systemctl kill --signal=KILL tf-server@worker-0")
    answer = gate(cluster, "--timeout=30")["worker:0"]
    assert (answer["state"], answer["gpus"]) == ("answers", [UUID])
    assert driver.used() < before - FRACTION * 81559 + 10


def test_the_gpu_memory_of_a_run_is_freed_after_the_run(cluster, driver, one):
    """The new server takes memory when it is first used. For systemd, it is the same process."""
    kept, entry = driver.used(), driver.opened("worker-1")[0][UUID]
    done, result = run(cluster, "/job:worker/task:1/device:GPU:0", [64 << 20], keep=False)
    assert done.returncode == 0, said(done)
    assert result[str(64 << 20)] == (64 << 20) // 4
    assert kept > driver.used() < 100
    assert gate(cluster)["worker:1"]["devices"] == devices(1, "GPU:0")  # the gate waits for the new server
    cleared = driver.opened("worker-1")[0][UUID]
    assert cleared["pid"] == entry["pid"]
    assert entry["peak"] > cleared["peak"] == 0


def test_missing_device_files_are_created_before_a_server_starts(cluster, driver, one):
    cluster.inside("gpus-a", "systemctl stop tf-gpu-nodes; rm /dev/nvidia*; systemctl restart tf-server@worker-0")
    assert cluster.inside("gpus-a", "ls /dev/nvidia*").split() == [
        f"/dev/nvidia{name}" for name in ("-uvm", "-uvm-tools", "0", "ctl")
    ]
    assert gate(cluster)["worker:0"]["devices"] == devices(0, "GPU:0")


def test_a_server_whose_gpu_has_no_device_file_is_reported(cluster, driver, one):
    """In this case CUDA finds no device, and the server runs without a GPU."""
    hide = "mv /dev/nvidia0 /dev/hidden; mkdir /dev/nvidia0; systemctl restart tf-server@worker-0"
    cluster.inside("gpus-a", hide)
    answer = gate(cluster)["worker:0"]
    cluster.inside("gpus-a", "rmdir /dev/nvidia0; mv /dev/hidden /dev/nvidia0; systemctl restart tf-server@worker-0")
    assert (answer["state"], answer["devices"]) == ("no GPU", devices(0))
    assert "it should have 1 GPU(s), but TensorFlow found 0" in answer["reason"]
    assert gate(cluster)["worker:0"]["state"] == "answers"


def test_a_user_who_imports_tensorflow_finds_the_gpu(cluster, one):
    found = cluster.inside("gpus-a", f"/opt/tf-cluster/venv/bin/python - 2>/dev/null <<'END'\n{IMPORT}END\n")
    assert json.loads(found) == ["/physical_device:GPU:0"]


def test_a_server_with_a_gpu_starts_within_20_seconds(cluster, figures, one):
    restart = "systemctl restart tf-server@worker-1; journalctl --unit=tf-server@worker-1 --lines=30 --output=cat"
    seconds = [
        float(re.findall(r"listens on .*after ([\d.]+) s", cluster.inside("gpus-a", restart))[-1]) for _attempt in range(3)
    ]
    figures.append({"start of": "a server with a GPU (stand-in)", "seconds": min(seconds)})
    assert min(seconds) < 20


def test_each_of_eight_servers_has_its_own_gpu(cluster, driver, eight):
    """Both the gate and the driver report it."""
    found = gate(cluster)
    assert len(found) == 8
    for index, uuid in enumerate(UUIDS):
        task = found[f"worker:{index}"]
        assert (task["state"], task["devices"], task["gpus"]) == ("answers", devices(index, "GPU:0"), [uuid])
        assert list(driver.opened(f"worker-{index}")[0]) == [uuid]


@pytest.mark.parametrize("index", range(8))
def test_a_server_cannot_open_other_gpus(driver, eight, index):
    """The kernel enforces the unit's device list, although any user may open the device files."""
    denied = driver.opened(f"worker-{index}")[1]
    assert denied == {uuid: "Operation not permitted" for uuid in UUIDS if uuid != UUIDS[index]}


def test_the_status_shows_eight_gpus_and_their_tasks(cluster, eight):
    done = cluster.playbook("playbooks/status.yml")
    assert done.returncode == 0, said(done)
    for index in range(8):
        row = f"gpus-a {index} NVIDIA A100-SXM4-40GB {index} of 40960 MB 3{index} worker-{index}"
        assert row in said(done), said(done)


def test_a_task_with_two_gpus_uses_them_in_the_configured_order(cluster, driver, pair):
    """A copy to the second GPU shows which one it is."""
    task = gate(cluster)["worker:0"]
    assert (task["devices"], task["gpus"]) == (devices(0, "GPU:0", "GPU:1"), [UUIDS[3], UUIDS[1]])
    size = 64 << 20
    done, result = run(cluster, "/job:worker/task:0/device:GPU:1", [size])
    assert done.returncode == 0, said(done)
    assert result[str(size)] == size // 4
    opened, denied = driver.opened("worker-0")
    assert list(opened) == [UUIDS[3], UUIDS[1]]
    assert opened[UUIDS[1]]["peak"] > size > opened[UUIDS[3]]["peak"]
    assert set(denied) == set(UUIDS) - set(opened)
