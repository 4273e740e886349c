"""The project's files as the tests load them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load(path):
    """Return the Python file ``path`` of the project as a module, loaded afresh."""
    file = ROOT / path
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(path, *words, python=(sys.executable,), **more):
    """Run a program of the project, with its output as text and a limit of time."""
    more = {"capture_output": True, "text": True, "timeout": 60, "check": False, **more}
    return subprocess.run([*python, ROOT / path, *map(str, words)], **more)
