"""Check a user's program on the controller and find its main file."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.run import notify
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.variables import is_switch, number_of

ENTRIES = ("main.py", "__main__.py")
KERAS = ("2", "3")  # versions of tf.keras
DATA_ON = ("host", "tasks")  # the machine of the program, or also those of the tasks
YEAR = 366 * 24 * 3600
SWITCHES = ("detach", "run_keep_state", "run_needs_result", "trace")
# Variable -> lowest value, highest value and unit.
LIMITS = {
    "run_timeout": (1, YEAR, "seconds"),
    "run_queue_timeout": (0, YEAR, "seconds"),
    "run_abort_after_silence": (0, YEAR, "seconds"),
    "run_output_mb": (0, 10**9, "megabytes"),
}


def program_entry(program: str) -> str:
    """Return the name of the file that is run, relative to the program's folder."""
    path = Path(program)
    if not os.path.isdir(path):
        return path.name
    return next((name for name in ENTRIES if os.path.isfile(path / name)), ENTRIES[0])


def program_arguments(given: object) -> list[str]:
    """Return the arguments of a program as strings. A string is split as a shell does. Raise ValueError for other types."""
    if isinstance(given, str):
        return shlex.split(given)
    if not isinstance(given, list) or not all(isinstance(word, (str, int, float)) for word in given):
        raise ValueError("it is neither a string nor a list of strings and numbers")
    return [str(word) for word in given]


def program_problems(program: object, given: dict[str, Any] | None = None) -> list[str]:
    """Return a sentence for each problem of a program, its data, arguments, switches and limits."""
    # Not pathlib: it raises an error for an impossible file name, such as one that is too long.
    given = given or {}
    data = given.get("program_data", [])
    data = [data] if isinstance(data, str) else data
    if not program:
        return ["program is not set. Set a Python file or a folder with main.py, as in -e program=my_program.py"]
    if not isinstance(program, str):
        return [f"program is {program!r}. Set the path of a Python file, or of a folder with main.py."]
    if not os.path.exists(program):
        return [f"program is {program}, which does not exist on the controller."]
    if not os.path.isdir(program) and not os.path.isfile(program):
        return [f"program is {program}, which is neither a file nor a folder."]
    path = Path(program)
    entry = path / program_entry(program) if path.is_dir() else path
    if not os.path.isfile(entry):
        return [f"program is {program}, a folder without main.py. Rename the file to run to main.py."]
    if isinstance(data, list) and all(isinstance(item, str) for item in data):
        missing = [item for item in data if not item or not os.path.exists(item)]
        problems = [f"program_data contains {item or repr(item)}, which does not exist on the controller." for item in missing]
        problems += _name_problems(path, data)
    else:
        problems = [f"program_data is {data!r}. Set the path of a file or folder, or a list of paths."]
    if given.get("program_data_on", "host") not in DATA_ON:
        problems.append(f"program_data_on is {given['program_data_on']!r}. Set {' or '.join(DATA_ON)}.")
    problems += _option_problems(given)
    files = sorted(_sources(path)) if path.is_dir() else [path]
    return problems + [sentence for file in files if (sentence := _syntax_problem(file))]


def _name_problems(path: Path, data: list[str]) -> list[str]:
    """Return a sentence for each name that two items in the run's folder would have."""
    seen, problems = set(os.listdir(path)) if path.is_dir() else {path.name}, []
    for item in data:
        name = os.path.basename(os.path.abspath(item))
        if name in seen:
            problems.append(f"program_data contains {item}, but the run's folder would contain another {name}. Rename one.")
        seen.add(name)
    return problems


def _option_problems(given: dict[str, Any]) -> list[str]:
    """Return a sentence for each problem of a program's requirements, arguments, switches and limits."""
    problems, requirements = [], given.get("program_requirements")
    if requirements and not isinstance(requirements, str):
        problems.append(f"program_requirements is {requirements!r}. Set the path of one requirements file.")
    elif requirements and not os.path.isfile(requirements):
        problems.append(f"program_requirements is {requirements}, which is not a file on the controller.")
    try:
        program_arguments(given.get("program_args", []))
    except ValueError as error:
        problems.append(f"program_args is {given['program_args']!r}: {str(error)[0].lower()}{str(error)[1:]}.")
    if str(given.get("program_keras", KERAS[0])) not in KERAS:
        problems.append(f"program_keras is {given['program_keras']!r}. Set {' or '.join(KERAS)}, the version of tf.keras.")
    if given.get("run_notify") and (sentence := notify.problem(given["run_notify"])):
        problems.append(sentence)
    problems += [f"{name} is {given[name]!r}. Set true or false." for name in SWITCHES if not is_switch(given.get(name, False))]
    if boolean(given.get("run_keep_state", False), strict=False) and given.get("run_tasks") not in ("", None):
        problems.append("run_keep_state is set, but a run with run_tasks keeps no state. Remove one of them.")
    for name in LIMITS.keys() & given.keys():
        lowest, highest, unit = LIMITS[name]
        if not lowest <= number_of(given[name]) <= highest:
            problems.append(f"{name} is {given[name]!r}. Set a number of {unit} from {lowest} to {highest}.")
    return problems


def task_problems(task: object, cluster: dict[str, Any]) -> list[str]:
    """Return a sentence if a program cannot run as this task of the cluster."""
    if not isinstance(task, str) or task not in cluster["tasks"]:
        return [f"run_task is {task!r}, which is not a task of the cluster. Add its machine to the group of its job."]
    own = next(found for found in cluster["machines"][cluster["tasks"][task]] if f"{found['job']}:{found['index']}" == task)
    if own["standing"]:
        return [f"run_task is {task!r}, which has a standing server. Set a task of the job host or chief."]
    return []


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a program's folder, without those in hidden folders (.venv, .git)."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(parent, name) for name in files if name.endswith(".py") and Path(parent, name).is_file())


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


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "program_arguments": program_arguments,
            "program_entry": program_entry,
            "program_problems": program_problems,
        }
