#!/usr/bin/env python3
"""Tell whether a lab can be made on this machine, and with which container runtime and limits.

    lab_check.py          says nothing and exits 0, or one sentence and exits 1
    lab_check.py --json   the same, and what the role needs to know: {"runtime": ..., "nofile": ..., "nproc": ...}
                          for containers.conf, {"complete": ...} if nothing has to be installed

Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

NEEDED_DISK, NEEDED_MEMORY = 9, 3  # GB: three times TensorFlow (2 GB each), its wheels, the image; three idle servers
TOOL_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/podman:/usr/libexec/podman"
ELSEWHERE = (
    "A cluster without a lab: 'ansible-playbook -i inventory/workstation site.yml run_demo.yml' uses this machine "
    "itself, inventory/example is for machines reached by ssh (after 'make environment')."
)


def main() -> None:
    """Print what was found and exit."""
    found = problem(Path(os.environ.get("LAB_CHECK_ROOT", "/")))
    if found:
        print(f"A lab cannot be made here: {found} {ELSEWHERE}", file=sys.stderr)
        sys.exit(1)
    if "--json" in sys.argv[1:]:
        print(json.dumps(settings()))


def problem(root: Path) -> str:
    """Return a sentence on what is missing, or nothing. ``root`` is where the file systems are looked at."""
    if sys.platform != "linux":
        return f"containers with systemd need Linux, this is {sys.platform}."
    if os.geteuid() and not may_sudo():
        return "it takes root, and there is neither root nor sudo."
    if not shutil.which("apt-get") and not shutil.which("podman"):
        return "podman is not installed, and without apt-get it cannot be installed from here; install it yourself."
    memory = meminfo_gigabytes(root / "proc/meminfo")
    if memory < NEEDED_MEMORY:
        return f"it takes {NEEDED_MEMORY} GB of free memory, and {memory:.1f} GB are free."
    storage = next(path for path in (root / "var/lib/containers", root / "var/lib", root) if path.exists())
    disk = shutil.disk_usage(storage).free / 1e9
    # Machines that stand already have taken their space.
    if disk < (1 if (root / "var/lib/containers/storage/overlay-containers").exists() else NEEDED_DISK):
        return f"it takes {NEEDED_DISK} GB of free disk in {storage}, and {disk:.1f} GB are free."
    return namespaces_problem()


def may_sudo() -> bool:
    """Tell whether sudo works, or could after asking for a password at this terminal."""
    if not shutil.which("sudo"):
        return False
    tried = subprocess.run(["sudo", "-n", "true"], capture_output=True, text=True, check=False)
    return tried.returncode == 0 or ("password" in tried.stderr and sys.stdin.isatty())


def namespaces_problem() -> str:
    """Return a sentence if the kernel refuses namespaces, or nothing."""
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    if os.geteuid():
        if subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
            return ""  # sudo will ask for a password; the same check is made as root later
        command = ["sudo", "-n", *command]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"namespaces are not permitted ({tried.stderr.strip()})."


def meminfo_gigabytes(path: Path) -> float:
    """Return the memory that is available, in GB."""
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e9
    return 0.0


def settings() -> dict:
    """Return what podman has to be told here."""
    # crun cannot run systemd where version 1 of the control groups is mounted; runc can.
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    # Without CAP_SYS_RESOURCE a container cannot have more than its caller, and podman lowers its own number of
    # processes to pid_max: ask for no more than that.
    pid_max = int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii"))
    tools = [shutil.which(tool, path=TOOL_FOLDERS) for tool in ("podman", "iptables", "netavark", "mmdebstrap")]
    return {
        "complete": all(tools) and any(shutil.which(tool, path=TOOL_FOLDERS) for tool in ("runc", "crun")[: 1 + unified]),
        "runtime": "" if unified else "runc",
        "nofile": hard_limit(resource.RLIMIT_NOFILE, 1048576),
        "nproc": hard_limit(resource.RLIMIT_NPROC, pid_max),
    }


def hard_limit(limit: int, most: int) -> int:
    """Return this process's hard limit, ``most`` at the most."""
    hard = resource.getrlimit(limit)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


if __name__ == "__main__":
    main()
