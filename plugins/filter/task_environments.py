"""Compute what a machine's servers need, and describe program files for the module write_files."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Task = dict[str, Any]  # of the cluster, with its GPUs, as the filters cluster_spec and with_gpus return it
File = dict[str, str]  # path, content and optionally mode, as in the option files of the module write_files

FOLDER = "/etc/tf-cluster/tasks"
# Each program on an NVIDIA GPU opens these in addition to /dev/nvidia<minor>.
SHARED_DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
NODES_UNIT = "tf-gpu-nodes.service"
GPU_START_SECONDS = 300


def server_state(tasks: list[Task], files: list[File], inputs: str, packages: str = "") -> dict[str, Any]:
    """Return ``files``, those of all tasks and of each, and ``tasks``: name -> digest of its inputs, if it has a server.

    ``files`` are those of all tasks, ``inputs`` is a pattern of the paths that a server starts with.
    """
    environments = task_environments(tasks, [file for file in files if re.search(inputs, file["path"])], packages)
    return {
        "files": [*files, *(file for environment in environments for file in environment["files"])],
        "tasks": {own["name"]: own["inputs"] for task, own in zip(tasks, environments) if task["standing"]},
    }


def server_stands(wanted: dict[str, Any], machine: dict[str, Any], only: Iterable[str] = ()) -> bool:
    """Return whether a machine has the files and runs the tasks that the filter server_state returned.

    ``machine`` is the fact tf_machine, ``only`` the option of the module write_files.
    """
    return (
        machine["tasks"] == wanted["tasks"]
        and (machine["target"] or not wanted["tasks"])
        and machine["timer"]
        and machine["compiled"]
        and not machine["reload"]
        and not files_differ(wanted["files"], machine["digests"], only)
    )


def task_environments(tasks: list[Task], files: list[File], packages: str = "") -> list[dict[str, Any]]:
    """Return the name, the digest of the inputs and the files of each task."""
    return [_environment(task, files, packages) for task in tasks]


def _environment(task: Task, common: list[File], packages: str) -> dict[str, Any]:
    options = {name: value for name, value in task["options"].items() if name != "gpus"}
    lines = [f"TF_TASK_JOB={task['job']}", f"TF_TASK_INDEX={task['index']}"]
    lines += [f'TF_TASK_{name.upper()}="{_text(value)}"' for name, value in sorted(options.items())]
    # By UUID, because numbers change when a card is added, fails or moves. If it is empty, the task sees no GPU.
    lines.append(f"TF_TASK_GPUS={len(task['options'].get('gpus', []))}")
    lines += ["CUDA_DEVICE_ORDER=PCI_BUS_ID", f'CUDA_VISIBLE_DEVICES="{",".join(gpu["uuid"] for gpu in task["gpus"])}"']
    devices = _device_files(task)
    path = f"{FOLDER}/{task['name']}.env"
    # Without the devices of a training's unit, which does not affect the server.
    paths = [path, *(file["path"] for file in [*common, *devices[:1]])]
    lines += [f'TF_TASK_PACKAGES="{_text(packages)}"', f'TF_TASK_FILES="{" ".join(paths)}"']
    own = {"path": path, "content": "\n".join(["# Written by Ansible. What this task's server is started with.", *lines, ""])}
    inputs = hashlib.sha256("".join(file["content"] for file in [own, *common, *devices[:1]]).encode()).hexdigest()[:12]
    return {"name": task["name"], "inputs": inputs, "files": [own, *devices]}


def _device_files(task: Task) -> list[File]:
    """Return drop-ins that open the devices of a task's GPUs, and no others, to its units."""
    if not task["gpus"]:
        return []
    parts = any(gpu["uuid"].startswith("MIG-") for gpu in task["gpus"])
    devices = [*dict.fromkeys(f"/dev/nvidia{gpu['minor']}" for gpu in task["gpus"]), *SHARED_DEVICES]
    lines = ["# Written by Ansible. The devices of this task's GPUs.", "[Unit]", f"Wants={NODES_UNIT}", f"After={NODES_UNIT}"]
    lines += ["[Service]", "PrivateDevices=false", "DevicePolicy=closed", *(f"DeviceAllow={device} rw" for device in devices)]
    lines += ["DeviceAllow=char-nvidia-caps rw"] if parts else []
    # A server does not listen before CUDA has started on each of its GPUs.
    lines.append(f"TimeoutStartSec={GPU_START_SECONDS}")
    # A task with a standing server can also take part in a training, which is a run. The names of runs' units begin with this.
    units = [f"tf-server@{task['name']}"] if task["standing"] else []
    return [
        {"path": f"/etc/systemd/system/{unit}.service.d/gpus.conf", "content": "\n".join([*lines, ""])}
        for unit in [*units, f"tf-run-{task['name']}-"]
    ]


def _text(value: object) -> str:
    """Return a value, escaped for a quoted string in an environment file (systemd.exec(5))."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace('"', '\\"')


def program_file(name: str, source: str | Path, target: str, mode: str = "0755") -> File:
    """Return a file of the folder ``source`` as a file in the folder ``target``."""
    return {"path": f"{target}/{name}", "content": Path(source, name).read_text(encoding="utf-8"), "mode": mode}


def package_files(source: str | Path, target: str) -> list[File]:
    """Return all files of a Python package, including its templates, as files in the folder ``target``."""
    paths = [path for path in sorted(Path(source).rglob("*")) if path.suffix in (".py", ".j2", ".js")]
    return [program_file(path.relative_to(source).as_posix(), source, target, "0644") for path in paths]


def files_differ(wanted: list[File], found: dict[str, str], only: Iterable[str] = ()) -> bool:
    """Return whether the module write_files would change something.

    ``wanted`` and ``only`` are its options, ``found`` is path -> digest, from the module machine_facts.
    """
    digests = {
        file["path"]: f"{hashlib.sha256(file['content'].encode(errors='surrogateescape')).hexdigest()} {file.get('mode', '0644')}"
        for file in wanted
    }
    extra = {path for path in found for pattern in only if fnmatch.fnmatchcase(path, pattern)} - set(digests)
    return bool(extra) or any(found.get(path) != digest for path, digest in digests.items())


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "server_state": server_state,
            "server_stands": server_stands,
            "program_file": program_file,
            "package_files": package_files,
            "files_differ": files_differ,
        }
