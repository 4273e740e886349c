"""Check the GPUs that tasks require, and return the GPUs that they get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.table import table

Task = dict[str, Any]  # of the cluster, as the filter cluster_spec returns it
Found = dict[str, Any]  # what files/tf_cluster/cuda/gpus.py found on a machine
Gpu = dict[str, Any]  # one of its GPUs

# From this compute capability on TensorFlow 2.21 fails, although it contains PTX code for it.
BROKEN_FROM = (10, 0)


def gpu_problems(tasks: list[Task], machine: str, found: Found, needs: dict[str, Any]) -> list[str]:
    """Return a sentence for each problem of the machine's GPUs, or none if no task requires a GPU."""
    wanted = {task["name"]: task["options"]["gpus"] for task in tasks if task["options"]["gpus"]}
    if not wanted:
        return []
    problems = _driver_problems(machine, found, needs, next(iter(wanted)))
    if problems:
        return problems
    if not found["gpus"]:  # without a driver only their number is known
        cards = len(found["pci"])
        return [
            f"{machine}: {name} requires GPU {gpu}, but the machine has {cards} NVIDIA GPU(s). Change 'gpus'."
            for name, gpus in wanted.items()
            for gpu in gpus
            if isinstance(gpu, int) and gpu >= cards
        ]
    for name, gpus in wanted.items():
        problems += [sentence for gpu in gpus if (sentence := _unknown_gpu(machine, name, gpu, found["gpus"]))]
    if problems:
        return problems
    for task in with_gpus(tasks, found):
        uuids = [gpu["uuid"] for gpu in task["gpus"]]
        if len(set(uuids)) < len(uuids):
            problems.append(f"{machine}: {task['name']} lists one GPU twice in 'gpus'. Remove one.")
        if len(uuids) > 1 and any(uuid.startswith("MIG-") for uuid in uuids):
            problems.append(
                f"{machine}: {task['name']} lists a MIG part and another GPU, but CUDA gives a process only one MIG part. Use a "
                "separate task for each part."
            )
    used = {gpu["uuid"]: gpu for task in with_gpus(tasks, found) for gpu in task["gpus"]}
    for gpu in used.values():
        problems += _gpu_problems(machine, gpu, needs)
    return [*problems, *_memory_problems(machine, tasks, found), *_foreign_processes(machine, used, found["processes"])]


def _driver_problems(machine: str, found: Found, needs: dict[str, Any], task: str) -> list[str]:
    """Return the first problem of a machine's processor, cards and driver, in the order in which to solve them."""
    gpus, known = found["gpus"], {gpu["bus"] for gpu in found["gpus"]}
    lost = [card["bus"] for card in found["pci"] if known and card["bus"] not in known and card["driver"] in ("nvidia", "")]
    facts = {
        **found,
        **needs,
        "machine": machine,
        "task": task,
        "cards": len(found["pci"]),
        "works": bool(gpus),
        "lost": bool(lost) or "device handle" in found["error"] or "is lost" in found["error"],
        "where": f" at {', '.join(lost)}" if lost else "",
        "loaded": gpus[0]["driver"] if gpus else found["kernel"],
        "no_answer": found["error"] or "it is not listed",
    }
    sentence = next((sentence for holds, sentence in DRIVER_PROBLEMS if holds(facts)), None)
    return [sentence.format_map(facts)] if sentence else []


