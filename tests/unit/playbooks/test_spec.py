"""The playbooks spec.yml and command.yml: errors in a command or an inventory are reported before a machine is reached."""

import json
import os
import re
import shutil
import subprocess

import pytest
from project import ROOT

COMMANDS = re.findall(
    r"`((?:playbooks/)?[a-z_]+\.yml)`", (ROOT / "docs/reference.md").read_text(encoding="utf-8").split("\n## ")[1]
)
INVENTORY = "[worker]\nw0 ansible_host=192.0.2.1\n[host]\nh ansible_host=192.0.2.2\n"


@pytest.fixture
def playbook(tmp_path):
    """Return a function that calls a playbook on an inventory whose machines cannot be reached."""

    def playbook(*words, more="", **environment):
        (tmp_path / "hosts.ini").write_text(INVENTORY + more, encoding="utf-8")
        kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("ANSIBLE_")}
        return subprocess.run(
            ["ansible-playbook", f"--inventory={tmp_path}/hosts.ini", *words], cwd=ROOT, capture_output=True, text=True,
            timeout=120, check=False, env={**kept, **environment},
        )  # fmt: skip

    return playbook


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("example", ["10.10.100.87:2222", "10.10.102.74:2222", "10.10.100.87:2223"]),
        ("workstation", ["127.0.0.1:2222", "127.0.0.1:2224", "127.0.0.1:2223"]),
        ("lab", ["10.89.77.10:2222", "10.89.77.11:2222", "10.89.77.20:2223"]),
    ],
)
def test_each_inventory_can_be_copied_and_shown(tmp_path, name, entries):
    """As the README says for your own machines."""
    shutil.copytree(ROOT / "inventory" / name, tmp_path / "mine")
    command = ["ansible-playbook", f"--inventory={tmp_path}/mine", "playbooks/show_spec.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, said(done)
    assert re.findall(r'"([0-9.]+:\d+)"', done.stdout) == entries, said(done)


def said(done):
    """Return what a command printed as one line."""
    return " ".join((done.stdout + done.stderr).split())


def problems(done):
    """Return the lines of the last message of a command that printed JSON."""
    return json.loads(done.stdout)["plays"][-1]["tasks"][-1]["hosts"]["w0"]["msg"].splitlines()


def test_an_unknown_tag_fails_with_limit(playbook):
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


def test_a_stage_cannot_be_skipped_because_its_checks_would_be_too(playbook):
    done = playbook("site.yml", "--skip-tags=cuda,server")
    assert done.returncode == 2
    assert "--skip-tags cuda,server would skip the checks as well. Name the stages that are to run with --tags." in said(done)


@pytest.mark.parametrize("name", ["status", "logs", "runs", "lab_down"])
def test_a_playbook_that_works_on_the_controller_needs_it_in_limit(playbook, name):
    done = playbook(f"playbooks/{name}.yml", "--limit=h")
    assert done.returncode == 2
    assert "--limit leaves out localhost, on which this playbook works too. Add it, as in --limit h,localhost" in said(done)


def test_cancel_accepts_a_list_with_one_run(playbook):
    """Run on this machine, where no cluster is installed."""
    local = json.dumps({"run": ["no-such-run"], "ansible_connection": "local", "ansible_become": False})
    done = playbook("playbooks/cancel.yml", f"--extra-vars={local}")
    assert done.returncode == 2
    assert re.search("python is missing on this machine|there is no such run", said(done)), said(done)


def test_every_playbook_checks_its_tags_and_variables(playbook):
    """With an unknown tag, Ansible lists only the tasks that always run."""
    names = list(dict.fromkeys(COMMANDS))
    assert {"site.yml", "run_demo.yml", "playbooks/run.yml", "playbooks/lab_down.yml"} <= set(names)
    done = playbook("--list-tasks", "--tags=nosuch", *names)
    listed = dict(part.split("\n", 1) for part in done.stdout.split("\nplaybook: ")[1:])
    assert list(listed) == names
    check = "Report problems of the controller, the inventory and the command"
    assert [name for name in names if check not in listed[name]] == []


def test_a_misspelt_variable_of_a_command_fails_before_the_next_play(playbook, tmp_path):
    (tmp_path / "more.yml").write_text("alow_missing: 1\n", encoding="utf-8")
    given = ["--extra-vars=detatch=true run_wait={{ none }}", f"--extra-vars=@{tmp_path}/more.yml", "--extra-vars={tf_task: 2}"]
    done = playbook("playbooks/lab_down.yml", "--check", *given, ANSIBLE_STDOUT_CALLBACK="json")
    assert done.returncode == 2
    assert problems(done) == [
        "Unknown variable detatch. Did you mean detach?",
        "Unknown variable run_wait. Did you mean run_queue_timeout?",
        "Unknown variable alow_missing. Did you mean allow_missing?",
        "Unknown variable tf_task. Did you mean tf_tasks?",
    ]


def test_variables_of_other_tools_are_ignored_and_not_evaluated(playbook):
    more = "[all:vars]\nprograms=[]\nruns={{ 1 / 0 }}\ntf_version=1.9\n"
    done = playbook("playbooks/show_spec.yml", "--extra-vars=terraform_run={{ nosuch }}", more=more)
    assert done.returncode == 0, said(done)


def test_each_inventory_problem_is_a_separate_line(playbook):
    more = "[all:vars]\ntf_task={'worker': 2}\n"
    done = playbook("playbooks/show_spec.yml", more=more, ANSIBLE_STDOUT_CALLBACK="json")
    assert done.returncode == 2
    assert problems(done) == [
        "The inventory cannot be used.",
        "w0: unknown variable tf_task. Did you mean tf_tasks?",
        "h: unknown variable tf_task. Did you mean tf_tasks?",
    ]


def test_a_variable_that_cannot_be_evaluated_is_a_problem_like_the_others(playbook):
    more = "[all:vars]\ntf_task=1\n[host:vars]\ntf_tasks={'host': [{'port': '{{ nosuch }}'}]}\ntf_address={{ 1 / 0 }}\n"
    done = playbook("playbooks/show_spec.yml", more=more, ANSIBLE_STDOUT_CALLBACK="json")
    assert done.returncode == 2
    assert problems(done) == [
        "The inventory cannot be used.",
        "w0: unknown variable tf_task. Did you mean tf_tasks?",
        "h: unknown variable tf_task. Did you mean tf_tasks?",
        "h: cannot evaluate tf_address: Error rendering template: division by zero",
        "h: cannot evaluate tf_tasks: 'nosuch' is undefined",
    ]


def test_the_tag_spec_connects_to_no_machine(playbook):
    done = playbook("site.yml", "--tags=spec")
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize("strategy", ["free", "ansible.builtin.host_pinned"])
def test_an_unsupported_strategy_is_rejected(playbook, strategy):
    done = playbook("playbooks/show_spec.yml", ANSIBLE_STRATEGY=strategy)
    assert done.returncode == 2
    assert f"Ansible's strategy '{strategy.rpartition('.')[2]}' is not supported" in said(done)


def test_the_output_of_the_json_callback_is_valid_json(playbook):
    done = playbook("playbooks/show_spec.yml", ANSIBLE_STDOUT_CALLBACK="json")
    assert json.loads(done.stdout)["stats"]["h"]["ok"] == 1
