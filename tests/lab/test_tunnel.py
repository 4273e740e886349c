"""The tasks' traffic through WireGuard: what is seen on the way, who gets in, and what it costs."""

import json
import re

import pytest
from conftest import ROOT, folder_of, said, verdict

PROGRAM = ROOT / "tests/lab/programs/link_speed.py"
ENCRYPTED = "--extra-vars=tf_encryption=true"
# Looks at all that passes the network card for a while: data of tasks' ports, packets of the tunnel, and words in clear.
SNIFF = """
import json, os, socket, time
found = {"tasks": 0, "tunnel": 0, "clear": 0}
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind(("eth0", 0))
wire.settimeout(0.5)
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
open("/tmp/sniffs", "w").close()
until = time.monotonic() + 60
while time.monotonic() < until and not os.path.exists("/tmp/run-ended"):
    try:
        packet = wire.recv(65536)
    except TimeoutError:
        continue
    if packet[12:14] == b"\\x08\\x00":
        ports = {int.from_bytes(packet[34:36], "big"), int.from_bytes(packet[36:38], "big")}
        length = int.from_bytes(packet[16:18], "big") - 20 - (packet[46] >> 4) * 4 if packet[23] == 6 else 0
        found["tasks"] += length > 0 and bool(ports & {2222, 2223})
        found["tunnel"] += packet[23] == 17 and 51820 in ports
    found["clear"] += b"everybody on the way can read" in packet
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tunnel(cluster):
    """Return the cluster, not encrypted yet."""
    cluster.write("lab", "/tmp/sniff.py", SNIFF)
    return cluster


def sniffed(cluster, *words):
    """Run the program; return its result and what could be seen on worker-0's network meanwhile."""
    worker = "tunnel-worker-0"
    begun = "while [ ! -e /tmp/sniffs ]; do sleep 0.1; done; echo done"
    cluster.shell(worker, f"rm -f /tmp/sniffs /tmp/run-ended; python3 /tmp/sniff.py >/tmp/sniffed 2>&1 & {begun}")
    done, folder = cluster.run(PROGRAM, *words)
    assert done.returncode == 0, said(done)
    seen = cluster.shell(
        worker, "touch /tmp/run-ended; for i in $(seq 300); do test -s /tmp/sniffed && break; sleep 0.1; done; cat /tmp/sniffed"
    )
    return verdict(folder)["result"], json.loads(seen[worker])


def public_keys(cluster):
    """Return machine -> its public key."""
    return cluster.shell("worker:host", "wg show tf-cluster public-key")


def test_a_tunnel_encrypts_the_traffic_and_closes_other_routes(tunnel, figures):
    """Without the tunnel, the traffic is readable on the network. With it, the ports are open only through the tunnel."""
    plain, seen = sniffed(tunnel)
    assert seen["clear"] > 0
    assert seen["tasks"] > 0
    done = tunnel.playbook("site.yml", ENCRYPTED)
    assert done.returncode == 0, said(done)
    assert "PrivateKey" not in done.stdout
    done = tunnel.playbook("site.yml", ENCRYPTED)
    assert not re.search(r"changed=[1-9]", done.stdout)
    hidden, seen = sniffed(tunnel, ENCRYPTED)
    assert seen["clear"] == seen["tasks"] == 0
    assert seen["tunnel"] > 100
    for name, what in (("gigabytes_per_second", "64 MB tensors, GB/s"), ("step_milliseconds", "an empty step, ms")):
        figures.append({"tunnel": what, "without": f"{plain[name]:.3g}", "with": f"{hidden[name]:.3g}"})
    knock = "import socket; socket.create_connection(('{}', 2222), timeout={})"
    for machine in ("tunnel-host", "outsider", "tunnel-worker-1"):
        found = tunnel.shell(machine, f'python3 -c "{knock.format("10.89.89.10", 4)}" >/dev/null 2>&1 && echo in || echo out')
        assert found[machine] == "out"
    address = json.loads(tunnel.shell("tunnel-host", "cat /etc/tf-cluster/config.json")["tunnel-host"])["worker"][0]
    inside = address.rpartition(":")[0].strip("[]")
    for machine, where in (("tunnel-host", "in"), ("outsider", "out")):
        found = tunnel.shell(machine, f'python3 -c "{knock.format(inside, 20)}" >/dev/null 2>&1 && echo in || echo out')
        assert found[machine] == where


