"""What keeps a machine from carrying its tasks, as sentences."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Task = dict[str, Any]  # of the cluster, as the filter cluster_spec makes it
Listener = dict[str, Any]  # port, name, pid, user and unit of a process

PYTHONS = ((3, 10), (3, 13))  # TensorFlow 2.21 has wheels for these and all between
PROCESSORS = ("x86_64", "aarch64")
OWN_USER = "tensorflow"
HOME = "/var/lib/tf-cluster"


def machine_problems(tasks: list[Task], machine: str, found: dict[str, Any], needs: dict[str, Any]) -> list[str]:
    """Return the machine's problems."""
    problems = []
    if found["init"] != "systemd":
        problems.append(f"Machine {machine} runs {found['init']} as process 1, but its tasks need systemd.")
    if found["processor"] not in PROCESSORS:
        problems.append(
            f"Machine {machine} has a {found['processor']} processor, TensorFlow 2.21 has wheels for {' and '.join(PROCESSORS)}."
        )
    executable, version = found["python"]["executable"], found["python"]["version"]
    if not PYTHONS[0] <= tuple(map(int, version.split("."))) <= PYTHONS[1]:
        problems.append(
            f"Machine {machine} has Python {version} as {executable}, "
            "TensorFlow 2.21 has wheels for 3.10 to 3.13: install one of them and name it in ansible_python_interpreter."
        )
    if executable.startswith(("/root/", "/home/")):
        problems.append(
            f"Machine {machine} has its Python in somebody's home, {executable}, where the servers' user does not get: name "
            "another in ansible_python_interpreter, such as /usr/bin/python3."
        )
    if found["account"] and found["account"][5] != HOME:
        problems.append(
            f"Machine {machine} has an account {OWN_USER} already, with the home {found['account'][5]}: the servers run as an "
            "account of this name of their own; rename or remove that one."
        )
    free = found["disk_mb"]
    if not found["environment"]["made_of"] and free < int(needs["disk_mb"]):
        problems.append(
            f"Machine {machine} has {free} MB of free disk under /opt, and TensorFlow takes {needs['disk_mb']} MB: "
            "make room there (the variable preflight_disk_mb says how much is asked for)."
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
                f"The address {text} is not one of machine {machine}, which has {', '.join(sorted(own))}: set its tf_address "
                "(or, where an address is translated on the way, preflight_own_addresses to false and firewall_extra_peers, for "
                "all machines, to the list of their own addresses, for it is to these that packets come)."
            )


def _port_problems(tasks: list[Task], machine: str, listeners: list[Listener]) -> Iterator[str]:
    for task in tasks:
        for listener in listeners:
            if listener["port"] == task["port"] and not _is_own(listener):
                yield (
                    f"Port {task['port']} of machine {machine} is in use by {_named(listener)}, and "
                    f"{task['job']}:{task['index']} is to listen there: end it, or give the task another port in tf_tasks."
                )
                break


def _closed_port_problems(tasks: list[Task], machine: str, found: dict[str, Any], needs: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each other port that the firewall would take from a program, the one of SSH first of all."""
    remedy = "change that port, the tasks' ports in tf_tasks or train_port_offset, or set firewall_enabled to false."
    for port in sorted({int(port) for port in needs["closed_ports"]}):
        listeners = [listener for listener in found["listeners"] if listener["port"] == port]
        others = [listener for listener in listeners if not _is_own(listener)]
        if others and port not in [task["port"] for task in tasks]:
            used = f"in use by {_named(others[0])}{', and Ansible connects to it' if port == int(needs['ssh_port']) else ''}"
        elif not listeners and port == int(needs["ssh_port"]) and _is_address_of(needs["ssh_address"], found["addresses"]):
            used = "the one that Ansible connects to"
        else:
            continue
        yield f"Port {port} of machine {machine} is {used}. The firewall would close it, because the cluster uses it: {remedy}"


def _is_address_of(text: str, own: Iterable[str]) -> bool:
    """Tell whether a text is one of the machine's addresses that others reach; 127.0.0.1 is the controller's, which forwards."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return not address.is_loopback and str(address) in own


def _is_own(listener: Listener) -> bool:
    """Tell whether a task of this project listens, also one whose unit was made another user's."""
    return listener["user"] == OWN_USER or bool(listener["unit"])


def _named(listener: Listener) -> str:
    return f"{listener['name'] or 'a process'} (process {listener['pid']}, user {listener['user']})"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"machine_problems": machine_problems}
