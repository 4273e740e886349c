"""The filter cluster_spec: the cluster of an inventory, and the problems of an invalid one."""

import json
import random
import time
from collections import UserDict

import pytest
import yaml
from project import ROOT, load

module = load("plugins/filter/cluster_spec.py")
cluster_spec, machines_per_gpu = module.cluster_spec, module.machines_per_gpu
SEED = {"worker": ["10.10.100.87:2222", "10.10.102.74:2222"], "host": ["10.10.100.87:2223"]}
SEEDS_OPTIONS = {
    "gpu_memory_fraction": 0.2,
    "gpu_allow_growth": True,
    "gpus": [],
    "intra_op_threads": 0,
    "inter_op_threads": 0,
    "thread_spinning": False,
}
TWO = "10.0.0.2:2222"
# What Ansible itself gives every machine.
MAGIC = ("inventory_hostname", "inventory_hostname_short", "inventory_dir", "inventory_file", "group_names", "groups", "omit",
         "playbook_dir", "environment")  # fmt: skip


def cluster_of(machines, jobs=None):
    """Return the cluster of machines, each a pair: its jobs, separated by spaces, and its variables."""
    groups = {"all": list(machines), "ungrouped": []}
    for machine, (own, _variables) in machines.items():
        for job in own.split():
            groups.setdefault(job, []).append(machine)
    said = {} if jobs is None else {"tf_jobs": jobs}
    return cluster_spec(
        groups, {machine: type(variables)({**variables, **said}) for machine, (_own, variables) in machines.items()}
    )


def three(**changes):
    """Return two workers and a host, the variables of ``one``, ``two`` or ``boss`` changed."""
    return {
        "one": ("worker", {"ansible_host": "10.0.0.1", **changes.get("one", {})}),
        "two": ("worker", {"ansible_host": "10.0.0.2", **changes.get("two", {})}),
        "boss": ("host", {"ansible_host": "10.0.0.3", **changes.get("boss", {})}),
    }


def everywhere(name, value):
    """Return the three machines, all with this variable."""
    return three(**{machine: {name: value} for machine in ("one", "two", "boss")})


def with_tasks(worker):
    """Return the three machines, the first with what tf_tasks says of its job worker."""
    return three(one={"tf_tasks": {"worker": worker}})


def sentences_of(machines, jobs=None):
    """Return the sentences that an inventory is refused with."""
    cluster = cluster_of(machines, jobs)
    assert list(cluster) == ["problems"]
    assert cluster["problems"]
    return cluster["problems"]


def test_the_seed_inventory_gives_the_seed_config_json():
    cluster = cluster_of(
        {"a": ("worker host", {"ansible_host": "10.10.100.87"}), "b": ("worker", {"ansible_host": "10.10.102.74"})}
    )
    assert json.dumps(cluster["spec"]) == json.dumps(SEED)
    assert cluster["tasks"] == {"worker:0": "a", "worker:1": "b", "host:0": "a"}
    assert cluster["host"] == "a"


def test_a_task_has_all_values_that_the_roles_need():
    task = {
        "job": "worker",
        "machine": "one",
        "address": "10.0.0.1",
        "reached_by": "10.0.0.1",
        "port": 2222,
        "index": 0,
        "name": "worker-0",
    }
    assert cluster_of(three())["machines"]["one"] == [{**task, "standing": True, "options": SEEDS_OPTIONS}]


