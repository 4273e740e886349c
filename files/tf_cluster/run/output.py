"""Run a program and pass on its output up to a limit, so that a program cannot fill the disk by printing.

    output.py --most BYTES [--watch SECONDS] PROGRAM ARGUMENT ...

Of longer output, the first BYTES are passed on at once, then a sentence, and the last 64 KiB when the program exits. It exits
with the program's exit status or signal and does not wait for the program's child processes. On SIGTERM, which systemd sends to
all processes of the unit, it passes on the retained output, because SIGKILL may follow. Standard library only; it starts without
the environment's packages.

On a full disk, the output waits for space, and the program blocks on the full pipe until the run's time limit. After the program
exits or receives SIGTERM, it waits a moment longer, then drops output and reports that as soon as there is space. If there is
none until the end, the exit status of a successful program is OUTPUT_LOST.

With ``--watch``, watch.py checks the cluster's tasks from the fourth second on, so that short runs have no overhead. Its lines do
not count towards the limit. If a task does not answer for SECONDS (0: no limit), the program is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

# Isolated (-I), because PYTHONPATH is meant for the program.
WATCHER = (sys.executable, "-I", "-m", "tf_cluster.run.watch")
WATCH_DELAY_SECONDS = 4.0  # after the start of the program
TASK_LOST_STATUS = 99  # exit status of watch.py
KILL_DELAY_SECONDS = 10.0  # between SIGTERM and SIGKILL
TAIL_BYTES = 64 * 1024  # bytes from the end of too long output
READ_BYTES = 1024 * 1024
SYNC_SECONDS = 5.0  # between two writes to disk: a power failure loses at most this much
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
RETRY_SECONDS = 0.2  # on a full disk
GIVE_UP_SECONDS = 3.0  # after the program has exited or received SIGTERM; SIGKILL follows after five
OUTPUT_LOST = 74  # exit status (EX_IOERR): output is lost, and that could not be reported


class Output:
    """Standard output: everything up to a limit, then only the end."""

    def __init__(self, most: int) -> None:
        self.most, self.passed, self.left_out, self.kept = most, 0, 0, b""
        self.open_line = False  # whether the program's last line is incomplete
        self.waiting, self.lost, self.why = b"", 0, ""  # unwritten bytes; count of unreported lost bytes, and why
        self.due: float | None = None  # when to wait no longer

    def take(self, data: bytes) -> None:
        """Pass on output up to the limit and keep the end of the rest."""
        now, rest = data[: self.most - self.passed], data[self.most - self.passed :]
        self.write(now)
        self.passed += len(now)
        self.open_line = not now.endswith(b"\n") if now else self.open_line
        if rest and not self.left_out and not self.kept:
            self.write(sentence(f"the output is longer than {self.most / 1e6:g} MB: only its end follows (run_output_mb)"))
            self.open_line = False
        self.kept += rest
        if len(self.kept) > 2 * TAIL_BYTES:
            self.cut()

    def say(self, lines: bytes) -> None:
        """Pass on lines that do not come from the program."""
        if lines:
            self.write(b"\n" * self.open_line + lines)
            self.open_line = False

    def cut(self) -> None:
        """Drop all but the end of the kept output."""
        self.left_out += max(0, len(self.kept) - TAIL_BYTES)
        self.kept = self.kept[-TAIL_BYTES:]

    def show_end(self) -> None:
        """Pass on the kept output."""
        self.cut()
        if self.kept:
            self.write(sentence(f"{self.left_out} bytes of output are left out here (run_output_mb)") + self.kept)
            self.kept = b""

    def write(self, data: bytes) -> None:
        """Write it to standard output, after the unwritten bytes."""
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Write the unwritten bytes if there is space; report lost bytes first."""
        try:
            if self.lost:
                said = sentence(f"{self.lost} bytes of output are lost: {self.why}")
                if os.write(1, said) == len(said):
                    self.lost = 0
            while self.waiting:
                self.waiting = self.waiting[os.write(1, self.waiting) :]
        except OSError as error:
            self.why = "the disk was full" if error.errno in DISK_FULL_ERRORS else str(error.strerror)
            if error.errno not in DISK_FULL_ERRORS or (self.due is not None and time.monotonic() >= self.due):
                self.lost, self.waiting = self.lost + len(self.waiting), b""

    def hurry(self) -> None:
        """Set the deadline after which output is dropped."""
        self.due = self.due or time.monotonic() + GIVE_UP_SECONDS

    def finish(self) -> bool:
        """Pass on the kept output; return whether all of it was written or its loss was reported."""
        self.show_end()
        while self.waiting or (self.lost and time.monotonic() < (self.due or 0)):
            time.sleep(RETRY_SECONDS)
            self.flush()
        return not self.lost


