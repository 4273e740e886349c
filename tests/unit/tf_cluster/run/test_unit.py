"""run/unit.py: what a run's unit is started with."""

import functools
import json
import os
from pathlib import Path

import pytest
from project import load
from run_helpers import plan

run_program = load("tf_cluster.run.program")
unit = load("tf_cluster.run.unit")


def test_packages_of_a_run_are_installed_before_it_starts(started, run):
    assert not any(word.startswith("--property=ExecStartPre=") for word in started()[1])
    (run.folder / "run.json").unlink()
    (run.folder / "layer/packages").mkdir(parents=True)
    [install] = [word for word in started()[1] if word.startswith("--property=ExecStartPre=")]
    assert f"--target {run.folder}/layer/packages --find-links {run.folder}/layer/wheels" in install


def test_the_installation_of_packages_has_a_separate_timeout(started, run):
    (run.folder / "layer/packages").mkdir(parents=True)
    answer, command = started()
    assert answer["lines"] == ["installing the packages of the run"]
    assert "--property=TimeoutStartSec=1800" in command
    assert "--no-block" in command


def test_a_run_is_started_with_its_environment_its_arguments_and_its_limits(started, run, request):
    request.addfinalizer(functools.partial(os.umask, os.umask(0o077)))  # as in a unit that starts the next run at its end
    answer, command = started()
    assert (run.folder / "config.json").stat().st_mode & 0o777 == 0o640
    assert answer["next"] == ["follow", run.id]
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    assert json.loads(Path(given["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8")) == run_program.cluster_config.load(
        run_program.CONFIG
    )
    assert given["TF_RUN_DIR"] == str(run.folder / "results")
    assert json.loads(given["TF_CONFIG"])["task"] == {"type": "host", "index": 0}
    assert given["PYTHONPATH"].split(":") == [str(unit.STARTUP), str(run.folder / "layer/packages")]
    assert given["no_grpc_proxy"] == "10.0.0.1,10.0.0.3,fd00::1"
    assert given["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert command[-3:] == ["demo.py", "--", "5 $$HOME"]
    assert "--most=500000" in command
    assert f"--unit=tf-run-host-0-{run.id}.service" in command
    assert "--property=RuntimeMaxSec=60.0" in command
    assert run.read()["timeout"] == 60.0
    assert "TF_CLUSTER_TRACE" not in given


def test_a_program_whose_name_looks_like_an_option_is_started_as_a_program(started):
    _answer, command = started(program="-c.py")
    assert command[-3:] == ["./-c.py", "--", "5 $$HOME"]


def test_a_run_can_start_without_missing_tasks(started, run):
    _answer, command = started(missing=["10.0.0.1:2222"])
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    spec = {"worker": ["[fd00::1]:2222"], "host": ["10.0.0.3:2223"]}
    assert json.loads((run.folder / "config.json").read_text(encoding="utf-8")) == spec
    assert json.loads(given["TF_CONFIG"])["cluster"] == spec
    assert given["TF_CLUSTER_MISSING"] == "worker:0"
    assert given["TF_CLUSTER_PARTIAL"] == "1"
    assert run.read()["left_out"] == ["worker:0"]
    assert run.read()["names"] == {"worker:0": "worker:1", "host:0": "host:0"}


def test_a_job_without_remaining_tasks_is_not_in_the_spec():
    spec, names = unit.spec_without({"worker": ["a:1", "b:1"], "ps": ["c:1"]}, ["c:1"])
    assert spec == {"worker": ["a:1", "b:1"]}
    assert names == {"worker:0": "worker:0", "worker:1": "worker:1"}


def test_the_environment_and_the_notes_of_a_traced_run_have_the_trace_option(started, run):
    _answer, command = started(trace=True)
    assert "--setenv=TF_CLUSTER_TRACE=1" in command
    assert run.read()["trace"] is True


def before_the_program(command):
    """Return the commands that a unit runs before the program."""
    return [word.partition("-m ")[2] for word in command if word.startswith("--property=ExecStartPre=")]


def test_servers_are_cleared_before_a_run_only_if_they_can_hold_state(started, run):
    assert before_the_program(started()[1]) == []
    (run.folder / "run.json").unlink()
    command = started(held=["10.0.0.1:2222"])[1]
    assert before_the_program(command) == ["tf_cluster.run.clear"]
    assert "--no-block" in command


def test_the_option_to_keep_state_is_passed_to_the_unit(started, run):
    assert "--setenv=TF_CLUSTER_KEEP_STATE=1" not in started()[1]
    (run.folder / "run.json").unlink()
    assert "--setenv=TF_CLUSTER_KEEP_STATE=1" in started(keep=True)[1]


def test_keras_2_is_chosen_in_the_environment_of_the_program(started, run):
    assert not any("TF_USE_LEGACY_KERAS" in word for word in started()[1])
    (run.folder / "run.json").unlink()
    assert "--setenv=TF_USE_LEGACY_KERAS=1" in started(keras=2)[1]


@pytest.mark.parametrize("task", ["ps:0", "host:1", "host", "host:x", ":", ""])
def test_a_task_that_the_cluster_does_not_have_is_an_error(started, task):
    with pytest.raises(run_program.cluster_config.ConfigError):
        started(task=task)


SPEC = {"worker": ["a:2222"], "chief": ["b:2224"], "ps": ["b:2225"], "host": ["b:2223", "c:2223"]}


@pytest.mark.parametrize(
    ("job", "index", "seen"),
    [
        ("host", 0, {"worker": ["a:2222"], "ps": ["b:2225"], "host": ["b:2223"]}),
        ("host", 1, {"worker": ["a:2222"], "ps": ["b:2225"], "host": ["b:2223", "c:2223"]}),
        ("chief", 0, {"worker": ["a:2222"], "chief": ["b:2224"], "ps": ["b:2225"]}),
        ("worker", 0, {"worker": ["a:2222"], "ps": ["b:2225"]}),
    ],
)
def test_a_run_does_not_see_the_tasks_of_other_runs(job, index, seen):
    assert unit.spec_of_run(SPEC, job, index) == seen


def test_a_part_of_a_training_is_started_with_a_separate_cluster(started, run):
    answer, command = started(task="worker:1", training=plan(), detach=True)
    assert answer == {}
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    assert json.loads(given["TF_CONFIG"]) == {"cluster": plan()["cluster"], "task": {"type": "worker", "index": 1}}
    assert given["TF_CHECKPOINT_DIR"] == str(run.folder / "checkpoints")
    assert command[-3:] == ["-m", "tf_cluster.run.training", run.id]
    assert f"--unit=tf-run-worker-1-{run.id}.service" in command
    assert "--property=KillMode=mixed" in command
    assert "--property=RuntimeMaxSec=75.0" in command  # 60, 5 to join, and 10 to stop


def test_a_part_of_a_training_uses_the_shared_folder(started, run, monkeypatch, tmp_path):
    (tmp_path / "shared").write_text("/mnt/cluster\n", encoding="utf-8")
    monkeypatch.setattr(unit, "SHARED", tmp_path / "shared")
    _answer, command = started(task="worker:1", training=plan(), detach=True)
    given = dict(word.removeprefix("--setenv=").split("=", 1) for word in command if word.startswith("--setenv="))
    assert given["TF_SHARED_DIR"] == "/mnt/cluster"
    assert given["TF_CHECKPOINT_DIR"] == "/mnt/cluster/tf-cluster/r1/checkpoints"  # of the training, not of its part
    assert "--property=ReadWritePaths=-/mnt/cluster" in command
    assert "--no-block" in command
    assert any(
        word.startswith("--property=ExecStartPre=") and word.endswith(f"tf_cluster.run.shared {run.id}") for word in command
    )
