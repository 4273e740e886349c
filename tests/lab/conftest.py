"""A cluster that a Molecule scenario made, driven by the commands that a user types."""

import functools
import json
import os
import re
import shlex
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
AS_ROOT = ["sudo"] if os.geteuid() else []
SCENARIO = Path(os.environ.get("TEST_SCENARIO", ROOT / "molecule/default"))
INVENTORIES = "".join(path.read_text(encoding="utf-8") for path in SCENARIO.glob("inventory/*.yml"))
LAB = "".join(re.findall(r"lab_name: (\S+)", INVENTORIES))  # what the names of its containers begin with
PASSWORD = "Only-4-this-test"
# For the shell of a machine: waits until its packages are byte-compiled, and says "done" if they are.
UNTIL_COMPILED = "for _ in $(seq 180); do test -e /opt/tf-cluster/venv/byte-compiled && echo done && break; sleep 1; done"


class Cluster:
    """The scenario's cluster."""

    scenario = SCENARIO
    keys = Path.home() / ".local/state" / LAB
    output = ROOT / ".cache/output" / SCENARIO.name  # scenarios run side by side
    inventory = (f"--inventory={ROOT}/inventory/lab/lab.yml", f"--inventory={SCENARIO}/inventory")

    def command(self, *words, seconds=300, **settings):
        """Run one of Ansible's commands on the cluster, with settings of Ansible, and return what it did."""
        process = self.begin(*words, **settings)
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def begin(self, *words, **settings):
        """Start one of Ansible's commands, in a process group of its own."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_"))}
        environment["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
        environment["PYTHONUNBUFFERED"] = "1"  # into a pipe, Ansible's lines would come by the block
        environment |= settings
        output = [f"--extra-vars=tf_output={self.output}"] if words[0] == "ansible-playbook" else []
        return subprocess.Popen(
            [words[0], *self.inventory, *output, *map(str, words[1:])], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def playbook(self, *words, **more):
        """Run a playbook."""
        return self.command("ansible-playbook", *words, **more)

    def run(self, program, *words, **more):
        """Run a program; return the command and the run's folder on the controller (None if there is none)."""
        done = self.playbook("playbooks/run.yml", f"--extra-vars=program={program}", *words, **more)
        return done, folder_of(done)

    @functools.cached_property
    def inventory_data(self):
        """Return the inventory as Ansible lists it."""
        return json.loads(self.command("ansible-inventory", "--list").stdout)

    def machines(self, pattern):
        """Return the machines of a pattern: names of machines and groups, separated by colons."""
        groups, found = self.inventory_data, []
        for name in pattern.split(":"):
            group = groups.get(name, {"hosts": [name]})
            found += group.get("hosts", []) + [each for child in group.get("children", []) for each in self.machines(child)]
        return [*dict.fromkeys(found)]

    def ssh(self, machine, line, **more):
        """Run a line of shell on a machine; with the lab's keys and without Ansible, whose commands take ten times as long."""
        options = {"UserKnownHostsFile": self.keys / "known_hosts", "GlobalKnownHostsFile": "/dev/null", "IdentitiesOnly": "yes"}
        options |= {"IdentityFile": self.keys / "id_ed25519", "ConnectTimeout": 10}
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        address = self.inventory_data["_meta"]["hostvars"][machine]["ansible_host"]
        return subprocess.run(
            ["ssh", *words, f"root@{address}", f"sh -c {shlex.quote(line)}"],
            capture_output=True, text=True, timeout=300, check=False, **{"stdin": subprocess.DEVNULL, **more},
        )  # fmt: skip

    def shell(self, machine, line):
        """Run a line of shell on machines at the same time and return what each printed: machine -> text."""
        names = self.machines(machine)
        with ThreadPoolExecutor(len(names)) as pool:
            done = dict(zip(names, pool.map(lambda name: self.ssh(name, line), names)))
        reached = {name: each.stdout.strip() for name, each in done.items() if each.returncode != 255}
        assert reached, str(done)
        return reached

    @property
    def host(self):
        """Return the name of the machine that carries the host's task."""
        return self.machines("host")[-1]

    def podman(self, verb, machine, *words):
        """Do something to a lab machine from outside."""
        container = f"{LAB}-{machine}"
        subprocess.run([*AS_ROOT, "podman", verb, *words, container], check=True, capture_output=True, timeout=60)

    def inside(self, machine, script):
        """Run a shell script on a lab machine without its network, and return what it printed."""
        command = [*AS_ROOT, "podman", "exec", "--interactive", "--privileged", f"{LAB}-{machine}", "bash"]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_for(self, machine, seconds=60):
        """Wait until a machine can be logged into."""
        done = self.command("ansible", machine, "--module-name=ansible.builtin.wait_for_connection", f"--args=timeout={seconds}")
        assert done.returncode == 0, said(done)

    def write(self, machine, path, content, mode="0644"):
        """Write a file on machines."""
        for name in self.machines(machine):
            done = self.ssh(name, f"cat > {shlex.quote(path)} && chmod {mode} {shlex.quote(path)}", input=content, stdin=None)
            assert done.returncode == 0, done.stderr

    def python(self, machine, program):
        """Run a Python program on a machine, with the environment of its tasks, and return the JSON that it prints."""
        self.write(machine, "/tmp/program.py", program)
        return json.loads(self.shell(machine, "/opt/tf-cluster/venv/bin/python /tmp/program.py")[machine])

    def pids(self):
        """Return unit -> main process of all running tasks."""
        line = "systemctl show --property=Id,MainPID 'tf-server@*' | paste -sd' '"
        return {
            unit: pid for text in self.shell("lab", line).values() for pid, unit in re.findall(r"MainPID=(\d+) +Id=(\S+)", text)
        }


