"""cuda/gpus.py over what tools print on machines of all kinds."""

import json
import os
import stat

import gpu_machines as machines
import pytest
import yaml
from project import ROOT, call, load

find_gpus = load("tf_cluster.cuda.gpus")


class Machine:
    """A machine made of files below a folder, and of what its commands print."""

    def __init__(self, root, monkeypatch):
        self.root, self.said = root, {}
        monkeypatch.setattr(find_gpus, "call", lambda *words: self.said.get(words[1].partition("=")[0], (127, "")))

    def write(self, name, text):
        """Write one of the kernel's files."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def card(self, bus, vendor="0x10de", kind="0x030200", device="0x2330"):
        """Put a card into a slot."""
        for name, text in (("vendor", vendor), ("class", kind), ("device", device)):
            self.write(f"sys/bus/pci/devices/{bus}/{name}", f"{text}\n")

    def smi(self, rows, status=0, listed="", processes=""):
        """Let nvidia-smi be there."""
        self.said["--query-gpu"] = (status, rows)
        self.said["--list-gpus"] = (0, listed)
        self.said["--query-compute-apps"] = (0, processes)

    def find(self):
        """Return what is found."""
        return find_gpus.find(self.root)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a machine without a GPU."""
    return Machine(tmp_path, monkeypatch)


def test_a_machine_without_a_gpu_has_no_gpus_and_no_driver(machine):
    found = machine.find()
    assert found.pop("processor") == os.uname().machine
    assert found == {
        "pci": [], "gpus": [], "processes": [], "kernel": None, "error": "nvidia-smi is not installed", "nouveau": False,
        "secure_boot": None, "signed": False, "reboot_required": False, "nvswitch": False, "fabric_manager": False,
    }  # fmt: skip


def test_cards_are_found_without_a_driver(machine):
    machine.card("0000:17:00.0")
    machine.card("0000:02:00.0", kind="0x030000", device="0x1b00")
    machine.card("0000:02:00.1", kind="0x040300")  # its sound
    machine.card("0000:00:02.0", vendor="0x8086", kind="0x030000")
    machine.card("0000:03:00.0", kind="0x068000")  # a bridge for NVLink
    assert machine.find()["pci"] == [
        {"bus": "0000:02:00.0", "device": "1b00", "driver": ""},
        {"bus": "0000:17:00.0", "device": "2330", "driver": ""},
    ]


def test_the_driver_of_a_card_and_nvswitch_are_found(machine):
    machine.card("0000:17:00.0")
    (machine.root / "drivers/vfio-pci").mkdir(parents=True)
    (machine.root / "sys/bus/pci/devices/0000:17:00.0/driver").symlink_to(machine.root / "drivers/vfio-pci")
    assert machine.find()["pci"][0]["driver"] == "vfio-pci"
    assert machine.find()["nvswitch"] is False
    machine.card("0000:c1:00.0", kind="0x068000", device="22a3")
    machine.said["is-active"] = (0, "active\n")
    found = machine.find()
    assert (found["nvswitch"], found["fabric_manager"], len(found["pci"])) == (True, True, 1)


def test_a_kernel_without_modules_requires_a_reboot(machine):
    (machine.root / "lib/modules/6.1.0-1").mkdir(parents=True)
    assert machine.find()["reboot_required"] is True
    (machine.root / "lib/modules" / os.uname().release).mkdir()
    assert machine.find()["reboot_required"] is False


def test_a_real_h200_is_found(machine):
    """What a real machine printed (NVIDIA H200, driver 580.159.04), with another UUID."""
    recorded = json.loads((ROOT / "tests/unit/recorded/h200.json").read_text(encoding="utf-8"))
    machine.card("0000:00:06.0", kind="0x030200", device="0x2335")
    machine.write("proc/driver/nvidia/version", recorded["proc_version"])
    machine.write("proc/driver/nvidia/gpus/0000:00:06.0/information", recorded["proc_information"])
    machine.smi(recorded["query-gpu"], listed=recorded["list-gpus"], processes=recorded["query-compute-apps"])
    found = machine.find()
    uuid = "GPU-42000000-6666-4c00-8d00-000000000001"
    assert found["gpus"] == [
        {
            "index": 0, "model": "NVIDIA H200", "uuid": uuid, "bus": "0000:00:06.0", "memory_mb": 143771, "memory_used_mb": 0,
            "temperature": 36, "compute_capability": "9.0", "driver": "580.159.04", "minor": 0, "mig": False, "parts": [],
        }
    ]  # fmt: skip
    assert (found["kernel"], found["error"]) == ("580.159.04", "")
    assert [(process["gpu"], process["pid"], process["name"]) for process in found["processes"]] == [(uuid, 599, "python3")]
    machine.smi(recorded["no_such_field"], status=2)
    assert machine.find()["error"] == 'Field "no_such_field" is not a valid field to query.'


