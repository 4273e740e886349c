"""Take part in a training: run the program as one of its tasks, together with all the others or not at all.

    python -m tf_cluster.run.training RUN

The main process in the unit of each training process; tf_cluster.run starts it, and the run's notes (run.json) say of which
training it is a part. The chief's is the coordinator besides: it waits until all are there, lets all start at once, and ends
all when one fails, to start them again as often as the training may. So a training goes on, and ends, whoever watches.

They talk over one TCP port of the chief's machine, a JSON object a line. Nothing but "start", "stop" and "over" can be asked
over it: whoever reaches the training's TensorFlow ports may do more.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from .. import cli
from ..server import ports
from ..spec import cluster_config
from . import runs

BEAT = 5.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which the other side is given up
TERM, KILL = 5.0, 10.0  # seconds that a program has after SIGTERM; that all have to be gone
LOOK = 0.1  # seconds between two looks at the program
SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
LONGEST = 64 * 1024  # bytes of a message


class UnreachableError(OSError):
    """The coordinator could not be reached; the message is a sentence."""


class Channel:
    """A connection that carries JSON objects, a line each."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.buffer = connection, b""
        self.heard = self.sent = time.monotonic()
        self.lock = threading.Lock()
        connection.settimeout(BEAT)  # for sending; before receiving it is looked whether something has come

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    def send(self, **message: object) -> None:
        """Send an object."""
        with self.lock:
            self.sent = time.monotonic()
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> dict:
        """Return what came within ``seconds``, or an empty object; raise OSError when the other side is gone."""
        if time.monotonic() - self.sent > BEAT:
            self.send(alive=True)
        if b"\n" not in self.buffer and select.select([self.connection], [], [], seconds)[0]:
            data = self.connection.recv(LONGEST)
            self.buffer += data
            if not data or len(self.buffer) > 2 * LONGEST:
                raise ConnectionResetError
            self.heard = time.monotonic()
        if time.monotonic() - self.heard > SILENCE:
            raise TimeoutError
        line, end, rest = self.buffer.partition(b"\n")
        if not end:
            return {}
        self.buffer = rest
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise ConnectionResetError from None  # it is none of ours
        return message if isinstance(message, dict) else {}


