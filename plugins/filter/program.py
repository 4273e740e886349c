"""A user's program on the controller: what is wrong with it, where it starts, what its run is called."""

from __future__ import annotations

import math
import os
import re
import secrets
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENTRIES = ("main.py", "__main__.py")
YEAR = 366 * 24 * 3600
# The least and the most that may be asked for, and of what.
LIMITS = {
    "run_timeout": (1, YEAR, "seconds"),
    "run_queue_timeout": (0, YEAR, "seconds"),
    "run_abort_after_silence": (0, YEAR, "seconds"),
    "run_output_mb": (0, 10**9, "megabytes"),
}


def program_entry(program: str) -> str:
    """Return the file that is run, as it is called beside the others."""
    path = Path(program)
    if not os.path.isdir(path):
        return path.name
    return next((name for name in ENTRIES if os.path.isfile(path / name)), ENTRIES[0])


def program_arguments(given: object) -> list[str]:
    """Return the arguments of a program as texts: a list as it is, a text split as a shell does. Raises ValueError."""
    if isinstance(given, str):
        return shlex.split(given)
    if not isinstance(given, list) or not all(isinstance(word, (str, int, float)) for word in given):
        raise ValueError("it is neither a text nor a list of texts and numbers")
    return [str(word) for word in given]


def program_problems(program: object, given: dict[str, Any] | None = None) -> list[str]:
    """Return what keeps a program from being run, a sentence each: not there, not Python, asked for in a way that cannot be."""
    # Not pathlib: its questions raise an error for a name that no file can have, one too long, say.
    given = given or {}
    data = given.get("program_data", [])
    data = [data] if isinstance(data, str) else data
    if not program:
        return ["The variable program is not set: name a Python file or a folder with main.py, as in -e program=my_program.py"]
    if not isinstance(program, str):
        return [f"The variable program is {program!r}: give the path of a Python file, or of a folder with main.py."]
    if not os.path.exists(program):
        return [f"The variable program is {program}, which does not exist on the controller."]
    if not os.path.isdir(program) and not os.path.isfile(program):
        return [f"The variable program is {program}, which is neither a file nor a folder."]
    path = Path(program)
    entry = path / program_entry(program) if path.is_dir() else path
    if not os.path.isfile(entry):
        return [f"The variable program is {program}, a folder without main.py: give the file that is to be run this name."]
    if isinstance(data, list) and all(isinstance(item, str) for item in data):
        gone = [item for item in data if not item or not os.path.exists(item)]
        problems = [
            f"The variable program_data has {item or repr(item)}, which does not exist on the controller." for item in gone
        ]
        problems += _name_problems(path, data)
    else:
        problems = [f"The variable program_data is {data!r}: give the path of a file or folder, or a list of paths."]
    problems += _given_problems(given)
    files = sorted(_sources(path)) if path.is_dir() else [path]
    return problems + [sentence for file in files if (sentence := _syntax_problem(file))]


def _name_problems(path: Path, data: list[str]) -> list[str]:
    """Return a sentence for each name that two of the things have which come to lie beside each other."""
    seen, problems = set(os.listdir(path)) if path.is_dir() else {path.name}, []
    for item in data:
        name = os.path.basename(os.path.abspath(item))
        if name in seen:
            problems.append(f"The variable program_data has {item}, and another {name} would lie at the same place: rename one.")
        seen.add(name)
    return problems


def _given_problems(given: dict[str, Any]) -> list[str]:
    """Return what is wrong with a program's requirements, arguments and limits."""
    problems, requirements = [], given.get("program_requirements")
    if requirements and not isinstance(requirements, str):
        problems.append(f"The variable program_requirements is {requirements!r}: give the path of one file of requirements.")
    elif requirements and not os.path.isfile(requirements):
        problems.append(f"The variable program_requirements is {requirements}, which is no file on the controller.")
    try:
        program_arguments(given.get("program_args", []))
    except ValueError as error:
        problems.append(f"The variable program_args is {given['program_args']!r}: {str(error)[0].lower()}{str(error)[1:]}.")
    for name in LIMITS.keys() & given.keys():
        least, most, unit = LIMITS[name]
        try:
            number = math.nan if isinstance(given[name], bool) else float(given[name])
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not least <= number <= most:
            problems.append(f"The variable {name} is {given[name]!r}: give {unit}, a number from {least} to {most}.")
    return problems


def task_problems(task: object, cluster: dict[str, Any]) -> list[str]:
    """Return what keeps a program from being a task of the cluster, a sentence each."""
    if not isinstance(task, str) or task not in cluster["tasks"]:
        return [f"The variable run_task is {task!r}, which is no task of the cluster: add its machine to the group of its job."]
    own = next(found for found in cluster["machines"][cluster["tasks"][task]] if f"{found['job']}:{found['index']}" == task)
    if own["standing"]:
        return [f"The variable run_task is {task!r}, which is a server of its own: name a task of the job host or chief."]
    return []


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a program's folder, but not those of others that lie in it (.venv, .git)."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(place, name) for name in files if name.endswith(".py") and Path(place, name).is_file())


def _syntax_problem(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{path}{f', line {line}' if line else ''} is not Python: {getattr(error, 'msg', None) or error}."
    except (MemoryError, RecursionError):
        return f"{path} is nested too deeply for Python."
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    return ""


def _stem(program: Any) -> str:
    """Return the name of a program without its ending; nothing where no file can have that name."""
    try:
        return Path(os.path.abspath(program)).stem if program else ""
    except (OSError, ValueError, TypeError, RuntimeError):
        return ""


def run_name(program: object, output: str | Path, name: object = "") -> dict[str, Any]:
    """Return a run's id, folder and beginning: the id sorts by time, never comes twice and is safe in a path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", str(name) or _stem(program)).strip("-")[:40] or "program"
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{stem}-{secrets.token_hex(2)}"
    return {"id": run_id, "folder": str(Path(output).resolve() / run_id), "since": time.time() - 1}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "program_arguments": program_arguments,
            "program_entry": program_entry,
            "program_problems": program_problems,
            "task_problems": task_problems,
            "run_name": run_name,
        }
