"""Check the cluster's tasks during a run; report those that stop answering, answer again, or were restarted.

    watch.py --config config.json --abort-after-silence 0

TensorFlow does not report a machine whose packets are dropped: a session waits. output.py starts this in the run's unit, and its
output becomes part of the run's output. Tasks compute nothing for the check, so a busy task still answers. The results are
written to part.json, for ending.py. With ``--abort-after-silence`` it exits with TASK_LOST_STATUS if a task does not answer for
so many seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import threading
import time
from pathlib import Path

from .. import cli
from ..ready import gate
from ..server import control, ports
from ..spec import cluster_config
from ..tensorflow import capi
from .clear import this_run
from .unit import CONFIG

IDLE_SECONDS = 2.0  # without work of the program, after which it is considered waiting
IDLE_CPU_SECONDS = 0.2  # of the processor within that time
WAIT_CHECKS = 5  # of a program that has a session, whether it waits
INTERVAL_SECONDS = 5.0  # between two checks of a task
RETRY_SECONDS = 1.0  # after a failed check
TIMEOUT_SECONDS = 5.0
SILENT_SECONDS = 10.0  # without an answer, after which the task is reported
TASKS_PER_SECOND = 30  # checks per second: in a large cluster, each task is checked less often
MAX_LINES = 200  # so that an unstable task does not fill the output
TASK_LOST_STATUS = 99
RESTARTED = "was restarted: its state is lost, and open sessions fail permanently; open a new session"


class Watched:
    """One task: time and server incarnation of its last answer."""

    def __init__(self, job: str, index: int, entry: str, library: capi.Library) -> None:
        self.task, self.entry, self.library = f"{job}:{index}", entry, library
        self.probe = gate.Task(job, index, entry, library, "", argparse.Namespace())
        self.heard, self.failed, self.server = time.monotonic(), 0, ""
        self.silent, self.longest = False, 0.0
        self.noted = ""  # the server that notes this run

    def ask(self) -> tuple[str, str]:
        """Return the server's incarnation, or an empty string and the reason."""
        if not self.probe.connects(time.monotonic() + TIMEOUT_SECONDS):
            reason: str = self.probe.report["reason"]
            return "", reason
        try:
            session = self.probe.session(TIMEOUT_SECONDS)
            try:
                server = control.incarnation(session)
                if server != self.noted:
                    with contextlib.suppress(capi.TensorFlowError):  # the next answer is another chance
                        self.note_run()
                        self.noted = server
                return server, ""
            finally:
                session.close()
        except (capi.TensorFlowError, StopIteration) as error:
            return "", f"the port accepts connections but does not answer ({str(error)[:100]})"

    def note_run(self) -> None:
        """Let the server note that it holds state of this run."""
        run, users = this_run()
        # A run without some tasks has other names for the rest.
        [task] = [
            f"{job}:{index}"
            for job, index, entry in cluster_config.standing_tasks(cluster_config.load(CONFIG))
            if entry == self.entry
        ] or [self.task]
        with contextlib.closing(control.session(self.library, task, self.entry, TIMEOUT_SECONDS)) as opened:
            noted = control.read_users(opened)
        if run not in noted:
            control.note_users(self.library, task, self.entry, TIMEOUT_SECONDS, {**noted, **users})

    def note(self, server: str, reason: str) -> str:
        """Record an answer or a failure; return a message, empty if there is nothing to report."""
        now = time.monotonic()
        silence = now - self.heard
        if not server:
            self.failed += 1
            # Never after one check: this process itself may have been suspended.
            found = not self.silent and self.failed > 1 and silence >= SILENT_SECONDS
            self.silent = self.silent or found
            return f"has not answered for {silence:.0f} s: {reason}" if found else ""
        words = [f"answers again after {silence:.0f} s"] if self.silent else []
        words += [RESTARTED] if self.server not in ("", server) else []
        self.longest = self.silence()
        self.heard, self.failed, self.silent, self.server = now, 0, False, server
        return " and ".join(words)

    def silence(self) -> float:
        """Return the longest time without an answer, in seconds."""
        return max(self.longest, time.monotonic() - self.heard if self.silent else 0.0)

    def watch(self, news: queue.Queue[str], every: float) -> None:
        """Check the task forever and put messages into ``news``."""
        while True:
            words = self.note(*self.ask())
            news.put(f"[cluster] {self.task} on {self.entry} {words}" if words else "")
            time.sleep(RETRY_SECONDS if self.failed else every)


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time of processes."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            columns = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            found += int(columns[11]) + int(columns[12])
    return found / os.sysconf("SC_CLK_TCK")


