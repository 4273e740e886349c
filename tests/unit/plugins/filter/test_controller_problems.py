"""What is missing on the controller is named, with the command that installs it."""

import re
import sys

import pytest
import yaml
from project import ROOT, load

problems = load("plugins/filter/controller_problems.py").controller_problems
REQUIRED = yaml.safe_load((ROOT / "playbooks/command.yml").read_text(encoding="utf-8"))[0]["vars"]
TASKS = [*ROOT.glob("roles/*/*/*.yml"), *ROOT.glob("playbooks/*.yml")]


def test_nothing_is_missing_in_the_development_environment():
    assert problems(REQUIRED["command_collections"], REQUIRED["command_packages"]) == []


def test_missing_collections_and_packages_are_reported_with_the_install_command():
    collections, packages = problems(["community.general", "no.such", "community.missing"], ["yaml", "no_such_package"])
    assert collections == (
        "Missing Ansible collections on the controller: no.such, community.missing. "
        "Run 'ansible-galaxy collection install no.such community.missing'."
    )
    assert packages == (
        f"Missing Python packages on the controller, for {sys.executable}: no_such_package. "
        f"Run '{sys.executable} -m pip install no_such_package'."
    )


def test_the_checked_collections_are_those_that_roles_and_playbooks_use():
    text = "".join(path.read_text(encoding="utf-8") for path in TASKS if path.parent.name != "meta")
    used = set(re.findall(r"(?m)(?:^ *-? *|')((?:community|ansible|containers)\.[a-z]+)\.[a-z_]+(?=:|')", text))
    assert used - {"ansible.builtin"} == set(REQUIRED["command_collections"])


def test_the_checked_collections_are_dependencies_of_this_collection():
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert set(REQUIRED["command_collections"]) <= set(galaxy["dependencies"])


def test_the_checked_packages_are_those_of_the_execution_environment():
    lines = (ROOT / "meta/ee-requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == REQUIRED["command_packages"]


@pytest.mark.parametrize(
    ("printed", "problem"),
    [
        ("rsync  version 3.2.5  protocol version 31", ""),
        ("rsync  version v3.10.0  protocol version 32", ""),
        ("rsync  version 3.1.3  protocol version 31", "rsync on the controller is 3.1.3, but 3.2.5 or newer is required."),
        (
            "openrsync: protocol version 29\nrsync version 2.6.9 compatible",
            "rsync on the controller is 2.6.9, but 3.2.5 or newer",
        ),
        ("?", "rsync on the controller is of an unknown version, but 3.2.5 or newer is required."),
        (None, "Missing program on the controller: rsync, which transfers data and results."),
    ],
)
def test_a_missing_or_outdated_rsync_is_reported(tmp_path, monkeypatch, printed, problem):
    monkeypatch.setenv("PATH", str(tmp_path))
    if printed:
        (tmp_path / "rsync").write_text(f"#!/bin/sh\necho '{printed}'\n", encoding="utf-8")
        (tmp_path / "rsync").chmod(0o755)
    (tmp_path / "dnf").symlink_to("/bin/true")
    found = problems([], [], "3.2.5")
    assert len(found) == bool(problem)
    assert not problem or (problem in found[0] and found[0].endswith("Run 'dnf install rsync' as an administrator."))
