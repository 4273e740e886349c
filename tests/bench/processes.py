"""Processes of the benchmark: each is ended, by its id, whatever becomes of the program that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)


def adopt():
    """Let what our children leave behind become our children, so that it is found."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def descendants(pid):
    """Return the ids of all processes below ``pid``."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            # After the name in brackets: state, parent (proc(5)).
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def end_all(limit=10.0):
    """End all processes below this one, and wait until they have exited; RuntimeError after ``limit`` seconds."""
    end = time.monotonic() + limit
    while left := descendants(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > end:
            raise RuntimeError(f"processes {sorted(left)} do not end")
        time.sleep(0.02)


def run(command, environment, log, limit):
    """Run a program with its output in the file ``log``; return its exit status, None where it took more than ``limit`` seconds.

    It has no terminal and a separate session, so that an interrupt reaches only this process.
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end_all()


def free_ports(count):
    """Return free ports of the loopback."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _i in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
