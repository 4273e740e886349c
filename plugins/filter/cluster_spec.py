"""Compute the cluster from the inventory, so that no role reads ``groups`` or ``hostvars``."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import ipaddress
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.spec.cluster_config import RUN_JOBS
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.addresses import extra_peers, resolve
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.ports import MAX_PORT, all_training_ports, offset_problem
from ansible_collections.distributed.tensorflow.plugins.plugin_utils.variables import (
    checked_variables,
    invalid_value,
    misspelt_variable,
    number_of,
)

# A task of the cluster: job, index, machine, address, reached_by, port, options; later name and standing.
Task = dict[str, Any]
Groups = Mapping[str, list[str]]  # group -> machines, as Ansible's variable groups
HostVars = Mapping[str, Mapping[str, Any]]  # machine -> variables, as Ansible's variable hostvars
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

JOBS = ("chief", "worker", "ps", "evaluator", "host")
# The seed's ports; other jobs and additional tasks of a machine get the next free port from NEXT_PORT.
FIRST_PORTS = {"worker": 2222, "host": 2223}
NEXT_PORT = 2224
MAX_TASKS_PER_JOB = 4096  # on one machine
PER_GPU = "per_gpu"  # value in tf_tasks: one task per GPU
# Numbers in an entry of tf_tasks, with the lowest and the highest value.
ENTRY_NUMBERS = {"index": (0, 99999), "port": (1, MAX_PORT)}
KEPT = {"runs_keep_days": "days", "runs_keep_gb": "gigabytes"}  # how long runs are kept: variable -> unit
MAX_KEPT = 1_000_000
SHARED_PATH = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*)+/?")  # systemd's units contain it without quotes
# Folders that servers and runs do not see, or see their own of (roles/server/files/confined.conf).
HIDDEN_FOLDERS = ("/dev", "/home", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp")  # noqa: S108
UNRELATED_GROUPS = ("hosts",)  # a usual group name, so not necessarily a misspelling of 'host'
OWN_GROUPS = ("tf_machines", "tf_host", "tf_gpu_machines", "tf_tunnel_machines")  # of the role spec
CAPTURED = "A captured exception marker was tripped: "  # Ansible's words before the error of a template
MIN_SIMILARITY = 0.8  # from 0 to 1, of two names of which one is a misspelling of the other
TRAIN_PORT_OFFSET = 1000  # added to a task's port for its process of a training
RUN_SLOTS = 4  # programs that run as one task at the same time
MAX_RUN_SLOTS = 64
TUNNEL_NETWORK = "fd74:6663:6c75::/64"  # from the private addresses (RFC 4193)
# Variables of roles that playbooks need as well. The roles have the same defaults, for plays that call them alone.
FIREWALL_ENABLED = True
TUNNEL_NAME = "tf-cluster"
OUTPUT = "output"
# Option of a task -> its kind and its default. The defaults are the seed's, except for thread_spinning.
NUMBER = "a whole number from 0"
SHARE = "a number above 0 and up to 1"
SWITCH = "true or false"
GPUS = "GPU numbers or UUIDs, as in [0, 1]"
OPTIONS: dict[str, tuple[str, Any]] = {
    "gpu_memory_fraction": (SHARE, 0.2),
    "gpu_allow_growth": (SWITCH, True),
    "gpus": (GPUS, []),
    "intra_op_threads": (NUMBER, 0),
    "inter_op_threads": (NUMBER, 0),
    "thread_spinning": (SWITCH, False),
}


def cluster_spec(groups: Groups, hostvars: HostVars, provisional: bool = False, firewall: bool = False) -> dict[str, Any]:
    """Return the cluster that the inventory describes, or all problems of the inventory.

    With ``firewall``, also the ports and names that a firewall needs are checked. The controller then resolves names.
    """
    inventory = Inventory(groups, hostvars, provisional)
    inventory.read()
    cluster = {} if inventory.problems else inventory.cluster()
    if cluster and firewall:
        inventory.check_firewall(cluster)
    return {"problems": list(dict.fromkeys(inventory.problems)), **({} if inventory.problems else cluster)}


def complete_tasks(tasks: Iterable[Mapping[str, Any]]) -> list[Task]:
    """Return the tasks, with defaults for name, standing, reached_by and options."""
    options = {name: default for name, (_kind, default) in OPTIONS.items()}
    return [
        {
            "name": f"{task['job']}-{task['index']}",
            "standing": task["job"] not in RUN_JOBS,
            "reached_by": task["address"],
            **task,
            "options": {**options, **task.get("options", {})},
        }
        for task in tasks
    ]


def machines_per_gpu(groups: Groups, hostvars: HostVars) -> list[str]:
    """Return the machines that get one task per GPU: their GPUs must be known before the cluster."""
    inventory = Inventory(groups, hostvars)
    wanted = {machine: inventory.value(machine, "tf_tasks") for machine in inventory.variables}
    return [machine for machine, tasks in wanted.items() if isinstance(tasks, dict) and PER_GPU in tasks.values()]


class Inventory:
    """Reads the inventory into ``tasks`` and collects ``problems``."""

    jobs: Sequence[str]
    tunnel: Network | None  # None without encryption
    problems: list[str]
    train_port_offset: int
    run_slots: int
    output: str  # path of the folder for results
    shared: str  # path that is the same file system on all machines; empty: there is none
    tunnel_names: dict[str, str]  # machine -> name of the tunnel's interface
    open_machines: list[str]  # machines without a firewall
    open_jobs: set[str]  # jobs whose number of tasks is not known yet
    members: dict[str, set[str]]  # job -> machines
    tasks: dict[str, list[Task]]  # job -> tasks, by index

    def __init__(self, groups: Groups, hostvars: HostVars, provisional: bool = False) -> None:
        self.groups, self.jobs, self.provisional, self.tunnel = groups, JOBS, provisional, None
        self.variables = {machine: hostvars[machine] for machine in groups.get("all", [])}
        self.problems, self.open_jobs, self.members, self.tasks = [], set(), {}, {}

    def add_problem(self, sentence: str) -> None:
        """Add a problem."""
        self.problems.append(sentence)

    def value(self, machine: str, name: str) -> Any:
        """Return a variable of a machine, or None if it is not set. Add a problem if it cannot be evaluated."""
        try:
            return _evaluated(self.variables[machine].get(name))
        except Exception as error:  # a template may raise anything
            reason = str(error).removeprefix(CAPTURED).strip().splitlines() or [type(error).__name__]
            self.add_problem(f"{machine}: cannot evaluate {name}: {reason[0]}")
            return None

    def read(self) -> None:
        """Fill ``tasks``: read the machines, then number the tasks of each job."""
        if not self.read_jobs():
            return
        self.check_groups()
        self.tunnel = self.read_tunnel()
        machines = dict.fromkeys(name for job in self.jobs for name in self.groups.get(job, []))
        self.check_own_groups(machines)
        self.check_extra_peers(machines)
        self.check_values(machines)
        offset = self.common("train_port_offset", machines)
        self.train_port_offset = TRAIN_PORT_OFFSET if offset is None else _whole(offset) or 0
        if not 1 <= self.train_port_offset <= MAX_PORT:
            self.add_problem(f"train_port_offset is {offset!r}. Set a number from 1 to {MAX_PORT}.")
        slots = self.common("run_slots", machines)
        self.run_slots = RUN_SLOTS if slots is None else _whole(slots) or 0
        if not 1 <= self.run_slots <= MAX_RUN_SLOTS:
            self.add_problem(f"run_slots is {slots!r}. Set a number from 1 to {MAX_RUN_SLOTS}.")
        self.output = os.path.realpath(os.path.expanduser(str(self.common("tf_output", machines) or OUTPUT)))
        self.shared = self.read_shared(machines)
        self.tunnel_names = {machine: str(self.value(machine, "tunnel_name") or TUNNEL_NAME) for machine in machines}
        firewalls = {machine: self.value(machine, "firewall_enabled") for machine in machines}
        self.open_machines = [
            machine
            for machine, enabled in firewalls.items()
            if not boolean(FIREWALL_ENABLED if enabled is None else enabled, strict=False)
        ]
        self.members = {job: set(self.groups.get(job, [])) for job in self.jobs}
        by_machine = {machine: self.read_machine(machine) for machine in machines}
        for job in self.jobs:
            tasks = [task for machine in self.groups.get(job, []) for task in by_machine[machine] if task["job"] == job]
            count = len(self.problems)
            self.set_indices(job, tasks)
            if job in self.open_jobs:
                del self.problems[count:]  # the number of tasks is not known yet
            self.tasks[job] = sorted(tasks, key=lambda task: -1 if task["index"] is None else task["index"])
        self.check_addresses(machines)

    def common(self, name: str, machines: Iterable[str]) -> Any:
        """Return a variable that must be the same for all machines. Return None if it is not set or differs."""
        given: list[Any] = []
        for machine in machines:
            value = self.value(machine, name)
            if value not in given:
                given.append(value)
        if len(given) > 1:
            self.add_problem(f"{name} differs between machines. Set it once, for the group 'all'.")
        return given[0] if len(given) == 1 else None

    def read_tunnel(self) -> Network | None:
        """Return the network of the tunnel, or None without encryption."""
        members = dict.fromkeys(machine for job in self.jobs for machine in self.groups.get(job, []))
        wanted, network = self.common("tf_encryption", members), self.common("tf_tunnel_network", members)
        if str(wanted).lower() in ("none", "false", "no", ""):
            return None
        if str(wanted).lower() not in ("true", "yes"):
            self.add_problem(f"tf_encryption is {wanted!r}. Set true or false.")
        try:
            return ipaddress.ip_network(str(network or TUNNEL_NETWORK))
        except ValueError as error:
            self.add_problem(f"tf_tunnel_network is {network!r} ({error}). Set a network, as in {TUNNEL_NETWORK}.")
            return None

    def read_shared(self, machines: Iterable[str]) -> str:
        """Return the path that all machines share; empty if there is none."""
        given = self.common("tf_shared", machines)
        if given in (None, ""):
            return ""
        path = str(given)
        hidden = next((folder for folder in HIDDEN_FOLDERS if f"{path}/".startswith(f"{folder}/")), None)
        if not SHARED_PATH.fullmatch(path):
            self.add_problem(f"tf_shared is {given!r}. Set a path of letters, digits, '.', '_' and '-', such as /mnt/cluster.")
        elif hidden:
            self.add_problem(
                f"tf_shared is {path}, but servers and runs cannot see {hidden}. Mount it elsewhere, as /mnt/cluster."
            )
        return path.rstrip("/")

    def tunnel_address(self, machine: str, tunnel: Network) -> str:
        """Return a machine's address in the tunnel. It depends on its name only, so other machines do not change it."""
        given = self.value(machine, "tf_tunnel_address")
        if given:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
            try:
                address = ipaddress.ip_address(str(given).strip("[]"))
            except ValueError:
                address = None
            if address is None or address not in tunnel:
                self.add_problem(
                    f"{machine}: tf_tunnel_address is {given!r}. Set an address in the tunnel's network {tunnel} "
                    "(tf_tunnel_network)."
                )
                return str(given)
        else:
            room = max(1, tunnel.num_addresses - 2)  # without the network's own and the broadcast address
            number = int.from_bytes(hashlib.sha256(str(machine).encode()).digest(), "big") % room + 1
            address = tunnel.network_address + min(number, tunnel.num_addresses - 1)
        return f"[{address}]" if address.version == 6 else str(address)

    def read_jobs(self) -> bool:
        """Read ``jobs``. Return False if the inventory cannot be read further."""
        count = len(self.problems)
        jobs = self.common("tf_jobs", self.variables)
        if len(self.problems) > count:
            return False
        self.jobs = JOBS if jobs in (None, []) else jobs
        if not isinstance(self.jobs, (list, tuple)) or not all(isinstance(job, str) for job in self.jobs):
            self.add_problem(f"tf_jobs is {self.jobs!r}. Set a list of group names, as in [worker, host].")
            return False
        for job in self.jobs:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", job):
                self.add_problem(f"tf_jobs contains {job!r}. Use letters, digits and '_' in a job's name, first a letter.")
            elif job not in self.groups and job not in JOBS:
                self.add_problem(f"tf_jobs contains '{job}', but the inventory has no group '{job}'. Add it or remove the job.")
            if self.jobs.count(job) > 1:
                self.add_problem(f"tf_jobs contains '{job}' twice. Remove one.")
        self.jobs = list(dict.fromkeys(self.jobs))
        return True

    def check_groups(self) -> None:
        """Find missing jobs and misspelt groups, whose machines would be ignored without a message."""
        for job in ("worker", "host"):
            if job not in self.jobs:
                self.add_problem(f"tf_jobs lacks '{job}', which every cluster needs. Add it.")
            elif not self.groups.get(job):
                self.add_problem(f"The group '{job}' has no machine. Add at least one.")
        for group, members in self.groups.items():
            near = self.misspelt_job(group)
            ignored = [machine for machine in members if near and machine not in self.groups.get(near, [])]
            if ignored and not (group in UNRELATED_GROUPS and self.groups.get(near)):
                self.add_problem(
                    f"{ignored[0]}: the group '{group}' is not a job. Did you mean '{near}'? If '{group}' is your own job, "
                    "add it to tf_jobs."
                )

    def misspelt_job(self, group: str) -> str:
        """Return the job that a group's name misspells, or "". A short name resembles many others, such as ps and vps."""
        if group in self.jobs:
            return ""
        for job in self.jobs:
            if sorted(_plain(group)) == sorted(_plain(job)):
                return job
        required = [job for job in ("worker", "host") if not self.groups.get(job)]
        near = difflib.get_close_matches(
            group, [job for job in self.jobs if len(job) > 5 or job in required], n=1, cutoff=MIN_SIMILARITY
        )
        return near[0] if near else ""

    def check_own_groups(self, machines: Iterable[str]) -> None:
        """Find foreign machines in the groups that the role spec makes: the playbooks would change them."""
        for group in OWN_GROUPS:
            strangers = [machine for machine in self.groups.get(group, []) if machine not in machines]
            if strangers:
                self.add_problem(f"{strangers[0]}: the group '{group}' is the project's. Give your group another name.")

    def check_extra_peers(self, machines: Iterable[str]) -> None:
        """Refuse peers outside of the tunnel, which could not reach the tasks."""
        if not self.tunnel:
            return
        having = [machine for machine in machines if self.value(machine, "firewall_extra_peers")]
        if having:
            self.add_problem(
                f"{having[0]}: firewall_extra_peers is set, but with tf_encryption, tasks are reached through the tunnel only. "
                "Remove one of them."
            )

    def check_firewall(self, cluster: dict[str, Any]) -> None:
        """Find names that the controller cannot resolve, and ports that do not exist."""
        guarded = [machine for machine in cluster["machines"] if machine not in self.open_machines]
        names = [tasks[0]["address"].strip("[]") for tasks in cluster["machines"].values()] if guarded else []
        for machine in guarded:
            try:
                names += extra_peers(self.value(machine, "firewall_extra_peers"))
            except ValueError as error:
                self.add_problem(str(error))
        for name in dict.fromkeys(names):
            try:
                resolve(name, len(cluster["machines"]) == 1)
            except ValueError as error:
                self.add_problem(str(error))
        if guarded:
            self.problems += offset_problem(cluster, max(highest for _parts, _control, highest in all_training_ports(cluster)))

    def check_names(self, machine: str) -> None:
        """Find misspelt variables."""
        for name in self.variables[machine]:
            if known := misspelt_variable(name):
                self.add_problem(f"{machine}: unknown variable {name}. Did you mean {known}?")

    def check_values(self, machines: Collection[str]) -> None:
        """Find values that the roles do not accept."""
        for name in sorted(checked_variables()):
            found: dict[str, str] = {}
            for machine in machines:
                with contextlib.suppress(Exception):  # a template may use facts, which only the role has
                    value = _evaluated(self.variables[machine].get(name))
                    if wanted := invalid_value(name, value):
                        found[machine] = f"{name} is {value!r}. Set {wanted}."
            once = len(found) == len(machines) and len(set(found.values())) == 1  # set for all machines
            for machine, sentence in found.items():
                self.add_problem(sentence if once else f"{machine}: {sentence}")

    def check_kept(self, machine: str) -> None:
        """Check how long the machine keeps runs."""
        for name, unit in KEPT.items():
            value = self.value(machine, name)
            if value is not None and not 0 <= number_of(value) <= MAX_KEPT:
                self.add_problem(f"{machine}: {name} is {value!r}. Set a number of {unit} from 0 to {MAX_KEPT}.")

    def read_machine(self, machine: str) -> list[Task]:
        """Return the machine's tasks, with ports."""
        self.check_names(machine)
        self.check_kept(machine)
        reached_by = self.address(machine)
        address = self.tunnel_address(machine, self.tunnel) if self.tunnel else reached_by
        if self.tunnel:
            self.check_reached_by(machine, reached_by, self.tunnel)
        wanted = self.value(machine, "tf_tasks")
        wanted = {} if wanted is None else wanted
        own_jobs = [job for job in self.jobs if machine in self.members[job]]
        if not isinstance(wanted, dict):
            self.add_problem(f"{machine}: tf_tasks is {wanted!r}. Set a job and its tasks, as in {{worker: 2}}.")
            return []
        for job in wanted:
            if job not in own_jobs:
                self.add_problem(
                    f"{machine}: tf_tasks contains '{job}', but the machine is in the groups {', '.join(own_jobs)}. "
                    f"Add it to the group '{job}' or remove the entry."
                )
        defaults = {name: default for name, (_kind, default) in OPTIONS.items()}
        defaults.update(self.machine_options(machine))
        tasks = [
            {
                "job": job,
                "machine": machine,
                "address": address,
                "reached_by": reached_by,
                **entry,
                "options": {**defaults, **entry["options"]},
            }
            for job in own_jobs
            for entry in self.entries(machine, job, wanted.get(job, 1))
        ]
        self.set_ports(tasks)
        return tasks

    def address(self, machine: str) -> str:
        """Return the machine's address as the cluster spec has it: IPv6 in brackets."""
        variable = "tf_address" if self.value(machine, "tf_address") else "ansible_host"
        given = self.value(machine, variable) or machine
        address = str(given)
        try:
            number = ipaddress.ip_address(address.strip("[]"))
            address = f"[{number}]" if number.version == 6 else str(number)  # one spelling of an address
        except ValueError:
            # A name. Digits and dots alone are an invalid address.
            if not re.fullmatch(r"(?![0-9.]+$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", address) or not isinstance(given, str):
                self.add_problem(f"{machine}: {variable} is {given!r}. Set an address or a name, without a port.")
        return address

    def check_reached_by(self, machine: str, reached_by: str, tunnel: Network) -> None:
        """Find a machine whose own address is in the tunnel's network."""
        try:
            within = ipaddress.ip_address(reached_by.strip("[]")) in tunnel
        except ValueError:
            return  # a name
        if within:
            self.add_problem(
                f"{machine}: the address {reached_by} is in the tunnel's network {tunnel}. Set tf_tunnel_network to an unused "
                "network."
            )

    def machine_options(self, machine: str) -> dict[str, Any]:
        """Return the options in tf_task_options, which apply to all tasks of the machine."""
        given = self.value(machine, "tf_task_options")
        where = f"{machine}: tf_task_options"
        if given is None or isinstance(given, dict):
            options: dict[str, Any] = self.entry(where, given or {}, numbers={})["options"]
            return options
        self.add_problem(f"{where} is {given!r}. Set options, as in {{gpu_memory_fraction: 0.5}}.")
        return {}

    def entries(self, machine: str, job: str, wanted: Any) -> list[dict[str, Any]]:
        """Return the entries of one job in tf_tasks, one per task."""
        where = f"{machine}: tf_tasks.{job}"
        if wanted == PER_GPU:
            return self.entry_per_gpu(where, machine, job)
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            if not 1 <= wanted <= MAX_TASKS_PER_JOB:
                self.add_problem(
                    f"{where} is {wanted}. Set 1 to {MAX_TASKS_PER_JOB}, or remove the machine from the group '{job}'."
                )
            return [{"options": {}} for _each in range(min(wanted, MAX_TASKS_PER_JOB))]
        if not isinstance(wanted, list) or not all(isinstance(entry, dict) for entry in wanted) or not wanted:
            self.add_problem(
                f"{where} is {wanted!r}. Set a number of tasks, 'per_gpu', or a list with an entry per task, as in "
                "[{port: 2222}]."
            )
            return []
        return [self.entry(where, entry) for entry in wanted]

    def entry_per_gpu(self, where: str, machine: str, job: str) -> list[dict[str, Any]]:
        """Return an entry for each GPU that was found on the machine."""
        found = (self.value(machine, "spec_gpus") or {}).get("answer")
        if not isinstance(found, dict) and self.provisional:
            self.open_jobs.add(job)
            return [{"options": {"gpus": [0]}}]
        if not isinstance(found, dict):
            self.add_problem(f"{where} is 'per_gpu', but the machine's GPUs are unknown. Check that it is reachable.")
            return []
        count = max(len(found["gpus"]), len(found["pci"]))
        if not count:
            self.add_problem(f"{where} is 'per_gpu', but the machine has no NVIDIA GPU. Set a number of tasks.")
        return [{"options": {"gpus": [number]}} for number in range(count)]

    def entry(self, where: str, given: dict[Any, Any], numbers: Mapping[str, tuple[int, int]] = ENTRY_NUMBERS) -> dict[str, Any]:
        """Check one entry of tf_tasks and return its options, and index and port if they are given."""
        found: dict[str, Any] = {"options": {}}
        for name, value in given.items():
            if name in numbers:
                lowest, highest = numbers[name]
                number = _whole(value)
                if number is None or not lowest <= number <= highest:
                    self.add_problem(f"{where}: {name} is {value!r}. Set a whole number from {lowest} to {highest}.")
                else:
                    found[name] = number
            elif name not in OPTIONS:
                near = difflib.get_close_matches(str(name), [*numbers, *OPTIONS], n=1)
                hint = f"Did you mean {near[0]}?" if near else f"Known options: {', '.join([*numbers, *OPTIONS])}."
                self.add_problem(f"{where}: unknown option '{name}'. {hint}")
            elif not _fits(OPTIONS[name][0], value):
                self.add_problem(f"{where}: {name} is {value!r}. Set {OPTIONS[name][0]}.")
            else:
                found["options"][name] = _gpus(value) if name == "gpus" else value
        return found

    def set_ports(self, tasks: list[Task]) -> None:
        """Set the ports that tf_tasks leaves out: the seed's for the first task of a job, then the next free ones."""
        taken = {task["port"] for task in tasks if "port" in task}
        unset = [task for task in tasks if "port" not in task]
        for job, port in FIRST_PORTS.items():
            first = next((task for task in unset if task["job"] == job), None)
            if first and port not in taken:
                first["port"] = port
                unset.remove(first)
        free = (port for port in itertools.count(NEXT_PORT) if port not in taken)
        for task in unset:
            task["port"] = next(free)

    def set_indices(self, job: str, tasks: list[Task]) -> None:
        """Set the indices that tf_tasks leaves out: the lowest free ones, in the inventory's order."""
        by_index: dict[int | None, Task] = {}
        for task in tasks:
            if "index" in task:
                other = by_index.setdefault(task["index"], task)
                if other is not task:
                    self.add_problem(
                        f"Job '{job}': the index {task['index']} is used twice in tf_tasks, by {other['machine']} and "
                        f"{task['machine']}. Change one."
                    )
        free = iter(index for index in range(len(tasks)) if index not in by_index)
        for task in tasks:
            if "index" not in task:
                task["index"] = next(free, None)
                by_index[task["index"]] = task
        for index in range(len(tasks)):
            if index not in by_index:
                highest = max(by_index, key=lambda i: -1 if i is None else i)
                self.add_problem(
                    f"Job '{job}' has no index {index}, because {by_index[highest]['machine']} has the index {highest} in "
                    f"tf_tasks. Use the indices 0 to {len(tasks) - 1}, without a gap."
                )

    def check_addresses(self, machines: dict[str, None]) -> None:
        """Find addresses that two tasks share, and addresses that other machines cannot reach."""
        endpoints: dict[str, Task] = {}
        owners: dict[str, str] = {}
        tunnels: dict[str, str] = {}
        for task in (task for tasks in self.tasks.values() for task in tasks):
            endpoint = f"{task['address']}:{task['port']}"
            other = endpoints.setdefault(endpoint, task)
            if other is not task:
                self.add_problem(
                    f"{endpoint} is used twice, by {other['job']}:{other['index']} on {other['machine']} and "
                    f"{task['job']}:{task['index']} on {task['machine']}. Change the tf_address or the port of one."
                )
            owner = owners.setdefault(task["reached_by"], task["machine"])
            if self.tunnel and (twin := tunnels.setdefault(task["address"], task["machine"])) != task["machine"]:
                self.add_problem(
                    f"{twin} and {task['machine']} have the same address {task['address']} in the tunnel. Set the "
                    "tf_tunnel_address of one."
                )
            if owner != task["machine"]:
                self.add_problem(
                    f"{owner} and {task['machine']} have the same address {task['reached_by']}. If they are one machine, use "
                    "one name and list its tasks in tf_tasks. If not, change the tf_address of one."
                )
            is_local = re.fullmatch(r"localhost|127\..*|0\.0\.0\.0|\[::1?\]", task["reached_by"])
            if is_local and len(machines) > 1:
                self.add_problem(
                    f"{task['machine']}: other machines cannot reach the address {task['reached_by']}. Set tf_address to one "
                    "that they can reach."
                )

    def cluster(self) -> dict[str, Any]:
        """Return the result; call it only when there are no problems."""
        spec: dict[str, list[str]] = {}
        machines: dict[str, list[Task]] = {}
        names: dict[str, str] = {}
        for job in (job for job in self.jobs if self.tasks.get(job)):
            spec[job] = [f"{task['address']}:{task['port']}" for task in self.tasks[job]]
            for task in self.tasks[job]:
                task.update(name=f"{job}-{task['index']}", standing=job not in RUN_JOBS)
                machines.setdefault(task["machine"], []).append(task)
                names[f"{job}:{task['index']}"] = task["machine"]
        tunnel = str(self.tunnel) if self.tunnel else None
        gpu_machines = [machine for machine, tasks in machines.items() if any(task["options"]["gpus"] for task in tasks)]
        return {
            "spec": spec, "machines": machines, "tasks": names, "host": names["host:0"], "tunnel": tunnel,
            "gpu_machines": gpu_machines, "train_port_offset": self.train_port_offset, "run_slots": self.run_slots,
            "open_machines": self.open_machines, "tunnel_names": self.tunnel_names, "output": self.output,
            "shared": self.shared,
        }  # fmt: skip


