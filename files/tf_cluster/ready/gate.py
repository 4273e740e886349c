"""The gate: check all tasks of the cluster in parallel, except those of the jobs host and chief.

    gate.py --config /etc/tf-cluster/config.json --timeout 10

Prints a table, with ``--json`` an object ``{"ok": bool, "cluster": config.json's, "tasks": [...]}``; each task has
``task``, ``address``, ``state``, ``reason``, ``version``, ``devices``, ``gpus`` (their UUIDs), ``runs``, ``incarnation`` (a new
value each time its server starts) and ``seconds``. Exit status: 0 if all tasks answer, 1 if one does not, 2 if the
configuration is invalid. Takes 0.3 s for a healthy cluster and at most the timeout plus two seconds. The states:

    answers      TensorFlow with the right name, version and cluster spec
    refused      nothing listens on the port
    unreachable  no connection: the machine is down, or a firewall drops the packets
    hangs        the port accepts connections but does not answer
    not_tensorflow  the process on the port is not a TensorFlow server
    other task   a TensorFlow server of another task
    other spec   a task of another cluster, or started with another config.json
    other version  its TensorFlow version differs from this machine's
    no GPU       TensorFlow found fewer GPUs than the task should have, or a GPU computes incorrectly (--gpu-check-timeout)
    no device    the task lacks a device that a program needs (--needs)

``runs`` are the runs whose state the task holds (see server/control.py).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from .. import cli
from ..server import control
from ..spec import cluster_config
from ..table import table
from ..tensorflow import capi
from . import gpu_check

DEADLINE_EXCEEDED, UNIMPLEMENTED = 4, 12
CONNECTION_LOST = (10, 14)  # aborted, unavailable: the server ended meanwhile
RETRY_SECONDS = 0.2
CONNECT_TIMEOUT_SECONDS = 3.0


def main() -> None:
    """Check the tasks, print the report and exit."""
    parser = argparse.ArgumentParser(description="Check that every task of the cluster answers.")
    parser.add_argument("--config", default=os.environ.get("TF_CLUSTER_CONFIG", "config.json"))
    parser.add_argument("--timeout", type=float, default=10, help="seconds that a task has to answer")
    parser.add_argument(
        "--gpu-check-timeout", type=float, default=0, help="seconds that the check of a task's GPUs may take; 0: no check"
    )
    parser.add_argument("--needs", nargs="*", default=[], help="required devices, such as /job:worker/task:1/device:GPU:0")
    parser.add_argument("--only", nargs="*", default=[], help="the tasks to check, such as worker:0; all by default")
    parser.add_argument(
        "--first", type=float, default=0, help="seconds after which to report tasks that do not answer yet; 0: only at the end"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    cli.remove_proxy_variables()
    try:
        report = ask_all(cluster_config.load(options.config), options)
    except cluster_config.ConfigError as error:
        cli.fail(str(error), 2)
    except capi.TensorFlowError as error:
        cli.fail(str(error), 1)
    print(json.dumps(report) if options.json else report_table(report), flush=True)
    os._exit(0 if report["ok"] else 1)  # a thread may still wait on a dead connection


def ask_all(spec: dict[str, list[str]], options: argparse.Namespace) -> dict[str, Any]:
    """Check all tasks of ``spec`` in parallel, ``options.timeout`` seconds each; return the report."""
    library = capi.Library()
    tasks = [
        Task(job, index, entry, library, cluster_config.digest(spec), options)
        for job, index, entry in cluster_config.standing_tasks(spec)
        if not options.only or f"{job}:{index}" in options.only
    ]
    options.needs = [device.replace("/replica:0", "") for device in options.needs]
    known = [f"/job:{task.job}/task:{task.index}/" for task in tasks] + [f"/job:{job}/" for job in cluster_config.RUN_JOBS]
    for device in options.needs:
        if not device.startswith(tuple(known)):
            raise cluster_config.ConfigError(f"the program needs {device}, but the cluster has no such task")
    deadline = time.monotonic() + (min(options.first, options.timeout) or options.timeout)
    for task in tasks:
        task.thread = threading.Thread(target=task.ask, args=(deadline,), daemon=True)
        task.thread.start()
    for task in tasks:
        task.thread.join(max(0.0, deadline + options.gpu_check_timeout + 2 - time.monotonic()))
    reports = [dict(task.report) for task in tasks]
    lines = [
        f"{task['task']}: {task['reason']} ({', '.join(task['gpus'])})"
        for task in reports
        if task["gpus"] and options.gpu_check_timeout
    ]
    good = all(task["state"] == "answers" for task in reports)
    if not good and 0 < options.first < options.timeout:  # the caller continues with the remaining time
        late = ", ".join(f"{task['task']} ({task['state']})" for task in reports if task["state"] != "answers")
        left = [f"--timeout={options.timeout - options.first:g}", "--first=0"]
        return {"ok": False, "lines": [f"waiting for {late[:200]}"], "next": [*sys.argv[1:], *left]}
    return {"ok": good, "version": library.version, "cluster": spec, "tasks": reports, "lines": lines}


class Task:
    """The check of one task."""

    def __init__(self, job: str, index: int, entry: str, library: capi.Library, digest: str, options: argparse.Namespace) -> None:
        self.job, self.index, self.library, self.spec_digest, self.options = job, index, library, digest, options
        self.address = cluster_config.split_address(entry)
        self.report: dict[str, Any] = {
            "task": f"{job}:{index}", "address": entry, "state": "unreachable", "version": None, "devices": [], "gpus": [],
            "runs": {}, "incarnation": "", "reason": f"the name {self.address[0]} could not be resolved in time", "seconds": None,
        }  # fmt: skip
        self.thread: threading.Thread

    def answer(self, state: str, reason: str = "", **more: object) -> None:
        """Set the state and the reason in the report."""
        self.report.update(state=state, reason=reason, **more)

    def ask(self, deadline: float) -> None:
        """Fill in the report by the time ``deadline`` (of the monotonic clock)."""
        begun = time.monotonic()
        try:
            # A server that clears itself closes its connections and listens again after half a second.
            while self.connects(deadline) and self.ask_tensorflow(deadline) in CONNECTION_LOST:
                if time.monotonic() + RETRY_SECONDS > deadline:
                    break
                time.sleep(RETRY_SECONDS)
        except Exception as error:  # an error of one task must not stop the gate
            self.answer("hangs", f"{type(error).__name__}: {error}")
        self.report["seconds"] = round(time.monotonic() - begun, 3)

    def connects(self, deadline: float) -> bool:
        """Return whether the port accepts connections. Retries until the deadline, because the task may be restarting."""
        while True:
            try:
                # The kernel retries one attempt ever more rarely: a new attempt connects sooner.
                left = max(0.1, deadline - time.monotonic())
                socket.create_connection(self.address, timeout=min(CONNECT_TIMEOUT_SECONDS, left)).close()
                self.answer("hangs", "connected, but no answer; see 'systemctl status' of its unit")
                return True
            except ConnectionRefusedError:
                self.answer("refused", "nothing listens on the port; is its unit running?")
            except socket.gaierror as error:
                self.answer("unreachable", f"the name {self.address[0]} cannot be resolved: {error.strerror}")
                return False
            except TimeoutError:
                self.answer("unreachable", "no answer from the machine: it is down, or a firewall drops the packets")
            except OSError as error:
                self.answer("unreachable", f"{error.strerror or error}")
            if time.monotonic() + RETRY_SECONDS > deadline:
                return False
            time.sleep(RETRY_SECONDS)

    def ask_tensorflow(self, deadline: float) -> int:
        """Fetch the devices and the published identity from the server. Return TensorFlow's error code if the server hangs."""
        try:
            session = self.session(max(0.2, deadline - time.monotonic()))
            try:
                self.ask_session(session, session.devices(), deadline)
            finally:
                session.close()
        except capi.TensorFlowError as error:
            self.explain(error, deadline)
            return error.code if self.report["state"] == "hangs" else 0
        return 0

    def session(self, seconds: float) -> capi.Session:
        """Open a session on the task; each step may take ``seconds``."""
        return control.session(self.library, self.report["task"], self.report["address"], seconds)

    def ask_session(self, session: capi.Session, found: dict[str, str], deadline: float) -> None:
        """Fill in the report from a session on the task, with the devices ``found``."""
        devices = [name for name in found if "XLA" not in name]
        own = [name for name in devices if name.startswith(f"/job:{self.job}/replica:0/task:{self.index}/")]
        if not own:
            self.answer("other task", f"a TensorFlow server of another task, with the devices {', '.join(devices) or '(none)'}")
            return
        self.answer("answers", devices=devices, incarnation=found[own[0]])
        try:
            card = json.loads(session.fetch_bytes("identity"))
            runs = control.read_users(session)
        except capi.TensorFlowError as error:
            if error.code in (DEADLINE_EXCEEDED, *CONNECTION_LOST):  # all its threads may wait for a program
                raise
            self.answer("other spec", "a TensorFlow server that is not started by this project's unit")
            return
        self.report.update(version=card["version"], gpus=card["gpus"], runs=runs)
        if card["spec"] != self.spec_digest:
            self.answer("other spec", "it was started with another config.json; is it a task of another cluster?")
        elif card["version"] != self.library.version:
            self.answer("other version", f"it runs TensorFlow {card['version']}, this machine has {self.library.version}")
        else:
            self.check_devices(devices, max(card["wanted"], len(card["gpus"])))

    def check_devices(self, devices: list[str], wanted: int) -> None:
        """Compare the task's devices with those that it should have and those that a program needs."""
        found = [name for name in devices if "/device:GPU:" in name]
        short = {name.replace("/replica:0", "") for name in devices}
        own_name = f"/job:{self.job}/task:{self.index}/"
        missing = [name for name in self.options.needs if name.startswith(own_name) and name not in short]
        if len(found) < wanted:
            self.answer("no GPU", f"it should have {wanted} GPU(s), but TensorFlow found {len(found)}; see its journal")
        elif missing:
            self.answer("no device", f"the program needs {', '.join(missing)}; the task has {', '.join(sorted(short))}")
        elif self.options.gpu_check_timeout and found:
            self.answer("no GPU", f"its GPUs computed nothing within {self.options.gpu_check_timeout:.0f} s")
            deadline = time.monotonic() + self.options.gpu_check_timeout
            problem = gpu_check.problem(self.library, f"grpc://{self.report['address']}", found, deadline)
            if problem:
                self.answer("no GPU", problem)
            elif time.monotonic() < deadline:
                self.answer("answers", f"{len(found)} GPU(s) computed the same as the processor")

    def explain(self, error: capi.TensorFlowError, deadline: float) -> None:
        """Set the state from the first bytes that the port sends, after TensorFlow got no answer."""
        first = self.first_bytes(max(0.5, min(1.5, deadline + 1 - time.monotonic())))
        # An HTTP/2 server's first frame is SETTINGS (RFC 9113 3.4): length 3 bytes, type 4.
        if first[3:4] == b"\x04" and error.code == UNIMPLEMENTED:
            self.answer("not_tensorflow", "the gRPC server on the port is not TensorFlow")
        elif first[3:4] == b"\x04":
            state = "hangs" if error.code in (DEADLINE_EXCEEDED, *CONNECTION_LOST) else "other task"
            self.answer(state, str(error).splitlines()[0][:200])
        elif first:
            self.answer("not_tensorflow", f"not a TensorFlow server: it sent {first[:24]!r}")
        else:
            self.answer("hangs", "the port accepts connections but does not answer: stopped, overloaded or not TensorFlow")

    def first_bytes(self, seconds: float) -> bytes:
        """Return the peer's answer to the HTTP/2 preface, b"" if there is none within ``seconds``."""
        try:
            with socket.create_connection(self.address, timeout=seconds) as wire:
                wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                return wire.recv(64)
        except OSError:
            return b""


def report_table(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    rows = [("task", "address", "state", "seconds", "reason")]
    rows += [(t["task"], t["address"], t["state"], str(t["seconds"] or ""), t["reason"]) for t in report["tasks"]]
    return "\n".join(table(rows))
