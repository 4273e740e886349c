"""The filter machine_problems: it reports what prevents a machine from carrying its tasks, and nothing else."""

import copy

import pytest
from project import load

machine_problems = load("plugins/filter/machine_problems.py").machine_problems


TASK = {"job": "worker", "index": 0, "name": "worker-0", "reached_by": "10.0.0.1", "port": 2222}
NEEDS = {"disk_mb": 2500, "own_addresses": True, "closed_ports": [2222, 3222, 4222], "ssh_address": "10.0.0.1", "ssh_port": 22}
SSH = {"port": 3222, "name": "sshd", "pid": 5, "user": "root", "unit": ""}
FOUND = {
    "init": "systemd",
    "processor": "x86_64",
    "python": {"version": "3.11", "executable": "/usr/bin/python3"},
    "addresses": ["10.0.0.1", "127.0.0.1", "172.17.0.1", "fe80::1", "fd00::1"],
    "listeners": [{"port": 22, "name": "sshd", "pid": 1, "user": "root", "unit": ""}],
    "disk_mb": 2500,
    "account": [],
    "environment": {"made_of": ""},
}


def python(version, executable="/usr/bin/python3"):
    """Return what a machine says of its Python."""
    return {"version": version, "executable": executable}


def problems(task=(), needs=(), **found):
    """Return the problems of the machine "m1", which is well but for what is given."""
    return machine_problems([TASK | dict(task)], "m1", copy.deepcopy(FOUND) | found, NEEDS | dict(needs))


def test_a_good_machine_has_no_problems():
    assert problems() == []


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_python_versions_with_wheels_are_accepted(minor):
    assert problems(python=python(f"3.{minor}")) == []


@pytest.mark.parametrize("address", ["fd00::1", "[fd00::1]", "[fe80::1]", "127.0.0.1", "m1.example.org", "172.17.0.1"])
def test_an_address_of_the_machine_or_a_name_is_accepted(address):
    assert problems(task={"reached_by": address}) == []


def test_a_translated_address_is_accepted_without_preflight_own_addresses():
    assert problems(task={"reached_by": "203.0.113.5"}, needs={"own_addresses": False}) == []


def test_free_disk_is_not_checked_if_the_packages_are_installed():
    assert problems(disk_mb=0, environment={"made_of": "something"}) == []


def test_numbers_may_be_strings():
    assert problems(needs={"disk_mb": "2500"}) == []
    assert len(problems(needs={"disk_mb": "2501"})) == 1


def test_the_account_of_the_project_is_accepted():
    assert problems(account=["tensorflow", "x", 998, 998, "", "/var/lib/tf-cluster", "/usr/sbin/nologin"]) == []


def test_a_port_used_by_a_server_of_the_project_is_accepted():
    own = {"port": 2222, "name": "python3", "pid": 5, "user": "tensorflow", "unit": ""}
    assert problems(listeners=[own]) == []
    # Also where somebody has made its unit another user's.
    assert problems(listeners=[{**own, "user": "root", "unit": "tf-server@worker-0.service"}]) == []


def test_a_process_on_another_port_is_ignored():
    assert problems(listeners=[{"port": 22222, "name": "nginx", "pid": 5, "user": "root", "unit": ""}]) == []


@pytest.mark.parametrize("port", [3222, 4222])
def test_a_training_port_used_by_another_program_is_reported(port):
    """The firewall would close the port, for example the port of SSH."""
    [sentence] = problems(listeners=[{**SSH, "port": port}])
    assert f"m1: port {port} is in use by sshd (process 5, user root). The cluster's firewall would close it" in sentence
    assert "train_port_offset" in sentence
    [sentence] = problems(listeners=[{**SSH, "port": port}], needs={"ssh_port": str(port)})
    assert "and Ansible connects to it" in sentence
    assert problems(listeners=[{**SSH, "port": port, "user": "tensorflow"}]) == []
    assert problems(listeners=[{**SSH, "port": port}], needs={"closed_ports": []}) == []


@pytest.mark.parametrize(
    ("address", "port", "refused"),
    [("10.0.0.1", 3222, True), ("[fd00::1]", "4222", True), ("10.0.0.1", 22, False), ("10.0.0.1", 0, False),
     ("10.0.0.1", 2222, True), ("127.0.0.1", 3222, False), ("203.0.113.5", 3222, False), ("gateway.example", 3222, False)],
)  # fmt: skip
def test_closing_the_port_that_ansible_connects_to_is_reported(address, port, refused):
    """Unless the address belongs to another machine, which forwards the port."""
    found = problems(needs={"ssh_address": address, "ssh_port": port})
    assert [f"m1: port {port} is the one that Ansible connects to" in sentence for sentence in found] == [True] * refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"init": "openrc"}, ["openrc", "systemd"]),
        ({"init": ""}, ["systemd"]),
        ({"processor": "riscv64"}, ["riscv64", "x86_64 and aarch64"]),
        ({"python": python("3.9")}, ["Python 3.9", "/usr/bin/python3", "3.10 to 3.13", "ansible_python_interpreter"]),
        ({"python": python("3.14")}, ["Python 3.14"]),
        ({"python": python("2.11")}, ["Python 2.11"]),
        ({"disk_mb": 2499}, ["2499 MB", "/opt", "2500 MB", "preflight_disk_mb"]),
        (
            {"python": python("3.11", "/root/.pyenv/versions/3.11/bin/python")},
            ["/root/.pyenv", "ansible_python_interpreter"],
        ),
        (
            {"account": ["tensorflow", "x", 1001, 1001, "Jo", "/home/tensorflow", "/bin/bash"]},
            ["account tensorflow", "/home/tensorflow"],
        ),
        (
            {"task": {"reached_by": "10.0.0.2"}},
            ["10.0.0.2", "10.0.0.1", "tf_address", "preflight_own_addresses", "firewall_extra_peers"],
        ),
        ({"task": {"reached_by": "[fd00::2]"}}, ["fd00::2", "tf_address"]),
        (
            {"listeners": [{"port": 2222, "name": "nginx", "pid": 812, "user": "www-data", "unit": ""}]},
            ["port 2222", "nginx", "812", "www-data", "worker:0", "tf_tasks"],
        ),
        (
            {"listeners": [{"port": 2222, "name": "", "pid": 0, "user": "root", "unit": ""}]},
            ["port 2222", "a process", "worker:0"],
        ),
    ],
    ids=str,
)
def test_a_problem_is_one_message_with_the_name_of_the_machine(given, words):
    [sentence] = problems(**given)
    assert sentence.startswith("m1: ")
    assert [word for word in words if word not in sentence] == []


def test_a_port_used_on_two_addresses_is_one_problem():
    holder = {"port": 2222, "name": "nginx", "pid": 812, "user": "root", "unit": ""}
    assert len(problems(listeners=[holder, holder])) == 1


def test_all_problems_are_reported_together():
    worst = {"init": "runit", "processor": "i386", "python": python("3.5")}
    listeners = [{"port": 2222, "name": "x", "pid": 1, "user": "root", "unit": ""}]
    assert len(problems(**worst, disk_mb=0, task={"reached_by": "10.9.9.9"}, listeners=listeners)) == 6
