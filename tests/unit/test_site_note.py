"""The filter site_notes: where nothing is another than when site.yml was last done, there is nothing to do; else there is."""

import copy

import pytest
from project import load

site_notes = load("plugins/filter/site_note.py").site_notes
CLUSTER = {
    "tunnel": None,
    "spec": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
    "machines": {name: [{"job": "worker", "port": 2222, "options": {"gpus": []}}] for name in ("a", "b")},
}
PEERS = {"ipv4": ["10.0.0.1", "10.0.0.2"], "ipv6": []}
STATE = {
    "note": "", "digests": {"/etc/tf-cluster/config.json": "12 0644"}, "tasks": {"worker-0": "ab"}, "disk_mb": 5000,
    "listeners": [], "gpus": {"gpus": []}, "firewall": {"whole": True}, "python": {"version": "3.11"}, "interfaces": ["eth0"],
    "addresses": ["10.0.0.1"],
}  # fmt: skip


def machine():
    """Return a machine's variables as Ansible gives them, some of them its own and of each call."""
    return {
        "ansible_facts": {"date_time": 1},
        "ansible_host": "10.0.0.1", "groups": {"all": 1}, "firewall_enabled": True, "__server_written": {"changed": False},
        "preflight_state": {"answer": copy.deepcopy(STATE)},
    }  # fmt: skip


@pytest.fixture
def noted():
    """Return the variables of machines on which site.yml was done."""
    hostvars = {"a": machine(), "b": machine()}
    for name, note in site_notes(CLUSTER, hostvars, PEERS)["notes"].items():
        hostvars[name]["preflight_state"]["answer"]["note"] = note
    return hostvars


def to_do(hostvars, cluster=CLUSTER, peers=PEERS):
    """Return where there may be something to do."""
    return site_notes(cluster, hostvars, peers)["to_do"]


def test_everything_is_to_do_on_machines_without_a_note():
    assert to_do({"a": machine(), "b": machine()}) == ["a", "b"]


def test_nothing_is_to_do_where_nothing_changed(noted):
    assert to_do(noted) == []


def change(path, value):
    """Return what changes one thing on machine a."""

    def changed(hostvars):
        place = hostvars["a"]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return changed


@pytest.mark.parametrize(
    "change",
    [
        change(("firewall_enabled",), False),
        change(("tf_task_options",), {"intra_op_threads": 2}),
        change(("preflight_state", "answer", "python"), {"version": "3.12"}),
        change(("preflight_state", "answer", "digests", "/etc/tf-cluster/config.json"), "13 0644"),
        change(("preflight_state", "answer", "tasks"), {"worker-0": None}),
        change(("preflight_state", "answer", "firewall"), {"whole": False}),
        change(("preflight_state", "answer", "note"), "another"),
        change(("preflight_state", "answer", "interfaces"), ["eth0", "tf-cluster"]),
    ],
)
def test_a_change_of_one_machine_is_to_do_there_alone(noted, change):
    change(noted)
    assert to_do(noted) == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        change(("ansible_facts", "date_time"), 2),
        change(("ansible_host",), "10.0.0.9"),
        change(("groups",), {}),
        change(("module_setup",), True),  # where facts were gathered
        change(("gather_subset",), ["platform"]),
        change(("__server_written",), {"changed": True}),
        change(("preflight_state", "answer", "disk_mb"), 1),
        change(("preflight_state", "answer", "interfaces"), ["eth0", "veth1"]),
        change(("preflight_state", "answer", "addresses"), ["10.0.0.1", "fd00::7"]),
        change(("preflight_state", "answer", "gpus"), {"gpus": [{"temperature": 70}]}),
    ],
)
def test_what_passes_is_no_change(noted, change):
    change(noted)
    assert to_do(noted) == []


def test_a_change_of_the_cluster_is_to_do_everywhere(noted):
    assert to_do(noted, cluster={**CLUSTER, "spec": {}}) == ["a", "b"]
    assert to_do(noted, peers={"ipv4": [], "ipv6": []}) == ["a", "b"]


def test_a_change_of_the_project_is_to_do_everywhere(noted, monkeypatch, tmp_path):
    (tmp_path / "roles").mkdir()
    (tmp_path / "roles/main.yml").write_text("[]", encoding="utf-8")
    monkeypatch.setitem(site_notes.__globals__, "ROOT", tmp_path)
    assert to_do(noted) == ["a", "b"]


def test_machines_with_gpus_and_those_of_a_tunnel_are_looked_at_in_full(noted):
    assert to_do(noted, cluster={**CLUSTER, "tunnel": "fd74::/64"}) == ["a", "b"]
    cluster = copy.deepcopy(CLUSTER)
    cluster["machines"]["b"][0]["options"]["gpus"] = [0]
    found = site_notes(cluster, noted, PEERS)
    assert "b" in found["to_do"]
    assert "b" not in found["notes"]


def test_a_machine_that_is_away_is_nobodys_business(noted):
    del noted["a"]["preflight_state"]
    assert to_do(noted) == []
