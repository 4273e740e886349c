"""The collection as a user has it: built, installed, and called from another folder without our ansible.cfg."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT

NAME = "distributed.tensorflow"
BIN = Path(sys.executable).parent
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
FILTERS = sorted(path.stem for path in (ROOT / "plugins/filter").glob("*.yml"))
INVENTORY = """
worker: {hosts: {one: {ansible_host: 192.0.2.1}}}
host: {hosts: {one: {}}}
"""
# What run_demo.yml and status.yml do without a machine: choose the folder of a run, write the state as JSON.
NAME_A_RUN = """
- ansible.builtin.import_playbook: distributed.tensorflow.spec
- ansible.builtin.import_playbook: distributed.tensorflow.name_run
  vars:
    program: "{{ playbook_dir }}/../files/demo.py"
- hosts: "{{ hostvars[groups.tf_machines[0]].tf_run.machine | default('all:!all') }}"
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        content: "{{ tf_run | to_json }}"
        dest: "{{ result_file }}"
        mode: "0644"
      delegate_to: localhost
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {name: distributed.tensorflow.status}
      vars:
        status_cluster: {machines: {}, tasks: {}, spec: {}, host: one}
"""


class Installed:
    """An installed collection and a user's folder."""

    def __init__(self, place):
        self.place, self.path, self.work = place, place / "collections", place / "work"
        self.folder = self.path / "ansible_collections/distributed/tensorflow"
        self.work.mkdir()
        (self.work / "inventory.yml").write_text(INVENTORY, encoding="utf-8")
        (self.work / "name.yml").write_text(NAME_A_RUN, encoding="utf-8")
        self.call("ansible-galaxy", "collection", "build", "--output-path", place, ROOT)
        [archive] = place.glob("*.tar.gz")
        self.call("ansible-galaxy", "collection", "install", "--offline", "--no-deps", "--collections-path", self.path, archive)
        self.files = self.listed()

    def call(self, *words, status=0, **environment):
        """Run one of Ansible's commands in the user's folder and return what it printed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_", "TF_"))}
        done = subprocess.run(
            [BIN / words[0], *map(str, words[1:])], cwd=self.work, capture_output=True, text=True, timeout=60, check=False,
            env={**kept, "ANSIBLE_COLLECTIONS_PATH": str(self.path), "HOME": str(self.place / "home"), **environment},
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def listed(self):
        """Return the files of the collection with their times; Python's own are Ansible's business."""
        found = [path for path in self.folder.rglob("*") if "__pycache__" not in path.parts]
        return {str(path): path.lstat().st_mtime_ns for path in found if not path.is_dir()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the installed collection; nothing is written into it by any test."""
    found = Installed(tmp_path_factory.mktemp("collection"))
    yield found
    assert found.listed() == found.files


def test_the_archive_contains_the_project_without_local_files(installed):
    top = {path.name for path in installed.folder.iterdir()}
    assert {"files", "playbooks", "plugins", "roles", "meta", "docs", "README.md", "LICENSE", "MANIFEST.json"} <= top
    assert not top & {".git", ".venv", ".cache", ".collections", "output"}
    assert (installed.folder / "plugins/module_utils/tf_cluster/preflight/machine.py").is_file()


def test_a_playbook_runs_by_its_full_name_from_any_folder(installed):
    text = installed.call("ansible-playbook", "-i", "inventory.yml", f"{NAME}.show_spec", ANSIBLE_CALLBACK_RESULT_FORMAT="yaml")
    assert '"192.0.2.1:2222"' in text
    assert "Gathering Facts" not in text


def test_site_and_run_demo_load_by_their_full_names(installed):
    text = installed.call("ansible-playbook", "-i", "inventory.yml", f"{NAME}.site", f"{NAME}.run_demo", "--list-tasks")
    assert f"playbook: {installed.folder}/playbooks/site.yml" in text
    assert f"playbook: {installed.folder}/playbooks/run_demo.yml" in text


@pytest.mark.parametrize(("words", "folder"), [((), "output"), (("-e", "tf_output=~/results"), "../home/results")])
def test_results_go_to_the_current_folder_or_to_tf_output(installed, tmp_path, words, folder):
    result = tmp_path / "run.json"
    installed.call("ansible-playbook", "-i", "inventory.yml", "name.yml", "-e", f"result_file={result}", *words)
    run = json.loads(result.read_text(encoding="utf-8"))
    output = (installed.work / folder).resolve()
    assert Path(run["folder"]) == output / run["id"]
    assert "-demo-" in run["id"]
    assert (output / "status.json").is_file()


def test_missing_collections_are_reported_in_the_first_play(installed):
    text = installed.call(
        "ansible-playbook", "-i", "inventory.yml", f"{NAME}.site", status=2, ANSIBLE_COLLECTIONS_SCAN_SYS_PATH="false"
    )
    assert "Missing Ansible collections on the controller: community.crypto, community.general, containers.podman." in text
    assert "Run 'ansible-galaxy collection install community.crypto community.general containers.podman'." in text
    assert text.count("PLAY [") == 1


@pytest.mark.parametrize(("kind", "names"), [("role", ROLES), ("module", MODULES), ("filter", FILTERS)])
def test_ansible_doc_shows_all_roles_modules_and_filters(installed, kind, names):
    assert names
    text = installed.call("ansible-doc", "--type", kind, *(f"{NAME}.{name}" for name in names), ANSIBLE_NOCOLOR="1")
    assert [name for name in names if not re.search(rf"> {kind.upper()}:? \*?{re.escape(NAME)}\.{name}\b", text)] == []


def test_ansible_doc_shows_defaults(installed):
    text = installed.call("ansible-doc", "--type", "role", f"{NAME}.cuda", "--json")
    # ansible-core 2.21 prints warnings about other collections after the JSON.
    roles, _end = json.JSONDecoder().raw_decode(text)
    shown = roles[f"{NAME}.cuda"]["entry_points"]["main"]["options"]
    defaults = yaml.safe_load((ROOT / "roles/cuda/defaults/main.yml").read_text(encoding="utf-8"))
    assert {name: option["default"] for name, option in shown.items()} == defaults


@pytest.mark.parametrize("playbook", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_every_play_sets_gather_facts_to_false(playbook):
    plays = [play for play in yaml.safe_load(playbook.read_text(encoding="utf-8")) if "hosts" in play]
    assert [play["name"] for play in plays if play.get("gather_facts") is not False] == []