class Watch:
    """The process of watch.py, started if the program runs longer than WATCH_DELAY_SECONDS."""

    def __init__(self, program: subprocess.Popen[bytes], lost: float | None) -> None:
        self.program, self.lost = program, lost
        self.due = None if lost is None else time.monotonic() + WATCH_DELAY_SECONDS
        self.process: subprocess.Popen[bytes] | None = None

    def wait(self) -> list[float]:
        """Return the seconds until the start, as a list; empty if no start is planned."""
        return [] if self.due is None else [max(0.0, self.due - time.monotonic())]

    def begin(self) -> list[int]:
        """Start it when due; return the descriptors to read from."""
        if self.due is None or time.monotonic() < self.due:
            return []
        self.due = None
        config = os.environ.get("TF_CLUSTER_CONFIG", "config.json")
        words = [f"--config={config}", f"--part={Path(config).with_name('part.json')}", f"--abort-after-silence={self.lost}"]
        self.process = subprocess.Popen(
            [*WATCHER, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return [self.process.stdout.fileno()] if self.process.stdout else []

    def stop(self) -> None:
        """Stop it with the program: systemd may need seconds to notice leftover processes."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def end(self) -> bytes:
        """Return the message after watch.py has exited; if a task is lost, stop the program."""
        status = self.process.wait() if self.process else 0
        if status == TASK_LOST_STATUS:
            self.program.terminate()
            timer = threading.Timer(KILL_DELAY_SECONDS, self.program.kill)
            timer.daemon = True
            timer.start()
            return b"[cluster] stopping the program (run_abort_after_silence)\n"
        if status in (0, -signal.SIGTERM):  # systemd stops it with the run
            return b""
        how = f"exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
        return f"[cluster] the tasks are no longer checked ({how}); run_abort_after_silence is off\n".encode()


def sync_regularly() -> None:
    """Flush the output to disk regularly; runs in a thread, because a busy disk may block."""
    size = 0
    with contextlib.suppress(OSError):  # standard output may not be a file
        while True:
            time.sleep(SYNC_SECONDS)
            before, size = size, os.fstat(1).st_size
            if size != before:
                os.fdatasync(1)


def sentence(text: str) -> bytes:
    """Return a sentence of this program as a separate line."""
    return f"\n... {text} ...\n".encode()


def main() -> None:
    """Run the program and exit with its status or signal."""
    parser = argparse.ArgumentParser(description="Run a program and pass on its output up to a limit.")
    parser.add_argument("--most", type=int, required=True, help="bytes that are passed on at once")
    parser.add_argument(
        "--watch", type=float, help="seconds without an answer of a task after which the program is stopped; 0: never"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    read_end, write_end = os.pipe()
    program = subprocess.Popen(options.command, stdout=write_end, stderr=write_end)
    os.close(write_end)
    threading.Thread(target=sync_regularly, daemon=True).start()
    watch = Watch(program, options.watch)
    complete = pass_on(program, read_end, woken, Output(options.most), watch)
    watch.stop()
    if program.returncode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has already written its core dump
        if -program.returncode not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-program.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -program.returncode)
    sys.exit(program.returncode or (0 if complete else OUTPUT_LOST))


def pass_on(program: subprocess.Popen[bytes], pipe: int, woken: int, output: Output, watch: Watch) -> bool:
    """Pass on the pipe's content until the program has exited and the pipe is empty; return whether all was written."""
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_NONBLOCK)
    open_pipe = [pipe]
    heard: list[int] = []  # the watch
    while True:
        ended = program.poll() is not None  # before reading, so that no output is missed
        if ended:
            output.hurry()
        output.flush()
        held = bool(output.waiting)
        seconds = [0.0] * (ended and not held) + [RETRY_SECONDS] * held + watch.wait()
        ready = select.select([woken, *heard, *([] if held else open_pipe)], [], [], min(seconds, default=None))[0]
        if woken in ready and signal.SIGTERM in os.read(woken, 1024):
            output.hurry()
            output.show_end()
        data = os.read(pipe, READ_BYTES) if pipe in ready else b""
        output.take(data)
        if pipe in ready and not data:
            open_pipe = []  # the program may run on after closing its output
        if heard and heard[0] in ready:
            lines = os.read(heard[0], READ_BYTES)
            heard = heard if lines else []
            output.say(lines or watch.end())
        if ended and not held:  # one read empties the pipe; leftover processes may print more
            break
        heard = watch.begin() or heard
    return output.finish()


if __name__ == "__main__":
    main()
