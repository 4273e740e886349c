#!/usr/bin/env python3
"""Say all that site.yml wants to know of a machine before it changes it: one call, for each costs a tenth of a second or more.

    machine_state.py --venv=/opt/tf-cluster/venv PORT...

Goes to the machine on standard input with the modules that it imports, for there may be nothing on it yet. Prints a JSON object:

    python       {"version": as in 3.11, "executable"}, of the Python that runs this
    processor    as in x86_64
    init         what process 1 is
    addresses    the machine's own, without their zones; interfaces: the names of its network interfaces
    listeners    who listens on the ports: [{"port", "name", "pid", "user", "unit"}]; unit: the task's whose main process it is
    account      the entry of the account "tensorflow" in /etc/passwd, a list of its fields; empty where there is none
    disk_mb      free disk under /opt
    gpus         what find_gpus.py says
    environment  what environment.py says; compiled: whether it has been byte-compiled
    firewall     what firewall_state.py says
    digests      path -> digest, of the files that site.yml writes (OWN)
    note         what site.yml noted when it was last done here, "" where it did not
    tasks        task -> the inputs that it was started with, null where its unit is not enabled or not running
    target       whether the target of all tasks is enabled and active
    reload       whether systemd has to read these units anew

Needs root; standard library only.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import platform
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import cluster_config
import environment
import find_gpus
import firewall_state

OWN = (
    "/etc/tf-cluster/*",
    "/etc/tf-cluster/tasks/*",
    "/etc/systemd/system/tf-*.*",
    "/etc/systemd/system/tf-*.d/*",
    "/etc/systemd/system/nftables.service.d/*",
    "/etc/ansible/facts.d/tf_gpus.fact",
    "/opt/tf-cluster/*/*.py",
    "/opt/tf-cluster/venv/lib/python*/site-packages/tf-cluster.pth",
)
NOTE = "/etc/tf-cluster/site.note"
UNIT, TARGET = "tf-server@", "tf-cluster.target"
PROPERTIES = "Id,ActiveState,UnitFileState,StatusText,NeedDaemonReload,MainPID"


def main() -> None:
    """Print what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", required=True)
    parser.add_argument("ports", nargs="*", type=int)
    options = parser.parse_args()
    units = show_units()
    print(
        json.dumps(
            {
                "python": {"version": f"{sys.version_info[0]}.{sys.version_info[1]}", "executable": sys.executable},
                "processor": platform.machine(),
                "init": "systemd" if os.path.isdir("/run/systemd/system") else Path("/proc/1/comm").read_text().strip(),
                **network(),
                "listeners": listeners(options.ports, units),
                "account": account("tensorflow"),
                "disk_mb": free_megabytes("/opt"),
                "gpus": find_gpus.find(),
                "environment": environment.look(options.venv),
                "compiled": os.path.exists(f"{options.venv}/byte-compiled"),
                "firewall": firewall_state.state(),
                "digests": {path: digest(path) for pattern in OWN for path in glob.glob(pattern) if is_own(path)},
                "note": Path(NOTE).read_text(encoding="ascii", errors="replace") if os.path.isfile(NOTE) else "",
                **tasks(units),
            }
        )
    )


def printed(*command: str) -> str:
    """Return what a command prints; nothing where it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def systemctl(*words: str) -> str:
    """Return what systemctl prints."""
    return printed("systemctl", *words)


def network() -> dict[str, list[str]]:
    """Return ``addresses`` and ``interfaces``."""
    found = json.loads(printed("ip", "-json", "address") or "[]")
    addresses = [address["local"] for interface in found for address in interface.get("addr_info", ()) if "local" in address]
    return {"addresses": sorted(set(addresses)), "interfaces": sorted(interface["ifname"] for interface in found)}


def show_units() -> dict[str, dict[str, str]]:
    """Return unit -> its properties, of the target and all tasks that are loaded or enabled."""
    enabled = systemctl("list-unit-files", "--plain", "--no-legend", "--state=enabled", f"{UNIT}*").split("\n")
    names = [line.split()[0] for line in enabled if line.strip()]
    shown = systemctl("show", f"--property={PROPERTIES}", TARGET, f"{UNIT}*", *(name for name in names if "@." not in name))
    blocks = (dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n"))
    return {block["Id"]: block for block in blocks if "Id" in block}


def tasks(units: dict[str, dict[str, str]]) -> dict:
    """Return ``tasks``, ``target`` and ``reload``."""
    found = {}
    for name, unit in units.items():
        enabled, active = unit.get("UnitFileState") == "enabled", unit.get("ActiveState")
        if name.startswith(UNIT) and (enabled or active != "inactive"):
            inputs = unit.get("StatusText", "").rpartition("inputs ")[2]
            found[name.removeprefix(UNIT).removesuffix(".service")] = inputs if enabled and active == "active" else None
    target = units.get(TARGET, {})
    stands = target.get("UnitFileState") == "enabled" and target.get("ActiveState") == "active"
    return {"tasks": found, "target": stands, "reload": any(unit.get("NeedDaemonReload") == "yes" for unit in units.values())}


def listeners(ports: list[int], units: dict[str, dict[str, str]]) -> list[dict]:
    """Return who listens on the ports."""
    of_unit = {unit.get("MainPID"): name for name, unit in units.items() if name.startswith(UNIT)}
    found = cluster_config.listeners(ports)
    return [{**listener, "unit": of_unit.get(str(listener["pid"]), "")} for listener in found]


def is_own(path: str) -> bool:
    """Tell whether it is a file that site.yml writes for others to read, not its own note."""
    return os.path.isfile(path) and path != NOTE


def account(name: str) -> list:
    """Return the entry of an account; nothing where there is none."""
    try:
        return list(pwd.getpwnam(name))
    except KeyError:
        return []


def free_megabytes(path: str) -> int:
    """Return the free disk of the file system that a folder is on, or would be."""
    place = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    return shutil.disk_usage(place).free // 1_000_000


def digest(path: str) -> str:
    """Return a digest of a file's text, permissions and owner, as the filter file_digests makes it of what it should be."""
    found = os.stat(path)
    owned = "" if found.st_uid == found.st_gid == 0 or os.geteuid() else f" {found.st_uid}:{found.st_gid}"
    return f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()} {found.st_mode & 0o7777:04o}{owned}"


if __name__ == "__main__":
    main()