@pytest.mark.parametrize(
    ("machines", "spec"),
    [
        pytest.param(with_tasks(3), {"worker": ["10.0.0.1:2222", "10.0.0.1:2224", "10.0.0.1:2225", TWO]}, id="number"),
        pytest.param(
            {"one": ("ps worker host chief evaluator", {"tf_tasks": {"worker": 2}})},
            {
                "chief": ["one:2224"], "worker": ["one:2222", "one:2225"], "ps": ["one:2226"],
                "evaluator": ["one:2227"], "host": ["one:2223"],
            },
            id="all known groups are jobs",
        ),
        pytest.param(with_tasks([{"port": 9000}]), {"worker": ["10.0.0.1:9000", TWO]}, id="port"),
        pytest.param(with_tasks([{"port": "9000"}]), {"worker": ["10.0.0.1:9000", TWO]}, id="port as a text"),
        pytest.param(
            with_tasks([{}, {"port": 2224}, {}, {"port": 2222}]),
            {"worker": ["10.0.0.1:2225", "10.0.0.1:2224", "10.0.0.1:2226", "10.0.0.1:2222", TWO]},
            id="the others go around stated ports",
        ),
        pytest.param(
            {"one": ("worker host", {"tf_tasks": {"worker": [{"port": 2223}]}})},
            {"worker": ["one:2223"], "host": ["one:2224"]},
            id="a task may state the port that another would have",
        ),
        pytest.param(with_tasks([{"index": 1}]), {"worker": [TWO, "10.0.0.1:2222"]}, id="index"),
        pytest.param(
            with_tasks([{"index": 2, "port": 5}, {}]),
            {"worker": ["10.0.0.1:2222", TWO, "10.0.0.1:5"]},
            id="the others go around stated indices",
        ),
        pytest.param(three(one={"ansible_host": "fd00::1"}), {"worker": ["[fd00::1]:2222", TWO]}, id="IPv6"),
        pytest.param(three(one={"tf_address": "[fd00::1]"}), {"worker": ["[fd00::1]:2222", TWO]}, id="IPv6 in brackets"),
        pytest.param(three(one={"tf_address": "192.168.7.1"}), {"worker": ["192.168.7.1:2222", TWO]}, id="tf_address"),
        pytest.param(three(one={"tf_address": ""}), {"worker": ["10.0.0.1:2222", TWO]}, id="empty tf_address"),
        pytest.param(three(one={"ansible_host": None}), {"worker": ["one:2222", TWO]}, id="the machine's name"),
        pytest.param(three(one={"tf_tasks": {}}), {"worker": ["10.0.0.1:2222", TWO]}, id="empty tf_tasks"),
        pytest.param({"localhost": ("worker host", {})}, {"worker": ["localhost:2222"]}, id="one machine may have its loopback"),
    ],
)  # fmt: skip
def test_an_inventory_gives_the_expected_cluster_spec(machines, spec):
    found = cluster_of(machines)["spec"]
    assert {job: found[job] for job in spec} == spec
    if len(spec) > 1:
        assert list(found) == list(spec)


def test_tf_jobs_replaces_the_default_jobs():
    machines = {"one": ("worker trainer ps", {}), "boss": ("host", {})}
    spec = cluster_of(machines, ["host", "trainer", "worker"])["spec"]
    assert spec == {"host": ["boss:2223"], "trainer": ["one:2224"], "worker": ["one:2222"]}
    assert list(spec) == ["host", "trainer", "worker"]


def test_indices_follow_the_order_of_the_group_of_the_job():
    groups = {"all": ["a", "b"], "worker": ["a", "b"], "ps": ["b", "a"], "host": ["b", "a"]}
    cluster = cluster_spec(groups, {"a": {}, "b": {}})
    assert cluster["spec"]["ps"] == ["b:2224", "a:2224"]
    assert cluster["host"] == "b"


def test_tf_jobs_that_differs_between_machines_is_reported():
    machines = {"one": ("worker", {"tf_jobs": ["worker", "host"]}), "boss": ("host", {})}
    [problem] = sentences_of(machines)
    assert "tf_jobs differs between machines" in problem


@pytest.mark.parametrize("group", ["workers", "Worker", "wroker", "worker_1", "hsot", "HOST", "PS", "evaluater", "cheif"])
def test_a_misspelt_group_is_reported(group):
    [problem] = sentences_of({**three(), "four": (group, {})})
    assert f"four: the group '{group}' is not a job. Did you mean '" in problem


@pytest.mark.parametrize("group", ["vps", "ops", "gps", "ghost", "vhost", "dhost", "chef", "webserver"])
def test_a_group_with_a_name_like_a_short_job_is_ignored(group):
    assert cluster_of({**three(), "four": (group, {})})["problems"] == []


@pytest.mark.parametrize("group", ["ghost", "hsot", "hosts"])
def test_a_similar_group_is_named_if_a_required_job_has_no_machine(group):
    problems = sentences_of({"one": ("worker", {}), "boss": (group, {})})
    assert any(f"boss: the group '{group}' is not a job. Did you mean 'host'?" in problem for problem in problems)


def test_the_groups_of_the_project_have_no_foreign_machines():
    [problem] = sentences_of({**three(), "db": ("tf_machines", {})})
    assert problem == "db: the group 'tf_machines' is the project's. Give your group another name."


def test_peers_outside_of_the_tunnel_are_refused():
    machines = {name: (job, {"tf_encryption": True}) for name, (job, _variables) in three().items()}
    name = next(iter(machines))
    machines[name][1]["firewall_extra_peers"] = ["192.0.2.7"]
    [problem] = sentences_of(machines)
    assert problem.startswith(
        f"{name}: firewall_extra_peers is set, but with tf_encryption, tasks are reached through the tunnel"
    )


@pytest.mark.parametrize("name", ["tf_tags", "tf_machines", "tf_machine_type", "tf_machine_id"])
def test_similar_variables_of_other_tools_are_ignored(name):
    machines = three()
    next(iter(machines.values()))[1][name] = "x"
    assert cluster_of(machines)["problems"] == []


def test_a_group_named_hosts_is_ignored():
    assert cluster_of({**three(), "four": ("hosts", {})})["problems"] == []


