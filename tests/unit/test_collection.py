"""galaxy.yml: what the collection contains and which other collections it needs."""

import json
import re
from pathlib import Path

import ansible
import yaml
from packaging.specifiers import SpecifierSet
from project import ROOT

GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
# A module, a filter or a lookup by its full name.
FULL_NAME = re.compile(r"""(?m)(?:^\s*(?:- )?|\|\s*|(?:lookup|query)\(['"])([a-z]+\.[a-z_]+)\.[a-z_]+(?=[:\s('"])""")
COLLECTIONS = Path(ansible.__file__).parents[1] / "ansible_collections"


def test_files_that_git_ignores_are_not_in_the_collection():
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()}
    assert ignored - {pattern.removeprefix("*/") for pattern in GALAXY["build_ignore"]} == set()


def test_every_used_collection_is_a_dependency():
    files = [path for folder in ("playbooks", "roles") for path in (ROOT / folder).rglob("*.yml")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    used = {name for text in texts for name in FULL_NAME.findall(text)}
    assert used >= {"ansible.builtin", "community.general", "containers.podman"}
    assert used - {"ansible.builtin", "distributed.tensorflow", *GALAXY["dependencies"]} == set()


def test_the_locked_ansible_has_the_required_collection_versions():
    for name, versions in GALAXY["dependencies"].items():
        manifest = json.loads((COLLECTIONS / name.replace(".", "/") / "MANIFEST.json").read_text(encoding="utf-8"))
        assert manifest["collection_info"]["version"] in SpecifierSet(versions), name
