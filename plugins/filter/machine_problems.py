"""Check whether a machine can carry its tasks."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Task = dict[str, Any]  # of the cluster, as the filter cluster_spec returns it
Listener = dict[str, Any]  # port, name, pid, user and unit of a process

PYTHONS = ((3, 10), (3, 13))  # the first and the last with wheels of TensorFlow 2.21
PROCESSORS = ("x86_64", "aarch64")
OWN_USER = "tensorflow"
HOME = "/var/lib/tf-cluster"


def machine_problems(tasks: list[Task], machine: str, found: dict[str, Any], needs: dict[str, Any]) -> list[str]:
    """Return a sentence for each problem of the machine."""
    problems = []
    if found["init"] != "systemd":
        problems.append(f"{machine}: process 1 is {found['init']}, but the tasks need systemd.")
    if found["processor"] not in PROCESSORS:
        problems.append(
            f"{machine}: unsupported processor {found['processor']}. TensorFlow 2.21 has wheels for {' and '.join(PROCESSORS)}."
        )
    executable, version = found["python"]["executable"], found["python"]["version"]
    if not PYTHONS[0] <= tuple(map(int, version.split("."))) <= PYTHONS[1]:
        problems.append(
            f"{machine}: unsupported Python {version} ({executable}). "
            "TensorFlow 2.21 has wheels for 3.10 to 3.13. Install one of them and set ansible_python_interpreter."
        )
    if executable.startswith(("/root/", "/home/")):
        problems.append(
            f"{machine}: the servers' user cannot use {executable}, because it is in a home directory. Set "
            "ansible_python_interpreter to another Python, such as /usr/bin/python3."
        )
    if found["account"] and found["account"][5] != HOME:
        problems.append(
            f"{machine}: an account {OWN_USER} with the home {found['account'][5]} exists already. The servers need their own "
            "account of this name. Rename or remove the existing one."
        )
    free = found["disk_mb"]
    if not found["environment"]["made_of"] and free < int(needs["disk_mb"]):
        problems.append(
            f"{machine}: {free} MB of free disk under /opt, but TensorFlow needs {needs['disk_mb']} MB. "
            "Free some space, or change the requirement (preflight_disk_mb)."
        )
    if needs["own_addresses"]:
        problems += _address_problems(tasks, machine, found["addresses"])
    return [*problems, *_port_problems(tasks, machine, found["listeners"]), *_closed_port_problems(tasks, machine, found, needs)]


def _address_problems(tasks: list[Task], machine: str, own: Iterable[str]) -> Iterator[str]:
    for text in dict.fromkeys(task["reached_by"].strip("[]") for task in tasks):
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue  # a name: the other machines resolve it
        if not address.is_loopback and str(address) not in own:
            yield (
                f"{machine}: {text} is not an address of this machine, which has {', '.join(sorted(own))}. Set tf_address. If "
                "addresses are translated, set preflight_own_addresses to false, and firewall_extra_peers, for all machines, to "
                "the list of their own addresses."
            )


def _port_problems(tasks: list[Task], machine: str, listeners: list[Listener]) -> Iterator[str]:
    for task in tasks:
        for listener in listeners:
            if listener["port"] == task["port"] and not _is_own(listener):
                yield (
                    f"{machine}: port {task['port']} is in use by {_description(listener)}, but {task['job']}:{task['index']} "
                    "needs it. Stop that process, or set another port in tf_tasks."
                )
                break


def _closed_port_problems(tasks: list[Task], machine: str, found: dict[str, Any], needs: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each additional port that the firewall would close although a program or Ansible uses it."""
    remedy = "Change that port, the tasks' ports in tf_tasks or train_port_offset, or set firewall_enabled to false."
    for port in sorted({int(port) for port in needs["closed_ports"]}):
        listeners = [listener for listener in found["listeners"] if listener["port"] == port]
        others = [listener for listener in listeners if not _is_own(listener)]
        if others and port not in [task["port"] for task in tasks]:
            suffix = ", and Ansible connects to it" if port == int(needs["ssh_port"]) else ""
            used = f"in use by {_description(others[0])}{suffix}"
        elif not listeners and port == int(needs["ssh_port"]) and _is_address_of(needs["ssh_address"], found["addresses"]):
            used = "the one that Ansible connects to"
        else:
            continue
        yield f"{machine}: port {port} is {used}. The cluster's firewall would close it. {remedy}"


def _is_address_of(text: str, own: Iterable[str]) -> bool:
    """Return whether other machines reach this machine at ``text``. A loopback address is a port that the controller forwards."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return not address.is_loopback and str(address) in own


def _is_own(listener: Listener) -> bool:
    """Return whether a task of this project listens, even if its unit was changed to another user."""
    return listener["user"] == OWN_USER or bool(listener["unit"])


def _description(listener: Listener) -> str:
    return f"{listener['name'] or 'a process'} (process {listener['pid']}, user {listener['user']})"


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"machine_problems": machine_problems}
