"""The roles' pages and their metadata."""

import pytest
import yaml
from project import ROOT, load

ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
role_docs = load("docs/role_docs.py")


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_of_a_role_matches_its_argument_specs(role):
    assert (role / "README.md").read_text(encoding="utf-8") == role_docs.page(role), "run: make role-docs"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_metadata_of_a_role_matches_the_collection(role):
    about = yaml.safe_load((role / "meta/main.yml").read_text(encoding="utf-8"))["galaxy_info"]
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))
    assert about["description"] == specs["main"]["short_description"]
    assert [about["author"]] == galaxy["authors"]
    assert [about["license"]] == galaxy["license"]
    assert runtime["requires_ansible"] == f">={about['min_ansible_version']}.0"


def test_a_vertical_bar_in_a_default_is_escaped_in_tables():
    options = {"role_x": {"type": "path", "default": "{{ a | b }}", "description": "Where C(x) is"}}
    assert role_docs.table(options).splitlines()[-1] == r"| `role_x` | path | `{{ a \| b }}` | Where `x` is |"
