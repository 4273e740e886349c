"""Who gets at the tasks: a machine that is not of the cluster, another user of one that is, an insider's program."""

import json
import re
import time

import pytest
from conftest import ROOT, said, verdict

PORTS = (2222, 2223, 3222, 4222)
PROGRAMS = ROOT / "tests/lab/programs"
# Connects to each of the places, all at once; prints place and what came of it.
KNOCK = """
import concurrent.futures, errno, json, socket, sys
def knock(place):
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=4).close()
        return "in"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
places = sys.argv[1:]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(json.dumps(dict(zip(places, pool.map(knock, places)))))
"""
# Listens on a port for a while and says whether somebody could talk with it.
LISTEN = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
server.settimeout(8)
try:
    server.accept()
    print("talked")
except OSError:
    print("nobody")
"""
# Connects as HTTP/2, and asks (PING) twenty seconds later whether the connection still carries anything.
HOLD = """
import socket, time
connection = socket.create_connection(("10.89.85.10", 2222), timeout=4)
connection.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
time.sleep(1)
connection.recv(4096)
time.sleep(20)
try:
    connection.sendall(bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"is there")
    print("answered" if connection.recv(4096) else "closed")
except OSError:
    print("silent")
"""
ADDRESSES_6 = {
    "trust-worker-0": "fd00:85::10",
    "trust-worker-1": "fd00:85::11",
    "trust-host": "fd00:85::20",
    "stranger": "fd00:85::66",
}
attempts = {"made": 0, "in": 0}


@pytest.fixture(scope="module")
def trust(cluster):
    """Return the cluster, its machines with an IPv6 address each, and programs to try with."""
    for name, text in (("knock", KNOCK), ("listen", LISTEN)):
        cluster.write("lab", f"/tmp/{name}.py", text)
    macs = cluster.shell("lab", "cat /sys/class/net/eth0/address")
    # Told, for not every bridge passes on the questions by which IPv6 finds its neighbours.
    known = "; ".join(f"ip -6 neigh replace {ADDRESSES_6[name]} lladdr {mac} dev eth0" for name, mac in macs.items())
    for machine, address in ADDRESSES_6.items():
        lines = f"ip -6 address replace {address}/64 dev eth0 nodad; {known}; id alice || useradd --create-home alice; echo done"
        cluster.shell(machine, lines)
    cluster.shell("lab", "echo secret >/home/alice/diary; chmod 755 /home/alice; chmod 644 /home/alice/diary; echo done")
    yield cluster
    print(f"\nattempts {attempts['made']}, refused {attempts['made'] - attempts['in']}, let in {attempts['in']}")


def places():
    """Return every task's ports on every machine of the cluster, by both protocols."""
    machines = [("10.89.85.10", "fd00:85::10"), ("10.89.85.11", "fd00:85::11"), ("10.89.85.20", "fd00:85::20")]
    return [f"{address}:{port}" for four, six in machines for port in PORTS for address in (four, f"[{six}]")]


def knock(cluster, machine, where, user="root"):
    """Return what comes of knocking, place by place."""
    line = f"setpriv --reuid={user} --clear-groups python3 /tmp/knock.py {' '.join(where)}"
    return json.loads(cluster.shell(machine, line)[machine])


def refused(cluster, machine, where, user="root"):
    """Knock and demand that nobody is let in."""
    found = knock(cluster, machine, where, user)
    attempts["made"] += len(found)
    attempts["in"] += list(found.values()).count("in")
    assert "in" not in found.values(), found
    return found


def test_a_strangers_machine_is_refused_at_every_port(trust):
    """By IPv4 and IPv6; the port of a task that is not there is as closed as the others."""
    found = refused(trust, "stranger", places())
    assert found["10.89.85.10:2222"] == "EHOSTUNREACH"
    for open_place in ("10.89.85.10:22", "[fd00:85::10]:22"):
        assert knock(trust, "stranger", [open_place])[open_place] == "in"
    assert knock(trust, "trust-host", ["10.89.85.10:2222", "10.89.85.11:2222"]) == dict.fromkeys(
        ["10.89.85.10:2222", "10.89.85.11:2222"], "in"
    )


