"""Report the state of the cluster's firewall on this machine, and other firewalls.

    firewall/state.py

Prints a JSON object: ``version`` (version of the active rules, null if there are none or nft is missing), ``whole`` (whether they
are the rules that tf-firewall.service loaded last, with tensorflow's current user ID), ``wanted`` (version of the rules
in /etc/tf-cluster/firewall.nft, null if there are none), ``enabled`` (whether they are loaded at boot), ``nft`` (whether it is
installed) and ``others`` (other active firewalls: firewalld, ufw). Needs root; standard library only.
"""

from __future__ import annotations

import hashlib
import json
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

RULES = Path("/etc/tf-cluster/firewall.nft")
LOADED = Path("/run/tf-firewall/loaded")  # sha256sum of the rules that tf-firewall.service loaded
UFW = Path("/etc/ufw/ufw.conf")
VERSION = re.compile(r"chain (version_[0-9a-f]+)")


def output(*command: str) -> str:
    """Return the output of a command; empty if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def named(text: str) -> str | None:
    """Return the version in the rules; None if there is none."""
    found = VERSION.search(text)
    return found[1] if found else None


def is_loaded(text: str) -> bool:
    """Return whether the active rules are unchanged since loading and for the current user ID.

    A modified table keeps the name of its version. The kernel knows only user IDs, and a recreated account may have another.
    """
    try:
        number = pwd.getpwnam("tensorflow").pw_uid
    except KeyError:
        return False
    noted = LOADED.read_text(encoding="ascii").split() if LOADED.exists() else []
    return noted[:1] == [hashlib.sha256(text.encode()).hexdigest()] and f"skuid {number} " in text


def state() -> dict[str, Any]:
    """Return the state of the firewall (see above)."""
    path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    nft = shutil.which("nft", path=path)
    others = ["firewalld"] if output("systemctl", "is-active", "firewalld").strip() == "active" else []
    if UFW.exists() and re.search(r"(?m)^ENABLED=yes", UFW.read_text(encoding="utf-8", errors="replace")):
        others.append("ufw")
    rules = output(nft, "--stateless", "list", "table", "inet", "tf_cluster") if nft else ""
    return {
        "version": named(rules),
        "whole": is_loaded(rules),
        "wanted": named(RULES.read_text(encoding="utf-8", errors="replace")) if RULES.exists() else None,
        "enabled": output("systemctl", "is-enabled", "tf-firewall").strip() == "enabled",
        "nft": bool(nft),
        "others": others,
    }


if __name__ == "__main__":
    print(json.dumps(state()))
