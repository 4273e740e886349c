"""Lines that report progress while a task runs."""

from __future__ import annotations

import re
import time

from ansible import constants
from ansible.utils.display import Display

SILENT_SECONDS = 5  # without output, until the first report
SILENCE_SECONDS, TRANSFER_SECONDS = 10, 3  # between two lines
STEP = re.compile(r"step [0-9]+ of [0-9]+")  # as tf_cluster prints it in programs
JSON_CALLBACKS = ("json", "jsonl")  # of ansible.posix


def show_line(line: str) -> None:
    """Print a line. Use standard error if a callback plugin prints JSON to standard output."""
    callback = str(constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK")).rpartition(".")[2]
    Display().display(line, stderr=callback in JSON_CALLBACKS)


class Silence:
    """Reports every ten seconds that a silent program is still running, and its last step."""

    def __init__(self) -> None:
        self.step, self.printed, self.due = "", time.monotonic(), 0.0

    def show(self, lines: list[str], seconds: float | None) -> None:
        """Report the silence if no ``lines`` were printed for long. ``seconds`` is how long the program has run."""
        now = time.monotonic()
        if lines:
            self.printed = now
            steps = [found[0] for line in lines if (found := STEP.match(line))]
            self.step = f"{steps[-1]}, " if steps else self.step
        elif seconds is not None and now - self.printed >= SILENT_SECONDS and now >= self.due:
            self.due = now + SILENCE_SECONDS
            show_line(f"  ... {seconds:.0f} s, {self.step}nothing printed for {now - self.printed:.0f} s")


class Progress:
    """Reports every few seconds how much of a large file was transferred."""

    def __init__(self, verb: str, size: int) -> None:
        self.verb, self.size, self.due = verb, size, time.monotonic() + TRANSFER_SECONDS
        self.before, self.done = 0, 0  # bytes of earlier parts, and of this one

    def show(self, done: int) -> None:
        """Report the transferred bytes if a line is due."""
        self.done = done
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + TRANSFER_SECONDS
            show_line(f"  {self.verb} {(self.before + done) // 1_000_000} of {self.size // 1_000_000} MB")

    def start_part(self) -> None:
        """Count the bytes of the next part from zero."""
        self.before, self.done = self.before + self.done, 0