def test_a_group_named_hosts_instead_of_host_is_reported():
    problems = sentences_of({"one": ("worker", {}), "boss": ("hosts", {})})
    assert any("boss: the group 'hosts' is not a job. Did you mean 'host'?" in problem for problem in problems)


def test_variables_of_other_tools_are_ignored():
    foreign = {"tf_workspace": "prod", "tf_state_bucket": "b", "tf_version": "1.9", "tf_outputs": {}, "tf_vars": "", "tf_x": 1}
    assert cluster_of(three(one=foreign))["problems"] == []


def test_a_similar_group_name_is_accepted_if_its_machines_are_in_the_group_of_the_job():
    assert cluster_of({**three(), "two": ("worker workers", {})})["problems"] == []


def test_the_cluster_has_the_role_variables_that_playbooks_need(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/jo")
    cluster = cluster_of(three(one={"firewall_enabled": "no"}, two={"tunnel_name": "wg7"}))
    assert cluster["open_machines"] == ["one"]
    assert cluster["tunnel_names"] == {"one": "tf-cluster", "two": "wg7", "boss": "tf-cluster"}
    assert cluster["output"] == str(tmp_path / "output")
    given = {machine: {"tf_output": "~/results"} for machine in ("one", "two", "boss")}
    assert cluster_of(three(**given))["output"] == "/home/jo/results"


@pytest.mark.parametrize(("role", "name", "value"), [
    ("firewall", "firewall_enabled", module.FIREWALL_ENABLED),
    ("tunnel", "tunnel_name", module.TUNNEL_NAME),
])  # fmt: skip
def test_role_defaults_equal_the_defaults_of_the_cluster_filter(role, name, value):
    defaults = yaml.safe_load((ROOT / f"roles/{role}/defaults/main.yml").read_text(encoding="utf-8"))
    assert defaults[name] == value


def test_an_unrelated_variable_is_not_evaluated():
    class Templated(UserDict):
        def __getitem__(self, name):
            assert name != "backup_target", "this template fails"
            return super().__getitem__(name)

    groups = {"all": ["one"], "worker": ["one"], "host": ["one"]}
    assert cluster_spec(groups, {"one": Templated(backup_target="{{ 1 / 0 }}")})["problems"] == []


def test_a_variable_that_cannot_be_evaluated_is_reported():
    class Broken(dict):
        def get(self, name, default=None):
            if name == "tf_address":
                raise ValueError("'nothing' is undefined\nand more")
            return super().get(name, default)

    [problem] = sentences_of({**three(), "one": ("worker", Broken())})
    assert problem == "one: cannot evaluate tf_address: 'nothing' is undefined"


def test_two_machines_with_the_same_address_are_reported():
    machines = three(two={"ansible_host": "10.0.0.1", "tf_tasks": {"worker": [{"port": 2300}]}})
    [problem] = sentences_of(machines)
    assert "one and two have the same address 10.0.0.1" in problem
    assert "tf_tasks" in problem


def test_empty_tf_jobs_means_the_default_jobs():
    assert cluster_of(three(), [])["spec"] == cluster_of(three())["spec"]


@pytest.mark.parametrize(("job", "standing"), [("worker", True), ("ps", True), ("chief", False), ("host", False)])
def test_chief_and_host_tasks_have_no_standing_server(job, standing):
    tasks = cluster_of({"one": ("chief worker ps host", {})})["machines"]["one"]
    assert {task["job"]: task["standing"] for task in tasks}[job] is standing


def test_an_additional_machine_does_not_renumber_tasks_with_an_index():
    before = {
        "boss": ("host", {}),
        **{name: ("worker", {"tf_tasks": {"worker": [{"index": i}]}}) for i, name in enumerate("zyx")},
    }
    after = {"a-new-one": ("worker", {}), **before}
    old, new = cluster_of(before), cluster_of(after)
    assert new["spec"]["worker"] == [*old["spec"]["worker"], "a-new-one:2222"]
    assert old["tasks"].items() <= new["tasks"].items()


def test_a_tasks_options_are_kept_as_given():
    options = {
        "gpu_memory_fraction": 0.5,
        "gpu_allow_growth": False,
        "gpus": [0, "GPU-1f3a"],
        "intra_op_threads": 0,
        "inter_op_threads": 4,
        "thread_spinning": True,
    }
    [task] = cluster_of(with_tasks([{**options, "port": 7000}]))["machines"]["one"]
    assert task["options"] == options
    assert task["port"] == 7000


def test_tf_task_options_applies_to_tasks_that_do_not_override_it():
    machines = three(one={"tf_task_options": {"intra_op_threads": 2}, "tf_tasks": {"worker": [{}, {"intra_op_threads": 3}]}})
    cluster = cluster_of(machines)
    said = {task["name"]: task["options"] for tasks in cluster["machines"].values() for task in tasks}
    assert said["worker-0"] == {**SEEDS_OPTIONS, "intra_op_threads": 2}
    assert said["worker-1"] == {**SEEDS_OPTIONS, "intra_op_threads": 3}
    assert said["worker-2"] == said["host-0"] == SEEDS_OPTIONS


@pytest.mark.parametrize(
    ("given", "gpus"),
    [([], []), ("", []), (0, [0]), ("0,1", [0, 1]), ([1, "0"], [1, 0]), (" GPU-1f-3a , MIG-2b/1/0", ["GPU-1f-3a", "MIG-2b/1/0"])],
)
def test_gpus_accepts_numbers_strings_and_lists(given, gpus):
    [task] = cluster_of(with_tasks([{"gpus": given}]))["machines"]["one"]
    assert task["options"]["gpus"] == gpus


@pytest.mark.parametrize(("gpus", "machines"), [([0], ["one"]), ([], [])])
def test_gpu_machines_lists_machines_with_a_task_that_uses_a_gpu(gpus, machines):
    assert cluster_of(with_tasks([{}, {"gpus": gpus}]))["gpu_machines"] == machines


@pytest.mark.parametrize("found", [{"gpus": [{}] * 8, "pci": [{}] * 8}, {"gpus": [], "pci": [{}] * 8}])
def test_per_gpu_creates_a_task_for_each_gpu(found):
    cluster = cluster_of(three(one={"tf_tasks": {"worker": "per_gpu"}, "spec_gpus": {"answer": found}}))
    assert [task["options"]["gpus"] for task in cluster["machines"]["one"]] == [[number] for number in range(8)]
    assert cluster["spec"]["worker"] == ["10.0.0.1:2222", *(f"10.0.0.1:{port}" for port in range(2224, 2231)), TWO]


@pytest.mark.parametrize(
    ("found", "words"),
    [({}, "are unknown"), ({"spec_gpus": {"answer": {"gpus": [], "pci": []}}}, "has no NVIDIA GPU")],
)
def test_per_gpu_without_known_gpus_is_reported(found, words):
    problems = sentences_of(three(one={"tf_tasks": {"worker": "per_gpu"}, **found}))
    assert any("one: tf_tasks.worker is 'per_gpu'" in problem and words in problem for problem in problems)


@pytest.mark.parametrize(
    ("tasks", "asked"),
    [({"worker": "per_gpu"}, ["one"]), ({"ps": 1, "worker": "per_gpu"}, ["one"]), ({"worker": 2}, []), ("per_gpu", [])],
)
def test_only_machines_with_per_gpu_tasks_are_queried_for_gpus(tasks, asked):
    assert machines_per_gpu({"all": ["one", "two"]}, {"one": {"tf_tasks": tasks}, "two": {}}) == asked


TASKS = "one: tf_tasks.worker"


@pytest.mark.parametrize(
    ("machines", "words"),
    [
        pytest.param({"boss": ("host", {})}, ["group 'worker'", "Add at least one"], id="no worker"),
        pytest.param({"one": ("worker", {})}, ["group 'host'", "Add at least one"], id="no host"),
        pytest.param(
            three(two={"ansible_host": "10.0.0.1"}),
            ["10.0.0.1:2222 is used twice", "worker:0 on one", "worker:1 on two", "tf_address or the port"],
            id="an address and port twice",
        ),
        pytest.param(
            three(one={"ansible_host": "fd00::1"}, two={"ansible_host": "FD00:0::1"}), ["is used twice", "on two"],
            id="an IPv6 address in two spellings",
        ),
        pytest.param(
            with_tasks([{"port": 7}, {"port": 7}]), ["10.0.0.1:7 is used twice", "worker:0", "worker:1"], id="port twice"
        ),
        *(
            pytest.param(with_tasks([{"port": port}]), [TASKS, f"port is {port!r}", "from 1 to 65535"], id=f"port {port!r}")
            for port in (0, 65536, -1, "x", True, None, 2222.0, [2222], {}, "", "2222\n", "٢٢٢٢")
        ),
        *(
            pytest.param(with_tasks([{"index": index}]), [TASKS, f"index is {index!r}", "number from 0"], id=f"index {index!r}")
            for index in (-1, "x", False, None, 1.5, [], 10**7)
        ),
        pytest.param(
            three(one={"tf_tasks": {"worker": [{"index": 1}]}}, two={"tf_tasks": {"worker": [{"index": 1}]}}),
            ["Job 'worker': the index 1 is used twice in tf_tasks", "by one and two", "Change one"],
            id="an index twice",
        ),
        pytest.param(with_tasks([{"index": 2}]), ["Job 'worker'", "no index 1", "one has the index 2", "tf_tasks"], id="a gap"),
        pytest.param(
            three(boss={"tf_tasks": {"host": [{"index": 1}]}}), ["Job 'host'", "no index 0", "boss has"], id="no first task"
        ),
        pytest.param(
            three(one={"tf_tasks": {"ps": 1}}), ["one: tf_tasks contains 'ps'", "groups worker"], id="foreign job"
        ),
        pytest.param(three(one={"tf_tasks": {"wroker": 2}}), ["one: tf_tasks contains 'wroker'", "remove"], id="no job"),
        pytest.param(three(one={"tf_tasks": {None: 2}}), ["one: tf_tasks contains 'None'"], id="a job that is nothing"),
        *(
            pytest.param(three(one={given: 1}), [f"one: unknown variable {given}.", f"Did you mean {meant}?"], id=given)
            for given, meant in {
                "tf_adress": "tf_address", "tf_addres": "tf_address", "tf_task": "tf_tasks", "tf_job": "tf_jobs",
                "tf_task_option": "tf_task_options", "tensorflow_sorce": "tensorflow_source",
            }.items()
        ),
        pytest.param(with_tasks([{"prot": 2222}]), [TASKS, "'prot'", "Did you mean port?"], id="prot"),
        pytest.param(
            with_tasks([{"gpu_memory_fracton": 0.5}]), [TASKS, "'gpu_memory_fracton'", "mean gpu_memory_fraction"], id="fracton"
        ),
        pytest.param(with_tasks([{"zz": 1}]), [TASKS, "'zz'", "Known options: index, port"], id="an unknown option"),
        pytest.param(with_tasks([{5: 1}]), [TASKS, "'5'", "unknown"], id="an option that is a number"),
        *(
            pytest.param(with_tasks([{name: value}]), [TASKS, f"{name} is {value!r}", "Set"], id=f"{name} {value!r}")
            for name, values in {
                "gpu_memory_fraction": (0, 2, -0.5, True, None, "half", [0.5], float("nan"), float("inf")),
                "gpu_allow_growth": (1, 0, "yes", None, [True], {}),
                "gpus": (None, True, {}, 0.5, -1, [0, 0], [True], ["a"], ["GPU-"], "0 1", "0;1", [[0]]),
                "intra_op_threads": (-1, 1.5, "x", True, False, 0.0, None, [], [0]),
                "inter_op_threads": (-1, {}, "two"),
                "thread_spinning": (1, 0, "no", None, [False], {}),
            }.items()
            for value in values
        ),
        *(
            pytest.param(three(one={"tf_tasks": value}), ["one: tf_tasks is", f"{value!r}"], id=f"tf_tasks {value!r}")
            for value in (2, "worker", ["worker"], [{"worker": 2}], True, 1.5, 0, [])
        ),
        *(
            pytest.param(with_tasks(value), [TASKS, f"is {value!r}", "Set"], id=f"worker {value!r}")
            for value in (0, -2, True, None, "2", 2.0, [], {}, {"port": 5}, [None], [2222], ["a"], [[{}]], [{}, 3])
        ),
        pytest.param(with_tasks(70000), [TASKS, "70000"], id="more tasks than ports"),
        *(
            pytest.param(three(one={"tf_task_options": value}), ["one: tf_task_options", *words], id=f"all {value!r}")
            for value, words in [
                (5, ["is 5"]), ([], ["is []"]), ({"port": 5}, ["'port'"]),
                ({"gpu_memory_fracton": 1}, ["mean gpu_memory_fraction"]),
                ({"gpu_memory_fraction": 5}, ["gpu_memory_fraction is 5", "Set"]), ({None: 1}, ["'None'"]),
            ]
        ),
        *(
            pytest.param(three(one={name: value}), [f"one: {name} is", f"{value!r}"], id=f"{name} {value!r}")
            for name, value in [
                ("tf_address", "10.0.0.1:2222"), ("tf_address", "grpc://one"), ("tf_address", "a b"), ("tf_address", "-one"),
                ("tf_address", "one\n"), ("ansible_host", "one,two"), ("tf_address", "10.0.0.256"), ("tf_address", "10.0.0"),
            ]
        ),
        *(
            pytest.param(three(one={"tf_address": value}), ["one: tf_address is", "Set"], id=f"address {value!r}")
            for value in (["10.0.0.9"], {"ip": "10.0.0.9"}, True, 10.5, 7)
        ),
        *(
            pytest.param(three(one={"ansible_host": text}), ["one: ", text, "cannot reach"], id=text)
            for text in ("127.0.0.1", "127.8.8.8", "localhost", "::1", "0.0.0.0")
        ),
    ],
)  # fmt: skip
def test_an_invalid_inventory_is_reported(machines, words):
    problems = sentences_of(machines)
    assert any(all(word in problem for word in words) for problem in problems), problems


@pytest.mark.parametrize("value", [-1, "x", True, [30], 10**9, "nan", "inf", {}])
@pytest.mark.parametrize(("name", "unit"), [("runs_keep_days", "days"), ("runs_keep_gb", "gigabytes")])
def test_invalid_limits_for_kept_runs_are_reported(name, unit, value):
    assert sentences_of(three(two={name: value})) == [f"two: {name} is {value!r}. Set a number of {unit} from 0 to 1000000."]


@pytest.mark.parametrize("value", [0, 7, 0.5, "14", 1_000_000, None])
def test_limits_for_kept_runs_may_differ_between_machines(value):
    assert cluster_of(three(two={"runs_keep_days": value, "runs_keep_gb": value}))["problems"] == []


@pytest.mark.parametrize(
    ("name", "meant"), [("run_keep_days", "runs_keep_days"), ("runs_keep_gbs", "runs_keep_gb"), ("run_notfy", "run_notify")]
)
def test_a_misspelt_variable_of_runs_is_reported(name, meant):
    assert sentences_of(three(one={name: 5})) == [f"one: unknown variable {name}. Did you mean {meant}?"]


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ("worker", ["tf_jobs is 'worker'", "[worker, host]"]),
        ([1, 2], ["tf_jobs is [1, 2]", "[worker, host]"]),
        ([["worker"]], ["tf_jobs is [['worker']]"]),
        (["worker", None], ["tf_jobs is ['worker', None]"]),
        (5, ["tf_jobs is 5", "[worker, host]"]),
        (True, ["tf_jobs is True", "[worker, host]"]),
        (["worker", "host", "my-job"], ["tf_jobs contains 'my-job'", "letters, digits"]),
        (["worker", "host", "1st"], ["tf_jobs contains '1st'"]),
        (["worker", "host", ""], ["tf_jobs contains ''"]),
        (["worker", "host", "job\n"], ["tf_jobs contains 'job\\n'"]),
        (["worker", "host", "trainer"], ["tf_jobs contains 'trainer'", "no group 'trainer'", "remove the job"]),
        (["worker"], ["tf_jobs", "host"]),
        (["host"], ["tf_jobs", "worker"]),
        (["worker", "worker", "host"], ["tf_jobs", "worker", "twice"]),
    ],
    ids=str,
)
def test_invalid_tf_jobs_is_reported(jobs, words):
    problems = sentences_of(three(), jobs)
    assert any(all(word in problem for word in words) for problem in problems), problems


