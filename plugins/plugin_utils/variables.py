"""The variables of this project: their names, and which one a user means."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.parsing.convert_bool import boolean

MACHINE_VARIABLES = (
    "runs_keep_days", "runs_keep_gb", "tf_address", "tf_encryption", "tf_jobs", "tf_shared", "tf_tasks", "tf_task_options",
    "tf_tunnel_address", "tf_tunnel_network",
)  # fmt: skip
CONTROLLER_VARIABLES = ("tf_cache", "tf_output")  # not suggested: Terraform's variables have similar names
# Looked for among the variables of a command only: in an inventory, similar names are usually another tool's.
SHORT_OPTIONS = ("detach", "port", "program", "run", "seconds", "trace")
RENAMED = {
    "cuda_fleet": "cuda_machines",
    "cuda_may_differ": "cuda_allow_driver_mismatch",
    "firewall_more_peers": "firewall_extra_peers",
    "lab_keep_tools": "lab_keep_image",
    "ready_must": "ready_required",
    "ready_prove": "ready_gpu_check_timeout",
    "run_arguments": "run_args",
    "run_lost": "run_abort_after_silence",
    "run_wait": "run_queue_timeout",
}


def option_problems(names: Iterable[str]) -> list[str]:
    """Return a sentence for each variable of a command that has an old name or a misspelt one."""
    known = {*known_variables(), *SHORT_OPTIONS} if names else set()
    meant = {name: RENAMED.get(name) or _nearest(name, known) for name in names}
    return [f"Unknown variable {name}. Did you mean {option}?" for name, option in meant.items() if option]


@functools.cache
def misspelt_variable(name: str) -> str:
    """Return the variable of this project that ``name`` misspells or once was, or "". Other tools use ``tf_`` as well."""
    return RENAMED.get(name) or _nearest(name, known_variables())


def _nearest(name: str, known: set[str]) -> str:
    """Return the known name that ``name`` misspells, or ""."""
    # Variables of Ansible start with ansible_, private ones of roles with __.
    if name in known or name in CONTROLLER_VARIABLES or name.startswith(("ansible_", "__")):
        return ""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85 if name.startswith("tf_") else 0.88)
    return near[0] if near else ""


@functools.cache
def checked_variables() -> frozenset[str]:
    """Return the role variables that are numbers, switches, lists or one of some words, without those of program_problems."""
    kinds = ("bool", "int", "float", "list")
    checked = [name for name, option in role_options().items() if option.get("type") in kinds or "choices" in option]
    return frozenset(name for name in checked if not name.startswith("run_"))


def invalid_value(name: str, value: Any) -> str:
    """Return what to set instead of a value that a role does not accept for its variable; empty if it does, or is unset."""
    option = role_options()[name]
    if value is None:
        return ""
    if choices := option.get("choices"):
        return "" if str(value) in map(str, choices) else f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
    if option["type"] == "list":
        return "" if isinstance(value, (list, str, int, float)) else "a list"  # Ansible makes a list of text and numbers
    if option["type"] == "bool":
        return "" if is_switch(value) else "true or false"
    number = number_of(value)
    if option["type"] == "int":
        return "" if number % 1 == 0 else "a whole number"
    return "" if math.isfinite(number) else "a number"


def is_switch(value: Any) -> bool:
    """Return whether Ansible takes a value for true or false."""
    try:
        boolean(value)
    except TypeError:
        return False
    return True


def number_of(value: Any) -> float:
    """Return a number, also from text; NaN for anything else, such as true and false."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


@functools.cache
def role_options() -> dict[str, Mapping[str, Any]]:
    """Return the documented variables of all roles, with what argument_specs say about each."""
    specs = (Path(__file__).parents[2] / "roles").glob("*/meta/argument_specs.yml")
    entries = [entry for path in specs for entry in yaml_load(path.read_text(encoding="utf-8"))["argument_specs"].values()]
    return {name: option for entry in entries for name, option in entry.get("options", {}).items()}


@functools.cache
def known_variables() -> set[str]:
    """Return the names of the machines' variables and of the documented role variables."""
    return {
        *MACHINE_VARIABLES,
        "spec_cluster",
        "spec_gpus",
        "allow_missing",
        "firewall_extra_peers",
        "program_args",
        "program_data",
        "program_data_on",
        "program_keras",
        "program_requirements",
        "run_name",
        "run_slots",
        "run_tasks",
        "train_jobs",
        "train_restarts",
        "train_join",
        "train_min_tasks",
        "train_ends_with",
        "train_port_offset",
        "benchmark_seconds",
        *role_options(),
    }
