"""Watch the cluster's tasks while a run goes on, and say when one falls silent, answers again, or came back as a new server.

    watch.py --config config.json --lost 0

TensorFlow itself says nothing of a machine whose packets are dropped: a session waits. output.py starts this in the run's
own unit, so it goes on whoever watches the run; each line that it prints becomes a line of the run's output. No task is asked to
compute anything, so one that is busy is not called silent. What was seen is left in part.json, for the run's last note. With
``--lost`` it ends, with exit status LOST, when a task was silent for so many seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import threading
import time
from pathlib import Path

from .. import cli
from ..ready import gate
from ..spec import cluster_config
from ..tensorflow import capi

EVERY = 5.0  # seconds between two questions to a task
AGAIN = 1.0  # seconds until it is asked again when it did not answer
PATIENCE = 5.0  # seconds that it has to answer
SILENT = 10.0  # seconds without an answer after which it is called silent
MANY = 30  # tasks that are asked in a second; of more than EVERY * MANY each is asked less often
MOST = 200  # lines: a task that comes and goes for days is not to fill the output
LOST = 99
RESTARTED = "is a new server: what it held is lost, and sessions with it fail for good; a new session works"


class Watched:
    """One task: when it answered last, and as which server."""

    def __init__(self, job: str, index: int, entry: str, library: capi.Library) -> None:
        self.task, self.entry, self.library = f"{job}:{index}", entry, library
        self.probe = gate.Task(job, index, entry, library, "", argparse.Namespace())
        self.heard, self.failed, self.server = time.monotonic(), 0, ""
        self.silent, self.longest = False, 0.0

    def ask(self) -> tuple[str, str]:
        """Return which server answers, or nothing and the reason."""
        if not self.probe.connects(time.monotonic() + PATIENCE):
            reason: str = self.probe.report["reason"]
            return "", reason
        try:
            session = self.probe.session(PATIENCE)
            try:
                return next(iter(session.devices().values())), ""
            finally:
                session.close()
        except (capi.TensorFlowError, StopIteration) as error:
            return "", f"it takes connections, but no answer comes back ({str(error)[:100]})"

    def note(self, server: str, reason: str) -> str:
        """Take note of an answer; return what a person has to be told."""
        now = time.monotonic()
        silence = now - self.heard
        if not server:
            self.failed += 1
            # Never after one question: it may be we who were asleep.
            found = not self.silent and self.failed > 1 and silence >= SILENT
            self.silent = self.silent or found
            return f"does not answer for {silence:.0f} s: {reason}" if found else ""
        words = [f"answers again after {silence:.0f} s"] if self.silent else []
        words += [RESTARTED] if self.server not in ("", server) else []
        self.longest = self.silence()
        self.heard, self.failed, self.silent, self.server = now, 0, False, server
        return " and ".join(words)

    def silence(self) -> float:
        """Return for how many seconds it was silent, the longest time."""
        return max(self.longest, time.monotonic() - self.heard if self.silent else 0.0)

    def watch(self, news: queue.Queue[str], every: float) -> None:
        """Ask for ever, and hand on what a person has to be told."""
        while True:
            words = self.note(*self.ask())
            news.put(f"[cluster] {self.task} on {self.entry} {words}" if words else "")
            time.sleep(AGAIN if self.failed else every)


def main() -> None:
    """Watch until systemd ends it with the run, or a task is lost."""
    parser = argparse.ArgumentParser(description="Watch the cluster's tasks while a run goes on.")
    parser.add_argument("--config", required=True, help="the cluster as the run sees it")
    parser.add_argument("--lost", type=float, default=0, help="seconds of silence after which to give up; 0: never")
    parser.add_argument("--part", required=True, help="file that what was seen is left in")
    options = parser.parse_args()
    cli.remove_proxy_variables()
    library, spec = capi.Library(), cluster_config.load(options.config)
    tasks = [
        Watched(job, index, entry, library)
        for job, entries in spec.items()
        if job not in cluster_config.RUN_JOBS
        for index, entry in enumerate(entries)
    ]
    news: queue.Queue[str] = queue.Queue()
    for task in tasks:
        threading.Thread(target=task.watch, args=(news, max(EVERY, len(tasks) / MANY)), daemon=True).start()
    lines = 0
    while True:
        line = news.get()
        lost = [task for task in tasks if options.lost and task.silent and task.silence() >= options.lost]
        if line and lines < MOST:
            lines += 1
            print(line if lines < MOST else "[cluster] more of this is not written", flush=True)
        if line or lost:
            leave(Path(options.part), tasks, lost)
        if lost:
            os._exit(LOST)


def leave(path: Path, tasks: list[Watched], lost: list[Watched]) -> None:
    """Leave what was seen for program.py, which notes it when the run has ended."""
    silent = {task.entry: round(task.silence(), 1) for task in tasks if task.silence()}
    path.write_text(json.dumps({"silent": silent, "lost": bool(lost)}), encoding="utf-8")


if __name__ == "__main__":
    main()