def test_all_problems_are_reported_together():
    problems = sentences_of(
        {
            "one": ("worker", {"tf_adress": "x", "tf_tasks": {"ps": 1, "worker": [{"port": 0}, {"index": 7, "prot": 1}]}}),
            "two": ("worker", {"tf_address": "localhost"}),
        }
    )
    for word in ("'host'", "tf_adress", "'ps'", "port is 0", "'prot'", "no index 2", "localhost"):
        assert sum(word in problem for problem in problems) == 1, (word, problems)


def test_each_problem_is_reported_once():
    problems = sentences_of(with_tasks([{"zz": 1}, {"zz": 2}]))
    assert len(problems) == 1


def test_random_inventories_give_a_spec_or_problems():
    chance = random.Random(2222)
    plain = [
        None,
        True,
        False,
        0,
        1,
        2,
        -1,
        65536,
        0.5,
        "",
        "worker",
        "host",
        "10.0.0.1",
        "::1",
        "index",
        "port",
        "é",
        "a\nb",
        b"x",
    ]

    def anything(depth=0):
        kind = chance.randrange(4 if depth < 4 else 2)
        if kind < 2:
            return chance.choice(plain)
        if kind == 2:
            return [anything(depth + 1) for _each in range(chance.randrange(3))]
        return {chance.choice(plain): anything(depth + 1) for _each in range(chance.randrange(3))}

    def tasks():
        return {job: anything(2) for job in ("worker", "host") if chance.random() < 0.5} if chance.random() < 0.5 else anything()

    spoken = good = 0
    for attempt in range(8000):
        machines = three(
            one={"tf_tasks": tasks()},
            two={"tf_address": anything() if chance.random() < 0.3 else "two"},
            boss={"tf_tasks": tasks()},
        )
        jobs = anything() if chance.random() < 0.3 else None
        try:
            cluster = cluster_of(machines, jobs)
        except Exception as error:
            raise AssertionError(f"attempt {attempt}: {machines} with jobs {jobs!r} raised {error!r}") from error
        if cluster["problems"]:
            spoken += 1
            continue
        good += 1
        assert cluster["spec"]["worker"]
        assert cluster["spec"]["host"]
    assert min(spoken, good) > 100


