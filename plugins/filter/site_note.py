"""What site.yml notes on a machine when it is done, by which the next call tells that there is nothing to do there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

DOCUMENTATION = """
name: site_notes
short_description: Work out what site.yml would note on each machine now, and where there may be something to do
description:
  - The roles do what follows from the machine's variables, the cluster, the project's own files, and what
    files/machine_state.py found. Where none of these is another than when site.yml was last done with the machine, there is
    nothing to do, and none of their tasks has to be called to find that out. Each costs a fiftieth of a second a machine.
  - Machines whose tasks have GPUs, and those of a tunnel, are looked at in full each time.
options:
  _input: {description: The cluster as worked out by the filter cluster_spec, type: dict, required: true}
  hostvars: {description: Ansible's C(hostvars), type: dict, required: true}
  peers: {description: "The cluster's addresses, as worked out by the filter cluster_peers", type: dict, required: true}
"""

RETURN = """
_value: {description: "C(notes): machine -> a text; C(to_do): machines on which there may be something to do", type: dict}
"""

ROOT = Path(__file__).parents[2]
PARTS = ("files", "playbooks", "plugins", "roles")
# What is found out on the way, or is another each time.
NO_INPUT = {
    "cluster_site", "cuda_found", "environment", "gather_subset", "group_names", "groups", "hostvars", "inventory_dir",
    "inventory_file", "module_setup", "omit", "play_hosts", "playbook_dir", "preflight_state", "role_names", "spec_cluster",
    "tensorflow_made", "vars",
}  # fmt: skip
PASSING = ("addresses", "compiled", "disk_mb", "gpus", "interfaces", "listeners", "note")  # of what was found on a machine


def site_notes(cluster, hostvars, peers):
    """Return the notes of machines that were asked what they are like, and those of them that have another one."""
    common = digest({"cluster": cluster, "project": project(), "peers": peers})
    notes, to_do = {}, []
    for machine, tasks in cluster["machines"].items():
        variables = hostvars[machine]
        found = variables.get("preflight_state", {}).get("answer")
        if not found:
            continue  # it is away
        in_full = cluster["tunnel"] or any(task["options"]["gpus"] for task in tasks)
        if not in_full and "tf-cluster" not in found["interfaces"]:
            state = {name: value for name, value in found.items() if name not in PASSING}
            notes[machine] = f"{common} {digest(inputs(variables))} {digest(state)}"
        if notes.get(machine) != found["note"]:
            to_do.append(machine)
    return {"notes": notes, "to_do": to_do}


def inputs(variables):
    """Return what a machine's variables say, but those of the connection and those that are found out on the way."""
    names = [name for name in variables if not name.startswith(("ansible_", "__")) and name not in NO_INPUT]
    return {name: variables[name] for name in names}


def project():
    """Return a digest of the project's own files."""
    paths = sorted(
        path for part in PARTS for path in (ROOT / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return digest([[str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths])


def digest(value):
    """Return a short name for a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode(errors="surrogateescape")).hexdigest()[:24]


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Return the filters by name."""
        return {"site_notes": site_notes}
