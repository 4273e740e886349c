"""Who may reach whom: addresses and ports for the firewall."""

import json
import os
import pwd
import socket
import subprocess

import pytest
from project import call, load

filters = load("plugins/filter/cluster_peers.py")
firewall_state = load("tf_cluster.firewall.state")
tunnel_state = load("tf_cluster.tunnel.state")


def cluster(*addresses):
    """Return a cluster with a worker on each address."""
    return {"machines": {f"m{i}": [{"address": a, "port": 2222, "job": "worker"}] for i, a in enumerate(addresses)}}


def test_addresses_are_grouped_by_family_sorted_and_unique():
    found = filters.cluster_peers(cluster("10.0.0.10", "[fd00::2]", "10.0.0.9", "10.0.0.9"), ["192.0.2.1"])
    assert found == {"ipv4": ["10.0.0.9", "10.0.0.10", "192.0.2.1"], "ipv6": ["fd00::2"]}


def test_a_name_is_resolved_to_its_addresses():
    assert "127.0.0.1" in filters.cluster_peers(cluster("localhost"))["ipv4"]


def test_a_name_is_resolved_again_in_each_call(monkeypatch):
    """Each site.yml resolves names again, without a cache."""
    answers = ["192.0.2.7", "192.0.2.8"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_words, **_more: [(None, None, None, "", (answers.pop(0), 0))])
    found = [filters.cluster_peers(cluster("10.0.0.1"), ["gateway.example"])["ipv4"] for _call in range(2)]
    assert found == [["10.0.0.1", "192.0.2.7"], ["10.0.0.1", "192.0.2.8"]]


def test_an_unresolvable_name_is_an_error():
    with pytest.raises(ValueError, match=r"cannot resolve the name 'no-such-machine\.invalid' .* in tf_address"):
        filters.cluster_peers(cluster("no-such-machine.invalid"))


def test_a_name_with_a_loopback_address_is_an_error_for_several_machines():
    with pytest.raises(ValueError, match="to a loopback address"):
        filters.cluster_peers(cluster("localhost", "10.0.0.1"))


def test_keys_of_unreachable_machines_are_taken_from_their_peers():
    machines = [{"name": "a", "address": "fd00::a"}, {"name": "b", "address": "fd00::b"}, {"name": "c", "address": "fd00::c"}]
    states = {"a": {"key": "A", "peers": {"fd00::b": "B", "fd00::c": "old"}}, "c": {"key": "C", "peers": {}}}
    assert filters.tunnel_keys(states, machines) == {"fd00::a": "A", "fd00::b": "B", "fd00::c": "C"}


# What nft 1.0.6 prints of the table.
LISTED = """table inet tf_cluster {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport != @ports accept
\t}

\tchain output {
\t\tmeta skuid 998 goto own
\t}

\tchain version_0a1b2c3d4e5f {
\t}
}
"""


@pytest.mark.parametrize(
    ("text", "version"), [(LISTED, "version_0a1b2c3d4e5f"), ("", None), ("table inet tf_cluster {\n}\n", None)]
)
def test_the_version_of_the_loaded_rules_is_found(text, version):
    assert firewall_state.named(text) == version


def test_the_firewall_state_is_reported_without_nft(tmp_path):
    done = call("tf_cluster.firewall.state", input="", env={**os.environ, "PATH": str(tmp_path)})
    assert set(json.loads(done.stdout)) == {"version", "whole", "wanted", "enabled", "nft", "others"}


@pytest.mark.parametrize(
    ("at_work", "number", "whole"),
    [
        (LISTED, 998, True),
        (LISTED.replace("tcp dport", "accept\n\t\ttcp dport"), 998, False),
        ("", 998, False),
        (LISTED, 99, False),
    ],
)
def test_changed_firewall_rules_are_detected(tmp_path, monkeypatch, at_work, number, whole):
    """Also if their version is unchanged, or if they are for another account."""
    monkeypatch.setattr(firewall_state, "LOADED", tmp_path / "loaded")
    account = pwd.struct_passwd(("tensorflow", "x", number, number, "", "/", "/bin/false"))
    monkeypatch.setattr(firewall_state.pwd, "getpwnam", lambda _name: account)
    assert firewall_state.is_loaded(at_work) is False
    noted = subprocess.run(["sha256sum"], input=LISTED, capture_output=True, text=True, check=True)
    firewall_state.LOADED.write_text(noted.stdout, encoding="ascii")
    assert firewall_state.is_loaded(at_work) is whole


# What wg 1.0.20210914 prints of an interface's peers.
PEERS = "1Zc7J7z9uF4yHc=\tfd74::1/128\nqWk3n8aRr2+U0=\tfd74::2/128 10.0.0.0/8\nx9=\t(none)\n"


def test_tunnel_peers_are_parsed_from_the_output_of_wg(monkeypatch):
    said = {"wg": subprocess.CompletedProcess([], 0, PEERS, "")}
    monkeypatch.setattr(tunnel_state, "run", lambda program, *_words: said.get(program))
    found = {"1Zc7J7z9uF4yHc=": "fd74::1/128", "qWk3n8aRr2+U0=": "fd74::2/128 10.0.0.0/8", "x9=": "(none)"}
    assert tunnel_state.live("tf-cluster") == found
    said.clear()
    assert tunnel_state.live("tf-cluster") == {}


@pytest.mark.parametrize(("flags", "up"), [("0x1003\n", True), ("0x1002\n", False), (None, False)])
def test_is_up_is_false_for_an_interface_that_is_down_or_missing(tmp_path, flags, up):
    if flags:
        (tmp_path / "flags").write_text(flags, encoding="ascii")
    assert tunnel_state.is_up(tmp_path) is up