@pytest.mark.parametrize("variables", [(), (*MAGIC, "rack", "ntp_servers")], ids=["bare", "with Ansible's own variables"])
def test_ten_thousand_machines_take_less_than_one_second(variables):
    machines = {f"node-{number:05}": ("worker", dict.fromkeys(variables, "x")) for number in range(10_000)}
    machines["node-00000"] = ("host", {})
    begun = time.process_time()
    cluster = cluster_of(machines)
    assert time.process_time() - begun < 1
    assert len(cluster["spec"]["worker"]) == 9_999


def test_tunnel_addresses_depend_only_on_the_names_of_the_machines():
    """An additional machine changes no address, and 'reached_by' is still the machine's own address."""
    small, large = cluster_of(three(**{name: {"tf_encryption": True} for name in ("one", "two", "boss")})), three()
    large["more"] = ("worker", {"ansible_host": "10.0.0.9"})
    for _jobs, variables in large.values():
        variables["tf_encryption"] = "yes"
    large = cluster_of(large)
    assert small["tunnel"] == "fd74:6663:6c75::/64"
    assert small["spec"]["worker"] == large["spec"]["worker"][:2]
    addresses = [entry.rpartition(":")[0] for entries in large["spec"].values() for entry in entries]
    assert all(address.startswith("[fd74:6663:6c75:0") and address.endswith("]") for address in addresses), addresses
    assert len(set(addresses)) == 4
    assert small["machines"]["one"][0]["reached_by"] == "10.0.0.1"


