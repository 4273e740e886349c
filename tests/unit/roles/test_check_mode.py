"""Check mode: what would be installed is a message that counts as a change."""

import pytest
import yaml
from project import ROOT


@pytest.mark.parametrize("path", ["tensorflow/tasks/install.yml", "cuda/tasks/main.yml"])
def test_an_installation_is_told_of_as_a_change(path):
    tasks = yaml.safe_load((ROOT / "roles" / path).read_text(encoding="utf-8"))
    [told] = [task for task in tasks if "ansible.builtin.debug" in task and task.get("changed_when") is True]
    assert told["ansible.builtin.debug"]["msg"].startswith("Would install ")
    assert told["when"].startswith("ansible_check_mode")
