"""Check mode: what would be installed is a message that counts as a change."""

import pytest
import yaml
from project import ROOT


@pytest.mark.parametrize("path", ["tensorflow/tasks/install.yml", "cuda/tasks/main.yml"])
def test_check_mode_reports_an_installation_as_a_change(path):
    tasks = yaml.safe_load((ROOT / "roles" / path).read_text(encoding="utf-8"))
    [report] = [task for task in tasks if "ansible.builtin.debug" in task and task.get("changed_when") is True]
    assert report["ansible.builtin.debug"]["msg"].startswith("Would install ")
    assert report["when"].startswith("ansible_check_mode")