def test_the_network_and_the_addresses_of_a_tunnel_can_be_set():
    machines = three()
    for _jobs, variables in machines.values():
        variables |= {"tf_encryption": True, "tf_tunnel_network": "10.99.0.0/16"}
    machines["two"][1]["tf_tunnel_address"] = "10.99.0.7"
    spec = cluster_of(machines)["spec"]
    assert spec["worker"][1] == "10.99.0.7:2222"
    assert spec["worker"][0].startswith("10.99.")


@pytest.mark.parametrize(
    ("all_have", "one_has", "words"),
    [
        ({"tf_encryption": True}, {"tf_encryption": False}, "tf_encryption differs between machines"),
        ({"tf_encryption": "maybe"}, {}, "tf_encryption is 'maybe'"),
        ({"tf_encryption": True, "tf_tunnel_network": "x"}, {}, "tf_tunnel_network is 'x'"),
        (
            {"tf_encryption": True},
            {"tf_tunnel_address": "10.0.0.1"},
            "Set an address in the tunnel's network fd74:6663:6c75::/64",
        ),
        (
            {"tf_encryption": True, "tf_tunnel_address": "fd74:6663:6c75::5"},
            {},
            "in the tunnel. Set the tf_tunnel_address of one",
        ),
    ],
)
def test_invalid_tunnel_settings_are_reported(all_have, one_has, words):
    machines = three()
    for _jobs, variables in machines.values():
        variables.update(all_have)
    machines["two"][1].update(one_has)
    assert any(words in sentence for sentence in sentences_of(machines))


