"""The module task_units: which units are started, restarted and stopped."""

import pytest
from project import load

task_units = load("plugins/modules/task_units.py")
UNIT, OTHER = "tf-server@worker-0.service", "tf-server@worker-1.service"
RUNS = {
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "StatusText": "worker:0 listens on 10.0.0.1:2222, inputs 3f2a99c1d4e5",
}
# What systemd 252 prints of a running task, a failed one, one that it never saw, and the target.
SHOWN = """\
Id=tf-server@worker-0.service
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
StatusText=worker:0 listens on 10.0.0.1:2222, TensorFlow 2.21.0, inputs 3f2a99c1d4e5

Id=tf-server@ps-0.service
ActiveState=activating
UnitFileState=enabled
NeedDaemonReload=yes
StatusText=

Id=tf-server@worker-7.service
ActiveState=inactive
UnitFileState=disabled
NeedDaemonReload=no

Id=tf-cluster.target
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
"""


def plan(found, inputs="3f2a99c1d4e5", others=()):
    """Return what is to be done, by name, where the unit is as ``found``."""
    done = task_units.plan({UNIT: inputs}, {UNIT: found, **dict(others)})
    return dict(zip(("enable", "start", "restart", "stop"), done))


def test_the_output_of_systemctl_show_is_parsed_by_unit():
    units = task_units.parse_show(SHOWN)
    assert list(units) == [UNIT, "tf-server@ps-0.service", "tf-server@worker-7.service", "tf-cluster.target"]
    assert units[UNIT]["StatusText"] == "worker:0 listens on 10.0.0.1:2222, TensorFlow 2.21.0, inputs 3f2a99c1d4e5"
    assert units["tf-server@ps-0.service"]["StatusText"] == ""
    assert units["tf-server@ps-0.service"]["NeedDaemonReload"] == "yes"


def test_a_value_may_contain_an_equals_sign():
    assert task_units.parse_show("Id=a.service\nStatusText=x=1, y=2\n")["a.service"]["StatusText"] == "x=1, y=2"


@pytest.mark.parametrize("text", ["", "\n\n", "Failed to connect to bus", "ActiveState=active"])
def test_output_without_a_unit_id_is_ignored(text):
    assert task_units.parse_show(text) == {}


def test_the_plan_uses_the_output_of_systemctl_show():
    found = task_units.parse_show(SHOWN)
    found.pop("tf-cluster.target")
    wanted = {UNIT: "3f2a99c1d4e5", "tf-server@ps-0.service": "99"}
    assert task_units.plan(wanted, found) == ([], ["tf-server@ps-0.service"], [], [])


def test_a_running_task_with_unchanged_inputs_is_not_restarted():
    assert plan(RUNS) == {"enable": [], "start": [], "restart": [], "stop": []}


@pytest.mark.parametrize("found", [{}, {"ActiveState": "inactive", "UnitFileState": "disabled"}, {"ActiveState": "inactive"}])
def test_a_new_task_is_enabled_and_started(found):
    assert plan(found) == {"enable": [UNIT], "start": [UNIT], "restart": [], "stop": []}


@pytest.mark.parametrize("state", ["inactive", "failed", "activating", "deactivating"])
def test_a_task_that_is_not_running_is_started(state):
    assert plan({**RUNS, "ActiveState": state}) == {"enable": [], "start": [UNIT], "restart": [], "stop": []}


@pytest.mark.parametrize("status", ["", "inputs unknown", "worker:0 listens, inputs 111111111111", "inputs 3f2a99c1d4e5f6a7"])
def test_a_task_with_changed_inputs_is_restarted(status):
    assert plan({**RUNS, "StatusText": status}) == {"enable": [], "start": [], "restart": [UNIT], "stop": []}


def test_a_task_without_a_status_is_restarted():
    assert plan({"ActiveState": "active", "UnitFileState": "enabled"})["restart"] == [UNIT]


