"""A user's program on the controller: what is wrong with it, where it starts, what its run is called."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

DOCUMENTATION = """
name: program
short_description: Look at a program before it is sent
options:
  _input: {description: "Path of the program, a Python file or a folder with main.py", type: path, required: true}
  data: {description: Files and folders that it is sent with, type: list, elements: path}
"""

RETURN = """
_value: {description: A sentence for each problem; empty if there is none, type: list, elements: str}
"""

ENTRIES = ("main.py", "__main__.py")


def program_entry(program):
    """Return the file that is run, as it is called beside the others."""
    path = Path(program)
    if not path.is_dir():
        return path.name
    return next((name for name in ENTRIES if (path / name).is_file()), ENTRIES[0])


def program_problems(program, data=()):
    """Return what keeps a program from being run, a sentence each: not there, or not Python."""
    path, data = Path(program or "."), [data] if isinstance(data, str) else data
    if not program:
        return ["The variable program is not set: name a Python file or a folder with main.py, as in -e program=my_program.py"]
    if not _exists(path):
        return [f"The variable program is {program}, which does not exist on the controller."]
    entry = path / program_entry(program) if path.is_dir() else path
    if not entry.is_file():
        return [f"The variable program is {program}, a folder without main.py: give the file that is to be run this name."]
    problems = [
        f"The variable program_data has {item}, which does not exist on the controller."
        for item in data
        if not _exists(Path(item))
    ]
    files = path.rglob("*.py") if path.is_dir() else [path]
    return problems + [sentence for file in sorted(files) if (sentence := _syntax_problem(file))]


def task_problems(task, cluster):
    """Return what keeps a program from being a task of the cluster, a sentence each."""
    if not isinstance(task, str) or task not in cluster["tasks"]:
        return [f"The variable run_task is {task!r}, which is no task of the cluster: add its machine to the group of its job."]
    own = next(found for found in cluster["machines"][cluster["tasks"][task]] if f"{found['job']}:{found['index']}" == task)
    if own["standing"]:
        return [f"The variable run_task is {task!r}, which is a server of its own: name a task of the job host or chief."]
    return []


def _exists(path):
    """Tell whether there is such a file; a name that no file can have (too long, say) is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _syntax_problem(path):
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{path}{f', line {line}' if line else ''} is not Python: {getattr(error, 'msg', None) or error}."
    return ""


def _stem(program):
    """Return the name of a program without its ending; nothing where no file can have that name."""
    try:
        return Path(program).resolve().stem if program else ""
    except (OSError, ValueError, RuntimeError):
        return ""


def run_name(program, output, name=""):
    """Return a run's id, folder and beginning: the id sorts by time, never comes twice and is safe in a path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", str(name) or _stem(program)).strip("-")[:40] or "program"
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{stem}-{secrets.token_hex(2)}"
    return {"id": run_id, "folder": str(Path(output).resolve() / run_id), "since": time.time() - 1}


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Return the filters by name."""
        return {
            "program_entry": program_entry,
            "program_problems": program_problems,
            "task_problems": task_problems,
            "run_name": run_name,
        }
