"""lab_check.py: whether a lab can run on this machine, and the message if it cannot."""

import json
import re
import resource
import shutil
import subprocess
from collections import namedtuple

import jinja2
import pytest
import yaml
from project import ROOT, call, load

lab_check = load("roles/lab/files/lab_check.py")
GIGABYTE = 10**9
ROLE = ROOT / "roles/lab"
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))


class Machine:
    """What lab_check.py sees of a machine; a good one, until something is taken away."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.tools = {"apt-get", "podman", "sudo", "runc", "crun", "iptables", "netavark", "mmdebstrap"}
        self.user, self.free, self.namespaces = 0, 20 * GIGABYTE, ""
        (root / "proc").mkdir()
        (root / "var/lib").mkdir(parents=True)
        self.memory(8_000_000)
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(lab_check.shutil, "which", lambda name, path=None: f"/usr/bin/{name}" if name in self.tools else None)
        monkeypatch.setattr(lab_check.os, "geteuid", lambda: self.user)
        monkeypatch.setattr(lab_check.shutil, "disk_usage", lambda _path: usage(self.free))
        monkeypatch.setattr(lab_check, "namespaces_problem", lambda: self.namespaces)

    def memory(self, kilobytes):
        """Set the memory that is available."""
        text = f"MemTotal:       32000000 kB\nMemFree:         1000 kB\nMemAvailable:   {kilobytes} kB\n"
        (self.root / "proc/meminfo").write_text(text, encoding="ascii")

    def problem(self, stands=False):
        """Return the sentence."""
        return lab_check.problem(self.root, stands)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a machine on which a lab can be made."""
    return Machine(tmp_path, monkeypatch)


def test_a_good_machine_has_no_problem(machine):
    assert machine.problem() == ""


def test_too_little_memory_is_a_problem(machine):
    machine.memory(1_000_000)
    assert machine.problem() == "3 GB of free memory are required, but 1.0 GB are free."


def test_unknown_free_memory_is_a_problem(machine):
    (machine.root / "proc/meminfo").write_text("MemTotal: 1 kB\n", encoding="ascii")
    assert "0.0 GB are free" in machine.problem()


def test_too_little_disk_is_a_problem(machine):
    machine.free = 5 * GIGABYTE
    assert machine.problem() == f"9 GB of free disk in {machine.root}/var/lib are required, but 5.0 GB are free."


def test_a_running_lab_requires_less_disk_and_memory(machine):
    machine.free = 5 * GIGABYTE
    machine.memory(1_000_000)
    assert machine.problem(stands=True) == ""
    machine.memory(100_000)
    assert machine.problem(stands=True) == "0.5 GB of free memory are required, but 0.1 GB are free."


@pytest.mark.parametrize(
    ("release", "old"),
    [
        ('ID=debian\nVERSION_ID="12"', False), ('ID=debian\nVERSION_ID="11"', True),
        ("ID=debian\nVERSION_CODENAME=trixie", False),
        ('ID=ubuntu\nVERSION_ID="22.04"', True), ('ID=ubuntu\nVERSION_ID="24.04"', False),
        ("ID=fedora\nVERSION_ID=40", False), ("", False),
    ],
)  # fmt: skip
def test_a_release_whose_podman_is_too_old_is_a_problem(machine, release, old):
    (machine.root / "etc").mkdir()
    (machine.root / "etc/os-release").write_text(release + "\n", encoding="utf-8")
    assert machine.problem() == ""
    machine.tools.discard("podman")
    assert machine.problem().startswith("this release's podman is too old") is old


@pytest.mark.parametrize("tools", [{"apt-get"}, {"podman"}])
def test_installed_or_installable_podman_is_accepted(machine, tools):
    machine.tools = tools
    assert machine.problem() == ""


def test_missing_podman_that_cannot_be_installed_is_a_problem(machine):
    machine.tools = set()
    assert "podman is not installed" in machine.problem()


def test_neither_root_nor_sudo_is_a_problem(machine):
    machine.user = 1000
    machine.tools.discard("sudo")
    assert machine.problem() == "root or sudo is required."


@pytest.mark.parametrize(
    ("status", "stderr", "terminal", "may"),
    [
        (0, "", False, True),
        (1, "sudo: a password is required", True, True),
        (1, "sudo: a password is required", False, False),
        (1, "sudo: the no new privileges flag is set", True, False),
    ],
)
def test_sudo_is_accepted_if_it_works_or_can_ask_for_a_password(machine, monkeypatch, status, stderr, terminal, may):
    machine.user = 1000
    monkeypatch.setattr(
        lab_check.subprocess, "run", lambda *words, **_more: subprocess.CompletedProcess(words, status, "", stderr)
    )
    monkeypatch.setattr(lab_check.sys, "stdin", type("Stdin", (), {"isatty": lambda _self: terminal})())
    assert lab_check.may_sudo() is may
    assert bool(machine.problem()) is not may


def test_a_kernel_without_namespaces_is_a_problem(machine):
    machine.namespaces = "namespaces are not permitted (unshare failed)."
    assert machine.problem() == machine.namespaces


def test_an_operating_system_other_than_linux_is_a_problem(machine, monkeypatch):
    monkeypatch.setattr(lab_check.sys, "platform", "darwin")
    assert machine.problem() == "containers with systemd need Linux, but this is darwin."


