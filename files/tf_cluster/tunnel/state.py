"""Say what this machine's end of the cluster's tunnel is like: its public key, the others that it knows, what is installed.

    state.py NAME

Prints a JSON object: ``key`` (the public key, null before it was made), ``peers`` (address in the tunnel -> public key, as its
settings say), ``live`` (public key -> addresses, as in fd74::1/128, of the others that the interface lets in at this moment),
``kernel`` (whether the kernel has WireGuard), ``tools`` (programs that are here: wg, wireguard-go) and ``up`` (whether the
interface is there, and up). The private key is read by wg and goes nowhere. Needs root; standard library only.
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
    """Call a program; None where it is not there."""
    program = shutil.which(command[0], path=PATH)
    if not program:
        return None
    return subprocess.run([program, *command[1:]], input=text, capture_output=True, text=True, check=False, timeout=20)


def public_key(path: Path) -> str | None:
    """Return the public key that belongs to the private key in a file of settings."""
    found = re.search(r"PrivateKey = (\S+)", path.read_text(encoding="ascii")) if path.exists() else None
    done = run("wg", "pubkey", text=found[1]) if found else None
    return done.stdout.strip() or None if done else None


def peers(path: Path) -> dict[str, str]:
    """Return address -> public key of the others that the settings name."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.findall(r"PublicKey = (\S+)\nAllowedIPs = ([^/\s]+)", text)
    return {address: key for key, address in found}


def live(name: str) -> dict[str, str]:
    """Return public key -> addresses of the others that an interface lets in; none where it is not there."""
    done = run("wg", "show", name, "allowed-ips")
    return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line) if done else {}


def is_up(folder: Path) -> bool:
    """Tell whether an interface, by its folder in /sys, is there and up (IFF_UP, the lowest of its flags)."""
    try:
        return bool(int((folder / "flags").read_text(encoding="ascii"), 16) & 1)
    except OSError:
        return False


def kernel_has_it() -> bool:
    """Tell whether the kernel can make such an interface; a module is loaded by that where there is one."""
    if Path("/sys/module/wireguard").exists():
        return True
    done = run("ip", "link", "add", PROBE, "type", "wireguard")
    if done is not None and done.returncode == 0:
        run("ip", "link", "delete", PROBE)
        return True
    return False


def main() -> None:
    """Print what there is."""
    name = sys.argv[1]
    state = {
        "key": public_key(FOLDER / f"{name}.d/0-key.conf"),
        "peers": peers(FOLDER / f"{name}.d/1-cluster.conf"),
        "live": live(name),
        "kernel": kernel_has_it(),
        "tools": [tool for tool in ("wg", "wireguard-go") if shutil.which(tool, path=PATH)],
        "up": is_up(Path("/sys/class/net", name)),
    }
    print(json.dumps(state))


if __name__ == "__main__":
    main()
