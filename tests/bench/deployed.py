"""How a server is started where the project is deployed: command and environment, read out of the unit itself.

So what is changed there (an allocator by LD_PRELOAD, gRPC's options, threads) is measured without a change here.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import jinja2
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".collections"))  # the filters share code by the name of the collection
SERVER = ROOT / "roles/server"
TEMPLATE = SERVER / "templates/tf-server@.service.j2"
# What systemd gives any service of a system user (systemd.exec(5), "Environment variables in spawned processes").
PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}


class UnitError(Exception):
    """What the unit says cannot be done here; the message is a sentence."""


def load_filter(name):
    """Return one of the project's filters, which work out the tasks and their environment files."""
    return getattr(importlib.import_module(f"ansible_collections.distributed.tensorflow.plugins.filter.{name}"), name)


def unit_text():
    """Return the unit as it is on a machine, followed by its drop-ins."""
    known = {"ansible_managed": ""}
    for path in (SERVER / "defaults/main.yml", SERVER / "vars/main.yml"):
        known |= yaml.safe_load(path.read_text(encoding="utf-8"))
    text = TEMPLATE.read_text(encoding="utf-8")
    try:
        text = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text).render(known)
    except jinja2.TemplateError as error:
        raise UnitError(f"{TEMPLATE.name} cannot be read without Ansible: {error}") from None
    return "\n".join([text, *(path.read_text(encoding="utf-8") for path in sorted((SERVER / "files").glob("*.conf")))])


def directives(text, name):
    """Return the values of a directive in a unit, in order; an empty one takes back those before it (systemd.unit(5))."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not re.match(r"\s*[#;]", line)))
    values = []
    for value in re.findall(rf"^\s*{name}\s*=[ \t]*(.*?)\s*$", joined, re.MULTILINE):
        values = [*values, value] if value else []
    return values


def assignments(text):
    """Return the variables of words ``NAME=value``, with quotes as systemd reads them."""
    return dict(word.split("=", 1) for word in shlex.split(text, comments=True) if "=" in word)


def server(unit, task, files, places):
    """Return a task's server as ``command`` and ``environment``.

    ``task`` is one of the filter cluster_spec, ``files`` has the content of the environment files by path, and ``places`` says
    what stands here for a path of a machine. Raises UnitError where the unit names a file that is nowhere here.
    """
    environment = dict(PLAIN)
    for value in directives(unit, "Environment"):
        environment |= assignments(value.replace("%i", task["name"]))
    for value in directives(unit, "EnvironmentFile"):
        path = value.replace("%i", task["name"])
        if path.lstrip("-") in files:
            environment |= assignments(files[path.lstrip("-")])
        elif not path.startswith("-"):
            raise UnitError(f"the unit's environment file {path} is not among those that the project writes")
    for name in " ".join(directives(unit, "UnsetEnvironment")).split():
        environment.pop(name, None)
    command = shlex.split(directives(unit, "ExecStart")[-1].lstrip("@-:+!"))
    command = [re.sub(r"\$\{(\w+)\}", lambda name: environment.get(name[1], ""), word) for word in command]
    if command[1:4] == ["-I", "-m", "tf_cluster.server"]:  # isolated, it would look for the package of an installation
        command[1:4] = [str(ROOT / "files/create_server.py")]
    environment = {name: here(value, places) for name, value in environment.items()}
    for library in re.split(r"[:\s]+", environment.get("LD_PRELOAD", "")):
        if library.startswith("/") and not Path(library).exists():
            raise UnitError(f"the unit preloads {library}, which is not here")
    return {"command": [here(word, places) for word in command], "environment": environment}


def here(text, places):
    """Return a text with a machine's paths replaced by what stands for them here."""
    for path, place in places.items():
        text = text.replace(path, str(place))
    return text


def servers(ports, venv, config):
    """Return the servers of a machine with a worker task on each of the ports, and their cluster spec.

    ``venv`` is the environment with TensorFlow, ``config`` the path of the cluster spec, which the caller writes.
    """
    tasks = {"worker": [{"port": port} for port in ports]}
    machine = {"tf_address": "127.0.0.1", "tf_tasks": tasks}
    cluster = load_filter("cluster_spec")({"all": ["here"], "worker": ["here"], "host": ["here"]}, {"here": machine})
    if cluster["problems"]:
        raise UnitError(" ".join(cluster["problems"]))
    tasks = [{**task, "gpus": []} for task in cluster["machines"]["here"] if task["job"] == "worker"]
    unit, found = unit_text(), []
    bins = {"/opt/tf-cluster/venv": venv, "/etc/tf-cluster/config.json": config}
    bins["/opt/tf-cluster/lib"] = ROOT / "files"
    for task, own in zip(tasks, load_filter("task_environments")(tasks, [])):
        files = {file["path"]: file["content"] for file in own["files"]}
        found.append(server(unit, task, files, bins))
    # A session waits for all tasks of the spec, and the host's is there only during a run.
    return found, {"worker": cluster["spec"]["worker"]}
