#!/usr/bin/env python3
"""Call a program, and pass on what it prints, but no more than a limit: a disk is not to be filled by a loop that prints.

    keep_output.py --most BYTES PROGRAM ARGUMENT ...

Of longer output the first BYTES are passed on as they come, then a sentence, and when the program ends the last 64 KiB: an
error is told there. It ends as the program ends, with its exit status or by its signal, and does not wait for what the program
leaves behind. SIGTERM is the program's own affair (systemd sends it to all processes of the unit); what was kept back is passed
on then, because SIGKILL may follow. Standard library only, and started without the environment's packages.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys

LAST = 64 * 1024  # bytes of the end of output that was too long
PIECE = 1024 * 1024


class Output:
    """What goes to standard output: all up to a limit, then the end alone."""

    def __init__(self, most: int) -> None:
        self.most, self.passed, self.left_out, self.kept = most, 0, 0, b""

    def take(self, data: bytes) -> None:
        """Pass on what fits, and keep the end of the rest."""
        now, rest = data[: self.most - self.passed], data[self.most - self.passed :]
        write(now)
        self.passed += len(now)
        if rest and not self.left_out and not self.kept:
            write(sentence(f"the output is longer than {self.most / 1e6:g} MB: its end alone will follow (run_output_mb)"))
        self.kept += rest
        if len(self.kept) > 2 * LAST:
            self.cut()

    def cut(self) -> None:
        """Forget all but the end of what is kept."""
        self.left_out += max(0, len(self.kept) - LAST)
        self.kept = self.kept[-LAST:]

    def show_end(self) -> None:
        """Pass on what is kept."""
        self.cut()
        if self.kept:
            write(sentence(f"{self.left_out} bytes of output are left out here (run_output_mb)") + self.kept)
            self.kept = b""


def sentence(text: str) -> bytes:
    """Return a sentence of this program's as a line of its own."""
    return f"\n... {text} ...\n".encode()


def write(data: bytes) -> None:
    """Write all of it to standard output; on a full disk nothing more can be done with it."""
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError:
        return


def main() -> None:
    """Call the program and end as it does."""
    parser = argparse.ArgumentParser(description="Call a program and pass on what it prints, up to a limit.")
    parser.add_argument("--most", type=int, required=True, help="bytes that are passed on as they come")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    read_end, write_end = os.pipe()
    program = subprocess.Popen(options.command, stdout=write_end, stderr=write_end)
    os.close(write_end)
    pass_on(program, read_end, woken, Output(options.most))
    if program.returncode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left its own
        if -program.returncode not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-program.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -program.returncode)
    sys.exit(program.returncode)


def pass_on(program: subprocess.Popen, pipe: int, woken: int, output: Output) -> None:
    """Pass on what comes out of the pipe until the program has ended, and what is in the pipe then."""
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_NONBLOCK)
    open_ends = [pipe, woken]
    while True:
        ended = program.poll() is not None  # before reading, so that the last words are not missed
        ready = select.select(open_ends, [], [], 0 if ended else None)[0]
        if woken in ready and signal.SIGTERM in os.read(woken, 1024):
            output.show_end()
        data = os.read(pipe, PIECE) if pipe in ready else b""
        output.take(data)
        if pipe in ready and not data:
            open_ends.remove(pipe)  # the program has closed its output and may go on
        if ended:  # a pipe holds less than one piece; what was left behind may go on printing
            break
    output.show_end()


if __name__ == "__main__":
    main()
