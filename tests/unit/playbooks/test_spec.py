"""The playbook spec.yml: what is wrong with a command is said before a machine is reached."""

import json
import os
import subprocess

import pytest
from project import ROOT

INVENTORY = "[worker]\nw0 ansible_host=192.0.2.1\n[host]\nh ansible_host=192.0.2.2\n"


@pytest.fixture
def playbook(tmp_path):
    """Return a function that calls a playbook on an inventory whose machines cannot be reached."""
    (tmp_path / "hosts.ini").write_text(INVENTORY, encoding="utf-8")

    def playbook(name, *words, **environment):
        kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("ANSIBLE_")}
        return subprocess.run(
            ["ansible-playbook", f"--inventory={tmp_path}/hosts.ini", name, *words], cwd=ROOT, capture_output=True, text=True,
            timeout=120, check=False, env={**kept, **environment},
        )  # fmt: skip

    return playbook


def said(done):
    """Return what a command printed as one line."""
    return " ".join((done.stdout + done.stderr).split())


def test_an_unknown_tag_fails_with_a_limit_too(playbook):
    done = playbook("site.yml", "--tags=nosuch", "--limit=h")
    assert done.returncode == 2
    assert "Unknown tags: nosuch." in said(done)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "site.yml",
            "Unknown tags: nosuch. Known tags: lab, spec, preflight, cuda, tensorflow, tunnel, firewall, server, ready.",
        ),
        ("playbooks/run.yml", "Unknown tags: nosuch. This playbook has no tags. Call it without --tags."),
    ],
)
def test_an_unknown_tag_fails(playbook, name, words):
    done = playbook(name, "--tags=nosuch")
    assert done.returncode == 2
    assert words in said(done)


def test_the_tag_spec_reaches_no_machine(playbook):
    done = playbook("site.yml", "--tags=spec")
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize("strategy", ["free", "ansible.builtin.host_pinned"])
def test_a_strategy_without_common_steps_is_refused(playbook, strategy):
    done = playbook("playbooks/show_spec.yml", ANSIBLE_STRATEGY=strategy)
    assert done.returncode == 2
    assert f"Ansible's strategy '{strategy.rpartition('.')[2]}' is not supported" in said(done)


def test_the_json_of_a_callback_is_json(playbook):
    done = playbook("playbooks/show_spec.yml", ANSIBLE_STDOUT_CALLBACK="json")
    assert json.loads(done.stdout)["stats"]["h"]["ok"] == 1
