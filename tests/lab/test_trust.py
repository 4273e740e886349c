"""Who gets at the tasks: a machine that is not of the cluster, another user of one that is, an insider's program."""

import contextlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import AS_ROOT, ROOT, said, verdict

# Machine -> its addresses, and what is closed on it: its tasks' ports, and those that a training adds.
MACHINES = {
    "trust-worker-0": ("10.89.85.10", "[fd00:85::10]", (2222, 3222, 4222)),
    "trust-worker-1": ("10.89.85.11", "[fd00:85::11]", (2222, 3222)),
    "trust-host": ("10.89.85.20", "[fd00:85::20]", (2223,)),
}
PLACES = [f"{address}:{port}" for *addresses, ports in MACHINES.values() for port in ports for address in addresses]
WORKERS = ["10.89.85.10:2222", "10.89.85.11:2222"]
# What a program is told that the firewall rejects (by IPv4 and IPv6), or whose packets are dropped: the kernel sends few
# rejections a second. That nothing listens (ECONNREFUSED) is no refusal: without the firewall it would be the same.
REFUSALS = ("EHOSTUNREACH", "EACCES", "timed out")
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
# Connects to the places again and again, not waiting for an answer before the next, until there is a file; prints how often, and
# how often it was let in.
STORM = """
import errno, json, os, select, socket, sys, time
until, *places = sys.argv[1:]
waiting, poll, found, begun = {}, select.poll(), {"made": 0, "in": 0}, time.monotonic()
while time.monotonic() < begun + 90 and not os.path.exists(until):
    for place in places:
        host, _, port = place.rpartition(":")
        one = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)
        one.setblocking(False)
        if one.connect_ex((host.strip("[]"), int(port))) in (0, errno.EINPROGRESS):
            found["made"] += 1
            waiting[one.fileno()] = one
            poll.register(one, select.POLLOUT)
    for number, _event in poll.poll(1):
        one = waiting.pop(number)
        poll.unregister(one)
        found["in"] += one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        one.close()
    for number in list(waiting)[:-400]:
        poll.unregister(waiting[number])
        waiting.pop(number).close()
    time.sleep(0.005)
print(json.dumps(found))
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
# Connects as HTTP/2, and asks (PING), when there is a file, whether the connection still carries anything.
HOLD = """
import os, socket, time
connection = socket.create_connection(("10.89.85.10", 2222), timeout=4)
connection.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
time.sleep(1)
connection.recv(4096)
while not os.path.exists("/tmp/ask"):
    time.sleep(0.1)
connection.settimeout(15)
try:
    connection.sendall(bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + b"is there")
    print("answered" if connection.recv(4096) else "closed")
except OSError:
    print("silent")
