"""create_server.py as it is started by hand: what it says when it cannot serve."""

import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import call, free_port, load

# Python as a machine has it: the standard library alone, TensorFlow in particular is not there.
BARE = (sys.executable, "-S")


@pytest.fixture
def refused(tmp_path):
    """Return a function that starts the server on a config.json and returns its exit status and its one sentence."""

    def refused(content, *words, **variables):
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / "config.json").write_text(text, encoding="utf-8")
        done = call("files/create_server.py", *words, python=BARE, cwd=tmp_path, env={"PATH": os.environ["PATH"], **variables})
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        [sentence] = done.stderr.splitlines()
        assert sentence.startswith("create_server.py: ")
        return done.returncode, sentence.removeprefix("create_server.py: ")

    return refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json does not exist"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "is not a cluster spec"),
        ({"worker": []}, "job 'worker' is not a list of tasks"),
        ({"worker": ["10.0.0.1"]}, "task 0 of job 'worker'"),
        ({"worker": ["a:1", "a:1"]}, "is used twice"),
        ({"host": ["10.0.0.1:2222"]}, "has no job 'worker'; it has host"),
    ],
)
def test_an_invalid_config_is_reported_with_status_2(refused, content, words):
    status, sentence = refused(content, "--task=0")
    assert status == 2
    assert words in sentence


@pytest.mark.parametrize("task", ["1", "-1", "99999999999999999999"])
def test_a_task_that_is_not_in_the_config_is_refused(refused, task):
    status, sentence = refused({"worker": ["a:2222"]}, f"--task={task}")
    assert status == 2
    assert f"no task {task} of job 'worker'" in sentence


def test_another_config_can_be_set_by_an_option_or_the_environment(refused, tmp_path):
    assert refused(None, "--task=0", f"--config={tmp_path}/x.json")[1].startswith(f"{tmp_path}/x.json does not exist")
    assert refused(None, "--task=0", TF_CLUSTER_CONFIG=f"{tmp_path}/y.json")[1].startswith(f"{tmp_path}/y.json does not exist")


@pytest.mark.parametrize(
    ("words", "variables", "name"),
    [
        ((), {}, "--task"),
        (("--task=x",), {}, "--task"),
        (("--task=0", "--gpu-memory-fraction=half"), {}, "--gpu-memory-fraction"),
        (("--task=0",), {"TF_TASK_INTRA_OP_THREADS": "many"}, "--intra-op-threads"),
    ],
)
def test_an_invalid_option_is_named_with_status_2(words, variables, name):
    done = call("files/create_server.py", *words, python=BARE, env=variables)
    assert done.returncode == 2
    assert name in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_reported_with_its_process_and_status_1(refused):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status, sentence = refused({"host": [f"127.0.0.1:{port}"]}, "--job=host", "--task=0")
    assert status == 1
    assert sentence.startswith(f"port {port} of host:0 is in use by ")
    assert f"process {os.getpid()}" in sentence


def test_a_missing_tensorflow_is_reported_with_status_1(refused):
    status, sentence = refused({"worker": [f"127.0.0.1:{free_port()}"]}, "--task=0")
    assert status == 1
    assert "worker:0 could not start" in sentence
    assert "TensorFlow is not installed for " in sentence


def test_a_damaged_tensorflow_is_reported_with_status_1(refused, tmp_path):
    (tmp_path / "packages/tensorflow").mkdir(parents=True)
    status, sentence = refused({"worker": [f"127.0.0.1:{free_port()}"]}, "--task=0", PYTHONPATH=str(tmp_path / "packages"))
    assert status == 1
    assert f"TensorFlow in {tmp_path}/packages/tensorflow is damaged" in sentence


def test_proxy_variables_are_ignored(refused):
    status, sentence = refused({"worker": [f"127.0.0.1:{free_port()}"]}, "--task=0", http_proxy="http://127.0.0.1:1")
    assert status == 1
    assert "proxy" not in sentence


def test_the_identity_cannot_be_changed_and_is_published_only_under_systemd(monkeypatch):
    """The gate trusts the identity, and a graph can open every file that the server can open."""
    identity = load("tf_cluster.server.identity")
    card = identity.IDENTITY_PATH
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    identity.publish_identity({"worker": ["a:1", "b:1"]}, "worker", 1, "2.21.0")
    assert not os.path.exists(card)
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody")
    identity.publish_identity({"worker": ["a:1", "b:1"]}, "worker", 1, "2.21.0")
    try:
        for flags in (os.O_TRUNC, 0):
            with pytest.raises(PermissionError):
                os.write(os.open(card, os.O_WRONLY | flags), b"x")
        with open(card, encoding="utf-8") as file:
            assert json.load(file)["task"] == "worker:1"
        for text in ('{"r1": {}}', "{}"):  # the runs can change
            Path(identity.RUNS_PATH).write_text(text, encoding="utf-8")
            assert Path(identity.RUNS_PATH).read_text(encoding="utf-8") == text
    finally:
        os.close(identity.IDENTITY_DESCRIPTOR)
        os.close(identity.RUNS_DESCRIPTOR)


@pytest.mark.parametrize(
    ("text", "users"),
    [
        (b"", {}),
        (b"{}", {}),
        (b'{"r1": {"task": "host:0", "since": 5, "kept": true, "x": 1}}', {"r1": {"task": "host:0", "since": 5.0, "kept": True}}),
        (b"[]", None), (b"x", None), (b"\xff", None), (b'{"r1": {}}', None),
        (b'{"r1": {"task": "", "since": "x", "kept": 1}}', None),
    ],
)  # fmt: skip
def test_the_users_of_a_server_are_read_or_reported_as_damaged(text, users):
    control = load("tf_cluster.server.control")
    found = control.read_users(SimpleNamespace(fetch_bytes=lambda _name: text))
    assert found == (control.DAMAGED if users is None else users)