def test_complete_tasks_adds_missing_values_to_tasks_of_other_playbooks():
    [worker, host] = module.complete_tasks(
        [
            {"job": "worker", "index": 1, "address": "10.0.0.1", "port": 2222, "options": {"gpus": [0]}},
            {"job": "host", "index": 0, "address": "10.0.0.2", "port": 2223, "name": "host-0"},
        ]
    )
    assert worker["options"] == {name: default for name, (_kind, default) in module.OPTIONS.items()} | {"gpus": [0]}
    assert (worker["name"], worker["standing"], worker["reached_by"]) == ("worker-1", True, "10.0.0.1")
    assert host["standing"] is False


def test_complete_tasks_does_not_change_tasks_of_the_cluster():
    tasks = [task for own in cluster_of(three())["machines"].values() for task in own]
    assert module.complete_tasks(tasks) == tasks


@pytest.mark.parametrize(("given", "found"), [({}, 1000), ({"train_port_offset": "500"}, 500)])
def test_train_port_offset_is_the_default_or_the_given_value(given, found):
    machines = {name: (jobs, {**variables, **given}) for name, (jobs, variables) in three().items()}
    assert cluster_of(machines)["train_port_offset"] == found


@pytest.mark.parametrize("value", ["x", 0, 70000, "", 1.5, True, [1000]])
def test_an_invalid_train_port_offset_is_reported_once(value):
    [sentence] = cluster_of(everywhere("train_port_offset", value))["problems"]
    assert sentence == f"train_port_offset is {value!r}. Set a number from 1 to 65535."


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("firewall_enabled", "ture", "true or false"),
        ("tunnel_port", "high", "a whole number"),
        ("preflight_disk_mb", 1.5, "a whole number"),
        ("ready_timeout", "soon", "a number"),
        ("ready_timeout", True, "a number"),
        ("cuda_driver", "nouveau", "distribution, nvidia or none"),
        ("cuda_reboot", [], "true or false"),
        ("ready_needs", {"worker:0": "GPU"}, "a list"),
    ],
)
def test_a_value_that_a_role_does_not_accept_is_reported(name, value, wanted):
    """Once if all machines have it, as a variable of the group all has."""
    expected = f"{name} is {value!r}. Set {wanted}."
    assert cluster_of(three(two={name: value}))["problems"] == [f"two: {expected}"]
    assert cluster_of(everywhere(name, value))["problems"] == [expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("firewall_enabled", "no"), ("firewall_enabled", 1), ("tunnel_port", "51820"), ("ready_timeout", "2.5"),
        ("cuda_driver", "none"), ("cuda_branch", None), ("run_timeout", "soon"), ("lab_packages", 5),
        ("ready_needs", "/device:GPU:0,/device:GPU:1"), ("lab_packages", ["sudo"]),
    ],
)  # fmt: skip
def test_a_value_that_a_role_accepts_or_checks_itself_is_no_problem(name, value):
    assert cluster_of(three(two={name: value}))["problems"] == []


