#!/usr/bin/python
"""Check a folder that is shared by all machines, step by step, or prepare it. Works before anything is installed."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.preflight import shared

DOCUMENTATION = """
module: shared_folder
short_description: Check or prepare a folder that all machines share
description:
  - C(check) checks the folder on this machine and writes a file there, C(see) lists the machines whose files it sees, C(clean)
    removes the file. Call each of them on all machines before the next one.
  - C(prepare) creates the project's folder in it, which belongs to the user C(tensorflow).
  - In check mode, nothing is written. Needs root.
options:
  path: {description: The folder, type: path, required: true}
  step: {description: What to do, type: str, choices: [check, see, clean, prepare], required: true}
  machine: {description: Name of this machine, type: str, default: ""}
  token: {description: A word that is the same in all steps of one check, type: str, default: ""}
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Write a file on each machine
  distributed.tensorflow.shared_folder:
    path: /mnt/cluster
    step: check
    machine: "{{ inventory_hostname }}"
    token: a1b2
"""

RETURN = """
problem: {description: "A phrase that follows the path, empty if there is none", type: str, returned: always}
mount: {description: What is mounted there, type: str, returned: with check}
machines: {description: Machines whose files this machine sees, type: list, elements: str, returned: with see}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {
            "path": {"type": "path", "required": True},
            "step": {"type": "str", "choices": ["check", "see", "clean", "prepare"], "required": True},
            "machine": {"type": "str", "default": ""},
            "token": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    path, machine, token = (module.params[name] for name in ("path", "machine", "token"))
    step = module.params["step"]
    if step == "check":
        found = shared.limited(shared.check, path, machine, token, not module.check_mode)
    elif step == "see":
        found = shared.limited(shared.seen, path, token)
    elif step == "clean":
        found = shared.limited(shared.clean, path, machine, token)
    else:
        found = shared.limited(shared.prepare, path, not module.check_mode)
    module.exit_json(**{"changed": False, **found})


if __name__ == "__main__":
    main()
