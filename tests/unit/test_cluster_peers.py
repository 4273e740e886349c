"""Who may reach whom: addresses and ports for the firewall."""

import json
import os

import pytest
from project import call, load

filters = load("plugins/filter/cluster_peers.py")
firewall_state = load("files/firewall_state.py")


def cluster(*addresses):
    """Return a cluster with a worker on each address."""
    return {"machines": {f"m{i}": [{"address": a, "port": 2222, "job": "worker"}] for i, a in enumerate(addresses)}}


def test_addresses_by_family_each_once_and_in_order():
    found = filters.cluster_peers(cluster("10.0.0.10", "[fd00::2]", "10.0.0.9", "10.0.0.9"), ["192.0.2.1"])
    assert found == {"ipv4": ["10.0.0.9", "10.0.0.10", "192.0.2.1"], "ipv6": ["fd00::2"]}


def test_a_name_counts_with_its_addresses():
    assert "127.0.0.1" in filters.cluster_peers(cluster("localhost"))["ipv4"]


def test_a_name_that_nobody_knows_is_an_error():
    with pytest.raises(ValueError, match=r"no-such-machine\.invalid' is a name .* set tf_address"):
        filters.cluster_peers(cluster("no-such-machine.invalid"))


def test_a_name_that_means_the_controller_itself_is_an_error_for_several_machines():
    with pytest.raises(ValueError, match="means the controller itself"):
        filters.cluster_peers(cluster("localhost", "10.0.0.1"))


def test_keys_of_machines_that_are_away_stay_known():
    machines = [{"name": "a", "address": "fd00::a"}, {"name": "b", "address": "fd00::b"}, {"name": "c", "address": "fd00::c"}]
    states = {"a": {"key": "A", "peers": {"fd00::b": "B", "fd00::c": "old"}}, "c": {"key": "C", "peers": {}}}
    assert filters.tunnel_keys(states, machines) == {"fd00::a": "A", "fd00::b": "B", "fd00::c": "C"}


# What nft 1.0.6 prints of the table.
LISTED = """table inet tf_cluster {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t}

\tchain version_0a1b2c3d4e5f {
\t}
}
"""


@pytest.mark.parametrize(
    ("text", "version"), [(LISTED, "version_0a1b2c3d4e5f"), ("", None), ("table inet tf_cluster {\n}\n", None)]
)
def test_the_version_of_the_rules_at_work(text, version):
    assert firewall_state.named(text) == version


def test_it_answers_without_nft(tmp_path):
    done = call("files/firewall_state.py", input="", env={**os.environ, "PATH": str(tmp_path)})
    assert set(json.loads(done.stdout)) == {"version", "wanted", "enabled", "nft", "others"}