"""
STRANGER, ALICE, INSIDER = (
    "a machine outside the cluster",
    "another user on a cluster machine",
    "graphs and a program of a cluster user",
)
CLIENT = "a TensorFlow client and a server of another cluster"
CHANGE = "a machine outside, while rules are loaded or a machine boots"
# Who -> attempts, and how many of them were let in.
attempts = {who: [0, 0] for who in (STRANGER, ALICE, INSIDER, CLIENT, CHANGE)}


def give_addresses(cluster):
    """Give all machines an IPv6 address each; they lose it when they start again."""
    number = "$(ip -4 -o address show dev eth0 | sed 's/.*inet 10[.]89[.]85[.]\\([0-9]*\\)[/].*/\\1/')"
    line = f"ip -6 address replace fd00:85::{number}/64 dev eth0 nodad; echo {number} $(cat /sys/class/net/eth0/address)"
    found = dict(text.split() for text in cluster.shell("lab", line).values())
    # Told, for not every bridge passes on the questions by which IPv6 finds its neighbours.
    known = "; ".join(
        f"ip neigh replace {network}{last} lladdr {mac} dev eth0 nud {state}"
        for last, mac in found.items()
        for network, state in (("fd00:85::", "permanent"), ("10.89.85.", "reachable"))
    )
    cluster.shell("lab", f"{known}; echo done")


@pytest.fixture(scope="module")
def trust(cluster, figures):
    """Return the cluster, its machines with an IPv6 address each, and programs to try with."""
    for name, text in (("knock", KNOCK), ("listen", LISTEN), ("storm", STORM)):
        cluster.write("lab", f"/srv/{name}.py", text)
    give_addresses(cluster)
    cluster.shell(
        "lab",
        "id alice || useradd --create-home alice; cd /home/alice; echo secret >diary; chmod 755 .; chmod 644 diary; echo done",
    )
    yield cluster
    for who, (made, let_in) in attempts.items():
        figures.append({"who": who, "attempts": made, "refused": made - let_in, "let in": let_in})


def count(who, made, let_in):
    """Count attempts."""
    attempts[who][0] += made
    attempts[who][1] += let_in


def knock(cluster, machine, where, user="root"):
    """Return what comes of knocking, place by place."""
    return json.loads(cluster.inside(machine, f"setpriv --reuid={user} --clear-groups python3 /srv/knock.py {' '.join(where)}"))


def refused(cluster, machine, where, user="root"):
    """Knock, and demand that the firewall refuses it everywhere."""
    found = knock(cluster, machine, where, user)
    let_in = {place: what for place, what in found.items() if what not in REFUSALS}
    count(STRANGER if user == "root" else ALICE, len(found), len(let_in))
    assert let_in == {}
    return found


@contextlib.contextmanager
def storm(cluster, machine, where):
    """Knock all the while; what came of it is in what is returned, at the end."""
    cluster.inside(
        machine, f"rm -f /tmp/calm; setsid python3 /srv/storm.py /tmp/calm {' '.join(where)} >/tmp/storm 2>&1 </dev/null &"
    )
    found = {}
    try:
        yield found
    finally:
        said = cluster.inside(
            machine, "touch /tmp/calm; for i in $(seq 100); do test -s /tmp/storm && break; sleep 0.1; done; cat /tmp/storm"
        )
        found.update(json.loads(said))


def test_a_machine_outside_the_cluster_is_refused_at_every_port(trust):
    """By IPv4, IPv6, and at the ports that only a training uses."""
    found = refused(trust, "outsider", PLACES)
    assert {"EHOSTUNREACH", "EACCES"} <= set(found.values())
    for open_place in ("10.89.85.10:22", "[fd00:85::10]:22"):
        assert knock(trust, "outsider", [open_place])[open_place] == "in"
    # To a machine of the cluster all are open, whether something listens or not.
    by_address = [place for place in PLACES if not place.startswith("[")]
    found = knock(trust, "trust-host", by_address)
    assert {place: what for place, what in found.items() if what != "ECONNREFUSED"} == dict.fromkeys(WORKERS, "in")


def outsider(trust, machine):
    """Start TensorFlow as it were on a machine that does not have it: with the network of that one and the disk of another."""
    pids = {
        name: subprocess.check_output(
            [*AS_ROOT, "podman", "inspect", "--format={{.State.Pid}}", f"tf-test-{trust.scenario.name}-{name}"], text=True
        ).strip()
        for name in (machine, "trust-worker-1")
    }
    address = {"outsider": "10.89.85.66"}.get(machine) or MACHINES[machine][0]
    command = [
        "nsenter",
        f"--net=/proc/{pids[machine]}/ns/net",
        f"--target={pids['trust-worker-1']}",
        "--mount",
        "--pid",
        "--root",
    ]
    program = (PROGRAMS / "outsider.py").read_text(encoding="utf-8")
    words = [*AS_ROOT, *command, "/opt/tf-cluster/venv/bin/python", "-c", program, address, *WORKERS]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_outsider_cannot_use_a_server_or_add_our_workers_to_another_cluster(trust):
    """A machine of the cluster succeeds with the same program."""
    found = {}
    for machine, process in [(machine, outsider(trust, machine)) for machine in ("outsider", "trust-host")]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        found[machine] = json.loads(out)
    assert len(found["outsider"]) == 6
    assert set(found["trust-host"].values()) == {"in"}
    count(CLIENT, len(found["outsider"]), list(found["outsider"].values()).count("in"))
    assert set(found["outsider"].values()) <= {"DeadlineExceededError", "UnavailableError", "waits"}


# Waits for a datagram, and sends one.
HEAR = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
    heard.bind(("", 2222))
    heard.settimeout(8)
    print(heard.recv(100).decode())
"""


