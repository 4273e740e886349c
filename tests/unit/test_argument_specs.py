"""What the roles document and what they do: options, defaults, entry points and lengths of files."""

import pytest
import yaml
from project import ROOT

ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
TYPES = {"str": str, "path": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict, "raw": list}
MOST_LINES = 65


def specs(role):
    """Return a role's documentation: entry point -> what it says."""
    return yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]


def options(role):
    """Return all options of a role's entry points: name -> its specification."""
    return {name: option for entry in specs(role).values() for name, option in entry.get("options", {}).items()}


def defaults(role):
    """Return a role's defaults."""
    path = ROOT / "roles" / role / "defaults/main.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.exists() else {}


def every(read):
    """Return a parametrization over each pair of a role and one of its names."""
    return pytest.mark.parametrize(("role", "name"), [(role, name) for role in ROLES for name in read(role)])


@every(defaults)
def test_every_default_is_documented(role, name):
    assert name in options(role)


@every(options)
def test_every_option_is_required_or_has_a_default(role, name):
    required = options(role)[name].get("required", False)
    assert (name in defaults(role)) is not required


@every(options)
def test_every_documented_default_is_the_actual_default(role, name):
    option = options(role)[name]
    assert ("default" in option) == (name in defaults(role))
    assert option.get("default") == defaults(role).get(name)


@every(options)
def test_every_option_has_the_prefix_of_its_role_a_type_and_a_description(role, name):
    option = options(role)[name]
    assert name.startswith(f"{role}_")
    assert option["type"] in TYPES
    assert option["description"]
    assert option["type"] != "list" or "elements" in option
    assert option.keys() <= {"type", "description", "required", "default", "choices", "elements"}  # a comma in {} splits a text


@every(defaults)
def test_every_default_has_the_type_of_its_option(role, name):
    value, option = defaults(role)[name], options(role)[name]
    if not (isinstance(value, str) and "{{" in value):
        assert isinstance(value, TYPES[option["type"]])
        assert isinstance(value, bool) == (option["type"] == "bool")
        assert value in option.get("choices", [value])


@every(defaults)
def test_an_option_of_several_entry_points_is_specified_identically(role, name):
    said = [entry["options"][name] for entry in specs(role).values() if name in entry.get("options", {})]
    assert all(option == said[0] for option in said)


@every(specs)
def test_every_entry_point_has_a_file_and_a_description(role, name):
    assert (ROOT / "roles" / role / "tasks" / f"{name}.yml").exists()
    assert specs(role)[name]["short_description"]


@pytest.mark.parametrize("role", ROLES)
def test_every_role_documents_its_main_entry_point(role):
    assert "main" in specs(role)


@pytest.mark.parametrize("role", ROLES)
def test_no_file_of_a_role_exceeds_the_line_limit(role):
    files = [path for part in ("tasks", "defaults", "handlers", "vars") for path in (ROOT / "roles" / role / part).glob("*.yml")]
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in lengths.items() if count > MOST_LINES} == {}


@pytest.mark.parametrize("role", ROLES)
def test_every_defaults_file_starts_with_a_comment(role):
    path = ROOT / "roles" / role / "defaults/main.yml"
    assert not path.exists() or path.read_text(encoding="utf-8").startswith("#")