def siblings() -> list[int]:
    """Return the processes with the same parent as this one: the program of the run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            found += [int(path.parent.name)] if int(parent) == os.getppid() and path.parent.name != str(os.getpid()) else []
    return found


def has_session(pids: list[int], remote: set[int]) -> bool:
    """Return whether one of the processes has a connection to one of the ``remote`` ports."""
    sockets = set()
    for path in (path for pid in pids for path in Path(f"/proc/{pid}/fd").glob("*")):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(path))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                column = row.split()
                if column[3] == "01" and int(column[2].rpartition(":")[2], 16) in remote and f"socket:[{column[9]}]" in sockets:
                    return True
    return False


def watch_own_task(news: queue.Queue[str], spec: dict[str, list[str]], missing: list[str]) -> None:
    """Report once that the program has a session, waits, and runs no server for its own task; add it to ``missing``.

    A session without device filters waits until every task of its cluster answers, without any message.
    """
    [user] = this_run()[1].values()
    job, _colon, index = user["task"].partition(":")
    if int(index) >= len(spec.get(job, [])):
        return
    own = cluster_config.split_address(spec[job][int(index)])[1]
    others = {cluster_config.split_address(entry)[1] for entries in spec.values() for entry in entries} - {own}
    checks = 0
    while checks < WAIT_CHECKS and ports.port_is_free(own):
        program = siblings()
        before = cpu_seconds(program)
        time.sleep(IDLE_SECONDS)
        idle = cpu_seconds(program) - before < IDLE_CPU_SECONDS
        if not has_session(program, others):
            continue  # it may load its data first
        checks += 1
        if idle and ports.port_is_free(own):
            missing.append(
                f"{user['task']} has no server: a session without device_filters waits for it. Start it in the program "
                f'(tf.distribute.Server(spec, "{job}", {index})), or set device_filters'
            )
            news.put(f"[cluster] {missing[0]}")
            return


def main() -> None:
    """Check the tasks until systemd stops this with the run, or a task is lost."""
    parser = argparse.ArgumentParser(description="Check the cluster's tasks during a run.")
    parser.add_argument("--config", required=True, help="cluster spec of the run")
    parser.add_argument("--abort-after-silence", type=float, default=0, help="seconds without an answer; 0: never")
    parser.add_argument("--part", required=True, help="file for the results")
    options = parser.parse_args()
    cli.remove_proxy_variables()
    library, spec = capi.Library(), cluster_config.load(options.config)
    tasks = [Watched(job, index, entry, library) for job, index, entry in cluster_config.standing_tasks(spec)]
    news: queue.Queue[str] = queue.Queue()
    missing: list[str] = []
    threading.Thread(target=watch_own_task, args=(news, spec, missing), daemon=True).start()
    for task in tasks:
        threading.Thread(
            target=task.watch, args=(news, max(INTERVAL_SECONDS, len(tasks) / TASKS_PER_SECOND)), daemon=True
        ).start()
    lines, limit = 0, options.abort_after_silence
    while True:
        line = news.get()
        lost = [task for task in tasks if limit and task.silent and task.silence() >= limit]
        if line and lines < MAX_LINES:
            lines += 1
            print(line if lines < MAX_LINES else "[cluster] further messages are not written", flush=True)
        if line or lost:
            write_part(Path(options.part), tasks, lost, missing)
        if lost:
            os._exit(TASK_LOST_STATUS)


def write_part(path: Path, tasks: list[Watched], lost: list[Watched], missing: list[str]) -> None:
    """Write the results for ending.py, which adds them to the run's notes."""
    silent = {task.entry: round(task.silence(), 1) for task in tasks if task.silence()}
    path.write_text(json.dumps({"silent": silent, "lost": bool(lost), "missing": " ".join(missing)}), encoding="utf-8")


if __name__ == "__main__":
    main()
