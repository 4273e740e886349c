"""Find misspelt variables in a command."""

from __future__ import annotations

from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import variables as project

DOCUMENTATION = """
name: option_problems
short_description: Find misspelt variables in a command
description:
  - Looks at the names of the variables that C(--extra-vars) sets. Evaluates no value.
  - Other variables may belong to other tools, so only names that nearly are those of this collection are problems.
options: {}
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Show misspelt variables
  ansible.builtin.debug:
    msg: "{{ query('distributed.tensorflow.option_problems') }}"
"""

RETURN = """
_raw:
  description: A sentence for each problem
  type: list
  elements: str
"""


class LookupModule(LookupBase):  # type: ignore[misc]  # Ansible has no types
    """The lookup."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the problems. Ansible has read the variables already; no variable contains their names alone."""
        return project.option_problems(load_extra_vars(DataLoader()))