# Condition -> sentence. The facts are those of files/tf_cluster/cuda/gpus.py, ``needs``, and those above.
DRIVER_PROBLEMS: tuple[tuple[Callable[[dict[str, Any]], bool], str | None], ...] = (
    (
        lambda facts: facts["processor"] != "x86_64",
        "{machine}: {task} requires a GPU, but TensorFlow 2.21 has no wheel with GPU support for {processor}. Remove 'gpus' from "
        "tf_tasks and tf_task_options.",
    ),
    (
        lambda facts: not facts["works"] and not facts["cards"],
        "{machine}: {task} requires a GPU, but the machine has no NVIDIA GPU. Remove 'gpus' from tf_tasks and tf_task_options, "
        "or check the card ('lspci -d 10de:' must list it).",
    ),
    (
        lambda facts: "version mismatch" in facts["error"],
        "{machine}: the NVIDIA driver {kernel} in the kernel and its libraries have different versions, because of an upgrade. "
        "Reboot the machine.",
    ),
    (
        lambda facts: facts["lost"],
        "{machine}: a GPU{where} does not answer its driver ({no_answer}). Switch the machine off and on. If it happens again, "
        "check the card, its power and its slot.",
    ),
    (
        lambda facts: facts["loaded"] and _version(facts["loaded"]) < _version(facts["driver"]),
        "{machine}: the NVIDIA driver is {loaded}, but TensorFlow needs {driver} or newer. Remove that driver and let "
        "cuda_driver install one.",
    ),
    (
        lambda facts: facts["works"] and facts["nvswitch"] and not facts["fabric_manager"],
        "{machine}: nvidia-fabricmanager is not running, but CUDA needs it for NVSwitch. Install that package in the driver's "
        "version ({loaded}), enable and start it.",
    ),
    (lambda facts: facts["works"], None),  # the rest is about a missing driver
    (
        lambda facts: facts["kernel"],
        "{machine}: nvidia-smi finds no GPU with the NVIDIA driver {kernel} ({error}). Repair or remove this driver. No other is "
        "installed over it.",
    ),
    (
        lambda facts: not facts["installs"],
        "{machine}: {cards} NVIDIA GPU(s), but no working driver ({error}). Set cuda_driver to 'distribution' or 'nvidia', or "
        "install {driver} or newer yourself.",
    ),
    (
        lambda facts: not facts["known"],
        "{machine}: this project cannot install a driver on this distribution. Install {driver} or newer yourself and set "
        "cuda_driver to 'none'.",
    ),
    (
        lambda facts: facts["reboot_required"],
        "{machine}: a reboot is pending, but a driver is built for the running kernel. Reboot the machine first.",
    ),
    (
        lambda facts: facts["secure_boot"] and facts["builds"] and not facts["signed"],
        "{machine}: Secure Boot rejects a driver that is built on the machine, because its signature is unknown. Switch Secure "
        "Boot off, or install a signed driver yourself and set cuda_driver to 'none'.",
    ),
)


def _unknown_gpu(machine: str, name: str, gpu: int | str, gpus: list[Gpu]) -> str:
    if isinstance(gpu, int):
        if gpu >= len(gpus):
            return f"{machine}: {name} requires GPU {gpu}, but the machine has the GPUs 0 to {len(gpus) - 1}. Change 'gpus'."
        if gpus[gpu]["mig"]:
            parts = ", ".join(part["uuid"] for part in gpus[gpu]["parts"]) or "none yet; 'nvidia-smi mig -cgi' creates some"
            return f"{machine}: GPU {gpu} is split by MIG. Set one of its parts in the 'gpus' of {name} ({parts})."
        return ""
    if _by_name(gpu, gpus) is None:
        known = ", ".join([known["uuid"] for known in gpus] + [part["uuid"] for known in gpus for part in known["parts"]])
        return f"{machine}: {name} requires {gpu}, but the machine has {known}. Change 'gpus'."
    return ""


def _gpu_problems(machine: str, gpu: Gpu, needs: dict[str, Any]) -> Iterator[str]:
    if not gpu["compute_capability"]:
        return
    major, minor = (int(part) for part in gpu["compute_capability"].split("."))
    if (major, minor) >= BROKEN_FROM:
        yield (
            f"{machine}: TensorFlow 2.21 is known to fail on {gpu['model']} (compute capability {major}.{minor}). Remove it from "
            "'gpus'. A newer TensorFlow may support it."
        )
    elif not any(_runs_on(target, major, minor) for target in needs["built_for"]):
        yield (
            f"{machine}: {gpu['model']} has compute capability {major}.{minor}, but this TensorFlow was built for "
            f"{', '.join(needs['built_for'])}. Remove it from 'gpus'."
        )


