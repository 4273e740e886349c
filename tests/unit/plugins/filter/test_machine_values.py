"""The filter machine_values."""

import pytest
from project import load

machine_values = load("plugins/filter/machine_values.py").machine_values
HOSTVARS = {
    "a": {"result": {"answer": 1}},
    "b": {"result": {"answer": None}},
    "c": {"result": {}},
    "d": {"result": "text"},
    "e": {},
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("result.answer", {"a": 1, "b": None}),
        ("result", {"a": {"answer": 1}, "b": {"answer": None}, "c": {}, "d": "text"}),
        ("result.answer.more", {}),
        ("other", {}),
    ],
)
def test_machines_without_the_variable_are_left_out(path, found):
    assert machine_values([*HOSTVARS, "unknown"], HOSTVARS, path) == found


def test_the_result_has_the_order_of_the_machines():
    assert list(machine_values(["b", "a"], HOSTVARS, "result")) == ["b", "a"]
