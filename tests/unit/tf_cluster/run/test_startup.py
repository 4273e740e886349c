"""sitecustomize.py: what a run's program finds when it imports TensorFlow. The package here is a small one of that name."""

import os
import subprocess
import sys

import pytest
from project import ROOT

PACKAGE = "import gc; collects = gc.isenabled(); kept = [[] for _each in range(1000)]\n"


@pytest.fixture
def program(tmp_path):
    """Return a function that runs a program as a run does, beside a small package, and returns what it printed."""

    def program(text, package=PACKAGE):
        for name in ("tensorflow", "keras"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(package, encoding="utf-8")
        (tmp_path / "startup").mkdir()
        (tmp_path / "startup/sitecustomize.py").write_bytes((ROOT / "files/tf_cluster/run/startup/sitecustomize.py").read_bytes())
        (tmp_path / "program.py").write_text(text, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "startup")}
        done = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout + done.stderr

    return program


@pytest.mark.parametrize("name", ["tensorflow", "keras"])
def test_garbage_collection_is_off_while_the_package_is_imported(program, name):
    assert (
        program(f"import gc, {name} as it; print(it.collects, gc.isenabled(), gc.get_freeze_count() > 1000)")
        == "False True True\n"
    )


def test_objects_of_the_program_are_garbage_collected(program):
    text = "import gc, weakref, tensorflow\nclass C: pass\nc = C(); c.me = c; w = weakref.ref(c); del c; gc.collect(); print(w())"
    assert program(text) == "None\n"


def test_garbage_collection_stays_off_if_the_program_disabled_it(program):
    # Python 3.12 has frozen objects from the start.
    text = "import gc; gc.disable(); frozen = gc.get_freeze_count(); import tensorflow"
    assert program(f"{text}; print(gc.isenabled(), gc.get_freeze_count() - frozen)") == "False 0\n"


def test_an_exception_during_the_import_is_passed_on(program):
    said = program(
        "import gc\ntry:\n    import tensorflow\nexcept ZeroDivisionError:\n    print(gc.isenabled())\nimport tensorflow", "1 / 0"
    )
    assert said.startswith("True\n")
    assert said.endswith("ZeroDivisionError: division by zero\n")


def test_a_missing_package_raises_the_usual_error(program):
    said = program("import sys; sys.path.pop(0); import tensorflow")
    assert "No module named 'tensorflow'" in said


def test_a_second_import_is_the_same_module(program):
    assert program("import tensorflow as a, tensorflow as b, importlib; print(a is b, importlib.reload(a) is b)") == "True True\n"
