"""Say whether the cluster's firewall stands on this machine, and who else filters here.

    firewall/state.py

Prints a JSON object: ``version`` (the name of the rules at work, null where there are none or nft is missing), ``whole`` (whether
they are, rule by rule, what tf-firewall.service loaded last, and for the number that the user tensorflow has now), ``wanted``
(the name of the rules in /etc/tf-cluster/firewall.nft, null where there are none), ``enabled`` (whether they are loaded at
boot), ``nft`` (whether it is installed) and ``others`` (other firewalls at work: firewalld, ufw). Needs root; standard library
only.
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
LOADED = Path("/run/tf-firewall/loaded")  # what sha256sum said of the rules when tf-firewall.service had loaded them
UFW = Path("/etc/ufw/ufw.conf")
VERSION = re.compile(r"chain (version_[0-9a-f]+)")


def output(*command: str) -> str:
    """Return what a command prints; nothing where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def named(text: str) -> str | None:
    """Return the version that rules name."""
    found = VERSION.search(text)
    return found[1] if found else None


def is_loaded(text: str) -> bool:
    """Tell whether rules are those that were loaded, and for the right user.

    A table that somebody emptied or added to keeps the name of its version. Of users the kernel knows the number alone, and an
    account that was made again may have another.
    """
    try:
        number = pwd.getpwnam("tensorflow").pw_uid
    except KeyError:
        return False
    noted = LOADED.read_text(encoding="ascii").split() if LOADED.exists() else []
    return noted[:1] == [hashlib.sha256(text.encode()).hexdigest()] and f"skuid {number} " in text


def state() -> dict[str, Any]:
    """Return what there is."""
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