def test_the_old_name_of_a_variable_is_reported():
    [sentence] = cluster_of(three(two={"firewall_more_peers": ["192.0.2.1"]}))["problems"]
    assert sentence == "two: unknown variable firewall_more_peers. Did you mean firewall_extra_peers?"


def test_a_role_variable_that_needs_facts_is_left_to_the_role():
    class Template:
        def __bool__(self):
            raise KeyError("ansible_facts")

    assert cluster_of(three(two={"cuda_driver": Template(), "cuda_reboot": Template()}))["problems"] == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"firewall_extra_peers": ["nosuch.invalid"]}, ["The controller cannot resolve the name 'nosuch.invalid'"]),
        ({"firewall_extra_peers": 5}, ["firewall_extra_peers is 5. Set a list of addresses."]),
        ({"ansible_host": "no-such-machine.invalid"}, ["cannot resolve the name 'no-such-machine.invalid'"]),
        ({"train_port_offset": 63500}, ["train_port_offset is 63500, which leads to port 129222"]),
        ({"firewall_extra_peers": ["a.invalid", "b.invalid"]}, ["'a.invalid'", "'b.invalid'"]),
    ],
)
def test_what_the_firewall_cannot_use_is_reported_before_anything_is_installed(variables, words):
    groups, hostvars = {"all": ["m"], "worker": ["m"], "host": ["m"]}, {"m": {"ansible_host": "10.0.0.1", **variables}}
    found = cluster_spec(groups, hostvars, firewall=True)["problems"]
    assert len(found) == len(words)
    assert [word for word, sentence in zip(words, found, strict=True) if word not in sentence] == []
    assert cluster_spec(groups, hostvars)["problems"] == []
    hostvars["m"]["firewall_enabled"] = False
    assert cluster_spec(groups, hostvars, firewall=True)["problems"] == []


def test_train_port_offset_that_differs_between_machines_is_reported():
    [sentence] = cluster_of(three(one={"train_port_offset": 2000}))["problems"]
    assert sentence.startswith("train_port_offset differs between machines.")


@pytest.mark.parametrize(
    ("value", "path"), [(None, ""), ("", ""), ("/mnt/cluster", "/mnt/cluster"), ("/a-b/c_1.d/", "/a-b/c_1.d")]
)
def test_tf_shared_accepts_a_path_or_nothing(value, path):
    found = cluster_of({name: (jobs, {"tf_shared": value}) for name, jobs in (("one", "worker"), ("two", "host"))})
    assert (found["problems"], found["shared"]) == ([], path)


@pytest.mark.parametrize("value", ["mnt", "/", "/a b", "/a/../b", "/a;b", "/é", 5, ["/a"], "/a\nb", "/.a", "//a"])
def test_an_invalid_tf_shared_is_reported(value):
    [sentence] = cluster_of({name: (jobs, {"tf_shared": value}) for name, jobs in (("one", "worker"), ("two", "host"))})[
        "problems"
    ]
    assert sentence.startswith(f"tf_shared is {value!r}. Set a path of letters")


@pytest.mark.parametrize("value", ["/home/x", "/tmp", "/run/a/b", "/var/tmp/x"])
def test_tf_shared_in_a_folder_that_servers_cannot_see_is_reported(value):
    [sentence] = cluster_of({name: (jobs, {"tf_shared": value}) for name, jobs in (("one", "worker"), ("two", "host"))})[
        "problems"
    ]
    assert sentence.startswith(f"tf_shared is {value}, but servers and runs cannot see /")


def test_tf_shared_that_differs_between_machines_is_reported():
    [sentence] = cluster_of({"one": ("worker", {"tf_shared": "/mnt/a"}), "two": ("host", {})})["problems"]
    assert sentence == "tf_shared differs between machines. Set it once, for the group 'all'."
