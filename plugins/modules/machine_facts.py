#!/usr/bin/python
"""Collect the facts of a machine that site.yml needs. Works before anything is installed."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.preflight import machine

DOCUMENTATION = """
module: machine_facts
short_description: Collect the facts of a machine
description:
  - Returns what the roles of this collection need to know about a machine as one fact, C(ansible_facts.tf_machine).
  - Changes nothing, and works in check mode. Needs root.
options:
  ports:
    description: TCP ports whose listeners are reported.
    type: list
    elements: int
    default: []
  venv:
    description: The virtual environment with TensorFlow.
    type: path
    default: /opt/tf-cluster/venv
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Collect machine facts
  distributed.tensorflow.machine_facts:
    ports: [2222]
"""

RETURN = """
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    tf_machine:
      description: The machine.
      type: dict
      contains:
        python: {description: "C(version), as in 3.11, and C(executable) of the Python that Ansible uses", type: dict}
        processor: {description: As in x86_64, type: str}
        init: {description: "C(systemd), or the name of process 1", type: str}
        addresses: {description: "The machine's own addresses, without their zones", type: list, elements: str}
        interfaces: {description: Names of its network interfaces, type: list, elements: str}
        ports: {description: The ports of which the listeners were looked up, type: list, elements: int}
        listeners:
          description: Processes that listen on the ports, with C(port), C(name), C(pid), C(user), and C(unit) if it is a task
          type: list
          elements: dict
        account: {description: "The entry of the account C(tensorflow) in /etc/passwd; empty if it is missing", type: list}
        users: {description: IDs of its users, type: list, elements: int}
        disk_mb: {description: "Free disk under /opt, in MB", type: int}
        rsync: {description: Whether rsync is installed, type: bool}
        gpus: {description: "Its NVIDIA GPUs and driver, see tf_cluster/cuda/gpus.py", type: dict}
        environment:
          description: "C(made_of), C(id) and C(whole) of the environment, see tf_cluster/tensorflow/environment.py"
          type: dict
        compiled: {description: Whether the environment has been byte-compiled, type: bool}
        firewall: {description: "The cluster's firewall rules, see tf_cluster/firewall/state.py", type: dict}
        digests: {description: "Path -> digest, of the files that site.yml writes", type: dict}
        tasks: {description: "Task -> the inputs that it was started with, null if its unit is not running", type: dict}
        target: {description: Whether the target of all tasks is enabled and active, type: bool}
        timer: {description: Whether the timer that deletes old runs is enabled and active, type: bool}
        reload: {description: Whether systemd has to reload these units, type: bool}
"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {
            "ports": {"type": "list", "elements": "int", "default": []},
            "venv": {"type": "path", "default": "/opt/tf-cluster/venv"},
        },
        supports_check_mode=True,
    )
    facts = machine.collect(module.params["ports"], module.params["venv"])
    module.exit_json(changed=False, ansible_facts={"tf_machine": facts})


if __name__ == "__main__":
    main()
