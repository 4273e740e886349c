"""The package: what a module uses of another one exists there, also in functions that no unit test calls."""

import ast
import importlib
import subprocess
import sys

import pytest
from project import ROOT

PATHS = (path for path in (ROOT / "files/tf_cluster").rglob("*.py") if path.name not in ("__main__.py", "sitecustomize.py"))
MODULES = sorted(PATHS)


def name_of(path):
    """Return a module's name."""
    return path.relative_to(ROOT / "files").with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def module(name):
    """Return a module, or None if the name is none of a module."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def imported(tree, package):
    """Return the names by which a module of ``package`` knows modules of tf_cluster, each with the module."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            given = [(alias.asname or alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            given = [(alias.asname or alias.name, f"{base}.{alias.name}") for alias in node.names]
        else:
            continue
        found |= {name: own for name, full in given if full.startswith("tf_cluster") and (own := module(full))}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_used_attribute_of_a_module_exists(path):
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = imported(tree, package)
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    known = [(modules[node.value.id], node.attr) for node in used if node.value.id in modules]
    assert [f"{own.__name__}.{name}" for own, name in known if not hasattr(own, name)] == []


@pytest.mark.parametrize("name", ["run.program", "run.clear", "collect.results", "ready.gate", "status.units"])
def test_calls_of_a_run_do_not_wait_for_asyncio(name):
    # Each call would take 25 ms longer; only trainings need it.
    code = f"import sys, tf_cluster.{name}; print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ROOT / "files"}, capture_output=True, check=True)
    assert done.stdout == b"False\n"
