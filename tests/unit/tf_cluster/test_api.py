"""api.py without TensorFlow: the cluster of the environment, names of tasks, results, steps."""

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import load

SPEC = {"worker": ["10.0.0.1:2222", "[fd00::1]:2222"], "ps": ["10.0.0.3:2224"], "host": ["10.0.0.3:2223"]}


@pytest.fixture
def helper(monkeypatch, tmp_path):
    """Return the helper, loaded afresh, in an empty folder and with no cluster in its environment."""
    for name in ("TF_CONFIG", "TF_CLUSTER_CONFIG", "TF_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return importlib.reload(load("tf_cluster.api"))


@pytest.fixture
def in_cluster(helper, monkeypatch):
    """Return the helper as a run's program finds it."""
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": SPEC, "task": {"type": "host", "index": 0}}))
    return helper


def test_the_cluster_is_read_from_config_json_in_the_current_folder(helper):
    Path("config.json").write_text(json.dumps(SPEC), encoding="utf-8")
    assert helper.cluster() == SPEC
    assert helper.task() == ("host", 0)


def test_the_cluster_is_read_from_the_file_in_tf_cluster_config(helper, monkeypatch, tmp_path):
    Path("config.json").write_text('{"worker": ["10.9.9.9:1"]}', encoding="utf-8")
    (tmp_path / "other.json").write_text(json.dumps(SPEC), encoding="utf-8")
    monkeypatch.setenv("TF_CLUSTER_CONFIG", str(tmp_path / "other.json"))
    assert helper.cluster() == SPEC


def test_tf_config_takes_precedence_over_config_json(helper, monkeypatch):
    Path("config.json").write_text('{"worker": ["10.9.9.9:1"]}', encoding="utf-8")
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": SPEC, "task": {"type": "worker", "index": 1}}))
    assert helper.cluster() == SPEC
    assert helper.task() == ("worker", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"worker": "a:1"}', '{"worker": ["a"]}', '{"worker": [1]}'])
def test_an_invalid_config_json_is_an_error(helper, text):
    Path("config.json").write_text(text, encoding="utf-8")
    with pytest.raises(helper.ClusterError, match=r"config\.json"):
        helper.cluster()


def test_a_missing_cluster_is_an_error(helper):
    with pytest.raises(helper.ClusterError, match="Set TF_CONFIG or TF_CLUSTER_CONFIG"):
        helper.cluster()


@pytest.mark.parametrize("config", ["{", '{"cluster": {}, "task": 3}', '{"task": {"index": "x"}}', '{"task": []} x'])
def test_an_invalid_tf_config_is_an_error(helper, monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(helper.ClusterError, match="TF_CONFIG"):
        helper.task()


def test_tasks_have_the_names_that_tensorflow_uses(in_cluster):
    assert in_cluster.on("worker", 1) == "/job:worker/task:1"
    assert in_cluster.on("worker", 1, gpu=0) == "/job:worker/task:1/device:GPU:0"
    assert in_cluster.on("ps", cpu=0) == "/job:ps/task:0/device:CPU:0"
    assert in_cluster.tasks("host") == ["/job:host/task:0"]
    assert in_cluster.tasks() == ["/job:worker/task:0", "/job:worker/task:1", "/job:ps/task:0"]


@pytest.mark.parametrize("task", [("worker", 2), ("worker", -1), ("trainer", 0)])
def test_an_unknown_task_is_an_error(in_cluster, task):
    with pytest.raises(in_cluster.ClusterError, match=r"no task .* it has host:0, ps:0, worker:0, worker:1$"):
        in_cluster.on(*task)


def test_an_unknown_job_is_an_error(in_cluster):
    with pytest.raises(in_cluster.ClusterError, match="no job trainer; it has host, ps, worker"):
        in_cluster.tasks("trainer")


class Array:
    """Stands for an array, a scalar or a tensor of a library."""

    def __init__(self, value, method):
        setattr(self, method, lambda: value)


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("é", "é"),
        (math.nan, None),
        ([1, (2, math.inf), {3}], [1, [2, None], [3]]),
        ({"a": {1: -math.inf}}, {"a": {"1": None}}),
        (b"a\xff", "a\N{REPLACEMENT CHARACTER}"),
        (Path("a/b"), "a/b"),
        (Array([[1.0, math.nan]], "tolist"), [[1.0, None]]),
        ({"t": Array(SimpleNamespace(tolist=lambda: [2]), "numpy")}, {"t": [2]}),
        (Array(SimpleNamespace(tolist=lambda: [b"x"]), "numpy"), ["x"]),
    ],
)
def test_a_result_is_converted_to_json(helper, monkeypatch, tmp_path, value, left):
    monkeypatch.setenv("TF_RUN_DIR", str(tmp_path))
    assert helper.save_result(value) == tmp_path / "result.json"
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == left
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_result_that_json_cannot_hold_keeps_the_old_result(helper):
    helper.save_result(1)
    with pytest.raises(TypeError, match="cannot hold"):
        helper.save_result({"a": object()})
    assert json.loads(Path("result.json").read_text(encoding="utf-8")) == 1


def test_a_step_is_printed_as_a_line(helper, capsys):
    helper.step(40, of=100, every=0, loss=0.25, name="a")
    helper.step(41, every=0, loss=Array(1 / 3, "numpy"))
    assert capsys.readouterr().out == "step 40 of 100, loss 0.25, name a\nstep 41, loss 0.333333\n"


def test_many_steps_give_few_lines_with_the_first_and_the_last_step(helper, capsys):
    for number in range(10_000):
        helper.step(number + 1, of=10_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1 of 10000"
    assert lines[-1] == "step 10000 of 10000"
    assert len(lines) < 10


def test_tasks_that_do_not_answer_are_named_during_and_after_the_wait(in_cluster, monkeypatch, capsys):
    monkeypatch.setattr(in_cluster, "answers", lambda _name, entry: entry != "[fd00::1]:2222")
    clock = iter(range(1000))
    monkeypatch.setattr(in_cluster.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(in_cluster.time, "sleep", lambda _seconds: None)
    with pytest.raises(in_cluster.ClusterError, match=r"no answer after \d+ s from worker:1 at \[fd00::1\]:2222$"):
        in_cluster._await_tasks(60)
    said = capsys.readouterr().err.splitlines()
    assert 3 <= len(said) <= 7
    assert said[0].startswith("tf_cluster: waiting for worker:1 at [fd00::1]:2222 (")


@pytest.mark.parametrize("entry", ["127.0.0.1:1", "no.such.name.invalid:2222", "[::1]:1"])
def test_an_address_without_a_server_does_not_answer(helper, entry):
    assert not helper.answers(("worker", 0), entry)
