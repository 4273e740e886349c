"""What keeps tasks from their GPUs, as sentences; and the GPUs that tasks get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.table import table

Task = dict[str, Any]  # of the cluster, as the filter cluster_spec makes it
Found = dict[str, Any]  # what files/tf_cluster/cuda/gpus.py found on a machine
Gpu = dict[str, Any]  # one of its GPUs

# TensorFlow 2.21 fails on these although it carries code that should run there.
BROKEN_FROM = (10, 0)


def gpu_problems(tasks: list[Task], machine: str, found: Found, needs: dict[str, Any]) -> list[str]:
    """Return the machine's problems; none where no task is to have a GPU."""
    wanted = {task["name"]: task["options"]["gpus"] for task in tasks if task["options"]["gpus"]}
    if not wanted:
        return []
    problems = _driver_problems(machine, found, needs, f"{next(iter(wanted))} is to have a GPU")
    if problems:
        return problems
    if not found["gpus"]:  # the driver is still to come: only their number is known
        cards = len(found["pci"])
        return [
            f"Machine {machine} has {cards} NVIDIA GPU(s), and {name} is to have GPU {gpu}: change its 'gpus'."
            for name, gpus in wanted.items()
            for gpu in gpus
            if isinstance(gpu, int) and gpu >= cards
        ]
    for name, gpus in wanted.items():
        problems += [sentence for gpu in gpus if (sentence := _unknown(machine, name, gpu, found["gpus"]))]
    if problems:
        return problems
    for task in with_gpus(tasks, found):
        uuids = [gpu["uuid"] for gpu in task["gpus"]]
        if len(set(uuids)) < len(uuids):
            problems.append(f"The task {task['name']} of machine {machine} is to have one GPU twice: take one out of its 'gpus'.")
        if len(uuids) > 1 and any(uuid.startswith("MIG-") for uuid in uuids):
            problems.append(
                f"The task {task['name']} of machine {machine} is to have several GPUs, one of them a part of a split one, and "
                "CUDA gives a process one part alone: give each part a task of its own."
            )
    mine = {gpu["uuid"]: gpu for task in with_gpus(tasks, found) for gpu in task["gpus"]}
    for gpu in mine.values():
        problems += _gpu_problems(machine, gpu, needs)
    return [*problems, *_shares(machine, tasks, found), *_strangers(machine, mine, found["processes"])]


def _driver_problems(machine: str, found: Found, needs: dict[str, Any], why: str) -> list[str]:
    """Return the first problem of a machine's processor, cards and driver, in the order in which they are to be solved."""
    gpus, known = found["gpus"], {gpu["bus"] for gpu in found["gpus"]}
    lost = [card["bus"] for card in found["pci"] if known and card["bus"] not in known and card["driver"] in ("nvidia", "")]
    facts = {
        **found,
        **needs,
        "machine": machine,
        "why": why,
        "cards": len(found["pci"]),
        "works": bool(gpus),
        "lost": bool(lost) or "device handle" in found["error"] or "is lost" in found["error"],
        "where": f" at {', '.join(lost)}" if lost else "",
        "loaded": gpus[0]["driver"] if gpus else found["kernel"],
        "no_answer": found["error"] or "it is not listed",
    }
    sentence = next((sentence for holds, sentence in DRIVER_PROBLEMS if holds(facts)), None)
    return [sentence.format_map(facts)] if sentence else []


