"""The filters over what was found of GPUs: what keeps tasks from them, and which they get."""

import gpu_machines as machines
import pytest
import yaml
from project import ROOT, load

find_gpus = load("tf_cluster.cuda.gpus")
filters = load("plugins/filter/gpu_problems.py")
ROLE = yaml.safe_load((ROOT / "roles/cuda/vars/main.yml").read_text(encoding="utf-8"))["__cuda_needs"]
NEEDS = {**ROLE, "installs": True, "builds": True, "known": True}
GOOD = {
    "processor": "x86_64", "pci": [], "gpus": [], "processes": [], "kernel": None, "error": "", "nouveau": False,
    "secure_boot": False, "signed": False, "reboot_required": False, "nvswitch": False, "fabric_manager": False,
}  # fmt: skip
CARD = {"bus": "0000:17:00.0", "device": "2330", "driver": ""}


def found(rows="", listed="", **changes):
    """Return what is found on a machine whose nvidia-smi prints these rows."""
    gpus = find_gpus.parse_gpus(rows, {})
    find_gpus.add_parts(gpus, listed)
    pci = [{"bus": gpu["bus"], "device": "20b0", "driver": "nvidia"} for gpu in gpus]
    return {**GOOD, "gpus": gpus, "pci": pci, "error": find_gpus.parse_error(0, rows), **changes}


def tasks(*gpus, fraction=0.2):
    """Return a task for each list of GPUs."""
    return [
        {"name": f"worker-{i}", "standing": True, "options": {"gpus": own, "gpu_memory_fraction": fraction}}
        for i, own in enumerate(gpus)
    ]


def problems(own, machine, **needs):
    """Return the sentences on the machine "m1"."""
    return filters.gpu_problems(own, "m1", machine, {**NEEDS, **needs})


@pytest.mark.parametrize(
    "machine", [found(), found(pci=[CARD], error=machines.NO_DRIVER), found(machines.OLD), found(machines.BLACKWELL)]
)
def test_a_machine_without_gpu_tasks_has_no_problem(machine):
    assert problems(tasks([], []), machine) == []


@pytest.mark.parametrize(
    ("rows", "own"),
    [
        (machines.H100, tasks([0])),
        (machines.TITAN_X, tasks([0])),
        (machines.EIGHT, tasks(*([i] for i in range(8)))),
        (machines.EIGHT, tasks([0, 1, 2, 3], ["GPU-a1000007-5555-4a00-8c00-000000000007"])),
        (machines.EIGHT, tasks(["GPU-a1000007"])),
        (machines.H100, tasks([0], [0], fraction=0.5)),
    ],
)
def test_good_machines_have_no_problem(rows, own):
    assert problems(own, found(rows)) == []


def test_a_mig_part_is_accepted():
    machine = found(machines.SPLIT, machines.SPLIT_LIST)
    own = tasks(["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"])
    assert problems(own, machine) == []
    [task] = filters.with_gpus(own, machine)
    assert task["gpus"][0]["uuid"] == "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
    assert "3g.20gb" in task["gpus"][0]["model"]


def test_a_gpu_used_by_another_driver_is_ignored():
    machine = found(machines.H100, pci=[{**CARD, "driver": "nvidia"}, {**CARD, "bus": "0000:0b:00.0", "driver": "vfio-pci"}])
    assert problems(tasks([0]), machine) == []


def test_nvswitch_with_its_service_is_accepted():
    assert problems(tasks([0]), found(machines.EIGHT, nvswitch=True, fabric_manager=True)) == []


def test_a_missing_driver_that_will_be_installed_is_not_a_problem():
    assert problems(tasks([0]), found(pci=[CARD], error="nvidia-smi is not installed")) == []


def test_a_driver_signed_by_the_distribution_is_accepted_with_secure_boot():
    machine = found(pci=[CARD], error="nvidia-smi is not installed", secure_boot=True)
    assert problems(tasks([0]), machine, builds=False) == []


USER = {"gpu": "GPU-5f2d8c1a-0000-4b1e-9d57-3a61c0e7f9b0", "pid": 4711, "name": "python", "user": "jo", "unit": "session-2.scope"}


