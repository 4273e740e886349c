"""The filter task_environments: what a task is started with, and when that changes."""

import shlex

import pytest
from project import ROOT, load

filters = load("plugins/filter/task_environments.py")
DEFAULTS = {"gpu_memory_fraction": 0.2, "gpu_allow_growth": True, "visible_gpus": ""}


def tasks(*options):
    """Return worker tasks, one for each of the options."""
    return [
        {"job": "worker", "index": i, "name": f"worker-{i}", "options": {**DEFAULTS, **given}} for i, given in enumerate(options)
    ]


def environments(*options, common="spec"):
    """Return the environments of worker tasks with these options."""
    return filters.task_environments(tasks(*options), common)


def variables(environment):
    """Return the variables in an environment file, quotes read as systemd reads them."""
    return dict(word.split("=", 1) for word in shlex.split(environment["file"]["content"], comments=True))


def test_a_task_is_told_its_name_and_its_options():
    [environment] = environments({"gpu_memory_fraction": 0.5})
    assert environment["name"] == "worker-0"
    assert environment["file"]["path"] == "/etc/tf-cluster/tasks/worker-0.env"
    assert variables(environment) == {
        "TF_TASK_JOB": "worker",
        "TF_TASK_INDEX": "0",
        "TF_TASK_GPU_MEMORY_FRACTION": "0.5",
        "TF_TASK_GPU_ALLOW_GROWTH": "true",
        "TF_TASK_VISIBLE_GPUS": "",
        "TF_TASK_INPUTS": environment["inputs"],
    }


def test_the_file_ends_with_a_line_end():
    assert environments({})[0]["file"]["content"].endswith("\n")


@pytest.mark.parametrize("text", ["0,1", 'a"b', "a\\b", "a b", "# a", "$HOME", "'", '\\"', "a;b", "é"])
def test_a_value_comes_out_of_its_quotes_as_it_went_in(text):
    [environment] = environments({"visible_gpus": text})
    assert variables(environment)["TF_TASK_VISIBLE_GPUS"] == text


def test_a_value_does_not_break_out_of_its_line():
    [environment] = environments({"visible_gpus": '0" TF_TASK_JOB="ps'})
    assert variables(environment)["TF_TASK_JOB"] == "worker"


@pytest.mark.parametrize(("switch", "text"), [(True, "true"), (False, "false")])
def test_a_switch_is_written_as_create_server_reads_it(switch, text):
    assert variables(environments({"gpu_allow_growth": switch})[0])["TF_TASK_GPU_ALLOW_GROWTH"] == text


@pytest.mark.parametrize("change", [{"gpu_memory_fraction": 0.9}, {"visible_gpus": "1"}, {"intra_op_threads": 2}])
def test_a_change_of_one_task_changes_that_task_alone(change):
    before, after = environments({}, {}, {}), environments({}, change, {})
    assert [old == new for old, new in zip(before, after)] == [True, False, True]
    assert before[1]["inputs"] != after[1]["inputs"]


def test_a_change_of_what_they_have_in_common_changes_all():
    before, after = environments({}, {}), environments({}, {}, common="another spec")
    assert not {task["inputs"] for task in before} & {task["inputs"] for task in after}


def test_a_task_more_changes_no_other():
    assert environments({}, {}, {})[:2] == environments({}, {})


def test_the_order_of_the_options_does_not_matter():
    options = {"visible_gpus": "1", "gpu_allow_growth": False}
    assert environments(options) == environments(dict(reversed(options.items())))


def test_the_options_of_a_task_are_left_as_they_were():
    given = tasks({"visible_gpus": "1"})
    filters.task_environments(given, "")
    assert given == tasks({"visible_gpus": "1"})


def test_a_program_is_a_file_that_may_be_run():
    file = filters.program_file("ready.py", ROOT / "files", "/opt/tf-cluster/bin")
    assert file == {
        "path": "/opt/tf-cluster/bin/ready.py",
        "content": (ROOT / "files/ready.py").read_text(encoding="utf-8"),
        "mode": "0755",
    }