# The first that holds is said; the facts are those of files/tf_cluster/cuda/gpus.py, of ``needs``, and those above.
DRIVER_PROBLEMS: tuple[tuple[Callable[[dict[str, Any]], bool], str | None], ...] = (
    (
        lambda facts: facts["processor"] != "x86_64",
        "Machine {machine} has a processor of the kind {processor}, for which TensorFlow 2.21 has no wheel with GPU support, and "
        "{why}: take 'gpus' out of its tf_tasks and tf_task_options.",
    ),
    (
        lambda facts: not facts["works"] and not facts["cards"],
        "Machine {machine} has no NVIDIA GPU, and {why}: take 'gpus' out of its tf_tasks and tf_task_options, or look whether "
        "the card sits in its slot ('lspci -d 10de:' shows it then).",
    ),
    (
        lambda facts: "version mismatch" in facts["error"],
        "Machine {machine} runs the kernel's NVIDIA driver {kernel}, but its libraries are of another version (an upgrade "
        "replaced them): reboot it.",
    ),
    (
        lambda facts: facts["lost"],
        "A GPU{where} of machine {machine} does not answer its driver ({no_answer}): switch the machine off and on; if it "
        "happens again, the card, its power or its slot is at fault.",
    ),
    (
        lambda facts: facts["loaded"] and _version(facts["loaded"]) < _version(facts["driver"]),
        "Machine {machine} has the NVIDIA driver {loaded}, and TensorFlow needs {driver} or newer: remove that driver and let "
        "cuda_driver install one.",
    ),
    (
        lambda facts: facts["works"] and facts["nvswitch"] and not facts["fabric_manager"],
        "Machine {machine} joins its GPUs by NVSwitch, and nvidia-fabricmanager does not run there, without which CUDA fails: "
        "install that package in the driver's version ({loaded}), enable and start it.",
    ),
    (lambda facts: facts["works"], None),  # what follows is about a driver that is still to come
    (
        lambda facts: facts["kernel"],
        "Machine {machine} has the NVIDIA driver {kernel}, and nvidia-smi finds no GPU ({error}): repair or remove this driver; "
        "none is installed over it.",
    ),
    (
        lambda facts: not facts["installs"],
        "Machine {machine} has {cards} NVIDIA GPU(s) and no driver that works ({error}): set cuda_driver to 'distribution' or "
        "'nvidia', or install {driver} or newer yourself.",
    ),
    (
        lambda facts: not facts["known"],
        "Machine {machine} runs a distribution for which this project has no way to a driver: install {driver} or newer yourself "
        "and set cuda_driver to 'none'.",
    ),
    (
        lambda facts: facts["reboot_required"],
        "Machine {machine} waits for a reboot, and a driver is built for the running kernel: reboot it first.",
    ),
    (
        lambda facts: facts["secure_boot"] and facts["builds"] and not facts["signed"],
        "Machine {machine} has Secure Boot on, and a driver that is built on it carries no signature that the firmware knows: "
        "switch Secure Boot off, or install a signed driver yourself and set cuda_driver to 'none'.",
    ),
)


def _unknown(machine: str, name: str, gpu: int | str, gpus: list[Gpu]) -> str:
    if isinstance(gpu, int):
        if gpu >= len(gpus):
            return f"Machine {machine} has the GPUs 0 to {len(gpus) - 1}, and {name} is to have GPU {gpu}: change its 'gpus'."
        if gpus[gpu]["mig"]:
            parts = ", ".join(part["uuid"] for part in gpus[gpu]["parts"]) or "none yet; 'nvidia-smi mig -cgi' makes some"
            return f"GPU {gpu} of machine {machine} is split by MIG: name a part of it in the 'gpus' of {name} ({parts})."
        return ""
    if _by_name(gpu, gpus) is None:
        known = ", ".join([known["uuid"] for known in gpus] + [part["uuid"] for known in gpus for part in known["parts"]])
        return f"Machine {machine} has no GPU {gpu}, which {name} is to have: it has {known}."
    return ""


def _gpu_problems(machine: str, gpu: Gpu, needs: dict[str, Any]) -> Iterator[str]:
    if not gpu["compute_capability"]:
        return
    major, minor = (int(part) for part in gpu["compute_capability"].split("."))
    if (major, minor) >= BROKEN_FROM:
        yield (
            f"The {gpu['model']} of machine {machine} has compute capability {major}.{minor}, on which TensorFlow 2.21 is known "
            "to fail: leave it out of 'gpus'; a newer TensorFlow may have it."
        )
    elif not any(_runs_on(target, major, minor) for target in needs["built_for"]):
        yield (
            f"The {gpu['model']} of machine {machine} has compute capability {major}.{minor}, and this TensorFlow was built for "
            f"{', '.join(needs['built_for'])}: leave it out of 'gpus'."
        )


def _runs_on(target: str, major: int, minor: int) -> bool:
    """Tell whether code for ``target`` runs on a GPU: machine code within its major version, sm_80 on 8.6; PTX upwards."""
    kind, _underscore, digits = target.partition("_")
    built = (int(digits[:-1]), int(digits[-1]))
    return built <= (major, minor) and (kind == "compute" or built[0] == major)


