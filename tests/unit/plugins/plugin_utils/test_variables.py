"""The variables of this project: misspelt names."""

import pytest
from project import load

variables = load("plugins/plugin_utils/variables.py")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("detatch", "detach"),
        ("alow_missing", "allow_missing"),
        ("progam", "program"),
        ("traces", "trace"),
        ("run_timout", "run_timeout"),
        ("train_job", "train_jobs"),
        ("benchmark_second", "benchmark_seconds"),
        ("lab_nam", "lab_name"),
        *variables.RENAMED.items(),
    ],
)
def test_a_misspelt_variable_of_a_command_is_reported(name, meant):
    assert variables.option_problems([name]) == [f"Unknown variable {name}. Did you mean {meant}?"]


@pytest.mark.parametrize(
    "name", ["runs", "racer", "my_run", "program_dir", "tf_version", "tf_outputs", "tower_user_name", "ansible_user"]
)
def test_command_variables_of_other_tools_are_ignored(name):
    assert variables.option_problems([name]) == []


def test_the_new_name_of_each_renamed_variable_exists():
    assert variables.option_problems(variables.RENAMED.values()) == []
    assert set(variables.RENAMED.values()) <= variables.known_variables()
