"""The filters of task_environments.py: what a task is started with, and when that changes."""

import hashlib
import shlex

import pytest
from project import ROOT, load

filters = load("plugins/filter/task_environments.py")
DEFAULTS = {"gpu_memory_fraction": 0.2, "gpu_allow_growth": True, "note": ""}


def tasks(*options):
    """Return worker tasks, one for each of the options."""
    return [
        {"job": "worker", "index": i, "name": f"worker-{i}", "options": {**DEFAULTS, **given}, "gpus": [], "standing": True}
        for i, given in enumerate(options)
    ]


def environments(*options, common="spec", packages="3f2a"):
    """Return the environments of worker tasks with these options."""
    return filters.task_environments(tasks(*options), [{"path": "/etc/tf-cluster/config.json", "content": common}], packages)


def variables(environment):
    """Return the variables in an environment file, quotes read as systemd reads them."""
    return dict(word.split("=", 1) for word in shlex.split(environment["files"][0]["content"], comments=True))


def test_the_environment_has_the_name_and_the_options_of_the_task():
    [environment] = environments({"gpu_memory_fraction": 0.5})
    assert environment["name"] == "worker-0"
    assert [file["path"] for file in environment["files"]] == ["/etc/tf-cluster/tasks/worker-0.env"]
    assert variables(environment) == {
        "TF_TASK_JOB": "worker",
        "TF_TASK_INDEX": "0",
        "TF_TASK_GPU_MEMORY_FRACTION": "0.5",
        "TF_TASK_GPU_ALLOW_GROWTH": "true",
        "TF_TASK_NOTE": "",
        "TF_TASK_GPUS": "0",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_TASK_PACKAGES": "3f2a",
        "TF_TASK_FILES": "/etc/tf-cluster/tasks/worker-0.env /etc/tf-cluster/config.json",
    }


def test_the_environment_file_ends_with_a_newline():
    assert environments({})[0]["files"][0]["content"].endswith("\n")


@pytest.mark.parametrize("text", ["0,1", 'a"b', "a\\b", "a b", "# a", "$HOME", "'", '\\"', "a;b", "é"])
def test_quoted_values_are_read_unchanged(text):
    [environment] = environments({"note": text})
    assert variables(environment)["TF_TASK_NOTE"] == text


def test_a_value_cannot_set_another_variable():
    [environment] = environments({"note": '0" TF_TASK_JOB="ps'})
    assert variables(environment)["TF_TASK_JOB"] == "worker"


@pytest.mark.parametrize(("switch", "text"), [(True, "true"), (False, "false")])
def test_booleans_are_written_as_true_or_false(switch, text):
    assert variables(environments({"gpu_allow_growth": switch})[0])["TF_TASK_GPU_ALLOW_GROWTH"] == text


@pytest.mark.parametrize("change", [{"gpu_memory_fraction": 0.9}, {"note": "1"}, {"intra_op_threads": 2}])
def test_a_changed_option_changes_only_the_environment_of_its_task(change):
    before, after = environments({}, {}, {}), environments({}, change, {})
    assert [old == new for old, new in zip(before, after)] == [True, False, True]
    assert before[1]["inputs"] != after[1]["inputs"]


def test_a_changed_common_file_changes_the_inputs_of_all_tasks():
    before, after = environments({}, {}), environments({}, {}, common="another spec")
    assert not {task["inputs"] for task in before} & {task["inputs"] for task in after}


def test_changed_packages_change_the_inputs_of_all_tasks():
    before, after = environments({}, {}), environments({}, {}, packages="99c1")
    assert not {task["inputs"] for task in before} & {task["inputs"] for task in after}


def test_the_server_computes_the_same_digest_of_its_files(tmp_path, monkeypatch):
    [environment] = environments({"note": "é"}, common='{"worker": ["é:2222"]}\n')
    [own] = environment["files"]
    paths = [tmp_path / "own", tmp_path / "config.json"]
    for path, content in zip(paths, (own["content"], '{"worker": ["é:2222"]}\n')):
        path.write_text(content, encoding="utf-8")
    monkeypatch.setenv("TF_TASK_FILES", " ".join(map(str, paths)))
    server = load("tf_cluster.server.server")
    assert server.inputs() == environment["inputs"]
    paths[1].write_text("edited", encoding="utf-8")
    assert server.inputs() != environment["inputs"]
    paths[1].unlink()
    assert server.inputs() != environment["inputs"]


def test_an_additional_task_does_not_change_the_other_tasks():
    assert environments({}, {}, {})[:2] == environments({}, {})


def test_the_order_of_the_options_does_not_matter():
    options = {"note": "1", "gpu_allow_growth": False}
    assert environments(options) == environments(dict(reversed(options.items())))


def test_the_options_of_a_task_are_not_modified():
    given = tasks({"note": "1"})
    filters.task_environments(given, [])
    assert given == tasks({"note": "1"})


def with_gpus(gpus, **changes):
    """Return the environment of a task with these GPUs."""
    [task] = tasks({})
    return filters.task_environments([{**task, **changes, "gpus": gpus}], [])[0]