def test_a_udp_datagram_reaches_the_port_of_a_task(trust):
    """The firewall rules do not affect other protocols."""
    trust.write("trust-worker-0", "/tmp/hear.py", HEAR)
    trust.shell("trust-worker-0", "python3 /tmp/hear.py >/tmp/datagram 2>&1 & sleep 1; echo done")
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'heard', ('10.89.85.10', 2222))"
    trust.shell("outsider", f'python3 -c "{send}"; echo done')
    assert trust.shell("trust-worker-0", "sleep 1; cat /tmp/datagram")["trust-worker-0"] == "heard"


def test_another_user_of_a_cluster_machine_is_refused(trust):
    """At each address of the same machine and at other machines. The servers' user can connect."""
    local = [f"{address}:2222" for address in ("127.0.0.1", "[::1]", "10.89.85.10", "[fd00:85::10]", "10.89.85.11")]
    refused(trust, "trust-worker-0", local, "alice")
    refused(trust, "trust-host", PLACES, "alice")
    assert set(knock(trust, "trust-worker-0", [local[0], local[4]], "tensorflow").values()) == {"in"}


def test_a_process_of_another_user_on_the_port_of_a_task_is_unreachable(trust):
    """The task on that port is stopped. Ports of a run are reachable only from the cluster."""
    machine = "trust-worker-1"
    trust.inside(machine, "systemctl stop tf-server@worker-1")
    try:
        for port, user, asks, talked in [
            (2222, "alice", "trust-host", False),
            (2222, "tensorflow", "trust-host", True),
            (5999, "tensorflow", "outsider", False),
            (5999, "tensorflow", "trust-worker-0", True),
            (5999, "alice", "outsider", True),  # his own affair
        ]:
            line = f"setsid setpriv --reuid={user} --clear-groups python3 /srv/listen.py {port} >/tmp/heard 2>&1 </dev/null &"
            trust.inside(machine, f"{line} sleep 0.5")
            place = f"10.89.85.11:{port}"
            found = knock(trust, asks, [place]) if talked else refused(trust, asks, [place])
            assert (found[place] == "in") is talked, (port, user, asks, found)
            heard = trust.inside(machine, "for i in $(seq 100); do test -s /tmp/heard && break; sleep 0.1; done; cat /tmp/heard")
            assert heard.strip() == ("talked" if talked else "nobody"), (port, user, asks)
    finally:
        trust.inside(machine, "systemctl start tf-server@worker-1")


# Somebody else's files that anybody may write, and their folders anybody may use.
ANYBODYS = [
    f"{folder}/file" for folder in ("/opt/anybodys", "/var/lib/anybodys", "/run/anybodys", "/run/lock", "/tmp", "/var/tmp")
]


def test_a_malicious_program_of_a_cluster_user_is_refused_everything(trust):
    """It tries with graphs that it sends to the workers and in its own process. XLA still works."""
    lines = [
        f"mkdir -p {Path(file).parent}; chmod 1777 {Path(file).parent}; echo foreign >{file}; chmod 666 {file}"
        for file in ANYBODYS
    ]
    trust.shell("lab", "; ".join([*lines, "echo done"]))
    done, folder = trust.run(PROGRAMS / "insider.py")
    assert done.returncode == 0, said(done)
    result = verdict(folder)["result"]
    count(INSIDER, result["refused"] + len(result["let"]), len(result["let"]))
    assert result["let"] == result["odd"] == []
    assert result["refused"] > 80
    found = trust.shell(
        "lab", f"cat {' '.join(ANYBODYS)} | sort -u; find / -name insider -not -path '/proc/*' 2>/dev/null | sort -u"
    )
    assert set(" ".join(found.values()).split()) <= {"foreign", "/dev/shm/insider"}  # the machine's, as docs/security.md says
    trust.shell("lab", "rm -f /dev/shm/insider; echo done")


