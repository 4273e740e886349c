#!/usr/bin/env python3
"""How long ``site.yml`` takes on labs of several sizes, next to a ping of the same machines and to the same work by hand.

    .venv/bin/python tests/bench/site_times.py 3 8 16

By hand is what TensorFlow's documentation says, over ssh, for one machine: ``python3 -m venv``, ``pip install`` of the same
wheels, start, until the server listens; by hand, it is done for one machine after the other. Both ways send the wheels from the
controller. Prints a line of Markdown for each size; times in seconds. For docs/scale.md. Needs what ``make demo``
needs; 2 GB of disk a machine.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".cache/bench/site"
LAB = {"lab_name": "tf-bench", "lab_network": "10.89.90.0/24", "lab_keep_image": True}
KEYS = Path.home() / ".local/state/tf-bench"
BIN = Path(sys.executable).parent
TIMES = 3  # that what takes seconds is measured
CHANGE = {"tf_task_options": {"inter_op_threads": 3}}
COLUMNS = ("machines", "ping", "nothing to do", "limit: 3 x ping + 4", "a variable of all", "a machine more", "bare", "by hand")


def call(*words: str, given: dict | None = None) -> float:
    """Run one of the environment's commands on the lab and return how long it took; exit with its output where it fails."""
    inventories = (f"--inventory={place}" for place in (ROOT / "inventory/lab/lab.yml", FOLDER / "hosts.json"))
    command = [str(BIN / words[0]), *words[1:], *inventories, *(["--extra-vars", json.dumps(given)] if given else [])]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return time.perf_counter() - begun


def playbook(name: str, given: dict | None = None) -> float:
    """Run one of the project's playbooks."""
    return call("ansible-playbook", name, given=given)


def inventory(machines: int) -> None:
    """Write an inventory of that many machines with a worker task each, the first of which is the host too."""
    hosts = {f"bench-{i}": {"ansible_host": f"10.89.87.{i + 10}"} for i in range(machines)}
    groups = {"worker": {"hosts": hosts}, "host": {"hosts": {"bench-0": {}}}, "lab": {"children": {"worker": {}}}}
    (FOLDER / "hosts.json").write_text(json.dumps({"all": {"vars": LAB, "children": groups}}), encoding="utf-8")


def on_machine(command: str, given: bytes = b"") -> str:
    """Run a command on the first machine over ssh and return what it prints."""
    ssh = ["ssh", "-i", KEYS / "id_ed25519", "-o", f"UserKnownHostsFile={KEYS}/known_hosts", "root@10.89.87.10", command]
    return subprocess.run(ssh, input=given, stdout=subprocess.PIPE, check=True).stdout.decode()


def by_hand() -> float:
    """Return how long one bare machine takes by hand."""
    # Not counted, since it is the distribution's and the network's: Python's module venv, and the wheels, fetched for both ways.
    on_machine("(apt-get update && apt-get install -y --no-install-recommends python3-venv) >/dev/null 2>&1")
    about = "import sys, platform; print('%d.%d' % sys.version_info[:2], platform.machine())"
    python, processor = on_machine(f'python3 -c "{about}"').split()
    wheels = FOLDER / "wheels.tar"
    fetch = [sys.executable, ROOT / "files/tf_cluster/tensorflow/wheelhouse.py", f"--lock={ROOT}/roles/tensorflow/files/cpu.txt"]
    subprocess.run([*fetch, f"--python={python}", f"--machine={processor}", f"--out={wheels}"], check=True, stdout=sys.stderr)
    program = (ROOT / "tests/bench/programs/by_hand.py").read_bytes()
    begun = time.perf_counter()
    on_machine("mkdir tf && tar x -C tf", wheels.read_bytes())
    on_machine("cat >tf/server.py", program)
    on_machine("cd tf && python3 -m venv venv && venv/bin/pip install -q --no-index --find-links wheels -r requirements.txt")
    on_machine("""cd tf && echo '{"worker": ["localhost:2222"]}' >config.json
        nohup venv/bin/python server.py config.json 0 >log 2>&1 </dev/null &""")
    listens = "import socket; socket.create_connection(('localhost', 2222))"
    on_machine(f'until python3 -c "{listens}" 2>/dev/null; do sleep 0.1; done')
    return time.perf_counter() - begun


def size(machines: int, hand: float) -> tuple[float, ...]:
    """Return the figures of a lab of that many machines, as the columns have them."""
    inventory(machines)
    playbook("playbooks/make_lab.yml")
    cold = playbook("site.yml")
    # What has nothing to do is not measured beside the byte-compiling that site.yml leaves behind.
    compiled = '{"path": "/opt/tf-cluster/venv/byte-compiled", "timeout": 900}'
    call("ansible", "all", "--module-name=ansible.builtin.wait_for", f"--args={compiled}")
    pings, nothing = [], []
    for _time in range(TIMES):
        pings.append(call("ansible", "all", "--module-name=ansible.builtin.ping"))
        nothing.append(playbook("site.yml"))
    changed = playbook("site.yml", CHANGE)
    playbook("site.yml")  # as it was
    inventory(machines + 1)
    playbook("playbooks/make_lab.yml")
    added = playbook("site.yml")
    playbook("playbooks/lab_down.yml")
    ping = statistics.median(pings)
    return ping, statistics.median(nothing), 3 * ping + 4, changed, added, cold, machines * hand


def main() -> None:
    """Print the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    inventory(1)
    playbook("playbooks/make_lab.yml")
    hand = by_hand()
    playbook("playbooks/lab_down.yml")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for machines in map(int, sys.argv[1:] or ["3", "8"]):
        print(f"| {machines} | {' | '.join(f'{value:.1f}' for value in size(machines, hand))} |", flush=True)


if __name__ == "__main__":
    main()
