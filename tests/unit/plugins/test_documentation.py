"""What ansible-doc shows of filters and of the action is what the code takes."""

import ast
import inspect

import pytest
import yaml
from project import ROOT, load

FILTERS = {
    name: function
    for path in sorted((ROOT / "plugins/filter").glob("*.py"))
    for name, function in load(path.relative_to(ROOT).as_posix()).FilterModule().filters().items()
}
KEYS = {"description", "type", "elements", "required", "default", "choices"}


def sidecar(name):
    """Return the documentation of a filter."""
    return yaml.safe_load((ROOT / f"plugins/filter/{name}.yml").read_text(encoding="utf-8"))


def test_each_filter_has_a_page_and_each_page_has_a_filter():
    assert sorted(path.stem for path in (ROOT / "plugins/filter").glob("*.yml")) == sorted(FILTERS)


@pytest.mark.parametrize("name", FILTERS)
def test_the_documented_options_of_a_filter_match_its_parameters_and_defaults(name):
    documentation = sidecar(name)["DOCUMENTATION"]
    parameters = list(inspect.signature(FILTERS[name]).parameters.values())[1:]
    options = {key: value for key, value in documentation["options"].items() if key != "_input"}
    assert list(options) == [parameter.name for parameter in parameters]
    assert documentation.get("positional", "") == ", ".join(options)
    for parameter in parameters:
        option, default = options[parameter.name], parameter.default
        assert option.get("required", False) == (default is inspect.Parameter.empty)
        if default not in (inspect.Parameter.empty, None):
            assert option["default"] == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("name", FILTERS)
def test_the_page_of_a_filter_is_complete(name):
    page = sidecar(name)
    documentation = page["DOCUMENTATION"]
    assert documentation["name"] == name
    assert documentation["short_description"]
    assert documentation["description"]
    assert page["RETURN"]["_value"]["description"]
    for option in [*documentation["options"].values(), page["RETURN"]["_value"]]:
        assert option.keys() <= KEYS  # a comma in {} splits a text


def test_the_options_of_the_action_match_its_documentation():
    tree = ast.parse((ROOT / "plugins/action/tf_program.py").read_text(encoding="utf-8"))
    [call] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "validate_argument_spec"
    ]
    options = yaml.safe_load(load("plugins/modules/tf_program.py").DOCUMENTATION)["options"]
    described = {name: {key: value for key, value in about.items() if key != "description"} for name, about in options.items()}
    assert described == ast.literal_eval(call.args[0])
