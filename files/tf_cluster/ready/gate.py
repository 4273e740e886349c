"""The gate: ask every standing task of the cluster, all at once, whether it answers as TensorFlow.

    gate.py --config /etc/tf-cluster/config.json --timeout 10

Prints a table, with ``--json`` an object ``{"ok": bool, "cluster": config.json's, "tasks": [...]}``; each task has
``task``, ``address``, ``state``, ``reason``, ``version``, ``devices``, ``gpus`` (their UUIDs), ``incarnation`` (another
one each time that its server starts) and ``seconds``. Exit status: 0 if all answer, 1 if one does not, 2 if the
configuration is wrong. Takes 0.3 s for a healthy cluster and never longer than the timeout and two seconds. The states:

    answers      TensorFlow, of the right name, version and cluster spec
    refused      nothing listens on the port
    unreachable  no connection: the machine is down, or a firewall drops the packets
    hangs        the connection stands, but nothing comes back
    not_tensorflow  something else than a TensorFlow server listens there
    other task   a TensorFlow server of another name
    other spec   a task of another cluster, or one that was started with another config.json
    other version  its TensorFlow is not the one of this machine
    no GPU       TensorFlow found fewer GPUs than the task is to have, or one that computes wrongly (--prove)
    no device    it has no device of a name that a program needs (--needs)
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
from ..server import identity
from ..spec import cluster_config
from ..table import table
from ..tensorflow import capi
from . import gpu_check

DEADLINE_EXCEEDED, UNIMPLEMENTED = 4, 12
ATTEMPT = 3.0  # seconds for one connection


def main() -> None:
    """Ask, print, exit."""
    parser = argparse.ArgumentParser(description="Ask every task of the cluster whether it answers.")
    parser.add_argument("--config", default=os.environ.get("TF_CLUSTER_CONFIG", "config.json"))
    parser.add_argument("--timeout", type=float, default=10, help="seconds a task has to answer")
    parser.add_argument("--prove", type=float, default=0, help="seconds that a task's GPUs have to compute something; 0: nothing")
    parser.add_argument("--needs", nargs="*", default=[], help="devices, as in /job:worker/task:1/device:GPU:0")
    parser.add_argument(
        "--first", type=float, default=0, help="seconds after which to say who is waited for; 0: at the end alone"
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
    os._exit(0 if report["ok"] else 1)  # a thread that waits in a dead connection must not hold us


def ask_all(spec: dict[str, list[str]], options: argparse.Namespace) -> dict[str, Any]:
    """Ask all standing tasks of ``spec`` at once; each has ``options.timeout`` seconds. Returns the report."""
    library = capi.Library()
    tasks = [
        Task(job, index, entry, library, cluster_config.digest(spec), options)
        for job, entries in spec.items()
        if job not in cluster_config.RUN_JOBS
        for index, entry in enumerate(entries)
    ]
    options.needs = [device.replace("/replica:0", "") for device in options.needs]
    known = [f"/job:{task.job}/task:{task.index}/" for task in tasks] + [f"/job:{job}/" for job in cluster_config.RUN_JOBS]
    for device in options.needs:
        if not device.startswith(tuple(known)):
            raise cluster_config.ConfigError(f"the program needs {device}, and the cluster has no such task")
    deadline = time.monotonic() + (min(options.first, options.timeout) or options.timeout)
    for task in tasks:
        task.thread = threading.Thread(target=task.ask, args=(deadline,), daemon=True)
        task.thread.start()
    for task in tasks:
        task.thread.join(max(0.0, deadline + options.prove + 2 - time.monotonic()))
    reports = [dict(task.report) for task in tasks]
    lines = [
        f"{task['task']}: {task['reason']} ({', '.join(task['gpus'])})" for task in reports if task["gpus"] and options.prove
    ]
    good = all(task["state"] == "answers" for task in reports)
    if not good and 0 < options.first < options.timeout:  # whoever calls is to go on with what is left of the time
        late = ", ".join(f"{task['task']} ({task['state']})" for task in reports if task["state"] != "answers")
        left = [f"--timeout={options.timeout - options.first:g}", "--first=0"]
        return {"ok": False, "lines": [f"waits for {late[:200]}"], "next": [*sys.argv[1:], *left]}
    return {"ok": good, "version": library.version, "cluster": spec, "tasks": reports, "lines": lines}


class Task:
    """One question to one task."""

    def __init__(self, job: str, index: int, entry: str, library: capi.Library, digest: str, options: argparse.Namespace) -> None:
        self.job, self.index, self.library, self.spec_digest, self.options = job, index, library, digest, options
        self.address = cluster_config.split_address(entry)
        self.report: dict[str, Any] = {
            "task": f"{job}:{index}", "address": entry, "state": "unreachable", "version": None, "devices": [], "gpus": [],
            "incarnation": "", "reason": f"the name {self.address[0]} could not be resolved in time", "seconds": None,
        }  # fmt: skip
        self.thread: threading.Thread

    def answer(self, state: str, reason: str = "", **more: object) -> None:
        """Note what was found."""
        self.report.update(state=state, reason=reason, **more)

    def ask(self, deadline: float) -> None:
        """Fill in the report by the time ``deadline`` (of the monotonic clock)."""
        begun = time.monotonic()
        try:
            if self.connects(deadline):
                self.ask_tensorflow(deadline)
        except Exception as error:  # whatever it is, it is this task's answer and must not end the gate
            self.answer("hangs", f"{type(error).__name__}: {error}")
        self.report["seconds"] = round(time.monotonic() - begun, 3)

    def connects(self, deadline: float) -> bool:
        """Tell whether something listens; one that is being restarted is given until the deadline."""
        while True:
            try:
                # Of an attempt that a machine does not answer the kernel tries ever more rarely: a new one finds it sooner.
                left = max(0.1, deadline - time.monotonic())
                socket.create_connection(self.address, timeout=min(ATTEMPT, left)).close()
                self.answer("hangs", "connected, but no answer came; 'systemctl status' of its unit says more")
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
            if time.monotonic() + 0.2 > deadline:
                return False
            time.sleep(0.2)

    def ask_tensorflow(self, deadline: float) -> None:
        """Ask for the devices and for the card that the server leaves, by operations that it runs itself."""
        try:
            session = self.session(max(0.2, deadline - time.monotonic()))
        except capi.TensorFlowError as error:
            self.explain(error, deadline)
            return
        try:
            self.ask_in(session, deadline)
        finally:
            session.close()

    def session(self, seconds: float) -> capi.Session:
        """Open a session on the task, each step of which may take ``seconds``, over the graph of its card."""
        # A filter that no task matches leaves the server's own devices: it waits for no other task, and a
        # server of another name gives that name away.
        config = capi.message("config_pb2", "ConfigProto")(
            device_filters=["/job:nobody"], operation_timeout_in_ms=int(seconds * 1000)
        )
        graph = self.card_graph(f"/job:{self.job}/replica:0/task:{self.index}/device:CPU:0")
        return self.library.session(f"grpc://{self.report['address']}", config.SerializeToString(), graph)

    def ask_in(self, session: capi.Session, deadline: float) -> None:
        """Fill in what a session on the task tells."""
        try:
            found = session.devices()
        except capi.TensorFlowError as error:
            self.explain(error, deadline)
            return
        devices = [name for name in found if "XLA" not in name]
        own = [name for name in devices if name.startswith(f"/job:{self.job}/replica:0/task:{self.index}/")]
        if not own:
            self.answer("other task", f"a TensorFlow server that calls itself {', '.join(devices) or 'nothing'}")
            return
        self.answer("answers", devices=devices, incarnation=found[own[0]])
        try:
            card = json.loads(session.fetch_bytes("card"))
        except capi.TensorFlowError:
            self.answer("other spec", "a TensorFlow server that this project's unit did not start")
            return
        self.report.update(version=card["version"], gpus=card["gpus"])
        if card["spec"] != self.spec_digest:
            self.answer("other spec", "it was started with another config.json; is it a task of another cluster?")
        elif card["version"] != self.library.version:
            self.answer("other version", f"it runs TensorFlow {card['version']}, this machine has {self.library.version}")
        else:
            self.ask_for_devices(devices, max(card["wanted"], len(card["gpus"])))

    def ask_for_devices(self, devices: list[str], wanted: int) -> None:
        """Hold the devices of the task against those that it should have and those that a program needs."""
        found = [name for name in devices if "/device:GPU:" in name]
        short = {name.replace("/replica:0", "") for name in devices}
        own_name = f"/job:{self.job}/task:{self.index}/"
        missing = [name for name in self.options.needs if name.startswith(own_name) and name not in short]
        if len(found) < wanted:
            self.answer("no GPU", f"it is to have {wanted} GPU(s), and TensorFlow found {len(found)}; its journal says why")
        elif missing:
            self.answer("no device", f"the program needs {', '.join(missing)}; the task has {', '.join(sorted(short))}")
        elif self.options.prove and found:
            self.answer("no GPU", f"its GPUs did not compute anything within {self.options.prove:.0f} s")
            deadline = time.monotonic() + self.options.prove
            problem = gpu_check.problem(self.library, f"grpc://{self.report['address']}", found, deadline)
            if problem:
                self.answer("no GPU", problem)
            elif time.monotonic() < deadline:
                self.answer("answers", f"{len(found)} GPU(s) computed what the processor did")

    def card_graph(self, device: str) -> bytes:
        """Return a graph whose operation "card" gives the bytes of the task's card."""
        graph = capi.message("graph_pb2", "GraphDef")()
        graph.versions.producer = 1087
        types = capi.message("types_pb2", "DataType")
        path = graph.node.add(name="path", op="Const", device=device)
        path.attr["dtype"].type = types.Value("DT_STRING")
        path.attr["value"].tensor.dtype = types.Value("DT_STRING")
        path.attr["value"].tensor.tensor_shape.SetInParent()
        path.attr["value"].tensor.string_val.append(identity.PATH.encode())
        graph.node.add(name="read", op="ReadFile", input=["path"], device=device)
        card = graph.node.add(name="card", op="DecodeRaw", input=["read"], device=device)
        card.attr["out_type"].type = types.Value("DT_UINT8")
        serialised: bytes = graph.SerializeToString()
        return serialised

    def explain(self, error: capi.TensorFlowError, deadline: float) -> None:
        """TensorFlow got no answer: find out from the first bytes on the wire who is there."""
        first = self.first_bytes(max(0.5, min(1.5, deadline + 1 - time.monotonic())))
        # An HTTP/2 server's first frame is SETTINGS (RFC 9113 3.4): length 3 bytes, type 4.
        if first[3:4] == b"\x04" and error.code == UNIMPLEMENTED:
            self.answer("not_tensorflow", "a gRPC server that is not TensorFlow's listens on the port")
        elif first[3:4] == b"\x04":
            state = "hangs" if error.code == DEADLINE_EXCEEDED else "other task"
            self.answer(state, str(error).splitlines()[0][:200])
        elif first:
            self.answer("not_tensorflow", f"not a TensorFlow server: it says {first[:24]!r}")
        else:
            self.answer("hangs", "the port takes connections, but nothing comes back: stopped, overloaded or not TensorFlow")

    def first_bytes(self, seconds: float) -> bytes:
        """Return what the peer sends to an HTTP/2 client's first words, within ``seconds``."""
        try:
            with socket.create_connection(self.address, timeout=seconds) as wire:
                wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                return wire.recv(64)
        except OSError:
            return b""


def report_table(report: dict[str, Any]) -> str:
    """Return the report as lines for people."""
    rows = [("task", "address", "state", "seconds", "reason")]
    rows += [(t["task"], t["address"], t["state"], str(t["seconds"] or ""), t["reason"]) for t in report["tasks"]]
    return "\n".join(table(rows))
