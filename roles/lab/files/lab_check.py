#!/usr/bin/env python3
"""Check whether a lab can run on this machine, and with which container runtime and limits.

    lab_check.py [FOLDER]              exits 0, or prints one message and exits 1; FOLDER contains the lab's keys
    lab_check.py [FOLDER] --json LAB   prints the role's facts as well: {"runtime": ..., "nofile": ..., "nproc": ...} for
                          containers.conf, {"complete": ...}: whether all packages are installed, {"running": ...}: the lab's
                          running machines -> the digest of their settings

Uses only the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

NEEDED_DISK, NEEDED_MEMORY = 9, 3  # GB: TensorFlow on three machines (2 GB each), its wheels, the image; three idle servers
STANDING_DISK, STANDING_MEMORY = 1, 0.5  # GB: the same, if the machines exist already
OLDEST = {"debian": 12, "ubuntu": 24}  # the first releases with a supported podman
TOOL_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/podman:/usr/libexec/podman"
ELSEWHERE = (
    "Without a lab, after 'make environment': 'ansible-playbook -i inventory/workstation site.yml run_demo.yml' uses this "
    "machine; inventory/example is for machines reached by ssh."
)


def main() -> None:
    """Print the result and exit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=Path.home() / ".local/state/tf-lab")
    parser.add_argument("--json", metavar="LAB")
    options = parser.parse_args()
    stands = (options.folder / "settings.json").exists()
    found = problem(Path(os.environ.get("LAB_CHECK_ROOT", "/")), stands)
    if found:
        print(f"The lab cannot run on this machine: {found} {ELSEWHERE}", file=sys.stderr)
        sys.exit(1)
    if options.json:
        print(json.dumps({**settings(), "running": running(options.json)}))


def problem(root: Path, stands: bool = False) -> str:
    """Return a message about the first problem, or an empty string.

    ``root`` is the root of the file systems to check; ``stands`` is true if the lab's machines exist already.
    """
    if sys.platform != "linux":
        return f"containers with systemd need Linux, but this is {sys.platform}."
    if os.geteuid() and not may_sudo():
        return "root or sudo is required."
    if not shutil.which("apt-get") and not find_tool("podman"):
        return "podman is not installed, and there is no apt-get to install it. Install podman."
    if not find_tool("podman") and is_old(root / "etc/os-release"):
        return "this release's podman is too old. Debian 12, Ubuntu 24.04 or newer is required."
    needed = STANDING_MEMORY if stands else NEEDED_MEMORY
    memory = meminfo_gigabytes(root / "proc/meminfo")
    if memory < needed:
        return f"{needed} GB of free memory are required, but {memory:.1f} GB are free."
    storage = next(path for path in (root / "var/lib/containers", root / "var/lib", root) if path.exists())
    disk = shutil.disk_usage(storage).free / 1e9
    needed = STANDING_DISK if stands else NEEDED_DISK
    if disk < needed:
        return f"{needed} GB of free disk in {storage} are required, but {disk:.1f} GB are free."
    return namespaces_problem()


def find_tool(name: str) -> str | None:
    """Return the path of a program, also in the folders of root's PATH."""
    return shutil.which(name, path=f"{TOOL_FOLDERS}:{os.environ.get('PATH', '')}")


def may_sudo() -> bool:
    """Return whether sudo works, or could ask for a password on this terminal."""
    if not shutil.which("sudo"):
        return False
    english = {**os.environ, "LC_ALL": "C"}
    tried = subprocess.run(["sudo", "-n", "true"], capture_output=True, text=True, check=False, env=english)
    return tried.returncode == 0 or ("password" in tried.stderr and sys.stdin.isatty())


def namespaces_problem() -> str:
    """Return a message if the kernel refuses namespaces, or an empty string."""
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    if os.geteuid():
        if subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
            return ""  # sudo needs a password; the role repeats this check as root
        command = ["sudo", "-n", *command]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"namespaces are not permitted ({tried.stderr.strip()})."


def is_old(path: Path) -> bool:
    """Return whether os-release(5) names an unsupported release of Debian or Ubuntu."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    said = {name: value.strip("\"'") for name, _equals, value in (line.partition("=") for line in lines)}
    number = said.get("VERSION_ID", "").partition(".")[0]  # testing has none
    return number.isdecimal() and int(number) < OLDEST.get(said.get("ID", ""), 0)


def meminfo_gigabytes(path: Path) -> float:
    """Return the available memory in GB."""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def settings() -> dict[str, Any]:
    """Return podman's settings for this machine."""
    # crun cannot run systemd with cgroup v1; runc can.
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    # Without CAP_SYS_RESOURCE, a container's limits cannot exceed the caller's, and podman lowers its own process limit to
    # pid_max.
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    tools = [find_tool(tool) for tool in ("podman", "iptables", "netavark", "mmdebstrap")]
    return {
        "complete": all(tools) and any(find_tool(tool) for tool in ("runc", "crun")[: 1 + unified]),
        "runtime": "" if unified else "runc",
        "nofile": hard_limit(resource.RLIMIT_NOFILE, 1048576),
        "nproc": hard_limit(resource.RLIMIT_NPROC, pid_max),
    }


def running(lab: str) -> dict[str, str]:
    """Return the lab's running containers -> the digest of their settings, from their labels; needs root."""
    podman = find_tool("podman")
    if not podman:
        return {}
    command = [podman, "ps", "--filter", f"label=tf-lab={lab}", "--format", "{{.Names}} {{.Labels}}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    found = (re.fullmatch(r"(\S+) map\[.*tf-lab-made-of:(\w+).*", line) for line in lines)
    return {line[1]: line[2] for line in found if line}


def hard_limit(limit: int, most: int) -> int:
    """Return this process's hard limit, but at most ``most``."""
    hard = resource.getrlimit(limit)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


if __name__ == "__main__":
    main()
