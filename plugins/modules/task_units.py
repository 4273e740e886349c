#!/usr/bin/python
"""Start, restart and stop the units of a machine's TensorFlow tasks."""

from __future__ import annotations

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster import lock
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.status.systemd import parse_show

DOCUMENTATION = """
module: task_units
short_description: Start, restart and stop the units of a machine's tasks
description:
  - Enables and starts the unit instances of O(tasks), all at once, and disables and stops the others.
  - A running task is restarted only if it was started with other inputs. The server reports its inputs to systemd when it is
    ready, so this also works after an interrupted play. A masked unit is unmasked.
  - Supports check mode.
options:
  template:
    description: The template unit.
    type: str
    default: tf-server@.service
  target:
    description: The target that the units belong to.
    type: str
    default: tf-cluster.target
  tasks:
    description: Instance of the unit (C(worker-0)) -> a digest of the task's inputs.
    type: dict
    required: true
  drop_ins:
    description: Names of the project's own drop-ins. If a task does not start, the message names all others.
    type: list
    elements: str
    default: [confined.conf, firewall.conf, gpus.conf, speed.conf, tunnel.conf]
  reload:
    description: Whether a unit file has changed.
    type: bool
    default: false
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Run two tasks
  distributed.tensorflow.task_units:
    tasks: {worker-0: 3f2a, worker-1: 99c1}
"""

RETURN = """
started: {description: Tasks that were not running, type: list, elements: str, returned: always}
restarted: {description: Tasks that ran with other inputs, type: list, elements: str, returned: always}
stopped: {description: Tasks that the machine no longer has, type: list, elements: str, returned: always}
"""


LOCK = "/run/tf-cluster-units.lock"
LOCK_SECONDS = 420  # longer than a server with GPUs may take to start
DROP_INS = ["confined.conf", "firewall.conf", "gpus.conf", "speed.conf", "tunnel.conf"]


def plan(wanted: dict[str, str], found: dict[str, dict[str, str]]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return (enable, start, restart, stop), lists of units.

    ``wanted`` is unit -> inputs, ``found`` is unit -> properties.
    """
    enable, start, restart = [], [], []
    for unit, inputs in wanted.items():
        properties = found.get(unit, {})
        if properties.get("UnitFileState") != "enabled":
            enable.append(unit)
        if properties.get("ActiveState") != "active":
            start.append(unit)
        elif properties.get("StatusText", "").rpartition("inputs ")[2] != inputs:
            restart.append(unit)
    stop = [
        unit
        for unit, properties in found.items()
        if unit not in wanted
        and (properties.get("UnitFileState") == "enabled" or properties.get("ActiveState") not in ("inactive", None))
    ]
    return enable, start, restart, stop


class Systemd:
    """Calls systemctl on this machine."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def run(self, *words: str, check: bool = True) -> tuple[int, str]:
        """Run systemctl and return (exit status, output)."""
        status, out, err = self.module.run_command(["systemctl", *words])
        if check and status:
            self.module.fail_json(msg=f"'systemctl {' '.join(words)}' failed: {err.strip() or out.strip()}")
        return status, out

    def show(self, units: list[str]) -> dict[str, dict[str, str]]:
        """Return the properties of the units."""
        if not units:
            return {}
        out = self.run(
            "show", "--property=Id,ActiveState,UnitFileState,StatusText,NeedDaemonReload,FragmentPath,DropInPaths", *units
        )[1]
        return parse_show(out)

    def instances(self, template: str) -> list[str]:
        """Return the instances of a template unit that are loaded or enabled."""
        pattern = template.replace("@", "@*")
        loaded = self.run("list-units", "--all", "--plain", "--no-legend", pattern)[1]
        enabled = self.run("list-unit-files", "--plain", "--no-legend", "--state=enabled", pattern, check=False)[1]
        names = [line.split()[0] for line in (loaded + enabled).splitlines() if line.strip()]
        return [name for name in dict.fromkeys(names) if name != template]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {
            "template": {"type": "str", "default": "tf-server@.service"},
            "target": {"type": "str", "default": "tf-cluster.target"},
            "tasks": {"type": "dict", "required": True},
            "drop_ins": {"type": "list", "elements": "str", "default": DROP_INS},
            "reload": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    lock_file = open(LOCK, "w", encoding="utf-8")  # noqa: SIM115 (keeps the lock until the process exits)
    if not lock.acquire(lock_file, LOCK_SECONDS):
        module.fail_json(
            msg=f"Timed out after {LOCK_SECONDS} s waiting for another site.yml on this machine. "
            f"'lslocks' shows which process has locked {LOCK}."
        )
    template, target = module.params["template"], module.params["target"]
    wanted = {template.replace("@", f"@{task}"): inputs for task, inputs in module.params["tasks"].items()}
    systemd = Systemd(module)
    found = systemd.show([*dict.fromkeys([*wanted, *systemd.instances(template), target])])
    is_target = found.pop(target, {})
    enable, start, restart, stop = plan(wanted, found)
    if wanted and is_target.get("UnitFileState") != "enabled":
        enable.append(target)
    if wanted and is_target.get("ActiveState") != "active":
        start.append(target)
    reload = module.params["reload"] or any(unit.get("NeedDaemonReload") == "yes" for unit in [*found.values(), is_target])
    masked = [unit for unit in wanted if found.get(unit, {}).get("UnitFileState", "").startswith("masked")]
    if not module.check_mode:
        if masked:
            systemd.run("unmask", *masked)
        if reload:
            systemd.run("daemon-reload")
        if stop:
            systemd.run("disable", "--now", *stop)
            systemd.run("reset-failed", *stop, check=False)
        if enable:
            systemd.run("enable", *enable)
        if restart:
            systemd.run("stop", *restart)  # all of them first: a task may get the port of another one
        if (start or restart) and systemd.run("start", *start, *restart, check=False)[0]:
            module.fail_json(msg=complaint(module, systemd, wanted, template, module.params["drop_ins"]))
    module.exit_json(
        changed=bool(enable or start or restart or stop), started=start, restarted=restart, stopped=stop, enabled=enable
    )


def complaint(module: AnsibleModule, systemd: Systemd, wanted: dict[str, str], template: str, drop_ins: list[str]) -> str:
    """Return which tasks did not start, each with the last line of its journal and with foreign files that change its unit."""
    sentences = []
    for unit, properties in systemd.show(list(wanted)).items():
        if properties.get("ActiveState") != "active":
            journal = ["journalctl", "--unit", unit, "--lines", "40", "--output", "cat", "--no-pager"]
            lines = module.run_command(journal)[1].splitlines()
            own = [line for line in lines if line.startswith("tf_cluster.server: ")] or lines
            sentences.append(f"{unit} did not start: {own[-1] if own else 'its journal is empty'}")
            paths = [properties.get("FragmentPath", ""), *properties.get("DropInPaths", "").split()]
            others = [path for path in paths if path and os.path.basename(path) not in (template, *drop_ins)]
            if others:
                sentences.append(f"It is changed by {' and '.join(others)}, not part of this project. Correct or remove that.")
    return " ".join(sentences) or "systemd could not start the tasks"


if __name__ == "__main__":
    main()