# Waits for a datagram, and sends one.
HEAR = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
    heard.bind(("", 2222))
    heard.settimeout(8)
    print(heard.recv(100).decode())
"""


def test_nothing_else_is_closed(trust):
    """Not even another protocol at a task's port: the rules are about the tasks alone."""
    trust.write("trust-worker-0", "/tmp/hear.py", HEAR)
    trust.shell("trust-worker-0", "python3 /tmp/hear.py >/tmp/datagram 2>&1 & sleep 1; echo done")
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'heard', ('10.89.85.10', 2222))"
    trust.shell("stranger", f'python3 -c "{send}"; echo done')
    assert trust.shell("trust-worker-0", "sleep 1; cat /tmp/datagram")["trust-worker-0"] == "heard"


def test_so_is_another_user_of_a_machine_of_the_cluster(trust):
    """On its own machine, by any address, and on others; the servers' user gets through."""
    local = [f"{address}:2222" for address in ("127.0.0.1", "[::1]", "10.89.85.10", "[fd00:85::10]", "10.89.85.11")]
    refused(trust, "trust-worker-0", local, "alice")
    refused(trust, "trust-host", places(), "alice")
    assert set(knock(trust, "trust-worker-0", [local[0], local[4]], "tensorflow").values()) == {"in"}


def test_nobody_else_can_pass_for_a_task(trust):
    """Another user takes the port of a stopped task: nobody hears him. What a run listens on is for the cluster alone."""
    trust.shell("trust-worker-1", "systemctl stop tf-server@worker-1; echo done")
    try:
        for port, user, asks, talked in [
            (2222, "alice", "trust-host", False),
            (2222, "tensorflow", "trust-host", True),
            (5999, "tensorflow", "stranger", False),
            (5999, "tensorflow", "trust-worker-0", True),
            (5999, "alice", "stranger", True),  # his own affair
        ]:
            line = f"setpriv --reuid={user} --clear-groups python3 /tmp/listen.py {port} >/tmp/heard 2>&1 & sleep 0.5; echo done"
            trust.shell("trust-worker-1", line)
            place = f"10.89.85.11:{port}"
            found = knock(trust, asks, [place]) if talked else refused(trust, asks, [place])
            assert (found[place] == "in") is talked, (port, user, asks, found)
            heard = trust.shell(
                "trust-worker-1", "for i in $(seq 100); do test -s /tmp/heard && break; sleep 0.1; done; cat /tmp/heard"
            )
            assert heard["trust-worker-1"] == ("talked" if talked else "nobody"), (port, user, asks)
    finally:
        trust.shell("trust-worker-1", "systemctl start tf-server@worker-1; echo done")


def test_an_insiders_program_gets_nothing(trust):
    """Neither by graphs that it sends to the workers nor by itself; XLA works all the same."""
    done, folder = trust.run(PROGRAMS / "insider.py")
    assert done.returncode == 0, said(done)
    result = verdict(folder)["result"]
    attempts["made"] += result["tried"]
    attempts["in"] += len(result["let"])
    assert result["let"] == []
    assert result["refused"] == result["tried"] > 50
    assert not any(trust.shell("lab", "find / -xdev -name insider -not -path '/proc/*' | head").values())


def test_the_units_are_confined(trust, tmp_path):
    """As systemd itself counts it: 1.5 or better, for a server and for a run."""
    program = tmp_path / "sleeps.py"
    program.write_text("import time\ntime.sleep(20)\n", encoding="utf-8")
    done = trust.playbook("playbooks/run.yml", f"--extra-vars=program={program}", "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) goes on", said(done))[1]
    for machine, unit in (("trust-worker-0", "tf-server@worker-0"), ("trust-host", "tf-run-host-0")):
        text = trust.shell(machine, f"systemd-analyze security --no-pager {unit} | tail -n 1")[machine]
        assert float(re.search(r": ([0-9.]+) ", text)[1]) <= 1.5, text
    trust.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")


