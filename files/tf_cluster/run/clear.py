"""Clear the servers of a run, so that the next run finds nothing of it. Runs in the run's unit.

    tf_cluster.run.clear --ended       after the program's end: clears the servers that the run used, and reports it in part.json
    tf_cluster.run.clear               before its start: clears servers that still hold the state of an earlier run
    tf_cluster.run.clear --lost        the same, also if they do not name the run: its machine failed

A server is not cleared while a run of another machine uses it, nor if its state is kept (run_keep_state). Prints a sentence for
each task that could not be cleared; then the exit status is 1, and the program does not start. Reads the variables of the run's
unit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

from .. import cli
from ..server import control
from ..server.server import server_def
from ..spec import cluster_config
from ..tensorflow import capi
from .unit import CONFIG

SESSION_SECONDS = 3.0  # of one step of a session
END_SECONDS = 8.0  # for all servers after a run: systemd allows ten
MAX_START_SECONDS = 120.0  # for all servers before a program starts
START_SECONDS = 30.0  # before a program starts: servers that do not answer may be starting
CLEARING_SECONDS = 6.0  # after a run, until a server has ended; systemd allows ten seconds
GPU_CLEARING_SECONDS = 60.0  # before a program starts, until the new server listens: CUDA starts again
WAITING_SECONDS = 5.0  # before a program starts, until the output says what it waits for
POLL_SECONDS, RETRY_SECONDS = 0.02, 0.5
MAX_PROBLEMS = 20  # in the report


class Clearing(NamedTuple):
    """What a call has to do."""

    users: control.Users  # this run, as servers note it
    tasks: frozenset[str]  # whose programs this machine runs: of those, only one run at a time reserves a server
    keep: bool  # whether the next run finds the state
    ended: bool
    lost: bool
    seconds: float  # until the server must have ended, or the new one listen
    via: str = ""  # address of this task's server, which opens the sessions; empty: each server opens its own


def this_run() -> tuple[str, control.Users]:
    """Return the ID of this unit's run, and the entry with which its servers note it."""
    run, task = os.environ["TF_RUN_ID"], json.loads(os.environ["TF_CONFIG"])["task"]
    kept = os.environ.get("TF_CLUSTER_KEEP_STATE") == "1"
    return run, {run: {"task": f"{task['type']}:{task['index']}", "since": round(time.time(), 1), "kept": kept}}


def tasks_here(cluster: dict[str, list[str]], task: str) -> frozenset[str]:
    """Return the tasks whose programs run on the machine of ``task``."""
    job, _colon, index = task.partition(":")
    address = cluster_config.split_address(cluster[job][int(index)])[0]
    return frozenset(
        f"{job}:{place}"
        for job in cluster_config.RUN_JOBS
        for place, entry in enumerate(cluster.get(job, []))
        if cluster_config.split_address(entry)[0] == address
    )


def note_to_write(users: control.Users, clearing: Clearing) -> control.Users | None:
    """Return the runs that a server with these runs notes next: none if it must be cleared, None if nothing changes."""
    others = {run: user for run, user in users.items() if user["task"] not in ("", *clearing.tasks)}
    if clearing.ended:
        if clearing.keep:
            return None if clearing.users.keys() <= users.keys() else {**users, **clearing.users}
        return {} if not others else (others if others != users else None)
    own = [user for run, user in users.items() if run not in others]
    if others or any(user["kept"] for user in own):
        return None
    return {} if own or clearing.lost else None


def clear(library: capi.Library, task: str, entry: str, clearing: Clearing) -> str:
    """Clear one server if necessary, and wait for it; return a sentence if that failed."""
    deadline = time.monotonic() + (0 if clearing.ended else START_SECONDS)
    while (problem := try_to_clear(library, task, entry, clearing)) and time.monotonic() < deadline:
        time.sleep(RETRY_SECONDS)
    return problem


def try_to_clear(library: capi.Library, task: str, entry: str, clearing: Clearing) -> str:
    """Try once to clear a server; return a sentence if that failed."""
    try:
        opened = control.session(library, task, entry, SESSION_SECONDS, via=clearing.via)
        users = control.read_users(opened)
        wanted = note_to_write(users, clearing)
        if wanted == {}:
            if not clearing.ended:
                runs = ", ".join(users) or "earlier runs"
                print(f"[cluster] {task} is cleared of the state of {runs}", flush=True)
            # The server cannot answer: TensorFlow tries again for seconds, and closing the session would do so too.
            threading.Thread(target=order, args=(opened,), daemon=True).start()
            # After a run, nobody waits for the new server: it listens before the next program has imported TensorFlow.
            done = (is_closed if clearing.ended else listens_again)(entry, clearing.seconds)
            return "" if done else f"{task} on {entry} did not start again"
        opened.close()
        if wanted:
            control.note_users(library, task, entry, SESSION_SECONDS, wanted, clearing.via)
    except capi.TensorFlowError as error:
        return f"{task} on {entry} does not answer: {str(error).splitlines()[0][:200]}"
    return ""


