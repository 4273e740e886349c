"""Report the state of the tunnel on this machine: its public key, its peers and what is installed.

    state.py NAME

Prints a JSON object: ``key`` (public key, null if there is none), ``peers`` (address in the tunnel -> public key, from the
settings), ``live`` (public key -> addresses such as fd74::1/128, of the peers that the interface accepts now), ``kernel``
(whether the kernel has WireGuard), ``tools`` (installed ones of wg, wireguard-go), ``foreign`` (whether another tunnel has the
name) and ``up`` (whether the interface exists and is up). Only wg reads the private key. Needs root; standard library only.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path("/etc/wireguard")
PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
PROBE = "tf-probe"


def run(*command: str, text: str = "") -> subprocess.CompletedProcess[str] | None:
    """Run a program and return its result; None if it is not installed."""
    program = shutil.which(command[0], path=PATH)
    if not program:
        return None
    return subprocess.run([program, *command[1:]], input=text, capture_output=True, text=True, check=False, timeout=20)


def public_key(path: Path) -> str | None:
    """Return the public key of the private key in a settings file; None if there is none."""
    found = re.search(r"PrivateKey = (\S+)", path.read_text(encoding="ascii")) if path.exists() else None
    done = run("wg", "pubkey", text=found[1]) if found else None
    return done.stdout.strip() or None if done else None


def peers(path: Path) -> dict[str, str]:
    """Return address -> public key of the peers in the settings."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.findall(r"PublicKey = (\S+)\nAllowedIPs = ([^/\s]+)", text)
    return {address: key for key, address in found}


def live(name: str) -> dict[str, str]:
    """Return public key -> addresses of the peers that an interface accepts; empty if it does not exist."""
    done = run("wg", "show", name, "allowed-ips")
    return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line) if done else {}


def is_up(folder: Path) -> bool:
    """Return whether an interface exists and is up (IFF_UP, the lowest flag); ``folder`` is its folder in /sys."""
    try:
        return bool(int((folder / "flags").read_text(encoding="ascii"), 16) & 1)
    except OSError:
        return False


def kernel_has_it() -> bool:
    """Return whether the kernel supports WireGuard; loads the module if there is one."""
    if Path("/sys/module/wireguard").exists():
        return True
    done = run("ip", "link", "add", PROBE, "type", "wireguard")
    if done is not None and done.returncode == 0:
        run("ip", "link", "delete", PROBE)
        return True
    return False


def main() -> None:
    """Print the state as JSON."""
    name = sys.argv[1]
    state = {
        "key": public_key(FOLDER / f"{name}.d/0-key.conf"),
        "peers": peers(FOLDER / f"{name}.d/1-cluster.conf"),
        "live": live(name),
        "kernel": kernel_has_it(),
        "tools": [tool for tool in ("wg", "wireguard-go") if shutil.which(tool, path=PATH)],
        "foreign": (FOLDER / f"{name}.conf").exists() and not (FOLDER / f"{name}.d/0-key.conf").exists(),
        "up": is_up(Path("/sys/class/net", name)),
    }
    print(json.dumps(state))


if __name__ == "__main__":
    main()
