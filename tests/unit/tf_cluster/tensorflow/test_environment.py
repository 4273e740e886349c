"""environment.py: it notices an incomplete environment, and replaces it completely or not at all."""

import errno
import fcntl
import json
import os
import sys
import tarfile

import pytest
from project import call, load

MADE_OF = "locked Python 3.11"
# Stands for uv: makes an environment with two files, or does what its list of packages says.
UV = """#!/bin/sh
case "$1" in
venv) for last; do true; done; mkdir -p "$last/lib"; ln -s /usr/bin/python3 "$last/python" ;;
pip) . ./requirements.txt; echo 1 > "$VIRTUAL_ENV/lib/a.py"; echo 22 > "$VIRTUAL_ENV/lib/b.py" ;;
esac
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Return a plan whose packages lie ready."""
    monkeypatch.setattr(environment, "LOCK", str(tmp_path / "lock"))
    plan = {
        "venv": str(tmp_path / "opt/venv"), "made_of": MADE_OF, "packages": str(tmp_path / "wheels.tar"),
        "work": str(tmp_path / "opt/packages"),
        "python": "python3", "sync": ["./uv", "pip", "sync"], "settings": {}, "before": ["true"], "timeout": 5,
    }  # fmt: skip
    send(plan)
    return plan


environment = load("tf_cluster.tensorflow.environment")


def send(plan, requirements=""):
    """Put the packages where they are sent to."""
    with tarfile.open(plan["packages"], "w") as tar:
        for name, text in (("uv", UV), ("requirements.txt", requirements)):
            path = os.path.join(os.path.dirname(plan["packages"]), name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(path, 0o755)
            tar.add(path, name)


def left(plan):
    """Return the names next to the environment."""
    return [path for path in (plan["work"], plan["packages"]) if os.path.lexists(path)]


def test_an_environment_is_created_and_found_complete(plan):
    assert environment.look(plan["venv"]) == {"made_of": "", "id": "", "whole": False}
    made = environment.make(plan)
    assert made == {"made": True, "id": environment.digest(plan["venv"])}
    assert environment.look(plan["venv"]) == {"made_of": MADE_OF, "id": made["id"], "whole": True}
    assert left(plan) == []


def test_a_complete_environment_is_not_created_again(plan):
    """If two calls create it at once, the second finds the environment that the first created."""
    environment.make(plan)
    send(plan)
    assert environment.make(plan)["made"] is False
    assert left(plan) == [plan["packages"]]  # which the action removes that has sent it


@pytest.mark.parametrize(
    "damage",
    [
        lambda venv: (venv / "lib/a.py").unlink(),
        lambda venv: (venv / "lib/b.py").write_bytes(b""),
        lambda venv: (venv / "lib/c.py").write_bytes(b"more"),
        lambda venv: os.utime(venv / "lib/a.py", (1, 1)),
        lambda venv: (venv / "made-of").unlink(),
        lambda venv: (venv / "made-of").write_bytes(b"\xff"),
        lambda venv: (venv / "python").unlink(),
        lambda venv: venv.rename(venv.parent / "away"),
        lambda venv: (venv.rename(venv.parent / "away"), venv.write_text("a file")),
    ],
)
def test_damage_is_detected_and_repaired(plan, tmp_path, damage):
    environment.make(plan)
    damage(tmp_path / "opt/venv")
    assert environment.look(plan["venv"])["whole"] is False
    send(plan)
    assert environment.make(plan)["made"] is True
    assert environment.look(plan["venv"])["whole"] is True


@pytest.mark.parametrize("name", ["lib/tf-cluster.pth", "lib/__pycache__/a.cpython-311.pyc", "byte-compiled", ".lock"])
def test_files_of_other_programs_are_not_damage(plan, tmp_path, name):
    environment.make(plan)
    (tmp_path / "opt/venv" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "opt/venv" / name).write_text("/opt/tf-cluster/lib\n", encoding="utf-8")
    assert environment.look(plan["venv"])["whole"] is True


def test_an_environment_for_other_packages_is_created_again(plan):
    environment.make(plan)
    send(plan)
    assert environment.make({**plan, "made_of": "another list"})["made"] is True


def test_an_environment_that_cannot_be_renamed_is_replaced(plan, monkeypatch):
    """As in a container whose image has it."""
    environment.make(plan)
    send(plan)
    rename = os.rename

    def refuse(source, target):
        if str(target).endswith("/old"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    assert environment.make({**plan, "made_of": "another list"})["made"] is True
    assert environment.look(plan["venv"])["made_of"] == "another list"


def test_each_created_environment_has_a_different_id(plan, tmp_path):
    first = environment.make(plan)["id"]
    (tmp_path / "opt/venv/lib/a.py").unlink()
    send(plan, "sleep 1.1")
    assert environment.make(plan)["id"] != first


@pytest.mark.parametrize(
    ("requirements", "words"), [("echo no such package >&2; exit 2", "no such package"), ("sleep 9", "timed out after 1 s")]
)
def test_a_failure_is_reported_and_keeps_the_old_environment(plan, requirements, words):
    environment.make(plan)
    send(plan, requirements)
    assert words in environment.make({**plan, "made_of": "another list", "timeout": 1})["failure"]
    assert environment.look(plan["venv"])["whole"] is True
    send(plan)
    assert environment.make({**plan, "made_of": "another list"})["made"] is True
    assert left(plan) == []


def test_a_wait_for_another_call_times_out(plan):
    with open(environment.LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "waiting for another site.yml" in environment.make({**plan, "timeout": 0})["failure"]


def test_a_call_that_waits_for_another_reports_it(plan, monkeypatch):
    monkeypatch.setattr(environment, "RETRY_SECONDS", 1)
    plan["timeout"] = 3
    with open(environment.LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = environment.make(plan)
        assert answer["lines"] == [f"waiting for another site.yml on {os.uname().nodename} (0 s)"]
        [again] = map(json.loads, answer["next"])
        assert environment.make(again)["lines"] == []  # a line every ten seconds
        assert environment.make({**again, "reported": -10})["lines"] != []
        assert "Timed out after 3 s" in environment.make({**again, "since": again["since"] - 3})["failure"]
    assert environment.make(again)["made"] is True


@pytest.mark.parametrize("content", [None, b"", b"not a tar file"])
def test_missing_or_invalid_packages_are_reported(plan, content):
    os.unlink(plan["packages"])
    if content is not None:
        with open(plan["packages"], "wb") as file:
            file.write(content)
    done = call("tf_cluster.tensorflow.environment", json.dumps(plan), plan["packages"], python=(sys.executable,))
    assert "could not be installed" in json.loads(done.stdout)["failure"]