def test_the_driver_reports_model_memory_and_compute_capability(machine):
    machine.smi(machines.H100)
    machine.write("proc/driver/nvidia/gpus/0000:17:00.0/information", "Model: \t\t NVIDIA H100\nDevice Minor: \t 3\n")
    machine.write("proc/driver/nvidia/version", machines.PROPRIETARY)
    found = machine.find()
    assert found["gpus"] == [
        {
            "index": 0, "model": "NVIDIA H100 80GB HBM3", "uuid": "GPU-5f2d8c1a-0000-4b1e-9d57-3a61c0e7f9b0",
            "bus": "0000:17:00.0",
            "memory_mb": 81559, "memory_used_mb": 4, "temperature": 31, "compute_capability": "9.0", "driver": "535.161.08",
            "minor": 3, "mig": False, "parts": [],
        }
    ]  # fmt: skip
    assert (found["kernel"], found["error"]) == ("535.161.08", "")


@pytest.mark.parametrize("rows", [machines.TITAN_X, machines.OLD, machines.BLACKWELL, machines.RTX_5090])
def test_old_and_new_cards_are_read(machine, rows):
    machine.smi(rows)
    [gpu] = machine.find()["gpus"]
    assert all(gpu[name] for name in ("model", "uuid", "bus", "memory_mb", "compute_capability", "driver"))
    assert gpu["mig"] is False


def test_eight_cards_have_different_indices_and_uuids(machine):
    machine.smi(machines.EIGHT)
    found = machine.find()["gpus"]
    assert [gpu["index"] for gpu in found] == [gpu["minor"] for gpu in found] == list(range(8))
    assert len({gpu["uuid"] for gpu in found}) == 8


def test_values_that_a_card_does_not_report_are_none(machine):
    machine.smi("0, Tesla M60, GPU-1, 00000000:02:00.0, [Unknown Error], [N/A], [Not Supported], 5.2, 535.161.08, [N/A]\n")
    [gpu] = machine.find()["gpus"]
    assert gpu["memory_mb"] is gpu["memory_used_mb"] is gpu["temperature"] is None


def test_the_mig_parts_of_a_card_are_found(machine):
    machine.smi(machines.SPLIT, listed=machines.SPLIT_LIST)
    [gpu] = machine.find()["gpus"]
    assert gpu["mig"] is True
    assert gpu["parts"] == [
        {"model": "3g.20gb", "uuid": "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"},
        {"model": "2g.10gb", "uuid": "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"},
    ]


@pytest.mark.parametrize(
    ("said", "status", "count", "word"),
    [
        (machines.MISMATCH, 18, 0, "version mismatch"),
        (machines.NO_DRIVER, 9, 0, "couldn't communicate"),
        (machines.LOST, 15, 0, "GPU is lost"),
        (machines.H100 + machines.LOST, 0, 1, "GPU is lost"),
        ("No devices were found\n", 6, 0, "No devices were found"),
    ],
)
def test_errors_of_nvidia_smi_are_reported(machine, said, status, count, word):
    machine.smi(said, status)
    found = machine.find()
    assert word in found["error"]
    assert len(found["gpus"]) == count


def test_processes_that_use_a_card_are_found_with_their_unit_and_user(machine):
    uuid = "GPU-5f2d8c1a-0000-4b1e-9d57-3a61c0e7f9b0"
    machine.smi(machines.H100, processes=f"{uuid}, 4711, /usr/bin/python3\n{uuid}, 4712, python\n")
    machine.write("proc/4711/cgroup", "0::/system.slice/system-tf\\x2dserver.slice/tf-server@worker-0.service\n")
    machine.write("proc/4712/cgroup", "12:pids:/user.slice/user-1000.slice/session-2.scope\n0::/user.slice\n")
    first, second = machine.find()["processes"]
    assert (first["gpu"], first["pid"], first["name"], first["unit"]) == (
        uuid, 4711, "/usr/bin/python3", "tf-server@worker-0.service",
    )  # fmt: skip
    assert (second["unit"], bool(second["user"])) == ("session-2.scope", True)


@pytest.mark.parametrize(
    ("text", "version"),
    [(machines.PROPRIETARY, "535.161.08"), (machines.OPEN, "550.54.15"), ("", None), ("something else\n", None)],
)
def test_the_version_of_the_kernel_module_is_read(text, version):
    assert find_gpus.parse_version(text) == version


@pytest.mark.parametrize(("data", "on"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (b"", False)])
def test_secure_boot_is_read_from_the_firmware(machine, data, on):
    path = machine.root / find_gpus.SECURE_BOOT
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    assert machine.find()["secure_boot"] is on


def test_nouveau_and_a_pending_reboot_are_found(machine):
    machine.write("proc/modules", "nvidia_nouveau 1 0 - Live 0\nnouveau 2334720 1 - Live 0x0\n")
    machine.write("run/reboot-required", "")
    found = machine.find()
    assert found["nouveau"] is found["reboot_required"] is True


def test_the_program_runs_and_prints_json(tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\ncase $1 in --query-gpu*) cat <<'X'\n{machines.EIGHT}X\nesac\n", encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = call("tf_cluster.cuda.gpus", env=environment)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["gpus"]) == 8


def test_the_custom_fact_can_be_executed():
    """Ansible runs it as a separate program; without the first line, it would be read as JSON or run by a shell."""
    files = yaml.safe_load((ROOT / "roles/cuda/vars/main.yml").read_text(encoding="utf-8"))["__cuda_own_files"]
    (fact,) = (file for file in files if file["path"].endswith(".fact"))
    assert fact["content"].startswith("#!/usr/bin/env python3\n{{ lookup(")
    assert fact["mode"] == "0755"
