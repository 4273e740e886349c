"""The project's files as the tests load them."""

import contextlib
import importlib
import importlib.util
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "tf_cluster"


def load(name):
    """Return a module of the project: one of its package by name (``tf_cluster.run.runs``), any other by path, loaded afresh."""
    if name.startswith(f"{PACKAGE}."):
        return importlib.import_module(name)
    file = ROOT / name
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(name, *words, python=(sys.executable,), **more):
    """Run a program of the project, by its module or its path, with its output as text and a limit of time."""
    more = {"capture_output": True, "text": True, "timeout": 60, "check": False, **more}
    if name.startswith(f"{PACKAGE}."):
        more["env"] = {**more.get("env", os.environ), "PYTHONPATH": str(ROOT / "files")}
        return subprocess.run([*python, "-m", name, *map(str, words)], **more)
    return subprocess.run([*python, ROOT / name, *map(str, words)], **more)


def free_port():
    """Return a port that nothing listens on, below those that the kernel gives to connections: they could take it meanwhile."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", random.randrange(20000, 32000))) as server:
            return server.getsockname()[1]
