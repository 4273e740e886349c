"""The transient systemd unit of a run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..spec import cluster_config
from . import shared
from .runs import USER, Run

STARTUP = Path(__file__).resolve().with_name("startup")
# Isolated (-I), so that a program's folder and environment do not affect imports.
PYTHON_MODULE = (sys.executable, "-I", "-m")
OUTPUT_LIMITER = Path(__file__).resolve().with_name("output.py")
CONFIG = Path("/etc/tf-cluster/config.json")
TASKS = Path("/etc/tf-cluster/tasks")
SHARED = Path("/etc/tf-cluster/shared")  # has the path that all machines share, if there is one (role server)
WRITABLE = ("program", "results", "checkpoints", "part.json")  # parts of a run's folder that the program may change
STOP_SECONDS = 10.0  # for all programs of a training to stop
INSTALL_TIMEOUT_SECONDS = 1800  # systemd's default of 90 s is too short for large packages


def start_unit(run: Run, noted: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Start the unit of a run with the tasks that it has reserved."""
    training, whole = noted["training"], cluster_config.load(CONFIG)
    job, index = task_of(noted["task"], whole)
    all_tasks = spec_of_run(whole, job, index)
    if noted["own"]:
        all_tasks[job][index] = noted["own"]
    missing = noted["missing"]
    others = [entry for _job, _index, entry in cluster_config.standing_tasks(whole) if entry not in noted["reserved"]]
    spec, names = (all_tasks, {}) if training else spec_without(all_tasks, others)
    (run.folder / "config.json").write_text(json.dumps(spec, indent=4) + "\n", encoding="utf-8")
    run.share(run.folder / "config.json")  # the unit that ended may have started this one, with its own umask
    noted = noted | run.note(shared=shared_path())
    environment = environment_of(run, noted, whole, spec, (job, index))
    facts: dict[str, Any] = {"command": command_of(noted)}
    if names and spec != spec_of_run(whole, job, index):
        environment |= {"TF_CLUSTER_PARTIAL": "1"}
        facts["names"] = names
    if missing:
        facts["left_out"] = [f"{name}:{place}" for name in whole for place, entry in enumerate(whole[name]) if entry in missing]
        environment |= {"TF_CLUSTER_MISSING": ",".join(facts["left_out"])}
    run.note(**facts)
    command = ["systemd-run", "--quiet", "--collect", f"--unit={noted['unit']}", "--service-type=exec", "--slice=tf-run.slice"]
    command += [f"--property={text}" for text in properties_of(run, noted, f"{job}-{index}")]
    # Does not wait for the installation of packages, for servers and for the shared file system.
    command += ["--no-block"] if layer_of(run).exists() or noted.get("clear_before") or noted["shared"] else []
    command += [f"--setenv={name}={value}" for name, value in environment.items()]
    # systemd expands variables in a command; "$$" is a literal dollar.
    words = [*PYTHON_MODULE, "tf_cluster.run.training", run.id] if training else facts["command"]
    command += [word.replace("$", "$$") for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shared_path() -> str:
    """Return the path that all machines share; empty if there is none."""
    return SHARED.read_text(encoding="utf-8").strip() if SHARED.exists() else ""


def layer_of(run: Run) -> Path:
    """Return the folder of a run's additional packages; it exists only if there are any."""
    return run.folder / "layer"


def environment_of(
    run: Run, noted: dict[str, Any], whole: dict[str, list[str]], spec: dict[str, list[str]], task: tuple[str, int]
) -> dict[str, str]:
    """Return the program's environment; ``whole`` is the full cluster spec, ``spec`` the part that the run sees."""
    own, (job, index) = spec, task
    if noted["training"]:
        own = noted["training"]["cluster"]
        index = own[job].index(noted["training"]["entries"][noted["task"]])  # a training may have a part of the job's tasks
    addresses = {cluster_config.split_address(entry)[0] for entries in (*whole.values(), *own.values()) for entry in entries}
    environment = {
        "TF_RUN_ID": run.id,
        "TF_CLUSTER_CONFIG": str(run.folder / "config.json"),
        "TF_CONFIG": json.dumps({"cluster": own, "task": {"type": job, "index": index}}),
        "TF_RUN_DIR": str(run.folder / "results"),
        "TF_CHECKPOINT_DIR": str(shared.checkpoints(noted) or run.folder / "checkpoints"),
        "GRPC_FAIL_FAST": "use_caller",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        # Otherwise the first program would take all memory of a GPU, which it shares with the task's server and with other tasks.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "PYTHONPATH": f"{STARTUP}:{layer_of(run) / 'packages'}",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 (the unit's own)
        "no_grpc_proxy": ",".join(sorted(addresses)),
    }
    environment |= {"TF_USE_LEGACY_KERAS": "1"} if noted.get("keras") == 2 else {}
    environment |= {"TF_SHARED_DIR": noted["shared"]} if noted.get("shared") else {}
    environment |= {"TF_CLUSTER_KEEP_STATE": "1"} if noted.get("keep_state") else {}
    if noted.get("trace"):
        # Errors only: TensorFlow warns in each traced step that a CPU has no GPU trace.
        environment |= {"TF_CLUSTER_TRACE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return environment


def properties_of(run: Run, noted: dict[str, Any], task: str) -> list[str]:
    """Return the properties of a run's unit in addition to its drop-ins (role server); ``task`` such as "host-0"."""
    log, layer, seconds = run.folder / "stdout.log", layer_of(run), noted["timeout"]
    if noted["training"]:  # its process ends the program in time, from when all tasks have joined
        seconds += start_seconds(noted["training"]) + STOP_SECONDS
    properties = [
        f"Description=run {run.id}", f"User={USER}", f"WorkingDirectory={run.folder / 'program'}",
        f"StandardOutput=append:{log}", f"StandardError=append:{log}", f"RuntimeMaxSec={seconds}",
        "TimeoutStopSec=10", f"ReadWritePaths={' '.join(str(run.folder / name) for name in WRITABLE)}",
        f"EnvironmentFile=-{TASKS / f'{task}.env'}",
    ]  # fmt: skip
    if layer.exists():  # installed by the run's user, within its limits and with its log
        install = [f"{Path(sys.executable).parent}/uv", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache"]
        install += ["--python", sys.executable, "--target", f"{layer}/packages", "--find-links", f"{layer}/wheels"]
        properties.append(f"ExecStartPre={shlex.join([*install, '-r', f'{layer}/requirements.txt'])}")
        properties += [f"ReadWritePaths={layer}/packages", f"TimeoutStartSec={INSTALL_TIMEOUT_SECONDS}"]
    if noted.get("shared"):
        properties.append(f"ReadWritePaths=-{noted['shared']}")
        properties.append(f"ExecStartPre={shlex.join([*PYTHON_MODULE, 'tf_cluster.run.shared', run.id])}")
    if noted.get("clear_before"):
        lost = ["--lost"] if noted["clear_before"] == "lost" else []
        properties.append(f"ExecStartPre={shlex.join([*PYTHON_MODULE, 'tf_cluster.run.clear', *lost])}")
        properties.append(f"TimeoutStartSec={INSTALL_TIMEOUT_SECONDS}")
    if noted["training"]:
        properties.append("KillMode=mixed")  # training.py stops the program and tells the others
    return properties


def start_seconds(training: dict[str, Any]) -> float:
    """Return how long all tasks may take to join, in seconds: some of them may be queued before."""
    return float(training["join"]) + float(training["queue_timeout"])


def command_of(noted: dict[str, Any]) -> list[str]:
    """Return the command line of a run's program, with its output limit."""
    words = [sys.executable, "-I", "-S", str(OUTPUT_LIMITER), f"--most={round(noted['output_mb'] * 1_000_000)}"]
    words += [] if noted["training"] else [f"--watch={noted['abort_after_silence']}"]
    # Python would treat a name with a leading dash as an option.
    program = f"./{noted['program']}" if noted["program"].startswith("-") else noted["program"]
    return [*words, sys.executable, program, *noted["arguments"]]


def task_of(text: str, spec: dict[str, list[str]]) -> tuple[str, int]:
    """Return job and index of a task; raise ConfigError if the cluster has no such task."""
    named = re.fullmatch(r"(\w+):([0-9]{1,9})", text, re.ASCII)
    if not named:
        raise cluster_config.ConfigError(f"{text!r} is not a task, as in 'host:0'")
    cluster_config.task_entry(spec, named[1], int(named[2]), CONFIG)
    return named[1], int(named[2])


def spec_of_run(spec: dict[str, list[str]], job: str, index: int) -> dict[str, list[str]]:
    """Return the cluster spec of a run, without the tasks of other runs.

    Their ports may have no server, and a session waits for all tasks of its spec.
    """
    shown = {name: entries for name, entries in spec.items() if name == job or name not in cluster_config.RUN_JOBS}
    shown = {name: list(entries) for name, entries in shown.items()}
    return {**shown, job: shown[job][: index + 1]} if job in cluster_config.RUN_JOBS and job in shown else shown


def spec_without(spec: dict[str, list[str]], missing: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the spec without the tasks at the missing addresses, and task name in the run -> name in the cluster."""
    kept = {job: [entry for entry in entries if entry not in missing] for job, entries in spec.items()}
    names = {f"{job}:{place}": f"{job}:{spec[job].index(entry)}" for job in kept for place, entry in enumerate(kept[job])}
    return {job: entries for job, entries in kept.items() if entries}, names