def _runs_on(target: str, major: int, minor: int) -> bool:
    """Return whether code for ``target`` runs on a GPU: sm_80 runs on 8.0 to 8.9, PTX (compute_80) also on later ones."""
    kind, _underscore, digits = target.partition("_")
    built = (int(digits[:-1]), int(digits[-1]))
    return built <= (major, minor) and (kind == "compute" or built[0] == major)


def _memory_problems(machine: str, tasks: list[Task], found: Found) -> Iterator[str]:
    """Yield a sentence for each GPU of which tasks would use more than the whole memory."""
    shares: dict[str, list[tuple[str, float]]] = {}
    for task in with_gpus(tasks, found):
        for gpu in task["gpus"]:
            shares.setdefault(gpu["uuid"], []).append((task["name"], task["options"]["gpu_memory_fraction"]))
    for uuid, parts in shares.items():
        if sum(share for _name, share in parts) > 1:
            yield (
                f"{machine}: the tasks {', '.join(name for name, _share in parts)} would use more than the whole memory of the "
                f"GPU {uuid}. Lower their gpu_memory_fraction, or give each its own GPU."
            )


def _foreign_processes(machine: str, used: dict[str, Gpu], processes: list[dict[str, Any]]) -> Iterator[str]:
    for process in processes:
        if process["gpu"] in used and not process["unit"].startswith(("tf-server@", "tf-run-")):
            yield (
                f"{machine}: the GPU {process['gpu']} is in use by {process['name']} (process {process['pid']}, user "
                f"{process['user']}), which is not a task of this cluster. Stop that process, or remove this GPU from 'gpus'."
            )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _by_name(name: str, gpus: list[Gpu]) -> Gpu | None:
    """Return the GPU or the MIG part with this UUID. The UUID of a GPU may be shortened, as for nvidia-smi."""
    for gpu in gpus:
        if gpu["uuid"] == name or (name.startswith("GPU-") and len(name) >= 12 and gpu["uuid"].startswith(name)):
            return gpu
        for part in gpu["parts"]:
            if part["uuid"] == name:
                return {**gpu, "uuid": part["uuid"], "model": f"{gpu['model']} {part['model']}"}
    return None


def with_gpus(tasks: list[Task], found: Found) -> list[Task]:
    """Return the tasks, each with its ``gpus`` (uuid, minor, model, ...). GPUs that were not found are left out."""
    gpus = found["gpus"]
    result = []
    for task in tasks:
        own = [
            (gpus[gpu] if gpu < len(gpus) else None) if isinstance(gpu, int) else _by_name(gpu, gpus)
            for gpu in task["options"]["gpus"]
        ]
        result.append({**task, "gpus": [gpu for gpu in own if gpu]})
    return result


def driver_mismatches(gpus: dict[str, Found], may_differ: bool) -> list[str]:
    """Return a sentence if the machines' drivers differ. ``gpus`` is machine -> what was found there."""
    drivers: dict[str, list[str]] = {}
    for machine, found in gpus.items():
        for gpu in found["gpus"][:1]:
            drivers.setdefault(gpu["driver"], []).append(machine)
    if len(drivers) < 2 or may_differ:
        return []
    listed = "; ".join(f"{driver} on {', '.join(machines)}" for driver, machines in sorted(drivers.items()))
    return [f"NVIDIA drivers differ: {listed}. Install the same one everywhere, or set cuda_allow_driver_mismatch to true."]


def gpu_table(gpus: dict[str, Found], machines: dict[str, list[Task]]) -> list[str]:
    """Return a table of all GPUs. ``gpus`` is machine -> what was found there, ``machines`` machine -> its tasks."""
    rows = [("machine", "GPU", "model", "memory used", "temperature", "tasks")]
    for machine, found in gpus.items():
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
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "gpu_problems": gpu_problems,
            "with_gpus": with_gpus,
            "driver_mismatches": driver_mismatches,
            "gpu_table": gpu_table,
        }
