"""Collect the facts of a machine that site.yml needs before it changes it. Needs root; standard library only."""

from __future__ import annotations

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
from typing import Any

from ..cuda import gpus
from ..firewall import state as firewall
from ..server.ports import listeners as port_listeners
from ..status.systemd import parse_show
from ..tensorflow import environment

MANAGED_FILES = (
    "/etc/tf-cluster/*",
    "/etc/tf-cluster/tasks/*",
    "/etc/systemd/system/tf-*.*",
    "/etc/systemd/system/tf-*.d/*",
    "/etc/systemd/system/nftables.service.d/*",
    "/etc/ansible/facts.d/tf_gpus.fact",
    "/opt/tf-cluster/lib/**/*.py",
    "/opt/tf-cluster/lib/**/*.j[2s]",
    "/opt/tf-cluster/bin/*.py",
    "/opt/tf-cluster/startup/*.py",
    "/opt/tf-cluster/venv/lib/python*/site-packages/tf-cluster.pth",
)
UNIT, TARGET, TIMER = "tf-server@", "tf-cluster.target", "tf-prune.timer"
PROPERTIES = "Id,ActiveState,UnitFileState,StatusText,NeedDaemonReload,MainPID"


def collect(ports: list[int], venv: str) -> dict[str, Any]:
    """Return the machine's facts; the module machine_facts documents them.

    ``ports``: ports whose listeners are reported; ``venv``: the path of TensorFlow's environment.
    """
    units = show_units()
    return {
        "python": {"version": f"{sys.version_info[0]}.{sys.version_info[1]}", "executable": sys.executable},
        "processor": platform.machine(),
        "init": "systemd" if os.path.isdir("/run/systemd/system") else Path("/proc/1/comm").read_text().strip(),
        **network(),
        "ports": ports,
        "listeners": listeners(ports, units),
        "account": account("tensorflow"),
        "users": sorted(found.pw_uid for found in pwd.getpwall()),
        "disk_mb": free_megabytes("/opt"),
        "rsync": shutil.which("rsync") is not None,
        "gpus": gpus.find(),
        "environment": environment.look(venv),
        "compiled": os.path.exists(f"{venv}/byte-compiled"),
        "firewall": firewall.state(),
        "digests": {
            path: digest(path) for pattern in MANAGED_FILES for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)
        },
        **tasks(units),
    }


def printed(*command: str) -> str:
    """Return the output of a command; empty if it is missing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def systemctl(*words: str) -> str:
    """Return the output of systemctl."""
    return printed("systemctl", *words)


def network() -> dict[str, list[str]]:
    """Return ``addresses`` and ``interfaces``."""
    found = json.loads(printed("ip", "-json", "address") or "[]")
    addresses = [address["local"] for interface in found for address in interface.get("addr_info", ()) if "local" in address]
    return {"addresses": sorted(set(addresses)), "interfaces": sorted(interface["ifname"] for interface in found)}


def show_units() -> dict[str, dict[str, str]]:
    """Return unit -> properties, for the target, the deletion of old runs, and all tasks that are loaded or enabled."""
    enabled = systemctl("list-unit-files", "--plain", "--no-legend", "--state=enabled", f"{UNIT}*").split("\n")
    names = [line.split()[0] for line in enabled if line.strip()]
    own = (TARGET, TIMER, "tf-prune.service")
    shown = systemctl("show", f"--property={PROPERTIES}", *own, f"{UNIT}*", *(name for name in names if "@." not in name))
    return parse_show(shown)


def tasks(units: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return ``tasks``, ``target``, ``timer`` and ``reload``."""
    found = {}
    for name, unit in units.items():
        enabled, active = unit.get("UnitFileState") == "enabled", unit.get("ActiveState")
        if name.startswith(UNIT) and (enabled or active != "inactive"):
            inputs = unit.get("StatusText", "").rpartition("inputs ")[2]
            found[name[len(UNIT) : -len(".service")]] = inputs if enabled and active == "active" else None
    stands = {
        name: units.get(name, {}).get("UnitFileState") == "enabled" and units[name].get("ActiveState") == "active"
        for name in (TARGET, TIMER)
    }
    reload = any(unit.get("NeedDaemonReload") == "yes" for unit in units.values())
    return {"tasks": found, "target": stands[TARGET], "timer": stands[TIMER], "reload": reload}


def listeners(ports: list[int], units: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """Return the listeners of the ports, with their systemd unit."""
    of_unit = {unit.get("MainPID"): name for name, unit in units.items() if name.startswith(UNIT)}
    found = port_listeners(ports)
    return [{**listener, "unit": of_unit.get(str(listener["pid"]), "")} for listener in found]


def account(name: str) -> list[Any]:
    """Return the passwd entry of an account; empty if there is none."""
    try:
        return list(pwd.getpwnam(name))
    except KeyError:
        return []


def free_megabytes(path: str) -> int:
    """Return the free disk space in MB for a folder, which need not exist yet."""
    place = next(folder for folder in (Path(path), *Path(path).parents) if folder.exists())
    return shutil.disk_usage(place).free // 1_000_000


def digest(path: str) -> str:
    """Return a digest of a file's content, permissions and owner; the filter files_differ makes the expected one."""
    found = os.stat(path)
    owned = "" if found.st_uid == found.st_gid == 0 or os.geteuid() else f" {found.st_uid}:{found.st_gid}"
    return f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()} {found.st_mode & 0o7777:04o}{owned}"
