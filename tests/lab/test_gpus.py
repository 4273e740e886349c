"""A machine whose nvidia-smi shows eight GPUs: tasks, ports, environment files and devices follow from it.

The packages are those without CUDA, so TensorFlow finds no GPU. test_gpu_servers.py has the servers that find them.
"""

import json
import re
import sys

import pytest
from conftest import ROOT, said

sys.path.append(str(ROOT / "tests/unit"))
sys.path.append(str(ROOT / "tests/stand_in"))
import gpu_machines
import stand_in

UUIDS = [line.split(", ")[2] for line in gpu_machines.EIGHT.splitlines()]
PORTS = [2222, *range(2224, 2231)]
SHARED = {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}


@pytest.fixture(scope="module")
def site_output(cluster):
    """Return the output of site.yml for the machine with the GPUs."""
    cluster.inside("gpus-a", stand_in.install_script(gpu_machines.EIGHT))
    return said(cluster.playbook("site.yml"))


def test_the_gate_reports_missing_gpus(site_output):
    """The GPUs are simulated, so TensorFlow finds none."""
    for index, port in enumerate(PORTS):
        row = f"worker:{index} gpus-a 10.89.81.10:{port} no GPU it should have 1 GPU(s), but TensorFlow found 0"
        assert row in site_output, site_output
    assert "worker:8 gpus-b 10.89.81.11:2222 answers" in site_output


def test_missing_device_files_are_created_when_a_server_starts(cluster, site_output):
    """A unit creates them before the first server starts, because confined servers cannot."""
    cluster.inside("gpus-a", "systemctl stop tf-gpu-nodes; rm /dev/nvidia*; systemctl restart tf-server@worker-5")
    expected = {f"/dev/nvidia{index}" for index in range(8)} | SHARED
    assert set(cluster.inside("gpus-a", "ls /dev/nvidia*").split()) == expected


def test_each_gpu_has_a_separate_task(cluster, site_output):
    units = cluster.shell("gpus-a", "systemctl list-units --plain --no-legend --state=active 'tf-server@*' | cut -d' ' -f1")[
        "gpus-a"
    ]
    assert units.split() == [f"tf-server@worker-{index}.service" for index in range(8)]
    files = cluster.shell("gpus-a", "grep -h CUDA_VISIBLE_DEVICES /etc/tf-cluster/tasks/worker-*.env")["gpus-a"]
    assert files.split() == [f'CUDA_VISIBLE_DEVICES="{uuid}"' for uuid in UUIDS]
    spec = json.loads(cluster.shell("gpus-b", "cat /etc/tf-cluster/config.json")["gpus-b"])
    assert spec["worker"] == [*(f"10.89.81.10:{port}" for port in PORTS), "10.89.81.11:2222"]


@pytest.mark.parametrize("index", range(8))
def test_a_task_can_open_only_its_own_gpu(cluster, site_output, index):
    shown = cluster.shell("gpus-a", f"systemctl show --value --property=DeviceAllow tf-server@worker-{index}")["gpus-a"]
    assert {word for word in shown.split() if word.startswith("/dev/")} == {f"/dev/nvidia{index}", *SHARED}


def test_a_task_without_a_gpu_has_no_access_to_gpus(cluster, site_output):
    shown = cluster.shell("gpus-b", "systemctl show --property=PrivateDevices,DeviceAllow tf-server@worker-8")["gpus-b"]
    assert "PrivateDevices=yes" in shown
    assert "nvidia" not in shown
    assert 'CUDA_VISIBLE_DEVICES=""' in cluster.shell("gpus-b", "cat /etc/tf-cluster/tasks/worker-8.env")["gpus-b"]


def test_ansible_shows_the_gpus_as_a_fact(cluster, site_output):
    done = cluster.command("ansible", "gpus-a", "--module-name=ansible.builtin.setup", "--args=filter=ansible_local")
    assert all(uuid in done.stdout for uuid in UUIDS)
    done = cluster.command("ansible", "gpus-b", "--module-name=ansible.builtin.setup", "--args=filter=ansible_local")
    assert "tf_gpus" not in done.stdout


def test_the_status_names_each_gpu_and_its_task(cluster, site_output):
    done = cluster.playbook("playbooks/status.yml")
    assert done.returncode != 0
    for index in range(8):
        row = f"gpus-a {index} NVIDIA A100-SXM4-40GB {index} of 40960 MB 3{index} worker-{index}"
        assert row in said(done), said(done)


def test_repeating_site_changes_nothing(cluster, site_output):
    assert not re.search(r"changed=[1-9]", cluster.playbook("site.yml").stdout)


def test_a_lost_gpu_is_reported(cluster, site_output):
    line = "sed -i 's/^7, .*$/Unable to determine the device handle for GPU 0000:BD:00.0: GPU is lost./' " + stand_in.GPUS
    cluster.shell("gpus-a", line)
    done = cluster.playbook("site.yml")
    assert done.returncode != 0
    assert "does not answer its driver (Unable to determine the device handle" in said(done), said(done)


def test_a_machine_without_a_gpu_is_reported(cluster, site_output):
    cluster.shell("gpus-a", "rm /usr/local/bin/nvidia-smi")
    done = cluster.playbook("site.yml")
    assert done.returncode != 0
    assert "gpus-a: tf_tasks.worker is 'per_gpu', but the machine has no NVIDIA GPU" in said(done), said(done)


def test_teardown_removes_all_files_of_the_cluster(cluster, site_output):
    assert cluster.playbook("playbooks/teardown.yml").returncode == 0
    line = "ls -d /etc/tf-cluster /etc/systemd/system/tf-* /etc/ansible/facts.d/tf_gpus.fact 2>/dev/null; true"
    assert set(cluster.shell("lab", line).values()) == {""}
