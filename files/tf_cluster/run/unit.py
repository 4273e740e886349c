"""The transient unit in which a run's program is executed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ..spec import cluster_config
from .runs import USER, Run

STARTUP = Path(__file__).resolve().with_name("startup")
# Isolated (-I): neither the folder nor the environment of a program decides what is imported.
MODULE = (sys.executable, "-I", "-m")
KEEPER = Path(__file__).resolve().with_name("output.py")
CONFIG = Path("/etc/tf-cluster/config.json")
TASKS = Path("/etc/tf-cluster/tasks")
WRITABLE = ("program", "results", "checkpoints", "part.json")  # what of a run's folder belongs to its program
INSTALL = 1800  # seconds that installing packages may take; of systemd's own limit, 90 s, large ones need more


def start_unit(run: Run) -> subprocess.CompletedProcess[str]:
    """Start the run's unit; fails with "already" while another run has the task."""
    noted = run.read()
    training, whole = noted["training"], cluster_config.load(CONFIG)
    job, index = task_of(noted["task"], training["cluster"] if training else whole)
    missing = noted.get("missing", [])
    spec, names = spec_without(spec_of_run(whole, job, index), missing)
    (run.folder / "config.json").write_text(json.dumps(spec, indent=4) + "\n", encoding="utf-8")
    environment = environment_of(run, noted, whole, spec, (job, index))
    if missing:
        left_out = [f"{name}:{place}" for name in whole for place, entry in enumerate(whole[name]) if entry in missing]
        environment |= {"TF_CLUSTER_MISSING": ",".join(left_out)}
        run.note(names=names, left_out=left_out)
    words = words_of(noted)
    run.note(started=time.time(), command=words)
    command = ["systemd-run", "--quiet", "--collect", f"--unit={noted['unit']}", "--service-type=exec", "--slice=tf-run.slice"]
    command += [f"--property={text}" for text in properties_of(run, noted, f"{job}-{index}")]
    command += ["--no-block"] if layer_of(run).exists() else []  # whoever follows the run waits for the packages
    command += [f"--setenv={name}={value}" for name, value in environment.items()]
    # systemd puts the values of variables into a command; of a dollar that is meant as one, it takes two.
    command += [*MODULE, "tf_cluster.run.training", run.id] if training else [word.replace("$", "$$") for word in words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def layer_of(run: Run) -> Path:
    """Return the folder of the packages that a run has beside the locked ones; it exists only if there are any."""
    return run.folder / "layer"


def environment_of(
    run: Run, noted: dict[str, Any], whole: dict[str, list[str]], spec: dict[str, list[str]], task: tuple[str, int]
) -> dict[str, str]:
    """Return the variables of a run's program: ``whole`` is the cluster, ``spec`` the part of it that the run sees."""
    own = noted["training"]["cluster"] if noted["training"] else spec
    addresses = {cluster_config.split_address(entry)[0] for entries in (*whole.values(), *own.values()) for entry in entries}
    environment = {
        "TF_RUN_ID": run.id,
        "TF_CLUSTER_CONFIG": str(run.folder / "config.json"),
        "TF_CONFIG": json.dumps({"cluster": own, "task": {"type": task[0], "index": task[1]}}),
        "TF_RUN_DIR": str(run.folder / "results"),
        "TF_CHECKPOINT_DIR": str(run.folder / "checkpoints"),
        "GRPC_FAIL_FAST": "use_caller",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "PYTHONPATH": f"{STARTUP}:{layer_of(run) / 'packages'}",
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",  # noqa: S108 (the unit's own)
        "no_grpc_proxy": ",".join(sorted(addresses)),
    }
    if noted.get("trace"):
        # TensorFlow warns of each traced step that a processor has no GPU's trace: errors alone are shown then.
        environment |= {"TF_CLUSTER_TRACE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return environment


def properties_of(run: Run, noted: dict[str, Any], task: str) -> list[str]:
    """Return the properties of a run's unit, beside those of its drop-ins (role server); ``task`` as in "host-0"."""
    log, layer = run.folder / "stdout.log", layer_of(run)
    properties = [
        f"Description=run {run.id}", f"User={USER}", f"WorkingDirectory={run.folder / 'program'}",
        f"StandardOutput=append:{log}", f"StandardError=append:{log}", f"RuntimeMaxSec={noted['limit']}",
        "TimeoutStopSec=10", f"ReadWritePaths={' '.join(str(run.folder / name) for name in WRITABLE)}",
        f"EnvironmentFile=-{TASKS / f'{task}.env'}",
    ]  # fmt: skip
    if layer.exists():  # by the run's own user, within its limits, its words in the run's log
        install = [f"{Path(sys.executable).parent}/uv", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-cache"]
        install += ["--python", sys.executable, "--target", f"{layer}/packages", "--find-links", f"{layer}/wheels"]
        properties.append(f"ExecStartPre={shlex.join([*install, '-r', f'{layer}/requirements.txt'])}")
        properties += [f"ReadWritePaths={layer}/packages", f"TimeoutStartSec={INSTALL}"]
    if noted["training"]:
        properties.append("KillMode=mixed")  # training.py ends the program, and tells the others
    return properties


def words_of(noted: dict[str, Any]) -> list[str]:
    """Return the words of the command that executes a run's program within the limits of its output."""
    words = [sys.executable, "-I", "-S", str(KEEPER), f"--most={round(noted['output_mb'] * 1_000_000)}"]
    words += [] if noted["training"] else [f"--watch={noted['lost']}"]
    # With a leading dash, Python would take the program's name for an option.
    program = f"./{noted['program']}" if noted["program"].startswith("-") else noted["program"]
    return [*words, sys.executable, program, *noted["arguments"]]


def task_of(text: str, spec: dict[str, list[str]]) -> tuple[str, int]:
    """Return job and index of a task of the cluster; raise ConfigError if it has no such task."""
    named = re.fullmatch(r"(\w+):([0-9]{1,9})", text, re.ASCII)
    if not named:
        raise cluster_config.ConfigError(f"{text!r} is not a task, as in 'host:0'")
    cluster_config.task_entry(spec, named[1], int(named[2]), CONFIG)
    return named[1], int(named[2])


def spec_of_run(spec: dict[str, list[str]], job: str, index: int) -> dict[str, list[str]]:
    """Return the cluster as a run sees it: without the tasks of other runs, on whose ports nothing listens.

    A session waits for all tasks of its cluster spec, so with one of them it would wait for ever.
    """
    shown = {name: entries for name, entries in spec.items() if name == job or name not in cluster_config.RUN_JOBS}
    return {**shown, job: shown[job][: index + 1]} if job in cluster_config.RUN_JOBS and job in shown else shown


def spec_without(spec: dict[str, list[str]], missing: list[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the cluster without the tasks at some addresses, and how the tasks are called then: name -> name in the cluster."""
    kept = {job: [entry for entry in entries if entry not in missing] for job, entries in spec.items()}
    names = {f"{job}:{place}": f"{job}:{spec[job].index(entry)}" for job in kept for place, entry in enumerate(kept[job])}
    return {job: entries for job, entries in kept.items() if entries}, names
