"""The installed collection in another project, without our ansible.cfg and our inventories."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, UNTIL_COMPILED, verdict

BIN = Path(sys.executable).parent
MACHINES = ("alone-a", "alone-b")
FOREIGN = {"job": "worker", "index": 0, "address": "10.9.9.9", "port": 2300}
CONNECTION = ("host", "user", "ssh_private_key_file", "ssh_common_args", "python_interpreter")
OURS = "ls -d /etc/tf-cluster /opt/tf-cluster /etc/systemd/system/tf-* /etc/wireguard/* 2>/dev/null; "
OURS += "getent passwd tensorflow; nft list tables | grep -i tf; true"


class Project:
    """A folder with the installed collection and a separate inventory."""

    def __init__(self, folder, machines):
        self.folder, self.machines = folder, machines
        galaxy = ("ansible-galaxy", "collection")
        self.call(*galaxy, "build", "--output-path", folder, ROOT)
        [archive] = folder.glob("*.tar.gz")
        self.call(*galaxy, "install", "--offline", "--no-deps", "--collections-path", folder / "all", archive)
        self.write("hosts.yml", {"all": {"hosts": machines}})
        shutil.copy(Path(__file__).with_name("roles.yml"), folder)

    def write(self, name, inventory):
        """Write an inventory."""
        (self.folder / name).write_text(json.dumps(inventory), encoding="utf-8")

    def call(self, *words):
        """Run one of Ansible's commands in the folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "MOLECULE_", "TF_"))}
        return subprocess.run(
            [BIN / words[0], *map(str, words[1:])], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=300, check=False, env={**kept, "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "all")},
        )  # fmt: skip

    def roles(self, *words):
        """Run the play of roles; return what it did."""
        return self.call("ansible-playbook", "-i", "hosts.yml", "roles.yml", *words)


@pytest.fixture(scope="module")
def project(cluster, tmp_path_factory):
    """Return another project, with the ways to the lab's machines in its inventory."""
    listed = cluster.inventory_data["_meta"]["hostvars"]
    templates = {name: {f"ansible_{key}": listed[name][f"ansible_{key}"] for key in CONNECTION} for name in MACHINES}
    text = re.sub(r"\{\{ *lab_folder *\}\}", str(cluster.keys), json.dumps(templates))
    return Project(tmp_path_factory.mktemp("project"), json.loads(text))


def changes(done):
    """Return how many tasks changed something on each machine."""
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"(?m)^(\S+) +: ok=\d+ +changed=(\d+)", done.stdout))


@pytest.mark.parametrize("tag", ["preflight", "cuda", "tensorflow", "tunnel", "firewall", "server", "ready"])
def test_each_role_works_alone(project, tag):
    """Each in a separate call, so that no role can use facts or variables of another one."""
    first = changes(project.roles("--tags", tag))
    assert set(first) == set(MACHINES)
    assert ("0" in first.values()) is (tag in ("preflight", "cuda", "ready"))


def test_the_roles_change_nothing_when_they_are_applied_again(project):
    assert set(changes(project.roles()).values()) == {"0"}


def test_the_packages_are_byte_compiled(cluster):
    """A service of the role tensorflow does it after the installation."""
    found = cluster.shell("lab", f"{UNTIL_COMPILED}; systemctl is-enabled tf-cluster-compile.service")
    assert set(found.values()) == {"done\nenabled"}


def test_the_tunnel_carries_packets_and_refuses_other_machines(cluster, project):
    address = project.machines["alone-a"]["ansible_host"]
    in_tunnel, beside = (
        f"timeout 5 bash -c 'echo > /dev/tcp/{place}' 2>/dev/null && echo open || echo closed"
        for place in ("10.66.0.1/22", f"{address}/2300")
    )
    assert cluster.shell("alone-b", f"{in_tunnel}; {beside}")["alone-b"] == "open\nopen"
    done = subprocess.run(["bash", "-c", beside], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "closed"


@pytest.mark.parametrize(
    ("tag", "variables", "words"),
    [
        ("preflight", {"own_tasks": [FOREIGN]}, "10.9.9.9 is not an address of this machine"),
        ("cuda", {"own_tasks": [FOREIGN | {"options": {"gpus": [0]}}]}, "has no NVIDIA GPU"),
        ("ready", {"ready_needs": ["/job:worker/task:0/device:GPU:0"]}, "the program needs /job:worker/task:0/device:GPU:0"),
        ("ready", {"ready_cluster": {"worker": ["10.9.9.9:2300"]}}, "config.json is out of date"),
    ],
)
def test_a_role_used_alone_reports_why_it_failed(project, tag, variables, words):
    done = project.roles("--tags", tag, "--extra-vars", json.dumps(variables))
    assert done.returncode != 0
    assert words in re.sub(r"\s+", " ", done.stdout), done.stdout


def test_the_remove_tasks_of_the_roles_leave_only_the_installation_folder_and_the_user(cluster, project):
    plays = [
        {"hosts": "all", "gather_facts": False, "become": True, "tasks": [
            {"ansible.builtin.include_role": {"name": f"distributed.tensorflow.{role}", "tasks_from": "remove"}}
        ]}
        for role in ("server", "firewall", "tunnel", "cuda")
    ]  # fmt: skip
    project.write("remove.yml", plays)
    changes(project.call("ansible-playbook", "-i", "hosts.yml", "remove.yml"))
    assert {text.partition(":")[0] for text in cluster.shell("lab", OURS).values()} == {"/opt/tf-cluster\ntensorflow"}


def test_the_playbooks_of_the_collection_create_a_cluster_run_the_demo_and_remove_the_cluster(cluster, project):
    groups = {"worker": {"hosts": project.machines}, "host": {"hosts": {"alone-b": {}}}}
    project.write("cluster.yml", groups)
    playbook = ("ansible-playbook", "-i", "cluster.yml")
    changes(project.call(*playbook, "distributed.tensorflow.site", "distributed.tensorflow.run_demo"))
    assert verdict(project.folder / "output/latest")["ok"] is True
    assert set(changes(project.call(*playbook, "distributed.tensorflow.site")).values()) == {"0"}
    changes(project.call(*playbook, "distributed.tensorflow.teardown", "-e", "server_remove_runs=true"))
    assert set(cluster.shell("lab", OURS).values()) == {""}