def test_a_running_task_that_is_not_enabled_is_only_enabled():
    assert plan({**RUNS, "UnitFileState": "disabled"}) == {"enable": [UNIT], "start": [], "restart": [], "stop": []}


@pytest.mark.parametrize(
    "found",
    [RUNS, {"ActiveState": "failed", "UnitFileState": "disabled"}, {"ActiveState": "inactive", "UnitFileState": "enabled"}],
)
def test_a_task_that_the_machine_no_longer_has_is_stopped(found):
    assert plan(RUNS, others={OTHER: found}) == {"enable": [], "start": [], "restart": [], "stop": [OTHER]}


@pytest.mark.parametrize("found", [{}, {"ActiveState": "inactive", "UnitFileState": "disabled"}])
def test_a_stopped_task_is_not_stopped_again(found):
    assert plan(RUNS, others={OTHER: found})["stop"] == []


def test_all_tasks_are_stopped_if_the_machine_has_none():
    assert task_units.plan({}, {UNIT: RUNS, OTHER: RUNS}) == ([], [], [], [UNIT, OTHER])


class Recorder:
    """Stands for the Ansible module: notes the commands and answers each from a table."""

    def __init__(self, answers=()):
        self.commands, self.answers = [], dict(answers)

    def run_command(self, command):
        """Note a command and return (exit status, output, errors)."""
        self.commands.append(command)
        return self.answers.get(command[1], (0, "", ""))

    def fail_json(self, msg):
        """End with a sentence."""
        raise SystemExit(msg)


def test_instances_are_the_loaded_and_enabled_units_without_duplicates():
    module = Recorder(
        {
            "list-units": (0, f"{UNIT} loaded active running TensorFlow server worker-0\n", ""),
            "list-unit-files": (0, f"tf-server@.service disabled enabled\n{UNIT} enabled enabled\n{OTHER} enabled enabled\n", ""),
        }
    )
    assert task_units.Systemd(module).instances("tf-server@.service") == [UNIT, OTHER]
    assert all(command[-1] == "tf-server@*.service" for command in module.commands)


def test_systemctl_is_not_called_without_units():
    module = Recorder()
    assert task_units.Systemd(module).show([]) == {}
    assert module.commands == []


def test_the_error_message_of_systemctl_is_quoted():
    module = Recorder({"enable": (1, "", "Unit tf-server@x.service is masked.\n")})
    with pytest.raises(SystemExit, match=r"'systemctl enable x' failed: Unit tf-server@x.service is masked\."):
        task_units.Systemd(module).run("enable", "x")


def test_a_task_that_did_not_start_is_reported_with_the_message_of_the_server():
    failed = "Id=tf-server@worker-0.service\nActiveState=failed\n\nId=tf-server@worker-1.service\nActiveState=active\n"
    said = "tf_cluster.server: port 2222 is taken by nginx\nMain process exited, code=exited, status=1/FAILURE\n"
    module = Recorder({"show": (0, failed, ""), "--unit": (0, said, "")})
    assert complaint(module) == f"{UNIT} did not start: tf_cluster.server: port 2222 is taken by nginx"


def complaint(module):
    """Return the messages on two tasks that should start."""
    wanted = {UNIT: "", OTHER: ""}
    return task_units.complaint(module, task_units.Systemd(module), wanted, "tf-server@.service", ["confined.conf"])


def test_a_drop_in_of_another_program_is_reported():
    ours = (
        "FragmentPath=/etc/systemd/system/tf-server@.service\nDropInPaths=/etc/systemd/system/tf-server@.service.d/confined.conf"
    )
    theirs = f"/etc/systemd/system/{UNIT}.d/override.conf"
    for paths, words in (
        (ours, ""),
        (f"{ours} {theirs}", f" It is changed by {theirs}, not part of this project. Correct or remove that."),
    ):
        module = Recorder({"show": (0, f"Id={UNIT}\nActiveState=failed\n{paths}\n", ""), "--unit": (0, "failed", "")})
        assert complaint(module) == f"{UNIT} did not start: failed{words}"