def _evaluated(value: Any) -> Any:
    """Return a variable with all that it contains evaluated. Ansible evaluates templates at their first use, wherever that is."""
    if isinstance(value, Mapping):
        return {name: _evaluated(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_evaluated(part) for part in value]
    bool(value)  # raises if the template failed
    return value


def _whole(value: Any) -> int | None:
    """Return ``value`` as a whole number, or None. Inventories in INI format contain strings."""
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        return None
    return int(value)


def _fits(kind: str, value: Any) -> bool:
    """Return whether an option's value is of its kind."""
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == NUMBER:
        return (number := _whole(value)) is not None and number >= 0
    if kind == SHARE:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
    return _gpus(value) is not None


def _gpus(value: Any) -> list[int | str] | None:
    """Return ``value`` as a list of GPU numbers and UUIDs, or None if it is invalid. Strings are split at commas."""
    given = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    gpus: list[int | str] = []
    for gpu in given:
        number = _whole(gpu.strip() if isinstance(gpu, str) else gpu)
        if number is not None and number >= 0:
            gpus.append(number)
        elif isinstance(gpu, str) and re.fullmatch(r"\s*(GPU|MIG)-[A-Za-z0-9/-]+\s*", gpu):
            gpus.append(gpu.strip())
        elif value != "":
            return None
    return gpus if len(set(gpus)) == len(gpus) else None


def _plain(name: str) -> str:
    """Return the letters of a name, in lower case and without the s of a plural."""
    letters = re.sub("[^a-z]", "", name.lower())
    return letters[:-1] if letters.endswith("s") and len(letters) > 2 else letters


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"cluster_spec": cluster_spec, "complete_tasks": complete_tasks, "machines_per_gpu": machines_per_gpu}
