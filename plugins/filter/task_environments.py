"""What a task's unit is given, and the files of programs, as data for the module write_files."""

from __future__ import annotations

import hashlib
from pathlib import Path

DOCUMENTATION = """
name: task_environments
short_description: Work out the environment file of each task
options:
  _input: {description: Tasks of a machine as worked out by the filter cluster_spec, type: list, required: true}
  inputs: {description: Text of all that the tasks have in common; a change of it restarts them, type: str, required: true}
"""

RETURN = """
_value:
  description: A list of C(name), C(inputs) (changes when anything that the task is started with changes) and C(file).
  type: list
"""

FOLDER = "/etc/tf-cluster/tasks"


def task_environments(tasks, inputs):
    """Return, for each task, its name, the digest of its inputs and its environment file."""
    return [_environment(task, inputs) for task in tasks]


def _environment(task, common):
    lines = [f"TF_TASK_JOB={task['job']}", f"TF_TASK_INDEX={task['index']}"]
    lines += [f'TF_TASK_{name.upper()}="{_text(value)}"' for name, value in sorted(task["options"].items())]
    inputs = hashlib.sha256("\n".join([*lines, common]).encode()).hexdigest()[:12]
    content = "\n".join(
        ["# Written by Ansible. What this task's server is started with.", *lines, f"TF_TASK_INPUTS={inputs}", ""]
    )
    return {"name": task["name"], "inputs": inputs, "file": {"path": f"{FOLDER}/{task['name']}.env", "content": content}}


def _text(value):
    """Return a value as it stands in an environment file, between quotes (systemd.exec(5))."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace('"', '\\"')


def program_file(name, source, target):
    """Return one program of the folder ``source`` as a file in the folder ``target``."""
    return {"path": f"{target}/{name}", "content": Path(source, name).read_text(encoding="utf-8"), "mode": "0755"}


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Return the filters by name."""
        return {"task_environments": task_environments, "program_file": program_file}
