"""The one place that reads the inventory: groups and variables in, the whole cluster out.

The result is data, so no role ever looks at ``groups`` or ``hostvars``.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.spec.cluster_config import RUN_JOBS

# A task of the cluster: job, index, machine, address, reached_by, port, options; in the end its name and whether it is standing.
Task = dict[str, Any]
Groups = Mapping[str, list[str]]  # group -> machines, as Ansible's own variable groups
HostVars = Mapping[str, Mapping[str, Any]]  # machine -> variables, as Ansible's own variable hostvars
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

JOBS = ("chief", "worker", "ps", "evaluator", "host")
# The seed's ports; further jobs and further tasks of a machine go upwards from the last.
FIRST_PORTS = {"worker": 2222, "host": 2223}
NEXT_PORT = 2224
MOST_TASKS = 4096  # of one job on one machine
PER_GPU = "per_gpu"  # what tf_tasks says of a job that is to have a task for each GPU
# What an entry of tf_tasks may say besides: from where to where.
PLACES = {"index": (0, 99999), "port": (1, 65535)}
MACHINE_VARIABLES = (
    "tf_address", "tf_encryption", "tf_jobs", "tf_tasks", "tf_task_options", "tf_tunnel_address", "tf_tunnel_network",
)  # fmt: skip
FOREIGN_GROUPS = ("hosts",)  # a usual name of a group, for which 'host' need not be meant
CONTROLLER_VARIABLES = ("tf_cache", "tf_output")  # not suggested: Terraform's variables have similar names
NEAR_MISS = 0.8  # how alike two names are, from 0 to 1, if one is a misspelling of the other
TUNNEL_NETWORK = "fd74:6663:6c75::/64"  # of the addresses that everybody may use within (RFC 4193)
# What can be said of a task, what it must be, and what holds where nothing is said: the seed's own, but for spinning.
NUMBER = "a whole number from 0"
SHARE = "a number above 0 and up to 1"
SWITCH = "true or false"
GPUS = "a list of GPUs by number or UUID, as in [0, 1]"
OPTIONS: dict[str, tuple[str, Any]] = {
    "gpu_memory_fraction": (SHARE, 0.2),
    "gpu_allow_growth": (SWITCH, True),
    "gpus": (GPUS, []),
    "intra_op_threads": (NUMBER, 0),
    "inter_op_threads": (NUMBER, 0),
    "thread_spinning": (SWITCH, False),
}


def cluster_spec(groups: Groups, hostvars: HostVars, provisional: bool = False) -> dict[str, Any]:
    """Return the cluster that the inventory describes, or all that is wrong with it."""
    inventory = Inventory(groups, hostvars, provisional)
    inventory.read()
    if inventory.problems:
        return {"problems": list(dict.fromkeys(inventory.problems))}
    return {"problems": [], **inventory.cluster()}


def complete_tasks(tasks: Iterable[Mapping[str, Any]]) -> list[Task]:
    """Return tasks with a default for each value that a play may leave out: name, standing, reached_by and options."""
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
    """Return the machines whose GPUs have to be known before the cluster is: a job is to have a task for each."""
    inventory = Inventory(groups, hostvars)
    wanted = {machine: inventory.value(machine, "tf_tasks") for machine in inventory.variables}
    return [machine for machine, tasks in wanted.items() if isinstance(tasks, dict) and PER_GPU in tasks.values()]


class Inventory:
    """The inventory on its way to a cluster; ``problems`` collects sentences."""

    jobs: Sequence[str]
    tunnel: Network | None  # that the tasks' traffic goes through
    problems: list[str]
    open_jobs: set[str]  # whose number of tasks is not known yet
    members: dict[str, set[str]]  # job -> machines
    tasks: dict[str, list[Task]]  # by job, in the inventory's order, then in the order of the indices

    def __init__(self, groups: Groups, hostvars: HostVars, provisional: bool = False) -> None:
        self.groups, self.jobs, self.provisional, self.tunnel = groups, JOBS, provisional, None
        self.variables = {machine: hostvars[machine] for machine in groups.get("all", [])}
        self.problems, self.open_jobs, self.members, self.tasks = [], set(), {}, {}

    def say(self, sentence: str) -> None:
        """Note a problem."""
        self.problems.append(sentence)

    def value(self, machine: str, name: str) -> Any:
        """Return a variable of a machine; None where it is not set, or cannot be worked out, which is a problem."""
        try:
            return self.variables[machine].get(name)
        except Exception as error:  # a template may raise anything
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.say(f"The variable {name} of machine {machine} cannot be worked out: {reason[0]}")
            return None

    def read(self) -> None:
        """Fill ``tasks``, machine by machine and then job by job."""
        if not self.read_jobs():
            return
        self.check_groups()
        self.tunnel = self.read_tunnel()
        machines = dict.fromkeys(name for job in self.jobs for name in self.groups.get(job, []))
        self.members = {job: set(self.groups.get(job, [])) for job in self.jobs}
        own = {machine: self.read_machine(machine) for machine in machines}
        for job in self.jobs:
            tasks = [task for machine in self.groups.get(job, []) for task in own[machine] if task["job"] == job]
            said = len(self.problems)
            self.number(job, tasks)
            if job in self.open_jobs:
                del self.problems[said:]  # how many there are is known only later
            self.tasks[job] = sorted(tasks, key=lambda task: -1 if task["index"] is None else task["index"])
        self.check_addresses(machines)

    def common(self, name: str, machines: Iterable[str]) -> Any:
        """Return a variable that has to be the same for all machines; None where it is not set, or is not the same."""
        given: list[Any] = []
        for machine in machines:
            value = self.value(machine, name)
            if value not in given:
                given.append(value)
        if len(given) > 1:
            self.say(f"The variable {name} is not the same for all machines: set it once, for the group 'all'.")
        return given[0] if len(given) == 1 else None

    def read_tunnel(self) -> Network | None:
        """Return the network of the tunnel that the tasks' traffic goes through, or None."""
        members = dict.fromkeys(machine for job in self.jobs for machine in self.groups.get(job, []))
        wanted, network = self.common("tf_encryption", members), self.common("tf_tunnel_network", members)
        if str(wanted).lower() in ("none", "false", "no", ""):
            return None
        if str(wanted).lower() not in ("true", "yes"):
            self.say(f"The variable tf_encryption is {wanted!r}: make it true or false.")
        try:
            return ipaddress.ip_network(str(network or TUNNEL_NETWORK))
        except ValueError as error:
            self.say(f"The variable tf_tunnel_network is {network!r}: give a network, as in {TUNNEL_NETWORK} ({error}).")
            return None

    def tunnel_address(self, machine: str, tunnel: Network) -> str:
        """Return a machine's address in the tunnel: its name decides, so nobody else's changes when machines come and go."""
        given = self.value(machine, "tf_tunnel_address")
        if given:
            address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
            try:
                address = ipaddress.ip_address(str(given).strip("[]"))
            except ValueError:
                address = None
            if address is None or address not in tunnel:
                self.say(
                    f"The variable tf_tunnel_address of machine {machine} is {given!r}: give an address of {tunnel}, the "
                    "network of the tunnel (tf_tunnel_network)."
                )
                return str(given)
        else:
            room = max(1, tunnel.num_addresses - 2)  # neither the network's own address nor the last
            number = int.from_bytes(hashlib.sha256(str(machine).encode()).digest(), "big") % room + 1
            address = tunnel.network_address + min(number, tunnel.num_addresses - 1)
        return f"[{address}]" if address.version == 6 else str(address)

    def read_jobs(self) -> bool:
        """Note the groups that are jobs and tell whether they can be."""
        said = len(self.problems)
        jobs = self.common("tf_jobs", self.variables)
        if len(self.problems) > said:
            return False
        self.jobs = JOBS if jobs in (None, []) else jobs
        if not isinstance(self.jobs, (list, tuple)) or not all(isinstance(job, str) for job in self.jobs):
            self.say(f"The variable tf_jobs is {self.jobs!r}: make it a list of group names, as in [worker, host].")
            return False
        for job in self.jobs:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", job):
                self.say(f"The variable tf_jobs has {job!r}: a job is named by letters, digits and '_' alone.")
            elif job not in self.groups and job not in JOBS:
                self.say(f"The variable tf_jobs has '{job}', but the inventory has no group '{job}': add it or leave it out.")
            if self.jobs.count(job) > 1:
                self.say(f"The variable tf_jobs has '{job}' twice: take one out.")
        self.jobs = list(dict.fromkeys(self.jobs))
        return True

    def check_groups(self) -> None:
        """Find jobs that are missing, and misspelt ones, whose machines would be passed over in silence."""
        for job in ("worker", "host"):
            if job not in self.jobs:
                self.say(f"The variable tf_jobs leaves out '{job}', which every cluster has: add it.")
            elif not self.groups.get(job):
                self.say(f"No machine is in the group '{job}': put at least one machine into it.")
        for group, members in self.groups.items():
            near = difflib.get_close_matches(group, self.jobs, n=1, cutoff=NEAR_MISS) if group not in self.jobs else []
            strays = [machine for machine in members if near and machine not in self.groups.get(near[0], [])]
            if strays and not (group in FOREIGN_GROUPS and self.groups.get(near[0])):
                self.say(
                    f"The group '{group}' with machine {strays[0]} is no job: is '{near[0]}' meant? If it is a job of "
                    "your own, name it in tf_jobs."
                )

    def check_names(self, machine: str) -> None:
        """Find misspelt variables."""
        for name in self.variables[machine]:
            hint = _misspelt(name)
            if hint:
                self.say(f"The variable {name} of machine {machine} is not known: {hint}")

    def read_machine(self, machine: str) -> list[Task]:
        """Return the machine's tasks, with ports."""
        self.check_names(machine)
        reached_by = self.address(machine)
        address = self.tunnel_address(machine, self.tunnel) if self.tunnel else reached_by
        if self.tunnel:
            self.check_reached_by(machine, reached_by, self.tunnel)
        wanted = self.value(machine, "tf_tasks")
        wanted = {} if wanted is None else wanted
        own_jobs = [job for job in self.jobs if machine in self.members[job]]
        if not isinstance(wanted, dict):
            self.say(f"The variable tf_tasks of machine {machine} is {wanted!r}: write a job and its tasks, as in {{worker: 2}}.")
            return []
        for job in wanted:
            if job not in own_jobs:
                self.say(
                    f"The variable tf_tasks of machine {machine} has '{job}', but the machine is in the groups "
                    f"{', '.join(own_jobs)}: put it into the group '{job}' or take the entry out."
                )
        usual = {name: default for name, (_kind, default) in OPTIONS.items()}
        usual.update(self.machine_options(machine))
        tasks = [
            {
                "job": job,
                "machine": machine,
                "address": address,
                "reached_by": reached_by,
                **entry,
                "options": {**usual, **entry["options"]},
            }
            for job in own_jobs
            for entry in self.entries(machine, job, wanted.get(job, 1))
        ]
        self.give_ports(tasks)
        return tasks

    def address(self, machine: str) -> str:
        """Return the machine's address as it stands in the spec: IPv6 in brackets."""
        variable = "tf_address" if self.value(machine, "tf_address") else "ansible_host"
        given = self.value(machine, variable) or machine
        address = str(given)
        try:
            number = ipaddress.ip_address(address.strip("[]"))
            address = f"[{number}]" if number.version == 6 else str(number)  # one spelling of an address
        except ValueError:
            # A name; digits and dots alone are an address that went wrong.
            if not re.fullmatch(r"(?![0-9.]+$)[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", address) or not isinstance(given, str):
                self.say(f"The variable {variable} of machine {machine} is {given!r}: give an address or a name without a port.")
        return address

    def check_reached_by(self, machine: str, reached_by: str, tunnel: Network) -> None:
        """Find a machine that is reached by an address of the tunnel, which would have to go through itself."""
        try:
            within = ipaddress.ip_address(reached_by.strip("[]")) in tunnel
        except ValueError:
            return  # a name
        if within:
            self.say(
                f"The address {reached_by} of machine {machine} is one of {tunnel}, the network of the tunnel: set "
                "tf_tunnel_network to one that nobody uses."
            )

    def machine_options(self, machine: str) -> dict[str, Any]:
        """Return what tf_task_options says of all the machine's tasks."""
        given = self.value(machine, "tf_task_options")
        where = f"The variable tf_task_options of machine {machine}"
        if given is None or isinstance(given, dict):
            options: dict[str, Any] = self.entry(where, given or {}, places={})["options"]
            return options
        self.say(f"{where} is {given!r}: write options and their values, as in {{gpu_memory_fraction: 0.5}}.")
        return {}

    def entries(self, machine: str, job: str, wanted: Any) -> list[dict[str, Any]]:
        """Return what tf_tasks says of one job: a list with an entry a task."""
        where = f"The variable tf_tasks.{job} of machine {machine}"
        if wanted == PER_GPU:
            return self.entry_per_gpu(where, machine, job)
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            if not 1 <= wanted <= MOST_TASKS:
                self.say(f"{where} is {wanted}: give 1 to {MOST_TASKS} tasks, or take the machine out of the group '{job}'.")
            return [{"options": {}} for _each in range(min(wanted, MOST_TASKS))]
        if not isinstance(wanted, list) or not all(isinstance(entry, dict) for entry in wanted) or not wanted:
            self.say(
                f"{where} is {wanted!r}: give a number of tasks, 'per_gpu', or a list with an entry a task, as in "
                "[{port: 2222}]."
            )
            return []
        return [self.entry(where, entry) for entry in wanted]

    def entry_per_gpu(self, where: str, machine: str, job: str) -> list[dict[str, Any]]:
        """Return an entry for each of the machine's GPUs, as many as were found on it."""
        found = (self.value(machine, "ansible_facts") or {}).get("tf_machine", {}).get("gpus")
        if not isinstance(found, dict) and self.provisional:
            self.open_jobs.add(job)
            return [{"options": {"gpus": [0]}}]
        if not isinstance(found, dict):
            self.say(f"{where} is 'per_gpu', and the machine's GPUs are not known: can it be reached?")
            return []
        count = max(len(found["gpus"]), len(found["pci"]))
        if not count:
            self.say(f"{where} is 'per_gpu', and the machine has no NVIDIA GPU: give a number of tasks.")
        return [{"options": {"gpus": [number]}} for number in range(count)]

    def entry(self, where: str, given: dict[Any, Any], places: Mapping[str, tuple[int, int]] = PLACES) -> dict[str, Any]:
        """Return one entry of tf_tasks, checked: index and port where given, and the options."""
        found: dict[str, Any] = {"options": {}}
        for name, value in given.items():
            if name in places:
                lowest, highest = places[name]
                number = _whole(value)
                if number is None or not lowest <= number <= highest:
                    self.say(f"{where} has {name} {value!r}: give a whole number from {lowest} to {highest}.")
                else:
                    found[name] = number
            elif name not in OPTIONS:
                near = difflib.get_close_matches(str(name), [*places, *OPTIONS], n=1)
                hint = f"is {near[0]} meant?" if near else f"there are {', '.join([*places, *OPTIONS])}."
                self.say(f"{where} has '{name}', which is not known: {hint}")
            elif not _fits(OPTIONS[name][0], value):
                self.say(f"{where} has {name} {value!r}: give {OPTIONS[name][0]}.")
            else:
                found["options"][name] = _gpus(value) if name == "gpus" else value
        return found

    def give_ports(self, tasks: list[Task]) -> None:
        """Give ports to a machine's tasks that state none: the seed's to the first of a job, then upwards."""
        taken = {task["port"] for task in tasks if "port" in task}
        silent = [task for task in tasks if "port" not in task]
        for job, port in FIRST_PORTS.items():
            first = next((task for task in silent if task["job"] == job), None)
            if first and port not in taken:
                first["port"] = port
                silent.remove(first)
        free = (port for port in itertools.count(NEXT_PORT) if port not in taken)
        for task in silent:
            task["port"] = next(free)

    def number(self, job: str, tasks: list[Task]) -> None:
        """Give indices, an explicit one first, the lowest free ones in the inventory's order to the others."""
        by_index: dict[int | None, Task] = {}
        for task in tasks:
            if "index" in task:
                other = by_index.setdefault(task["index"], task)
                if other is not task:
                    self.say(
                        f"The index {task['index']} of job '{job}' is given twice in tf_tasks, to machine "
                        f"{other['machine']} and to machine {task['machine']}: change one."
                    )
        free = iter(index for index in range(len(tasks)) if index not in by_index)
        for task in tasks:
            if "index" not in task:
                task["index"] = next(free, None)
                by_index[task["index"]] = task
        for index in range(len(tasks)):
            if index not in by_index:
                highest = max(by_index, key=lambda i: -1 if i is None else i)
                self.say(
                    f"Job '{job}' has {len(tasks)} task(s), but no index {index}: machine {by_index[highest]['machine']} has the "
                    f"index {highest} in tf_tasks; the indices of a job go from 0 to {len(tasks) - 1} without a gap."
                )

    def check_addresses(self, machines: dict[str, None]) -> None:
        """Find addresses that two tasks share, and those that other machines cannot reach."""
        places: dict[str, Task] = {}
        owners: dict[str, str] = {}
        tunnels: dict[str, str] = {}
        for task in (task for tasks in self.tasks.values() for task in tasks):
            place = f"{task['address']}:{task['port']}"
            other = places.setdefault(place, task)
            if other is not task:
                self.say(
                    f"{place} is given twice, to {other['job']}:{other['index']} of machine {other['machine']} and to "
                    f"{task['job']}:{task['index']} of machine {task['machine']}: change the tf_address or the port of one."
                )
            owner = owners.setdefault(task["reached_by"], task["machine"])
            if self.tunnel and (twin := tunnels.setdefault(task["address"], task["machine"])) != task["machine"]:
                self.say(
                    f"Machines {twin} and {task['machine']} have the same address {task['address']} in the tunnel: set the "
                    "tf_tunnel_address of one."
                )
            if owner != task["machine"]:
                self.say(
                    f"Machines {owner} and {task['machine']} have the same address {task['reached_by']}: if they are one, "
                    "give it one name and say its tasks in tf_tasks; if not, change the tf_address of one."
                )
            own = re.fullmatch(r"localhost|127\..*|0\.0\.0\.0|\[::1?\]", task["reached_by"])
            if own and len(machines) > 1:
                self.say(
                    f"The address of machine {task['machine']} is {task['reached_by']}, which the other machines cannot "
                    "reach: set its tf_address to the address that they know it by."
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
            "gpu_machines": gpu_machines,
        }  # fmt: skip


