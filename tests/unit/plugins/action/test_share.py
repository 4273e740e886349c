"""The action share: all machines get the same variable, and each keeps its own facts."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from project import ROOT

PLAY = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - distributed.tensorflow.share: {value: {numbers: [1, 2], deep: {a: "{{ 3 }}"}}}
      register: shared
      run_once: true
    - ansible.builtin.setup: {gather_subset: ["!all", "!min", env]}
      environment: {WHO: "{{ inventory_hostname }}"}
    - ansible.builtin.assert: {that: ["ansible_facts.env.WHO == inventory_hostname", "shared.numbers == [1, 2]"]}
    - distributed.tensorflow.share: {value: "{{ shared | combine({'numbers': []}) }}"}
      register: shared
      run_once: true
      check_mode: true
    - ansible.builtin.assert: {that: ["shared.numbers == []", "shared.deep.a == 3", "shared is not changed"]}
"""
TASKS = [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/*.yml")]


def test_all_machines_get_the_value_and_keep_their_own_facts(tmp_path):
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")
    kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("ANSIBLE_")}
    command = [
        "ansible-playbook",
        "--inventory=a,b,c",
        f"--extra-vars=ansible_python_interpreter={sys.executable}",
        tmp_path / "play.yml",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=kept)
    assert done.returncode == 0, done.stdout + done.stderr


def blocks(tasks):
    """Return the tasks of a list, also those in blocks."""
    for task in tasks or []:
        yield task
        yield from blocks([*task.get("block", []), *task.get("rescue", []), *task.get("always", [])])


@pytest.mark.parametrize("path", TASKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_task_gives_all_machines_the_same_facts(path):
    """With run_once, set_fact gives all machines one dictionary in ansible-core 2.21; later facts of one are those of all."""
    plays = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    tasks = [task for play in plays for name in ("pre_tasks", "tasks", "post_tasks") for task in play.get(name, [])]
    found = [task for task in blocks(tasks if path.parent.name == "playbooks" else plays) if task.get("run_once")]
    assert [task["name"] for task in found if "ansible.builtin.set_fact" in task] == []


def test_the_role_spec_which_is_called_once_sets_no_fact():
    text = (ROOT / "roles/spec/tasks/main.yml").read_text(encoding="utf-8")
    assert "set_fact" not in json.dumps(yaml.safe_load(text))