def test_systemd_rates_the_exposure_of_servers_and_runs_at_most_1_5(trust, tmp_path):
    program = tmp_path / "sleeps.py"
    program.write_text("import time\ntime.sleep(20)\n", encoding="utf-8")
    done = trust.playbook("playbooks/run.yml", f"--extra-vars=program={program}", "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) continues", said(done))[1]
    for machine, unit in (("trust-worker-0", "tf-server@worker-0"), ("trust-host", f"tf-run-host-0-{run}")):
        text = trust.shell(machine, f"systemd-analyze security --no-pager {unit} | tail -n 1")[machine]
        assert float(re.search(r": ([0-9.]+) ", text)[1]) <= 1.5, text
    trust.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")


def test_ports_stay_closed_when_nftables_or_the_firewall_is_reloaded(trust):
    """The machine's nftables.service deletes all rules, and the project's rules are restored. A reload leaves no gap."""
    worker, places = "trust-worker-0", [place for place in PLACES if ":2222" in place and "10:2222" in place]
    for line in ("start nftables", "reload nftables", "restart nftables", "stop nftables", "reload tf-firewall"):
        trust.inside(worker, f"systemctl {line}")
        refused(trust, "outsider", places)
    loop = "for i in $(seq 100); do systemctl reload tf-firewall || exit 1; done"
    with storm(trust, "trust-host", places[:1]) as control, storm(trust, "outsider", places) as found:
        trust.inside(worker, loop)
    count(CHANGE, found["made"], found["in"])
    assert found["made"] > 200  # two a reload
    assert found["in"] == 0
    assert control["in"] > 20  # it would have been seen


def test_ports_stay_closed_while_a_machine_restarts(trust):
    """The rules are loaded before the first server starts."""
    machine, number = "trust-worker-1", "11"
    with (
        storm(trust, "trust-host", [WORKERS[1]]) as control,
        storm(trust, "outsider", [WORKERS[1], f"[fd00:85::{number}]:2222"]) as found,
    ):
        trust.podman("restart", machine, "--time=0")
        # It has lost its second address.
        trust.inside(machine, f"ip -6 address replace fd00:85::{number}/64 dev eth0 nodad")
        trust.wait_for(machine)
        wait = "for i in $(seq 300); do systemctl is-active --quiet tf-server@worker-1 && break; sleep 0.1; done; sleep 1"
        trust.inside(machine, wait)
    count(CHANGE, found["made"], found["in"])
    assert found["in"] == 0
    assert found["made"] > 200
    assert control["in"] > 0
    give_addresses(trust)
    refused(trust, "outsider", PLACES)
    refused(trust, "trust-worker-1", PLACES, "alice")
    order = trust.inside(
        machine, "systemctl show --property=ActiveEnterTimestampMonotonic --value tf-firewall tf-server@worker-1 | xargs"
    )
    wall, server = map(int, order.split())
    assert wall < server


# Answers for one name as a changed DNS would.
RESOLVER = """
import os, socket
resolve = socket.getaddrinfo
def changed(host, *words, **more):
    return resolve(os.environ["PEER"] if host == "peer.example" else host, *words, **more)
socket.getaddrinfo = changed
"""