def test_each_machine_has_a_separate_key_that_only_root_can_read(tunnel):
    assert len(set(public_keys(tunnel).values())) == 3
    modes = tunnel.shell("worker:host", "find /etc/wireguard -type f -printf '%m %u\\n' | sort -u")
    assert set(modes.values()) == {"600 root"}


def peers(cluster, machine):
    """Return the peers of a machine, with their addresses, as wg prints them."""
    return set(cluster.inside(machine, "wg show tf-cluster allowed-ips").splitlines())


def test_a_damaged_tunnel_is_repaired(tunnel):
    """A deleted interface whose unit is still active; peers that are missing after an interrupted site.yml."""
    wanted, stays, gone = (
        peers(tunnel, "tunnel-worker-1"),
        peers(tunnel, "tunnel-worker-0"),
        "test ! -e /sys/class/net/tf-cluster",
    )
    tunnel.inside("tunnel-worker-0", f"kill -KILL $(pgrep -x wireguard-go) || ip link delete tf-cluster; sleep 1; {gone}")
    assert tunnel.inside("tunnel-worker-0", "systemctl is-active wg-quick@tf-cluster").strip() == "active"
    left = next(iter(wanted)).split()[0]
    unknown_peer = "wg set tf-cluster peer $(wg genkey | wg pubkey) allowed-ips fd74:6663:6c75::bad/128"
    tunnel.inside("tunnel-worker-1", f"wg set tf-cluster peer {left} remove; {unknown_peer}")
    assert peers(tunnel, "tunnel-worker-1") != wanted
    done = tunnel.playbook("site.yml", ENCRYPTED)
    assert done.returncode == 0, said(done)
    assert peers(tunnel, "tunnel-worker-0") == stays
    assert peers(tunnel, "tunnel-worker-1") == wanted


def test_adding_or_removing_a_machine_keeps_the_other_keys(tunnel, tmp_path):
    """A removed machine is no longer a peer of the others."""
    before = public_keys(tunnel)
    (tmp_path / "more.yml").write_text("worker:\n  hosts:\n    outsider:\n", encoding="utf-8")
    done = tunnel.playbook("site.yml", "run_demo.yml", f"--inventory={tmp_path}", ENCRYPTED)
    assert done.returncode == 0, said(done)
    assert tunnel.shell("outsider", "systemctl is-active tf-server@worker-2")["outsider"] == "active"
    assert verdict(folder_of(done))["tasks"]["worker:2"]["state"] == "answers"
    new = tunnel.shell("outsider", "wg show tf-cluster public-key")["outsider"]
    assert new in tunnel.shell("tunnel-worker-0", "wg show tf-cluster peers")["tunnel-worker-0"]
    assert tunnel.playbook("playbooks/teardown.yml", "--limit=outsider", f"--inventory={tmp_path}").returncode == 0
    assert tunnel.playbook("site.yml", ENCRYPTED).returncode == 0
    assert public_keys(tunnel) == before
    assert new not in tunnel.shell("tunnel-worker-0", "wg show tf-cluster peers")["tunnel-worker-0"]
    assert tunnel.shell("outsider", "ls -d /etc/wireguard/tf-cluster* 2>/dev/null; echo none")["outsider"] == "none"


def test_a_disabled_tunnel_is_removed_with_its_keys(tunnel):
    done = tunnel.playbook("site.yml", "run_demo.yml")
    assert done.returncode == 0, said(done)
    left = tunnel.shell("worker:host", "ls -d /etc/wireguard/tf-cluster* /sys/class/net/tf-cluster 2>/dev/null; echo none")
    assert set(left.values()) == {"none"}