def test_flushing_reloading_and_starting_again_leave_nothing_open(trust):
    """The machine's own nftables.service empties all rules; ours are there again. Nor is a reload a gap."""
    worker, place = "trust-worker-0", ["10.89.85.10:2222"]
    for line in ("start nftables", "reload nftables", "restart nftables", "stop nftables", "reload tf-firewall"):
        trust.shell(worker, f"systemctl {line}; echo done")
        refused(trust, "stranger", place)
    loop = "for i in $(seq 200); do systemctl reload tf-firewall; done >/tmp/reloads 2>&1 & echo done"
    trust.shell(worker, loop)
    for _round in range(4):
        refused(trust, "stranger", place * 1 + ["[fd00:85::10]:2222"])
    assert trust.shell(worker, "pgrep -c -f 'tf-firewall' || true")


def test_after_a_start_of_the_machine_nothing_is_open(trust):
    """The rules come before the first server."""
    trust.podman("restart", "trust-worker-1", "--time=0")
    deadline, served = time.monotonic() + 60, False
    while time.monotonic() < deadline and not served:
        refused(trust, "stranger", ["10.89.85.11:2222"])
        served = knock(trust, "trust-host", ["10.89.85.11:2222"])["10.89.85.11:2222"] == "in"
    assert served
    refused(trust, "stranger", ["10.89.85.11:2222"])
    trust.wait_for("trust-worker-1")
    trust.shell("lab", "ip neigh flush all; echo done")  # a container has a new card after a start
    order = trust.shell(
        "trust-worker-1", "systemctl show --property=ActiveEnterTimestampMonotonic --value tf-firewall tf-server@worker-1 | xargs"
    )
    wall, server = map(int, order["trust-worker-1"].split())
    assert wall < server


def test_who_comes_and_who_leaves(trust, tmp_path):
    """New rules do not cut a run; a machine that leaves loses what it had, at once and on standing connections."""
    program = tmp_path / "steps.py"
    program.write_text((ROOT / "tests/lab/programs/long_session.py").read_text(encoding="utf-8"), encoding="utf-8")
    done = trust.playbook("playbooks/run.yml", f"--extra-vars=program={program}", "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) goes on", said(done))[1]
    more = '{"firewall_more_peers": ["10.89.85.66"]}'
    assert trust.playbook("site.yml", f"--extra-vars={more}").returncode == 0
    assert knock(trust, "stranger", ["10.89.85.10:2222"])["10.89.85.10:2222"] == "in"
    trust.write("stranger", "/tmp/hold.py", HOLD)
    trust.shell("stranger", "python3 /tmp/hold.py >/tmp/held 2>&1 & sleep 1; echo done")
    assert trust.playbook("site.yml").returncode == 0
    refused(trust, "stranger", ["10.89.85.10:2222"])
    wait = "for i in $(seq 300); do test -s /tmp/held && break; sleep 0.1; done; cat /tmp/held"
    assert trust.shell("stranger", wait)["stranger"] == "silent"
    attached = trust.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert attached.returncode == 0, said(attached)


def test_it_can_be_switched_off_and_that_is_said(trust):
    """Loudly; the tasks go on; and switched on again it stands."""
    before = trust.pids()
    assert trust.playbook("site.yml", "--extra-vars=firewall_enabled=false").returncode == 0
    assert knock(trust, "stranger", ["10.89.85.10:2222"])["10.89.85.10:2222"] == "in"
    status = trust.playbook("playbooks/status.yml")
    assert status.returncode == 0
    assert "OPEN: whoever reaches the tasks of" in said(status)
    assert trust.playbook("site.yml").returncode == 0
    refused(trust, "stranger", places())
    assert trust.pids() == before


def test_rules_that_somebody_took_away_are_told_of_and_come_back(trust):
    """status.yml fails, site.yml mends."""
    trust.shell("trust-worker-0", "nft flush ruleset; echo done")
    status = trust.playbook("playbooks/status.yml")
    assert status.returncode != 0
    assert "the rules of the firewall of trust-worker-0 are not at work" in said(status)
    assert trust.playbook("site.yml").returncode == 0
    refused(trust, "stranger", places())
