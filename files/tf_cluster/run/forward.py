"""Find the port that a run listens on, and report when the run ends.

    python -m tf_cluster.run.forward RUN --port 6006

The action plugin tf_program forwards the port to the controller. Each call returns within a few seconds, as those of program.py.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import Any

from ..server import ports
from . import program, queue, runs
from .runs import Run
from .text import plain_lines

LISTEN_SECONDS = 60.0  # that a program may take until it listens
POLL_SECONDS = 0.5
HEAD_BYTES = 1_000_000  # of the output
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104 (compared, not bound)
MAX_PORTS = 8  # in a sentence


def forward(options: argparse.Namespace) -> dict[str, Any]:
    """Wait until the run listens on the port, return ``forward``, and then report the end of the run."""
    run = Run(options.run)
    noted = run.read()
    call = [run.id, f"--port={options.port}"]
    if noted.get("waiting") and "number" in noted and "ended" not in noted:
        waits = program.wait(run, options.reported, follows=True)
        if "waited" in waits:
            return {"lines": waits.get("lines", []), "next": [*call, f"--reported={waits['waited']}"]}
    deadline = time.monotonic() + program.WAIT_SECONDS
    while True:
        noted = run.read()
        if "ended" in noted or time.monotonic() > deadline:
            break
        # The program may print its URL just after it listens.
        if options.state == "new" and options.port in listening(noted["unit"]) and url_in(run, options.port):
            break
        time.sleep(POLL_SECONDS)
    if "ended" not in noted and not runs.is_alive(noted["unit"], run):
        queue.dispatch()  # notes that the run was lost
        noted = run.read()
    if "ended" in noted:
        return ended(run, noted, options)
    found = listening(noted["unit"])
    if options.state != "new":
        return still_there(options, call, options.port in found)
    if options.port in found:
        given = {"address": found[options.port], "port": options.port, **parts_of(url_in(run, options.port))}
        return {"forward": given, "next": [*call, "--state=open"]}
    return wait_for_listener(noted, options, call, sorted(found))


def ended(run: Run, noted: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the answer for a run that has ended: a failure if its port was never forwarded."""
    outcome = noted.get("failure") or "it succeeded"
    if options.state == "new":
        return {"failure": f"The run {run.id} has ended ({outcome}), so its port {options.port} cannot be forwarded."}
    return {"lines": [f"the run {run.id} has ended: {outcome}"]}


def still_there(options: argparse.Namespace, call: list[str], listens: bool) -> dict[str, Any]:
    """Return the answer while the port is forwarded, with a line if the program has stopped or resumed listening."""
    state = "open" if listens else "gone"
    words = "listens again" if listens else "does not listen any more"
    lines = [f"the run {words} on port {options.port}"] if state != options.state else []
    return {"lines": lines, "next": [*call, f"--state={state}"]}


def wait_for_listener(noted: dict[str, Any], options: argparse.Namespace, call: list[str], found: list[int]) -> dict[str, Any]:
    """Return the answer while the program does not listen: a failure when the time is over."""
    now = runs.clock()
    since, reported = (options.since, options.reported) if options.since else (now, -1.0)  # it was in the queue before
    others = f"It listens on {', '.join(map(str, found[:MAX_PORTS]))}" if found else "It listens on no port"
    if runs.property_of(noted["unit"], "ActiveState") == "activating":
        since, others = now, "Its packages are being installed"
    waited, port = now - since, options.port
    if waited > LISTEN_SECONDS:
        holder = f". The port belongs to {ports.port_holder(port)}" if ports.listeners([port]) else ""
        words = f"The run does not listen on port {port} after {waited:.0f} s{holder}. {others}."
        return {"failure": f"{words} Set a port of the run with -e port=NUMBER."}
    lines = []
    if reported < 0 or waited - reported >= program.REPORT_SECONDS:
        lines, reported = [f"waits until the run listens on port {port} ({waited:.0f} s). {others}."], max(0.0, waited)
    return {"lines": lines, "next": [*call, f"--since={since}", f"--reported={reported}"]}


def listening(unit: str) -> dict[int, str]:
    """Return the ports on which the processes of a unit listen, each with an address that reaches it on this machine."""
    found: dict[int, str] = {}
    for each in ports.listeners():
        if each["pid"] and unit in groups_of(each["pid"]):
            address = WILDCARDS.get(each["address"], each["address"])
            found[each["port"]] = min(found.get(each["port"], address), address)  # prefers IPv4
    return found


def groups_of(pid: int) -> set[str]:
    """Return the names in the paths of a process's control groups, of which each unit has one."""
    try:
        return set(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").replace("\n", "/").split("/"))
    except OSError:
        return set()  # it has exited


def url_in(run: Run, port: int) -> str:
    """Return the last URL of the port that the run has printed; empty if there is none."""
    with (run.folder / "stdout.log").open("rb") as log:
        data = log.read(HEAD_BYTES)  # usually printed at the start
        if rest := log.seek(0, os.SEEK_END) - len(data):
            log.seek(-min(rest, program.MAX_OUTPUT_BYTES), os.SEEK_END)
            data += b"\n" + log.read()
    text = data.decode(errors="replace")
    pattern = rf"https?://(?:\[[^\]\s]+\]|[^\s/:]+):{port}(?![0-9])[^\s\"'<>)\]]*"
    return next((found[-1] for line in reversed(plain_lines(text)) if (found := re.findall(pattern, line))), "")


def parts_of(url: str) -> dict[str, str]:
    """Return the parts of a URL that do not depend on the machine: ``scheme``, and ``path`` with its query."""
    scheme, _colon, rest = url.partition("://")
    return {"scheme": scheme or "http", "path": re.sub(r"^[^/?#]*", "", rest) or "/"}


def main() -> None:
    """Answer one call."""
    os.umask(0o022)  # it may start a queued run
    parser = argparse.ArgumentParser(description="Find a port that a run listens on.")
    parser.add_argument("run")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", choices=["new", "open", "gone"], default="new", help="what the last call has found")
    parser.add_argument("--since", type=float, default=0, help="boot clock at which the program was first seen running")
    parser.add_argument("--reported", type=float, default=-1, help="seconds of waiting at the last report")
    parser.set_defaults(call=forward)
    runs.answer(parser)


if __name__ == "__main__":
    main()
