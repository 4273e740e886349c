"""The documentation of the action ``share``, which runs on the controller only."""

from __future__ import annotations

DOCUMENTATION = """
module: share
short_description: Give all machines of a play the same variable
description:
  - Returns a value as the result, so that C(register) with C(run_once) gives it to all machines of the play.
  - C(set_fact) with C(run_once) may not be used. ansible-core 2.21 then gives all machines the same dictionary of facts, and the
    facts that a module collects later from one machine become those of all.
options:
  value: {description: The content of the variable, type: dict, required: true}
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Work out the cluster spec from the inventory
  distributed.tensorflow.share:
    value: "{{ groups | distributed.tensorflow.cluster_spec(hostvars) }}"
  register: spec_cluster
  run_once: true
"""

RETURN = """
(values): {description: The content of C(value), type: dict, returned: always}
"""