def order(opened: capi.Session) -> None:
    """Let a server clear itself."""
    with contextlib.suppress(capi.TensorFlowError):
        opened.run("clear")


def listens_again(entry: str, seconds: float) -> bool:
    """Wait until a server has closed its port and opened it again; return whether it has."""
    deadline = time.monotonic() + seconds
    return is_closed(entry, seconds) and reaches(entry, deadline, opened=True)


def is_closed(entry: str, seconds: float) -> bool:
    """Wait until a server has closed its port, with all that it held; return whether it has."""
    return reaches(entry, time.monotonic() + seconds, opened=False)


def reaches(entry: str, deadline: float, opened: bool) -> bool:
    """Wait until a port accepts connections, or no connection; return whether it does."""
    while time.monotonic() < deadline:
        try:
            socket.create_connection(cluster_config.split_address(entry), timeout=1.0).close()
            accepted = True
        except OSError:
            accepted = False
        if accepted is opened:
            return True
        time.sleep(POLL_SECONDS)
    return False


def own_server(library: capi.Library, spec: dict[str, list[str]], task: str) -> str:
    """Start a server of this unit's task, whose program does not run, and return its address; empty if that fails."""
    job, _colon, index = task.partition(":")
    options = {"gpu_memory_fraction": 0.1, "gpu_allow_growth": True, "intra_op_threads": 1, "inter_op_threads": 0}
    try:
        library.start_server(server_def(spec, argparse.Namespace(job=job, task=int(index), thread_spinning=False, **options)))
    except capi.TensorFlowError:
        return ""
    return spec[job][int(index)]


def join(threads: list[threading.Thread], deadline: float) -> None:
    """Wait for threads until a time of the monotonic clock."""
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def main() -> None:
    """Clear the servers of this unit's run."""
    parser = argparse.ArgumentParser(description="Clear the servers of a run.")
    parser.add_argument("--ended", action="store_true", help="whether the run has ended")
    parser.add_argument("--lost", action="store_true", help="whether servers may hold state of a run that they do not name")
    options = parser.parse_args()
    _run, users = this_run()
    [user] = users.values()
    if user["task"].partition(":")[0] not in cluster_config.RUN_JOBS:
        return  # a training's tasks have their own servers
    # TensorFlow reports on standard error that the server ended. After the program's end, the output is complete.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if options.ended:
        os.dup2(2, 1)
    try:
        problems = clear_all(user["task"], users, options)
    except Exception as error:  # whatever it is, the output must show it
        problems = [f"the servers were not cleared: {error!r}"]
    for problem in problems:
        print(f"[cluster] {problem}", flush=True)
    if options.ended:
        report = {"cleared": not problems, "problems": problems[:MAX_PROBLEMS]}
        Path(os.environ["TF_CLUSTER_CONFIG"]).with_name("part.json").write_text(json.dumps(report), encoding="utf-8")
    os._exit(1 if problems else 0)  # a thread may still wait on a dead connection


def clear_all(task: str, users: control.Users, options: argparse.Namespace) -> list[str]:
    """Clear the servers of the run whose program is ``task``; return a sentence for each that could not be cleared."""
    cli.remove_proxy_variables()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # this process computes nothing
    library, cluster = capi.Library(), cluster_config.load(CONFIG)
    own = cluster_config.load(os.environ["TF_CLUSTER_CONFIG"])
    job, _colon, index = task.partition(":")
    cluster[job][int(index)] = own[job][int(index)]  # runs at the same time have servers on different ports
    seconds = CLEARING_SECONDS if options.ended else GPU_CLEARING_SECONDS
    via = own_server(library, cluster, task)
    [user] = users.values()
    clearing = Clearing(users, tasks_here(cluster, task), user["kept"], options.ended, options.lost, seconds, via)
    used = {entry for entries in own.values() for entry in entries}
    servers = [(f"{job}:{index}", entry) for job, index, entry in cluster_config.standing_tasks(cluster) if entry in used]
    problems = {task: f"{task} on {entry} was not cleared in time" for task, entry in servers}

    def clear_one(task: str, entry: str) -> None:
        problems[task] = clear(library, task, entry, clearing)

    # Not concurrent.futures, which takes longer to import than all other modules. Daemons: a frozen server may hold a thread up.
    threads = [threading.Thread(target=clear_one, args=server, daemon=True) for server in servers]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    if not options.ended:
        join(threads, begun + WAITING_SECONDS)
        waits = [f"{task} on {entry}" for (task, entry), thread in zip(servers, threads, strict=True) if thread.is_alive()]
        if waits:
            print(
                f"[cluster] waits for {', '.join(waits)} to be cleared of earlier runs, up to {MAX_START_SECONDS:.0f} s",
                flush=True,
            )
    join(threads, begun + (END_SECONDS if options.ended else MAX_START_SECONDS))
    return [problem for problem in problems.values() if problem]


if __name__ == "__main__":
    main()
