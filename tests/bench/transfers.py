#!/usr/bin/env python3
"""How long a gigabyte takes to a machine and back: scp, rsync and this project, in turn, over the same connection.

    .venv/bin/python tests/bench/transfers.py -i inventory/lab

Each writes a file that was not there: a file that is written again takes the memory of its old content, which a virtual machine
has already, and a new one may have to get it from its host first (0.5 to 3 s for a gigabyte).
What is read is on the disk before, so that writing it there takes no time from any of them.

Needs a cluster; the options are those of ``ansible-playbook``. ``ROUNDS`` and ``MEGABYTES`` in the environment (3, 1024). The
project's times are those of its tasks. Prints a table of Markdown with the median and all times in seconds, for
docs/performance.md. What it wrote on the machine, except for the runs and their data, is removed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ROUNDS, MEGABYTES = int(os.environ.get("ROUNDS", "3")), int(os.environ.get("MEGABYTES", "1024"))
THERE = "/var/tmp/tf-transfers"
SEND, COLLECT = "run : Run the program and show its output", "collect : Collect the machine's results of the run"
PROGRAMS = {
    "reads.py": "",
    "writes.py": f"""
import os
with open(os.environ["TF_RUN_DIR"] + "/back.bin", "wb") as file:
    for _ in range({MEGABYTES}):
        file.write(os.urandom(1 << 20))
    os.fsync(file)
""",
}


def timed(*words: str | Path) -> float:
    """Return how many seconds a command takes; exit with its output if it fails."""
    begun = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return time.perf_counter() - begun


def task_seconds(options: list[str], folder: Path, task: str, **given: str) -> float:
    """Run a program on the cluster and return the seconds of one task on the host machine."""
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
        "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
    }
    command = [
        str(BIN / "ansible-playbook"),
        *options,
        "playbooks/run.yml",
        "-e",
        json.dumps({"tf_output": str(folder), **given}),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = re.search(rf"(?m){re.escape(task)} -+ ([0-9.]+)s$", done.stdout)
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return float(found[1])


def connection(options: list[str]) -> tuple[str, list[str]]:
    """Return user and address of the host machine, and the options of ssh."""
    inventory = subprocess.run(
        [BIN / "ansible-inventory", *options, "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(inventory.stdout)
    name = found["host"]["hosts"][0]
    play = [
        "-m",
        "ansible.builtin.debug",
        "-a",
        "msg={{ [ansible_user, ansible_host, ansible_ssh_private_key_file, ansible_ssh_common_args] }}",
    ]
    shown = subprocess.run([BIN / "ansible", *options, name, *play, "-o"], cwd=ROOT, capture_output=True, text=True, check=True)
    user, host, key, common = json.loads(shown.stdout.partition("=> ")[2])["msg"]
    return f"{user}@{host}", ["-i", key, *shlex.split(common)]


def rotated(calls: dict[str, Callable[[], float]], turn: int) -> list[tuple[str, Callable[[], float]]]:
    """Return names and calls, with another one first in each turn."""
    items = list(calls.items())
    return items[turn % len(items) :] + items[: turn % len(items)]


def main() -> None:
    """Measure and print the table."""
    options = sys.argv[1:] or ["-i", "inventory/lab"]
    machine, ssh = connection(options)
    shell = f"--rsh={shlex.join(['ssh', *ssh])}"
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder, data = Path(name), Path(name, "data.bin")
        for program, text in PROGRAMS.items():
            (folder / program).write_text(text, encoding="utf-8")
        for turn in range(ROUNDS):
            with data.open("wb") as file:
                for _megabyte in range(MEGABYTES):
                    file.write(os.urandom(1 << 20))
            os.sync()
            given = {"program": str(folder / "reads.py"), "program_data": str(data)}
            there = f"{machine}:{THERE}.{turn}"
            send: dict[str, Callable[[], float]] = {
                "send, scp": partial(timed, "scp", "-q", *ssh, data, f"{there}.scp"),
                "send, rsync": partial(timed, "rsync", "--whole-file", shell, data, f"{there}.rsync"),
                "send, this project": partial(task_seconds, options, folder, SEND, **given),
            }
            again = ("send again, unchanged", send["send, this project"])
            collect: dict[str, Callable[[], float]] = {
                "collect, scp": partial(timed, "scp", "-q", *ssh, f"{there}.scp", folder / f"{turn}.scp"),
                "collect, rsync": partial(timed, "rsync", shell, f"{there}.scp", folder / f"{turn}.rsync"),
                "collect, this project": partial(task_seconds, options, folder, COLLECT, program=str(folder / "writes.py")),
            }
            for what, call in [*rotated(send, turn), again, *rotated(collect, turn)]:
                os.sync()
                times.setdefault(what, []).append(call())
    timed("ssh", *ssh, machine, f"rm -f {THERE}.*")
    print(f"| {MEGABYTES} MB | s | each round |\n|---|---|---|")
    for what, found in times.items():
        print(f"| {what} | {statistics.median(found):.1f} | {', '.join(f'{seconds:.1f}' for seconds in found)} |")


if __name__ == "__main__":
    main()