def _shares(machine: str, tasks: list[Task], found: Found) -> Iterator[str]:
    """Find GPUs of which tasks are to take more than all memory."""
    shares: dict[str, list[tuple[str, float]]] = {}
    for task in with_gpus(tasks, found):
        for gpu in task["gpus"]:
            shares.setdefault(gpu["uuid"], []).append((task["name"], task["options"]["gpu_memory_fraction"]))
    for uuid, parts in shares.items():
        if sum(share for _name, share in parts) > 1:
            yield (
                f"The tasks {', '.join(name for name, _share in parts)} of machine {machine} share the GPU {uuid} and are to "
                "take more than all of its memory: lower their gpu_memory_fraction, or give each a GPU of its own."
            )


def _strangers(machine: str, mine: dict[str, Gpu], processes: list[dict[str, Any]]) -> Iterator[str]:
    for process in processes:
        if process["gpu"] in mine and not process["unit"].startswith(("tf-server@", "tf-run-")):
            yield (
                f"The GPU {process['gpu']} of machine {machine} is in use by {process['name']} (process {process['pid']}, user "
                f"{process['user']}), which is no task of this cluster: end it, or leave this GPU out of 'gpus'."
            )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _by_name(name: str, gpus: list[Gpu]) -> Gpu | None:
    """Return the GPU, or the part of one, with this UUID; a GPU by as much of it as nvidia-smi would take."""
    for gpu in gpus:
        if gpu["uuid"] == name or (name.startswith("GPU-") and len(name) >= 12 and gpu["uuid"].startswith(name)):
            return gpu
        for part in gpu["parts"]:
            if part["uuid"] == name:
                return {**gpu, "uuid": part["uuid"], "model": f"{gpu['model']} {part['model']}"}
    return None


def with_gpus(tasks: list[Task], found: Found) -> list[Task]:
    """Return the tasks, each with its ``gpus`` as found (uuid, minor, model, ...); those that are not there are left out."""
    gpus = found["gpus"]
    named = []
    for task in tasks:
        own = [
            (gpus[gpu] if gpu < len(gpus) else None) if isinstance(gpu, int) else _by_name(gpu, gpus)
            for gpu in task["options"]["gpus"]
        ]
        named.append({**task, "gpus": [gpu for gpu in own if gpu]})
    return named


def fleet_problems(fleet: dict[str, Found], may_differ: bool) -> list[str]:
    """Return a sentence if drivers differ among machines: ``fleet`` is machine -> what was found there."""
    drivers: dict[str, list[str]] = {}
    for machine, found in fleet.items():
        for gpu in found["gpus"][:1]:
            drivers.setdefault(gpu["driver"], []).append(machine)
    if len(drivers) < 2 or may_differ:
        return []
    listed = "; ".join(f"{driver} on {', '.join(machines)}" for driver, machines in sorted(drivers.items()))
    return [f"The machines have different NVIDIA drivers ({listed}): make them alike, or set cuda_allow_driver_mismatch to true."]


def gpu_table(fleet: dict[str, Found], machines: dict[str, list[Task]]) -> list[str]:
    """Return lines on the GPUs of all machines: ``fleet`` is machine -> what was found, ``machines`` machine -> its tasks."""
    rows = [("machine", "GPU", "model", "memory used", "temperature", "tasks")]
    for machine, found in fleet.items():
        owners: dict[str, list[str]] = {}
        for task in with_gpus(machines.get(machine, []), found):
            for gpu in task["gpus"]:
                owners.setdefault(gpu["bus"], []).append(task["name"])
        known = {gpu["bus"] for gpu in found["gpus"]}
        rows += [
            (machine, "?", f"the card at {gpu['bus']} does not answer", "", "", "")
            for gpu in found["pci"]
            if gpu["bus"] not in known
        ]
        for gpu in found["gpus"]:
            used = "?" if gpu["memory_used_mb"] is None else f"{gpu['memory_used_mb']} of {gpu['memory_mb']} MB"
            heat = "?" if gpu["temperature"] is None else str(gpu["temperature"])
            rows.append((machine, str(gpu["index"]), gpu["model"], used, heat, ", ".join(owners.get(gpu["bus"], ["none"]))))
    return table(rows)


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"gpu_problems": gpu_problems, "with_gpus": with_gpus, "fleet_problems": fleet_problems, "gpu_table": gpu_table}