def test_a_removed_machine_loses_access_without_interrupting_a_run(trust, tmp_path):
    """New rules do not interrupt a run. A removed machine loses access at once, also on open connections.

    The rules follow the address of a name.
    """
    program = tmp_path / "steps.py"
    program.write_text((ROOT / "tests/lab/programs/long_session.py").read_text(encoding="utf-8"), encoding="utf-8")
    done = trust.playbook("playbooks/run.yml", f"--extra-vars=program={program}", "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) continues", said(done))[1]
    (tmp_path / "sitecustomize.py").write_text(RESOLVER, encoding="utf-8")
    more = '{"firewall_extra_peers": ["peer.example"]}'
    for address, found in [("10.89.85.67", REFUSALS), ("10.89.85.66", ["in"])]:
        done = trust.playbook("site.yml", "--tags=firewall", f"--extra-vars={more}", PYTHONPATH=str(tmp_path), PEER=address)
        assert done.returncode == 0, said(done)
        assert knock(trust, "outsider", ["10.89.85.10:2222"])["10.89.85.10:2222"] in found
    trust.write("outsider", "/tmp/hold.py", HOLD)
    trust.shell("outsider", "rm -f /tmp/ask; python3 /tmp/hold.py >/tmp/held 2>&1 & sleep 1; echo done")
    assert trust.playbook("site.yml", "--tags=firewall").returncode == 0
    refused(trust, "outsider", ["10.89.85.10:2222"])
    wait = "touch /tmp/ask; for i in $(seq 300); do test -s /tmp/held && break; sleep 0.1; done; cat /tmp/held"
    assert trust.shell("outsider", wait)["outsider"] == "silent"
    trust.shell("host", f"touch /var/lib/tf-cluster/runs/{run}/program/stop")
    attached = trust.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert attached.returncode == 0, said(attached)


def unprotected(status):
    """Return the machines that status.yml says the firewall of does not stand."""
    found = re.search(r"OPEN: ([^:]*): the firewall rules are missing or were changed", said(status))
    return set(found[1].split(", ")) if found else set()


def test_a_disabled_firewall_is_reported(trust):
    """The tasks keep running. Enabling the firewall again closes the ports."""
    before = trust.pids()
    names = '{"firewall_enabled": false, "firewall_extra_peers": ["known-to-machines-alone.invalid"]}'
    assert trust.playbook("site.yml", "--tags=firewall", f"--extra-vars={names}").returncode == 0
    # So what is refused otherwise is refused by the firewall, by IPv6 too.
    found = knock(trust, "outsider", PLACES)
    listening = [place for place in PLACES if place.endswith(":2222")]
    assert found == {place: "in" if place in listening else "ECONNREFUSED" for place in PLACES}
    status = trust.playbook("playbooks/status.yml", "--extra-vars=firewall_enabled=false")
    assert status.returncode == 0, said(status)
    assert ": firewall_enabled is false. Anyone who can reach the tasks" in said(status)
    status = trust.playbook("playbooks/status.yml")
    assert status.returncode != 0
    assert unprotected(status) == set(MACHINES)
    assert trust.playbook("site.yml", "--tags=firewall").returncode == 0
    refused(trust, "outsider", PLACES)
    assert trust.pids() == before


def test_removed_rules_are_reported_and_restored(trust):
    """status.yml reports them and site.yml restores them."""
    damage = {
        "trust-worker-0": "nft flush table inet tf_cluster",  # the chains stay, and with them the name of the version
        "trust-worker-1": "nft insert rule inet tf_cluster input accept",
        "trust-host": "nft flush ruleset; rm /etc/tf-cluster/firewall.nft",
    }
    for machine, line in damage.items():
        trust.inside(machine, line)
    assert "in" in knock(trust, "outsider", WORKERS).values()
    status = trust.playbook("playbooks/status.yml")
    assert status.returncode != 0
    assert unprotected(status) == set(damage)
    assert trust.playbook("site.yml", "--tags=firewall").returncode == 0
    refused(trust, "outsider", PLACES)
    assert trust.playbook("playbooks/status.yml").returncode == 0


def test_rules_are_loaded_again_if_the_user_id_changes(trust):
    """The kernel stores only numeric IDs. The old ID of a recreated account could belong to another user."""
    machine, number = "trust-worker-1", "s/^tensorflow:x:[0-9]*:/tensorflow:x:987:/"
    trust.inside(machine, f"cp /etc/passwd /etc/passwd.kept; sed -i '{number}' /etc/passwd")
    try:
        checked = trust.playbook("site.yml", "--tags=firewall", "--check")
    finally:
        trust.inside(machine, "mv /etc/passwd.kept /etc/passwd")
    loads = re.search(r"TASK \[distributed.tensorflow.firewall : Close \| Load the rules, now.*?\n\n", checked.stdout, re.DOTALL)
    assert loads, said(checked)
    assert re.findall(r"changed: \[(.*)\]", loads[0]) == [machine]
