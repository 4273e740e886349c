"""Report this machine's tasks, runs, firewall and GPUs.

    python -m tf_cluster.status worker-0 worker-1

Prints a JSON object: ``units`` (task -> ``unit`` its state, ``since`` ISO 8601, ``restarts``, ``memory_mb``), ``runs``
(``run``, ``task``, ``since``, ``uses``: addresses of its tasks), ``uncollected`` (see run/prune.py), ``firewall`` (see
firewall/state.py) and ``gpus`` (see cuda/gpus.py).
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from typing import Any

from ..cuda import gpus
from ..firewall import state as firewall
from ..run import prune, queue
from .systemd import parse_show

PROPERTIES = "Id,ActiveState,SubState,StateChangeTimestampMonotonic,NRestarts,MainPID,Description"


def main() -> None:
    """Print the state of the machine as JSON."""
    names = sys.argv[1:]
    shown = show([f"tf-server@{name}.service" for name in names])
    units = {name: describe(shown.get(f"tf-server@{name}.service", {})) for name in names}
    runs = [
        {
            "run": unit["Description"].removeprefix("run "),
            "task": ":".join(identity.split("-")[2:4]),  # tf-run-<job>-<index>-<run>.service
            "since": describe(unit)["since"],
            "uses": queue.uses(unit["Description"].removeprefix("run ")),
        }
        for identity, unit in show(["tf-run-*.service"]).items()
        if unit.get("ActiveState") in ("active", "activating", "deactivating")
    ]
    left = prune.uncollected({run["run"] for run in runs})
    print(json.dumps({"units": units, "runs": runs, "uncollected": left, "firewall": firewall.state(), "gpus": gpus.find()}))


def show(units: list[str]) -> dict[str, dict[str, str]]:
    """Return unit -> its properties, for units by name or pattern."""
    if not units:
        return {}
    done = subprocess.run(["systemctl", "show", f"--property={PROPERTIES}", *units], capture_output=True, text=True, check=False)
    return parse_show(done.stdout)


def describe(unit: dict[str, str]) -> dict[str, Any]:
    """Return state, time of the last change, restarts and memory of a unit."""
    state, detail = unit.get("ActiveState", "unknown"), unit.get("SubState", "")
    changed = unit.get("StateChangeTimestampMonotonic", "0")
    return {
        "unit": state if detail in ("", "running", "dead", state) else f"{state} ({detail})",
        "since": since(int(changed)) if changed.isdigit() and int(changed) else None,
        "restarts": int(unit["NRestarts"]) if unit.get("NRestarts", "").isdigit() else None,
        "memory_mb": memory(unit.get("MainPID", "0")),
    }


def memory(pid: str) -> int | None:
    """Return the resident memory of a process in MB, None if unknown; systemd does not count it on every machine."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            kilobytes = next(line.split()[1] for line in file if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return None
    return round(int(kilobytes) * 1024 / 1e6)


def since(microseconds: int) -> str:
    """Return a time of the monotonic clock (microseconds since boot) in ISO 8601."""
    with open("/proc/uptime", encoding="ascii") as file:
        age = float(file.read().split()[0]) - microseconds / 1e6
    moment = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age)
    return moment.isoformat(timespec="seconds")