@pytest.mark.parametrize(
    ("machine", "own", "needs", "words"),
    [
        pytest.param(found(), tasks([0]), {}, ["no NVIDIA GPU", "worker-0", "gpus"], id="no card"),
        pytest.param(found(machines.H100, processor="aarch64"), tasks([0]), {}, ["aarch64", "no wheel"], id="processor"),
        pytest.param(
            found(pci=[CARD], error=machines.MISMATCH, kernel="535.161.08"), tasks([0]), {},
            ["535.161.08", "different versions", "Reboot"], id="mismatch",
        ),
        pytest.param(
            found(machines.H100 + machines.LOST), tasks([0]), {}, ["does not answer", "GPU is lost", "off and on"], id="lost"
        ),
        pytest.param(
            found(machines.H100, pci=[CARD, {**CARD, "bus": "0000:0b:00.0"}]), tasks([0]), {},
            ["at 0000:0b:00.0", "does not answer"], id="fell off the bus",
        ),
        pytest.param(found(machines.OLD), tasks([0]), {}, ["470.57.02", "525.60.13"], id="old driver"),
        pytest.param(
            found(pci=[CARD], error=machines.NO_DRIVER), tasks([0]), {"installs": False},
            ["couldn't communicate", "cuda_driver", "525.60.13"], id="no driver",
        ),
        pytest.param(
            found(pci=[CARD], error="x", reboot_required=True), tasks([0]), {}, ["a reboot is pending"], id="pending reboot"
        ),
        pytest.param(
            found(pci=[CARD], error="x", secure_boot=True), tasks([0]), {}, ["Secure Boot", "signature"], id="secure boot"
        ),
        pytest.param(
            found(pci=[CARD], error=machines.TOO_OLD, kernel="470.182.03"), tasks([0]), {}, ["470.182.03", "525.60.13"],
            id="too old to be asked",
        ),
        pytest.param(
            found(pci=[CARD], error="No devices were found", kernel="535.161.08"), tasks([0]), {},
            ["535.161.08", "No devices were found", "No other is installed over it"], id="a driver that does not work",
        ),
        pytest.param(
            found(pci=[CARD], error="x"), tasks([0]), {"known": False}, ["distribution", "cuda_driver"], id="distribution"
        ),
        pytest.param(found(pci=[CARD], error="x"), tasks([3]), {}, ["1 NVIDIA GPU(s)", "GPU 3"], id="number too high, no driver"),
        pytest.param(
            found(machines.EIGHT, nvswitch=True), tasks([0]), {}, ["NVSwitch", "nvidia-fabricmanager", "535.161.08"], id="fabric"
        ),
        pytest.param(
            found(machines.EIGHT), tasks([0, "GPU-a1000000-5555-4a00-8c00-000000000000"]), {}, ["one GPU twice"], id="twice"
        ),
        pytest.param(
            found(machines.SPLIT, machines.SPLIT_LIST),
            tasks(["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]), {},
            ["only one MIG part"], id="two parts",
        ),
        pytest.param(found(machines.EIGHT), tasks([8]), {}, ["0 to 7", "worker-0", "GPU 8"], id="number too high"),
        pytest.param(found(machines.H100), tasks(["GPU-nothing-like-it"]), {}, ["GPU-nothing", "GPU-5f2d"], id="unknown UUID"),
        pytest.param(
            found(machines.SPLIT, machines.SPLIT_LIST), tasks([0]), {}, ["split by MIG", "MIG-c6d4f1ef", "worker-0"], id="split"
        ),
        pytest.param(found(machines.SPLIT), tasks([0]), {}, ["split by MIG", "nvidia-smi mig -cgi"], id="split without parts"),
        pytest.param(found(machines.BLACKWELL), tasks([0]), {}, ["B200", "10.0", "known to fail"], id="Blackwell"),
        pytest.param(found(machines.RTX_5090), tasks([0]), {}, ["RTX 5090", "12.0", "known to fail"], id="Blackwell at home"),
        pytest.param(
            found(machines.OLD.replace("470.57.02", "535.161.08")), tasks([0]), {}, ["K80", "3.7", "sm_60"], id="too old a card"
        ),
        pytest.param(
            found(machines.H100), tasks([0], [0], fraction=0.6), {}, ["worker-0, worker-1", "gpu_memory_fraction"], id="shared"
        ),
        pytest.param(
            found(machines.H100, processes=[USER]), tasks([0]), {}, ["in use by python (process 4711, user jo)"], id="in use"
        ),
    ],
)  # fmt: skip
def test_a_problem_is_one_message_with_the_name_of_the_machine(machine, own, needs, words):
    [sentence] = problems(own, machine, **needs)
    assert sentence.startswith("m1: ")
    assert [word for word in words if word not in sentence] == []


@pytest.mark.parametrize("unit", ["tf-server@worker-0.service", "tf-run-host-0.service"])
def test_a_gpu_used_by_tasks_of_the_cluster_is_accepted(unit):
    assert problems(tasks([0]), found(machines.H100, processes=[{**USER, "unit": unit}])) == []


def test_processes_on_gpus_without_a_task_are_ignored():
    machine = found(machines.EIGHT, processes=[{**USER, "gpu": "GPU-a1000007-5555-4a00-8c00-000000000007"}])
    assert problems(tasks([0]), machine) == []


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("3.7", False), ("5.2", False), ("6.0", True), ("6.1", True), ("7.0", True), ("7.5", True), ("8.0", True), ("8.6", True),
     ("8.9", True), ("9.0", True), ("10.0", False), ("12.0", False)],
)  # fmt: skip
def test_only_gpus_with_a_supported_compute_capability_are_accepted(capability, runs):
    machine = found(machines.H100.replace(" 9.0,", f" {capability},"))
    assert (problems(tasks([0]), machine) == []) is runs


def test_tasks_get_their_gpus_in_the_order_of_the_option():
    own = filters.with_gpus(tasks([2, 0], [], ["GPU-a1000005-5555-4a00-8c00-000000000005"]), found(machines.EIGHT))
    assert [[gpu["index"] for gpu in task["gpus"]] for task in own] == [[2, 0], [], [5]]


def test_different_driver_versions_in_a_cluster_are_reported():
    newer = found(machines.TITAN_X.replace("535.161.08", "550.54.15"))
    alike = {"a": found(machines.H100), "b": found(machines.EIGHT), "c": found()}
    assert filters.driver_mismatches(alike, False) == []
    [sentence] = filters.driver_mismatches({**alike, "d": newer}, False)
    assert "535.161.08 on a, b; 550.54.15 on d" in sentence
    assert filters.driver_mismatches({**alike, "d": newer}, True) == []


def test_the_table_lists_each_gpu_and_each_lost_gpu():
    machine = found(machines.EIGHT)
    machine["pci"].append({**CARD, "bus": "0000:ff:00.0"})
    lines = filters.gpu_table({"m1": machine}, {"m1": tasks([0], [1, 0])})
    assert len(lines) == 10
    assert "the card at 0000:ff:00.0 does not answer" in lines[1]
    assert lines[2].endswith("worker-0, worker-1")
    assert lines[-1].endswith("none")
