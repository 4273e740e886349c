"""Call a program, and pass on what it prints, but no more than a limit: a disk is not to be filled by a loop that prints.

    output.py --most BYTES [--watch SECONDS] PROGRAM ARGUMENT ...

Of longer output the first BYTES are passed on as they come, then a sentence, and when the program ends the last 64 KiB: an
error is told there. It ends as the program ends, with its exit status or by its signal, and does not wait for what the program
leaves behind. SIGTERM is the program's own affair (systemd sends it to all processes of the unit); what was kept back is passed
on then, because SIGKILL may follow. Standard library only, and started without the environment's packages.

On a full disk the output waits for room, and the program with it, for it fills the pipe; the run's limit of time ends that. Once
the program has ended, or is to end, it waits a moment longer, then gives output up, and says so as soon as there is room. Where
there is none to the end, a program that ended well ends with exit status OUTPUT_LOST.

With ``--watch`` the cluster's tasks are watched (watch.py) from the fourth second on, so that short runs pay nothing for
it; its lines do not count for the limit. When a task was silent for SECONDS (0: however long) the program is ended.
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

# Isolated (-I): what PYTHONPATH names is the program's.
WATCHER = (sys.executable, "-I", "-m", "tf_cluster.run.watch")
AFTER = 4.0  # seconds after which the watch begins
LOST = 99  # its exit status when the program is to be ended
KILL = 10.0  # seconds that the program has then
LAST = 64 * 1024  # bytes of the end of output that was too long
PIECE = 1024 * 1024
SAFE = 5.0  # seconds between two moments at which what was written is on the disk, should the machine lose its power
FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = 0.2  # seconds until a full disk is tried again
GIVE_UP = 3.0  # seconds that it is tried once the program has ended, or is to: SIGKILL comes five after SIGTERM
OUTPUT_LOST = 74  # the exit status, EX_IOERR, where output is lost and even that could not be written


class Output:
    """What goes to standard output: all up to a limit, then the end alone."""

    def __init__(self, most: int) -> None:
        self.most, self.passed, self.left_out, self.kept = most, 0, 0, b""
        self.open_line = False  # whether the program has begun a line and not ended it
        self.waiting, self.lost, self.why = b"", 0, ""  # what waits for room; bytes that were given up and not told of, and why
        self.due: float | None = None  # when to wait no longer

    def take(self, data: bytes) -> None:
        """Pass on what fits, and keep the end of the rest."""
        now, rest = data[: self.most - self.passed], data[self.most - self.passed :]
        self.write(now)
        self.passed += len(now)
        self.open_line = not now.endswith(b"\n") if now else self.open_line
        if rest and not self.left_out and not self.kept:
            self.write(sentence(f"the output is longer than {self.most / 1e6:g} MB: its end alone will follow (run_output_mb)"))
            self.open_line = False
        self.kept += rest
        if len(self.kept) > 2 * LAST:
            self.cut()

    def say(self, lines: bytes) -> None:
        """Pass on lines that are not the program's."""
        if lines:
            self.write(b"\n" * self.open_line + lines)
            self.open_line = False

    def cut(self) -> None:
        """Forget all but the end of what is kept."""
        self.left_out += max(0, len(self.kept) - LAST)
        self.kept = self.kept[-LAST:]

    def show_end(self) -> None:
        """Pass on what is kept."""
        self.cut()
        if self.kept:
            self.write(sentence(f"{self.left_out} bytes of output are left out here (run_output_mb)") + self.kept)
            self.kept = b""

    def write(self, data: bytes) -> None:
        """Write it to standard output, after what waits there."""
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as there is room; say before what was lost there."""
        try:
            if self.lost:
                said = sentence(f"{self.lost} bytes of output are lost: {self.why}")
                if os.write(1, said) == len(said):
                    self.lost = 0
            while self.waiting:
                self.waiting = self.waiting[os.write(1, self.waiting) :]
        except OSError as error:
            self.why = "the disk was full" if error.errno in FULL else str(error.strerror)
            if error.errno not in FULL or (self.due is not None and time.monotonic() >= self.due):
                self.lost, self.waiting = self.lost + len(self.waiting), b""

    def hurry(self) -> None:
        """Wait for room a moment longer, and then no more."""
        self.due = self.due or time.monotonic() + GIVE_UP

    def finish(self) -> bool:
        """Pass on what is kept, and tell whether all was written, or what is lost was said."""
        self.show_end()
        while self.waiting or (self.lost and time.monotonic() < (self.due or 0)):
            time.sleep(AGAIN)
            self.flush()
        return not self.lost


class Watch:
    """The watch over the cluster's tasks, which begins when the program is not done soon."""

    def __init__(self, program: subprocess.Popen[bytes], lost: float | None) -> None:
        self.program, self.lost = program, lost
        self.due = None if lost is None else time.monotonic() + AFTER
        self.process: subprocess.Popen[bytes] | None = None

    def wait(self) -> list[float]:
        """Return for how many seconds there is nothing to be done here; nothing where no time is set."""
        return [] if self.due is None else [max(0.0, self.due - time.monotonic())]

    def begin(self) -> list[int]:
        """Begin if it is time to, and return what it is heard by."""
        if self.due is None or time.monotonic() < self.due:
            return []
        self.due = None
        config = os.environ.get("TF_CLUSTER_CONFIG", "config.json")
        words = [f"--config={config}", f"--part={Path(config).with_name('part.json')}", f"--lost={self.lost}"]
        self.process = subprocess.Popen(
            [*WATCHER, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return [self.process.stdout.fileno()] if self.process.stdout else []

    def stop(self) -> None:
        """End it with the program: systemd may take seconds to see that what the main process leaves is gone."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def end(self) -> bytes:
        """Return what is to be said when the watch has ended; where a task was lost, end the program."""
        status = self.process.wait() if self.process else 0
        if status == LOST:
            self.program.terminate()
            timer = threading.Timer(KILL, self.program.kill)
            timer.daemon = True
            timer.start()
            return b"[cluster] the program is ended (run_abort_after_silence)\n"
        if status in (0, -signal.SIGTERM):  # systemd ends it with the run
            return b""
        how = f"exit status {status}" if status > 0 else f"killed by {signal.Signals(-status).name}"
        return f"[cluster] nobody watches the tasks any more ({how}); run_abort_after_silence is off\n".encode()


def keep_safe() -> None:
    """Bring what was written to the disk, again and again; in a thread of its own, for a busy disk may take its time."""
    size = 0
    with contextlib.suppress(OSError):  # it is no file
        while True:
            time.sleep(SAFE)
            before, size = size, os.fstat(1).st_size
            if size != before:
                os.fdatasync(1)


def sentence(text: str) -> bytes:
    """Return a sentence of this program's as a line of its own."""
    return f"\n... {text} ...\n".encode()


def main() -> None:
    """Call the program and end as it does."""
    parser = argparse.ArgumentParser(description="Call a program and pass on what it prints, up to a limit.")
    parser.add_argument("--most", type=int, required=True, help="bytes that are passed on as they come")
    parser.add_argument("--watch", type=float, help="seconds of a task's silence after which the program is ended; 0: never")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    read_end, write_end = os.pipe()
    program = subprocess.Popen(options.command, stdout=write_end, stderr=write_end)
    os.close(write_end)
    threading.Thread(target=keep_safe, daemon=True).start()
    watch = Watch(program, options.watch)
    complete = pass_on(program, read_end, woken, Output(options.most), watch)
    watch.stop()
    if program.returncode < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left its own
        if -program.returncode not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-program.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -program.returncode)
    sys.exit(program.returncode or (0 if complete else OUTPUT_LOST))


def pass_on(program: subprocess.Popen[bytes], pipe: int, woken: int, output: Output, watch: Watch) -> bool:
    """Pass on what comes out of the pipe until the program has ended, and what is in the pipe then; tell whether all was."""
    fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_NONBLOCK)
    open_pipe = [pipe]
    heard: list[int] = []  # the watch
    while True:
        ended = program.poll() is not None  # before reading, so that the last words are not missed
        if ended:
            output.hurry()
        output.flush()
        held = bool(output.waiting)
        seconds = [0.0] * (ended and not held) + [AGAIN] * held + watch.wait()
        ready = select.select([woken, *heard, *([] if held else open_pipe)], [], [], min(seconds, default=None))[0]
        if woken in ready and signal.SIGTERM in os.read(woken, 1024):
            output.hurry()
            output.show_end()
        data = os.read(pipe, PIECE) if pipe in ready else b""
        output.take(data)
        if pipe in ready and not data:
            open_pipe = []  # the program has closed its output and may go on
        if heard and heard[0] in ready:
            lines = os.read(heard[0], PIECE)
            heard = heard if lines else []
            output.say(lines or watch.end())
        if ended and not held:  # a pipe holds less than one piece; what was left behind may go on printing
            break
        heard = watch.begin() or heard
    return output.finish()


if __name__ == "__main__":
    main()