def test_the_error_message_of_unshare_is_quoted(monkeypatch):
    monkeypatch.setattr(lab_check.os, "geteuid", lambda: 0)
    refusal = "unshare: unshare failed: Operation not permitted\n"
    monkeypatch.setattr(lab_check.subprocess, "run", lambda *words, **_more: subprocess.CompletedProcess(words, 1, "", refusal))
    assert lab_check.namespaces_problem() == f"namespaces are not permitted ({refusal.strip()})."


def test_the_settings_fit_this_machine(machine):
    settings = lab_check.settings()
    assert settings["complete"] is True
    assert settings["runtime"] in ("", "runc")
    assert 0 < settings["nofile"] <= 1048576
    assert settings["nproc"] > 0


@pytest.mark.parametrize("tool", ["podman", "iptables", "netavark", "mmdebstrap"])
def test_the_lab_is_not_complete_without_one_of_its_tools(machine, tool):
    machine.tools.discard(tool)
    assert lab_check.settings()["complete"] is False


def test_the_lab_is_not_complete_without_a_container_runtime(machine):
    machine.tools -= {"runc", "crun"}
    assert lab_check.settings()["complete"] is False


@pytest.mark.parametrize(("hard", "expected"), [(1024, 1024), (5_000_000, 1_000_000), (resource.RLIM_INFINITY, 1_000_000)])
def test_a_limit_does_not_exceed_the_hard_limit_of_the_machine(monkeypatch, hard, expected):
    monkeypatch.setattr(lab_check.resource, "getrlimit", lambda _limit: (0, hard))
    assert lab_check.hard_limit(resource.RLIMIT_NOFILE, 1_000_000) == expected


def checked(root, *words):
    """Run lab_check.py as a user does, with the file systems of a made-up machine."""
    return call(
        "roles/lab/files/lab_check.py", *words, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LAB_CHECK_ROOT": str(root)}
    )


def test_the_message_names_an_alternative_and_the_status_is_1(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1000 kB\n", encoding="ascii")
    done = checked(tmp_path, "--json", "tf-lab")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("The lab cannot run on this machine: ")
    assert "required" in done.stderr
    assert "inventory/workstation" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_check_of_this_machine_gives_json_or_a_message():
    done = checked("/", "--json", "no-such-lab")
    assert done.returncode in (0, 1)
    if done.returncode == 0:
        assert json.loads(done.stdout).keys() == {"complete", "runtime", "nofile", "nproc", "running"}
        assert checked("/").stdout == ""
    else:
        assert done.stderr.startswith("The lab cannot run on this machine: ")
    assert shutil.which("true")


def test_a_tool_is_found_in_the_folders_of_root_and_of_the_calling_user(tmp_path, monkeypatch):
    (tmp_path / "podman-of-the-test").write_text("", encoding="ascii")
    (tmp_path / "podman-of-the-test").chmod(0o755)
    assert lab_check.find_tool("podman-of-the-test") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lab_check.find_tool("podman-of-the-test") == str(tmp_path / "podman-of-the-test")
    assert lab_check.find_tool("sh")


def test_the_role_searches_for_tools_in_the_same_folders():
    assert VARIABLES["__lab_path"].startswith(f"{lab_check.TOOL_FOLDERS}:{{{{")


@pytest.mark.parametrize("keys", [True, False])
def test_the_keys_of_a_lab_are_kept_if_podman_is_missing(keys):
    """Without podman and without keys, there is nothing to remove."""
    tasks = {task["name"]: task for task in yaml.safe_load((ROLE / "tasks/remove.yml").read_text(encoding="utf-8"))}
    names = list(tasks)
    check = "Remove | Check that podman is found"
    assert names.index(check) < names.index("Remove | Remove the keys")
    condition = jinja2.Environment(autoescape=True).compile_expression(tasks[check]["ansible.builtin.assert"]["that"])
    assert condition(__lab_podman="", __lab_left={"results": [{"stat": {"exists": keys}}]}) is not keys
    assert condition(__lab_podman="/opt/bin/podman", __lab_left={"results": [{"stat": {"exists": keys}}]}) is True


def every_task(name):
    """Return the tasks of one of the role's files, with those in blocks and in included files."""
    found = []
    waiting = yaml.safe_load((ROLE / f"tasks/{name}").read_text(encoding="utf-8"))
    while waiting:
        task = waiting.pop()
        found.append(task)
        waiting += task.get("block", []) + task.get("rescue", []) + task.get("always", [])
        if "ansible.builtin.include_tasks" in task:
            waiting += every_task(task["ansible.builtin.include_tasks"])
    return found


def test_only_the_lab_is_removed_and_no_package():
    """Neither a module nor a command removes more. 'podman system reset' would remove the user's own containers."""
    tasks = every_task("remove.yml")
    removed = {
        module
        for task in tasks
        for module, options in task.items()
        if isinstance(options, dict) and options.get("state") == "absent"
    }
    podman = {f"containers.podman.podman_{what}" for what in ("network", "image", "volume")}
    assert removed == {"ansible.builtin.file", *podman}
    called = [task["ansible.builtin.command"]["argv"] for task in tasks if "ansible.builtin.command" in task]
    words = {tuple(re.findall(r"\w+", str(argv))[:2]) for argv in called}
    assert words == {("podman", "ps"), ("podman", "rm")}
    others = {module for task in tasks for module in task if "." in module} - removed
    assert others == {f"ansible.builtin.{name}" for name in ("assert", "command", "debug", "include_tasks", "stat")}