def _whole(value: Any) -> int | None:
    """Return ``value`` as a whole number, or None; inventories in INI form give texts."""
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        return None
    return int(value)


def _fits(kind: str, value: Any) -> bool:
    """Tell whether an option's value is of its kind."""
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == NUMBER:
        return (number := _whole(value)) is not None and number >= 0
    if kind == SHARE:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1
    return _gpus(value) is not None


def _gpus(value: Any) -> list[int | str] | None:
    """Return ``value`` as a list of GPUs, whole numbers and UUIDs; None if it is none. Texts are split at commas."""
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


@functools.cache
def _misspelt(name: str) -> str:
    """Return a hint if ``name`` is a near miss of a variable of this project, or nothing: other tools use ``tf_`` as well."""
    known = _known_variables()
    if (
        name in known or name in CONTROLLER_VARIABLES or name.startswith(("ansible_", "__"))
    ):  # Ansible's, and what roles keep for themselves
        return ""
    near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR_MISS if name.startswith("tf_") else 0.88)
    return f"is {near[0]} meant?" if near else ""


@functools.cache
def _known_variables() -> set[str]:
    """Return the names of the machines' variables and of all that the roles document."""
    specs = (Path(__file__).parents[2] / "roles").glob("*/meta/argument_specs.yml")
    entries = [entry for path in specs for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values()]
    return {
        *MACHINE_VARIABLES,
        "spec_cluster",
        "tf_machine",
        "tf_run",
        "program_args",
        "program_data",
        "program_requirements",
        "run_name",
        "train_jobs",
        "train_restarts",
        "train_join",
        "train_port_offset",
        "benchmark_seconds",
        *(name for entry in entries for name in entry.get("options", {})),
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"cluster_spec": cluster_spec, "complete_tasks": complete_tasks, "machines_per_gpu": machines_per_gpu}
