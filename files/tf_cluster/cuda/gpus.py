"""Find the machine's NVIDIA GPUs, with or without a driver, and what TensorFlow needs to use them.

Prints one JSON object and exits 0. Also a custom Ansible fact (``ansible MACHINE -m setup -a filter=ansible_local``).
Standard library only, no arguments: it also runs on machines where nothing is installed yet.

    pci          NVIDIA's display controllers, from the kernel's list of PCI devices: [{"bus", "device", "driver"}]
    gpus         facts from the driver: index, model, uuid, bus, memory_mb, memory_used_mb, temperature,
                 compute_capability, driver, minor (of /dev/nvidia<minor>), mig, parts (of a MIG GPU)
    processes    processes that use GPUs: [{"gpu": uuid, "pid", "name", "user", "unit"}]
    kernel       version of the kernel module, or null; error: message of nvidia-smi, if it failed
    processor    such as x86_64
    nvswitch, fabric_manager    whether NVSwitch connects the GPUs, and whether the service runs that CUDA then needs
    nouveau, secure_boot, signed, reboot_required    true, false, or null if unknown
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
from pathlib import Path
from typing import Any

FIELDS = {
    "index": int, "name": str, "uuid": str, "pci.bus_id": str, "memory.total": int, "memory.used": int, "temperature.gpu": int,
    "compute_cap": str, "driver_version": str, "mig.mode.current": str,
}  # fmt: skip
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def find(root: Path = Path("/")) -> dict[str, Any]:
    """Return the facts listed above; ``root`` is the root of the kernel's files."""
    status, listed = call("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
    minors = read_minors(root / "proc/driver/nvidia/gpus")
    gpus = parse_gpus(listed, minors)
    if any(gpu["mig"] for gpu in gpus):
        add_parts(gpus, call("nvidia-smi", "--list-gpus")[1])
    used = call("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name", "--format=csv,noheader")[1] if gpus else ""
    return {
        "processor": os.uname().machine,
        "pci": read_pci(root / "sys/bus/pci/devices"),
        "nvswitch": has_nvswitch(root / "sys/bus/pci/devices"),
        "fabric_manager": call("systemctl", "is-active", "nvidia-fabricmanager")[1].strip() == "active",
        "gpus": gpus,
        "processes": [{**process, **owner(root / "proc" / str(process["pid"]))} for process in parse_processes(used)],
        "kernel": parse_version(read(root / "proc/driver/nvidia/version")),
        "error": parse_error(status, listed),
        "nouveau": bool(re.search(r"(?m)^nouveau ", read(root / "proc/modules"))),
        "secure_boot": parse_secure_boot(root / SECURE_BOOT),
        "signed": bool(call("modinfo", "-F", "signer", "nvidia")[1].strip()),
        "reboot_required": (root / "run/reboot-required").exists() or lacks_modules(root / "lib/modules"),
    }


def call(*words: str) -> tuple[int, str]:
    """Run a command; return its exit status and its output, or 127 and "" if it is missing."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=60, check=False, env=environment)
    except FileNotFoundError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, f"{words[0]} did not answer within 60 s"
    return done.returncode, done.stdout + done.stderr


def read(path: Path) -> str:
    """Return the text of a file, empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read_pci(folder: Path) -> list[dict[str, Any]]:
    """Return NVIDIA's display controllers (vendor 10de, class 03), without their sound and USB devices."""
    found = []
    for device in sorted(folder.glob("*")):
        vendor, kind = read(device / "vendor").strip(), read(device / "class").strip()
        if vendor == "0x10de" and kind.startswith("0x03"):
            driver = os.path.basename(os.path.realpath(device / "driver")) if (device / "driver").exists() else ""
            card = {"bus": device.name.lower(), "device": read(device / "device").strip()[len("0x") :], "driver": driver}
            found.append(card)
    return found


def has_nvswitch(folder: Path) -> bool:
    """Return whether there is an NVSwitch (vendor 10de, class 0680, a bridge)."""
    devices = ((read(device / "vendor").strip(), read(device / "class").strip()) for device in folder.glob("*"))
    return any(vendor == "0x10de" and kind.startswith("0x0680") for vendor, kind in devices)


def lacks_modules(folder: Path) -> bool:
    """Return whether an upgrade has removed the running kernel's modules."""
    return folder.exists() and not (folder / os.uname().release).exists()


def read_minors(folder: Path) -> dict[str, int]:
    """Return bus -> minor number of the device node, from the driver."""
    found = {}
    for path in folder.glob("*/information"):
        minor = re.search(r"(?m)^Device Minor:\s*(\d+)", read(path))
        if minor:
            found[short_bus(path.parent.name)] = int(minor[1])
    return found


def short_bus(bus: str) -> str:
    """Return a PCI address in the kernel's format: nvidia-smi writes the domain with eight digits."""
    return re.sub(r"^0000(?=[0-9a-f]{4}:)", "", bus.strip().lower())


def parse_gpus(text: str, minors: dict[str, int]) -> list[dict[str, Any]]:
    """Return the GPUs in the output of ``nvidia-smi --query-gpu``, which can have error messages between the rows."""
    gpus: list[dict[str, Any]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(FIELDS) or not cells[0].isdigit():
            continue
        row: dict[str, Any] = {}
        for (name, kind), cell in zip(FIELDS.items(), cells):
            known = not cell.startswith("[")  # [N/A], [Not Supported], [Unknown Error]
            row[name] = (int(cell) if cell.isdigit() else None) if kind is int else cell if known else ""
        bus = short_bus(row["pci.bus_id"])
        gpus.append(
            {
                "index": row["index"], "model": row["name"], "uuid": row["uuid"], "bus": bus,
                "memory_mb": row["memory.total"], "memory_used_mb": row["memory.used"], "temperature": row["temperature.gpu"],
                "compute_capability": row["compute_cap"], "driver": row["driver_version"],
                "minor": minors.get(bus, row["index"]), "mig": row["mig.mode.current"] == "Enabled", "parts": [],
            }
        )  # fmt: skip
    return gpus


def add_parts(gpus: list[dict[str, Any]], text: str) -> None:
    """Add the parts of MIG GPUs, from the output of ``nvidia-smi --list-gpus``."""
    current = None
    for line in text.splitlines():
        whole = re.search(r"^GPU \d+: .*\(UUID: (GPU-[^)]+)\)", line)
        part = re.search(r"^\s+MIG (\S+)\s.*\(UUID: (MIG-[^)]+)\)", line)
        if whole:
            current = next((gpu for gpu in gpus if gpu["uuid"] == whole[1]), None)
        elif part and current:
            current["parts"].append({"model": part[1], "uuid": part[2]})


def parse_processes(text: str) -> list[dict[str, Any]]:
    """Return the processes in the output of ``nvidia-smi --query-compute-apps``."""
    rows = re.findall(r"(?m)^(GPU-\S+), (\d+), (.+)$", text)
    return [{"gpu": uuid, "pid": int(pid), "name": name.strip()} for uuid, pid, name in rows]


def owner(folder: Path) -> dict[str, str]:
    """Return the user and the systemd unit of a process."""
    unit = re.search(r"/([^/\n]+\.(?:service|scope))(?:/|$)", read(folder / "cgroup"), re.MULTILINE)
    try:
        uid = folder.stat().st_uid
        user = pwd.getpwuid(uid).pw_name
    except OSError:
        user = ""
    except KeyError:
        user = str(uid)
    return {"user": user, "unit": unit[1] if unit else ""}


def parse_version(text: str) -> str | None:
    """Return the version in /proc/driver/nvidia/version, of the proprietary or the open module."""
    found = re.search(r"NVRM version:.*?\s(\d{3,}(?:\.\d+)+)\s", text)
    return found[1] if found else None


def parse_error(status: int, text: str) -> str:
    """Return nvidia-smi's message if it failed or reported an error of a GPU."""
    said = [line.strip() for line in text.splitlines() if line.strip() and "," not in line]
    if status == 127:
        return "nvidia-smi is not installed"
    return " ".join(said) if status or said else ""


def parse_secure_boot(path: Path) -> bool | None:
    """Return whether Secure Boot is on: the fifth byte of the firmware's variable; None without such firmware."""
    try:
        return path.read_bytes()[4:5] == b"\x01"
    except OSError:
        return None


if __name__ == "__main__":
    print(json.dumps(find()))