def folder_of(done):
    """Return the run's folder that a command named."""
    found = re.search(r"everything is in (\S+)", done.stdout)
    return Path(found.group(1)) if found else None


def said(done):
    """Return all that a command printed, without line breaks that only fill a screen."""
    return re.sub(r"\s+", " ", done.stdout + done.stderr)


def verdict(folder):
    """Return a run's verdict."""
    return json.loads((folder / "verdict.json").read_text(encoding="utf-8"))


class Faults:
    """The outcome of each fault that was tried, for the table that ``make test-faults`` prints."""

    def __init__(self, figures):
        self.rows = figures

    def note(self, fault, seconds, lost, how):
        """Note a fault: ``seconds`` until it was noticed or repaired, what was ``lost``, and ``how`` it ended."""
        self.rows.append({"fault": fault, "seconds": round(seconds, 1), "lost": lost, "outcome": how})


@pytest.fixture(scope="session")
def figures():
    """Return a list for rows of tables, column -> cell: at the end they are added to those that tests/molecule prints."""
    found, path = [], ROOT / f".cache/{SCENARIO.name}.json"
    yield found
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows + found, indent=1), encoding="utf-8")


@pytest.fixture(scope="session")
def faults(figures):
    """Return what faults are noted in."""
    return Faults(figures)


@pytest.fixture(scope="session")
def expected(cluster):
    """Return the config.json that the scenario's inventory describes, as text."""
    return (cluster.scenario / "config.json").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def cluster():
    """Return the cluster."""
    return Cluster()


@pytest.fixture
def deploy(cluster, tmp_path):
    """Return options with which Ansible logs in as a user whose sudo needs a password."""
    script = (
        "useradd --create-home --shell /bin/bash deploy; "
        f"echo deploy:{PASSWORD} | chpasswd; echo 'deploy ALL=(ALL:ALL) ALL' > /etc/sudoers.d/deploy; "
        "cp /etc/ssh/lab/authorized_keys /etc/ssh/deploy_keys; chmod 644 /etc/ssh/deploy_keys"
    )
    cluster.shell("lab", f"bash -c {shlex.quote(script)}")
    keys = "AuthorizedKeysFile /etc/ssh/lab/authorized_keys /etc/ssh/deploy_keys\n"
    cluster.write("lab", "/etc/ssh/sshd_config.d/a-deploy.conf", keys)
    cluster.shell("lab", "systemctl reload ssh")
    path = tmp_path / "deploy.yml"
    variables = {"ansible_user": "deploy", "ansible_become_password": PASSWORD}
    path.write_text(yaml.safe_dump(variables), encoding="utf-8")
    yield [f"--extra-vars=@{path}"]
    files = "/etc/ssh/sshd_config.d/a-deploy.conf /etc/sudoers.d/deploy /etc/ssh/deploy_keys"
    cluster.shell("lab", f"rm -f {files}; systemctl reload ssh; userdel --force --remove deploy")


@pytest.fixture
def jump(cluster, tmp_path):
    """Return options with which Ansible reaches the host machine through another machine."""
    hosts = cluster.inventory_data["_meta"]["hostvars"]
    [machine] = set(hosts) - {cluster.host}
    keys = f"-i {cluster.keys}/id_ed25519 -o UserKnownHostsFile={cluster.keys}/known_hosts -o GlobalKnownHostsFile=/dev/null"
    proxy = f'-o ProxyCommand="ssh -W %h:%p -q {keys} root@{hosts[machine]["ansible_host"]}"'
    common = f"{hosts[cluster.host]['ansible_ssh_common_args']} {proxy}"
    # A separate master connection, because that of the other tests has no jump host.
    variables = {"ansible_ssh_common_args": common, "ansible_control_path": "%(directory)s/jump-%%C"}
    (tmp_path / "jump.yml").write_text(yaml.safe_dump({"host": {"hosts": {cluster.host: variables}}}), encoding="utf-8")
    return [f"--inventory={tmp_path / 'jump.yml'}"]