def test_a_task_gets_its_gpus_by_uuid_and_only_their_devices():
    environment = with_gpus([{"uuid": "GPU-aaa", "minor": 3}, {"uuid": "GPU-bbb", "minor": 1}])
    assert variables(environment)["CUDA_VISIBLE_DEVICES"] == "GPU-aaa,GPU-bbb"
    drop_in = environment["files"][1]
    assert drop_in["path"] == "/etc/systemd/system/tf-server@worker-0.service.d/gpus.conf"
    lines = drop_in["content"].splitlines()
    assert [line.split("=")[1] for line in lines if line.startswith("DeviceAllow=")] == [
        "/dev/nvidia3 rw", "/dev/nvidia1 rw", "/dev/nvidiactl rw", "/dev/nvidia-uvm rw", "/dev/nvidia-uvm-tools rw",
    ]  # fmt: skip
    assert {"PrivateDevices=false", "DevicePolicy=closed", "TimeoutStartSec=300"} <= set(lines)


def test_a_mig_part_gets_access_to_nvidia_caps():
    content = with_gpus([{"uuid": "MIG-aaa", "minor": 0}])["files"][1]["content"]
    assert "DeviceAllow=char-nvidia-caps rw" in content
    assert "nvidia-caps" not in with_gpus([{"uuid": "GPU-aaa", "minor": 0}])["files"][1]["content"]


def test_the_training_unit_of_a_task_with_a_server_gets_the_same_gpus():
    environment = with_gpus([{"uuid": "GPU-aaa", "minor": 0}])
    assert environment["files"][2] == {
        **environment["files"][1],
        "path": "/etc/systemd/system/tf-run-worker-0-.service.d/gpus.conf",
    }


def test_a_task_without_a_server_gets_its_gpus_through_the_unit_of_the_run():
    environment = with_gpus([{"uuid": "GPU-aaa", "minor": 0}], name="host-0", standing=False)
    assert environment["files"][1]["path"] == "/etc/systemd/system/tf-run-host-0-.service.d/gpus.conf"


def test_a_different_gpu_changes_the_inputs():
    found = [with_gpus(gpus)["inputs"] for gpus in ([], [{"uuid": "GPU-a", "minor": 0}], [{"uuid": "GPU-a", "minor": 1}])]
    assert len(set(found)) == 3


def test_a_program_is_an_executable_file():
    file = filters.program_file("cli.py", ROOT / "files/tf_cluster", "/opt/tf-cluster/lib/tf_cluster")
    assert file == {
        "path": "/opt/tf-cluster/lib/tf_cluster/cli.py",
        "content": (ROOT / "files/tf_cluster/cli.py").read_text(encoding="utf-8"),
        "mode": "0755",
    }


COMMON = [{"path": "/etc/tf-cluster/config.json", "content": "spec"}, {"path": "/opt/tf-cluster/lib/run.py", "content": "a"}]


def server_state(*given, common=COMMON):
    """Return the wanted state of these tasks."""
    return filters.server_state(list(given), common, "config[.]json$", "3f2a")


def test_a_machine_gets_all_files_and_the_inputs_of_its_servers():
    server, run = tasks({}, {})
    found = server_state(server, {**run, "standing": False})
    assert [file["path"].rpartition("/")[2] for file in found["files"]] == [
        "config.json",
        "run.py",
        "worker-0.env",
        "worker-1.env",
    ]
    assert found["tasks"] == {"worker-0": environments({})[0]["inputs"]}


def test_files_that_a_server_does_not_start_with_do_not_change_its_inputs():
    changed = [COMMON[0], {**COMMON[1], "content": "b"}]
    assert server_state(*tasks({}), common=changed)["tasks"] == server_state(*tasks({}))["tasks"]


def machine(wanted, **changes):
    """Return the facts of a machine that is as wanted, except for the changes."""
    digests = {file["path"]: f"{hashlib.sha256(file['content'].encode()).hexdigest()} 0644" for file in wanted["files"]}
    found = {"tasks": wanted["tasks"], "target": True, "timer": True, "compiled": True, "reload": False, "digests": digests}
    return {**found, **changes}


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({}, True), ({"tasks": {}}, False), ({"tasks": {"worker-0": None}}, False), ({"target": False}, False),
        ({"compiled": False}, False), ({"timer": False}, False), ({"reload": True}, False), ({"digests": {}}, False),
    ],
)  # fmt: skip
def test_server_stands_is_true_only_if_nothing_differs(changes, stands):
    wanted = server_state(*tasks({}))
    assert filters.server_stands(wanted, machine(wanted, **changes)) is stands


def test_a_machine_without_servers_needs_no_target():
    wanted = server_state()
    assert filters.server_stands(wanted, machine(wanted, target=False))


def test_an_obsolete_file_is_a_difference():
    wanted = server_state(*tasks({}))
    found = machine(wanted)
    found["digests"]["/etc/tf-cluster/tasks/worker-7.env"] = "x"
    assert filters.server_stands(wanted, found)
    assert not filters.server_stands(wanted, found, ["/etc/tf-cluster/tasks/*.env"])
