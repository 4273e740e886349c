"""The filter new_run: a run's name is safe, meaningful and unique; its task and what it reserves are known before it is sent."""

import re
import time
from pathlib import Path

import pytest
from project import load

cluster_spec = load("plugins/filter/cluster_spec.py").cluster_spec
filters = load("plugins/filter/new_run.py")
run_name = filters.run_name
Run = load("tf_cluster.run.runs").Run
TRAINING = {"jobs": ["worker"], "restarts": 0, "join": 60, "ends_with": "all", "busy": [], "min_tasks": ""}


def plan(tmp_path, *words, **more):
    """Return a run of demo.py on a cluster of the machines a and b (worker) and c (chief, host)."""
    groups = {"all": ["a", "b", "c"], "worker": ["a", "b"], "chief": ["c"], "host": ["c"]}
    cluster = cluster_spec(groups, {name: {"ansible_host": f"10.0.0.{place}"} for place, name in enumerate("abc", 1)})
    return filters.new_run({**cluster, "output": str(tmp_path)}, "demo.py", *words, **more)


@pytest.mark.parametrize(
    ("program", "stem"),
    [
        ("demo.py", "demo"),
        ("/somewhere/else/my_model-2.py", "my_model-2"),
        ("a b; rm -rf.py", "a-b-rm--rf"),
        ("모델.py", "program"),
        ("/", "program"),
        ("", "program"),
        (5, "program"),
        (["x"], "program"),
        ("train.v2.py", "train-v2"),
        ("a\nb.py", "a-b"),
        (f"{'x' * 300}.py", "x" * 40),
    ],
)
def test_a_run_name_has_the_time_the_program_and_a_random_suffix(program, stem, tmp_path):
    run_id = run_name(program, tmp_path)["id"]
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{re.escape(stem)}-[0-9a-f]{{4}}", run_id)
    assert Run(run_id).id == run_id


def test_run_names_sort_by_time(tmp_path, monkeypatch):
    moments = iter([time.gmtime(second) for second in (1_000_000_000, 1_000_000_001, 1_999_999_999)])
    monkeypatch.setattr(time, "gmtime", lambda: next(moments))
    names = [run_name("demo.py", tmp_path)["id"] for _each in range(3)]
    assert names == sorted(names)
    assert names[0].startswith("20010909-014640-demo-")


def test_runs_of_the_same_second_have_different_names(tmp_path):
    assert len({run_name("demo.py", tmp_path)["id"] for _each in range(5)}) > 1


def test_the_run_folder_is_an_absolute_path_below_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = run_name("demo.py", "output")
    assert Path(name["folder"]) == tmp_path / "output" / name["id"]


def test_since_is_at_most_three_seconds_before_the_current_time(tmp_path):
    assert time.time() - 3 < run_name("demo.py", tmp_path)["since"] < time.time()


def test_the_run_name_contains_the_given_name(tmp_path):
    assert "-my-first-try-" in run_name("demo.py", tmp_path, "my first try")["id"]


def test_a_run_is_named_after_the_given_link(tmp_path):
    (tmp_path / "v3.py").write_text("", encoding="utf-8")
    (tmp_path / "latest.py").symlink_to("v3.py")
    assert "-latest-" in run_name(str(tmp_path / "latest.py"), tmp_path)["id"]


def test_a_run_is_planned_with_its_machine_and_reservation(tmp_path):
    run = plan(tmp_path, task="chief:0", tasks=1)
    assert (run["task"], run["machine"], run["training"], run["problems"]) == ("chief:0", "c", {}, [])
    assert run["reserves"]["count"] == 1


def test_a_training_chooses_the_task_and_has_the_id_of_the_run(tmp_path):
    run = plan(tmp_path, tasks=["worker:1"], options=TRAINING)
    assert (run["task"], run["machine"], run["training"]["id"], run["problems"]) == ("worker:1", "b", run["id"], [])
    assert run["training"]["machines"] == {"worker:1": "b"}


@pytest.mark.parametrize("tasks", [["worker:1"], ["chief:0", "worker:1"], "chief:0,worker:1"])
def test_the_chief_of_train_jobs_takes_part_in_a_training_of_named_tasks(tmp_path, tasks):
    run = plan(tmp_path, tasks=tasks, options=TRAINING | {"jobs": "chief,worker"})
    assert (run["task"], run["problems"], list(run["training"]["machines"])) == ("chief:0", [], ["chief:0", "worker:1"])
    assert run["reserves"]["names"] == ["worker:1"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"options": TRAINING | {"jobs": "chief,worker"}, "tasks": ["chief:0"]}, "run_tasks contains only chief:0."),
        ({"options": TRAINING, "tasks": ["chief:0"]}, "run_tasks contains chief:0, which has no standing server."),
        ({"task": "worker:0"}, "run_task is 'worker:0', which has a standing server."),
        ({"task": ["host:0"]}, "run_task is ['host:0'], which is not a task of the cluster."),
        ({"task": {}}, "run_task is {}, which is not a task of the cluster."),
        ({"tasks": 7}, "run_tasks is 7. Set a number up to 2"),
        ({"options": TRAINING, "tasks": 7}, "run_tasks is 7. Set a number up to 2"),
        ({"options": TRAINING | {"jobs": []}}, "train_jobs is empty."),
    ],
)
def test_invalid_values_of_a_run_are_reported(tmp_path, given, words):
    [sentence] = plan(tmp_path, **given)["problems"]
    assert sentence.startswith(words)


def test_the_task_of_a_training_cannot_be_set(tmp_path):
    [sentence] = plan(tmp_path, task="host:0", options=TRAINING)["problems"]
    assert sentence.startswith("run_task is 'host:0'. A training runs on all tasks of train_jobs.")