class Coordinator(threading.Thread):
    """What the chief's process does for all: let them start, watch them, end them."""

    def __init__(self, training: dict) -> None:
        super().__init__(daemon=True)
        self.training, self.members = training, {}
        self.events: queue.Queue = queue.Queue()
        self.fatal = False  # whether starting again is of no use
        port = cluster_config.split_address(training["control"])[1]
        six = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if six else socket.AF_INET
        self.listener = socket.create_server(("", port), family=family, backlog=512, dualstack_ipv6=six)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Serve each process that comes."""
        while True:
            connection, _address = self.listener.accept()
            threading.Thread(target=self.serve, args=(Channel(connection),), daemon=True).start()

    def serve(self, channel: Channel) -> None:
        """Pass on what one process says."""
        task = None
        with contextlib.suppress(OSError), contextlib.closing(channel):
            hello = channel.receive(BEAT)
            if hello.get("run") != self.training["id"] or str(hello.get("task")) not in self.training["machines"]:
                channel.send(over=f"another training, {self.training['id']}, has the port {self.training['control']}")
                return
            task = hello["task"]
            self.members[task] = channel
            self.events.put((task, hello))
            while True:
                message = channel.receive(BEAT)
                if message and "alive" not in message:
                    self.events.put((task, message))
        if task:
            self.members.pop(task, None)
            self.events.put((task, {"lost": True}))

    def tell(self, **message: object) -> None:
        """Tell all that are there."""
        for channel in list(self.members.values()):
            with contextlib.suppress(OSError):  # its own thread notices
                channel.send(**message)

    def run(self) -> None:
        """Go through the training."""
        restarts, failure, attempt = self.training["restarts"], self.gather(), 1
        while not failure:
            self.tell(start=attempt)
            failure = self.watch(attempt)
            if failure and attempt <= restarts and self.stop(attempt):
                attempt += 1
                say(f"{failure}; all start again (attempt {attempt} of {restarts + 1})")
                failure = ""
            else:
                break
        self.tell(over=failure, attempts=attempt)
        deadline = time.monotonic() + BEAT
        while self.members and time.monotonic() < deadline:  # what was said last must arrive before this process is gone
            time.sleep(LOOK)

    def gather(self) -> str:
        """Wait until all are there; return what keeps them from starting."""
        missing, deadline = set(self.training["machines"]), time.monotonic() + self.training["join"]
        while missing:
            try:
                task, message = self.events.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                names = " and ".join(self.name(task) for task in sorted(missing))
                port = cluster_config.split_address(self.training["control"])[1]
                return (
                    f"{names} did not join the training within {self.training['join']:g} s: was it started, and may it reach "
                    f"port {port} of machine {self.training['machines'][self.training['chief']]}?"
                )
            if "refused" in message or "run" not in message:
                return self.sentence(task, message)
            missing.discard(task)
        return ""

    def watch(self, attempt: int) -> str:
        """Wait until all have ended well, or one has not; return a sentence on it."""
        running = set(self.training["machines"])
        while running:
            task, message = self.events.get()
            if message.get("attempt", attempt) != attempt:
                continue
            if message.get("ended") != "":
                return self.sentence(task, message)
            running.discard(task)
        return ""

    def stop(self, attempt: int) -> bool:
        """End all programs; tell whether all can start again."""
        self.tell(stop=attempt)
        running, deadline = set(self.training["machines"]), time.monotonic() + KILL
        while running and not self.fatal:
            try:
                task, message = self.events.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if "stopped" in message:
                running.discard(task)
            elif "ended" not in message:
                self.sentence(task, message)
        return not self.fatal

    def name(self, task: str) -> str:
        """Return a task and its machine, as they are named in a sentence."""
        return f"{task} on machine {self.training['machines'][task]}"

    def sentence(self, task: str, message: dict) -> str:
        """Return what is wrong with a task."""
        self.fatal = self.fatal or "ended" not in message
        if "ended" in message:
            return f"the program of {self.name(task)} {message['ended']}"
        if "refused" in message:
            return f"{self.name(task)} could not start: {message['refused']}"
        if "leaves" in message:
            return f"the process of {self.name(task)} {message['leaves']}"
        return f"the process of {self.name(task)} was lost: its machine, its network or its systemd ended it"


class Member:
    """One task of the training: it starts and ends the program as it is told."""

    def __init__(self, noted: dict) -> None:
        self.training, self.task, self.command = noted["training"], noted["task"], noted["command"]
        self.begun, self.limit = time.monotonic(), noted["limit"]
        job, index = self.task.split(":")
        self.port = cluster_config.split_address(self.training["cluster"][job][int(index)])[1]
        self.process: subprocess.Popen | None = None
        self.attempt, self.outcome = 0, "was not started"
        self.leaving = threading.Event()

    def run(self) -> dict:
        """Take part until it is over; return how it ended: ``failure``, ``outcome``, ``attempts``."""
        try:
            with contextlib.closing(join(self.training, self.task, self.leaving, self.taken())) as channel:
                over = self.obey(channel)
        except UnreachableError as error:
            over = {"over": str(error)}
        except OSError:
            over = {"over": f"the connection to the chief, {self.training['chief']}, was lost"}
        self.end()
        return {"failure": over["over"], "outcome": self.outcome, "attempts": over.get("attempts", self.attempt)}

    def obey(self, channel: Channel) -> dict:
        """Do what the coordinator says and tell it how the program ends; return its last word."""
        while True:
            message = channel.receive(LOOK)
            if "over" in message:
                return message
            if "start" in message:
                self.start(message["start"])
            if "stop" in message:
                self.end()
                channel.send(stopped=message["stop"])
            if self.leaving.is_set():
                late = time.monotonic() - self.begun > self.limit - LOOK
                self.outcome = f"was ended after {self.limit:g} s (run_timeout)" if late else "was ended from outside"
                channel.send(leaves=self.outcome)
                self.leaving.clear()
            if self.process and self.process.poll() is not None:
                ended = how(self.process.returncode)
                self.outcome = ended or "done"
                self.end()
                channel.send(ended=ended, attempt=self.attempt)

    def taken(self) -> str:
        """Say who has the task's port; nothing if it is free."""
        if ports.port_is_free(self.port):
            return ""
        return f"its port {self.port} is taken by {ports.port_holder(self.port)}; train_port_offset chooses others"

    def start(self, attempt: int) -> None:
        """Start the program."""
        self.attempt, self.outcome = attempt, "was ended with the others"
        deadline = time.monotonic() + TERM
        while self.taken() and time.monotonic() < deadline:  # the last one's server may take a moment to go
            time.sleep(LOOK)
        self.process = subprocess.Popen(self.command, start_new_session=True)

    def end(self) -> None:
        """End the program and what it started, if it still runs, also what has a session of its own by now."""
        if not self.process:
            return
        for number, seconds in ((signal.SIGTERM, TERM), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            end_all(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        deadline = time.monotonic() + TERM
        while end_all(signal.SIGKILL) and time.monotonic() < deadline:  # they may have started others meanwhile
            time.sleep(LOOK)
        self.process = None


def adopt_orphans() -> None:
    """Become the parent of what the program leaves behind, so that it is found; see prctl(2)."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(number: int) -> bool:
    """Send a signal to all that this process has started, and what that has; tell whether there was any."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            children.setdefault(int(parent), []).append(0 if state == "Z" else int(path.parent.name))
    found, place = [*children.get(os.getpid(), [])], 0
    while place < len(found):
        found += children.get(found[place], []) if found[place] else []
        place += 1
    for pid in filter(None, found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return any(found)


def join(training: dict, task: str, leaving: threading.Event, refused: str = "") -> Channel:
    """Connect to the coordinator, which may not be there yet, and say who we are, or what keeps us from taking part."""
    deadline = time.monotonic() + training["join"]
    while True:
        try:
            address = cluster_config.split_address(training["control"])
            channel = Channel(socket.create_connection(address, timeout=BEAT))
            channel.send(run=training["id"], task=task, **({"refused": refused} if refused else {}))
        except OSError as error:
            if time.monotonic() > deadline or leaving.is_set():
                reason = f"within {training['join']:g} s: {error.strerror or error}"
                raise UnreachableError(f"{task} could not reach the chief at {training['control']} {reason}") from None
            time.sleep(LOOK)
        else:
            return channel


def how(status: int) -> str:
    """Say how a program ended, nothing if well."""
    if status >= 0:
        return f"ended with exit status {status}" if status else ""
    return f"was killed by {signal.Signals(-status).name}"


def say(sentence: str) -> None:
    """Write a sentence into the run's output."""
    print(f"[training] {sentence}", flush=True)


def main() -> None:
    """Take part; exit with 0 only if the whole training was good."""
    run = runs.Run(sys.argv[1])
    noted = run.read()
    training, member, coordinator = noted["training"], Member(noted), None
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda _number, _frame: member.leaving.set())
    cli.remove_proxy_variables()
    try:
        if noted["task"] == training["chief"]:
            coordinator = Coordinator(training)
            coordinator.start()
        result = member.run()
    except OSError:
        port = cluster_config.split_address(training["control"])[1]
        holder = ports.port_holder(port)
        sentence = f"port {port}, over which the training is coordinated, is taken by {holder}; train_port_offset chooses others"
        result = {"failure": sentence, "outcome": member.outcome, "attempts": 0}
    (run.folder / "part.json").write_text(json.dumps(result), encoding="utf-8")
    if coordinator:
        coordinator.join(2 * BEAT)  # until all the others were told
    if result["failure"]:
        say(result["failure"])
    sys.exit(bool(result["failure"]))


if __name__ == "__main__":
    main()
