"""Run the program as one task of a training; all tasks start, restart and stop together.

    python -m tf_cluster.run.training RUN

The main process in the unit of each task of a training. tf_cluster.run starts it, and run.json describes the training. The
chief's process is also the coordinator: it waits for all tasks, starts them together, stops all if one fails, and restarts them
as often as the training allows. So a training does not depend on the controller.

They communicate over one TCP port of the chief's machine, one JSON object per line. It accepts only "start", "stop" and "over":
the training's TensorFlow ports, which have the same peers, allow more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from .. import cli
from ..server import ports
from ..spec import cluster_config
from . import reason, runs

HEARTBEAT_SECONDS = 5.0
HEARTBEAT_TIMEOUT_SECONDS = 30.0  # without a heartbeat, after which the connection counts as lost
TERM_SECONDS, STOP_SECONDS = 5.0, 10.0  # for one program to exit after SIGTERM; for all programs to stop
WAITING_SECONDS = 2.0  # between a task's end and the report of those that are still running
POLL_SECONDS = 0.1
SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
MAX_MESSAGE_BYTES = 64 * 1024


class UnreachableError(OSError):
    """The coordinator could not be reached; the message is a sentence."""


class Channel:
    """A connection for JSON objects, one per line, with heartbeats in between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.heartbeats = asyncio.create_task(self.send_heartbeats())

    async def send_heartbeats(self) -> None:
        """Send heartbeats until the connection ends."""
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                await self.send(alive=True)

    def close(self) -> None:
        """Close the connection after sending what is buffered."""
        self.heartbeats.cancel()
        self.writer.close()

    async def send(self, **message: object) -> None:
        """Send an object; raise OSError if the peer is gone or does not read."""
        self.writer.write(json.dumps(message).encode() + b"\n")
        try:
            await asyncio.wait_for(self.writer.drain(), HEARTBEAT_SECONDS)
        except asyncio.TimeoutError:
            raise TimeoutError from None

    async def receive(self) -> dict[str, Any]:
        """Return the next object that is not a heartbeat; raise OSError if the peer is gone, silent or invalid."""
        while True:
            try:
                line = await asyncio.wait_for(self.reader.readline(), HEARTBEAT_TIMEOUT_SECONDS)
                message = json.loads(line) if line.endswith(b"\n") else None
            except asyncio.TimeoutError:
                raise TimeoutError from None
            except (ValueError, RecursionError):
                raise ConnectionResetError from None
            if message is None:
                raise ConnectionResetError
            if not isinstance(message, dict):
                return {}
            if "alive" not in message:
                return message


class Coordinator:
    """Starts, watches and stops all tasks of a training; part of the chief's process."""

    def __init__(self, training: dict[str, Any]) -> None:
        self.training = training
        self.members: dict[str, Channel] = {}
        self.events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.fatal = False  # whether a restart is useless
        self.server: asyncio.Server | None = None
        self.over: dict[str, Any] = {}  # the final message, also for tasks that connect later

    async def listen(self) -> None:
        """Listen for connections; raise OSError if the port is in use."""
        port = cluster_config.split_address(self.training["control"])[1]
        self.server = await asyncio.start_server(self.serve, port=port, limit=MAX_MESSAGE_BYTES, backlog=512)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Put the messages of one task into ``events``."""
        channel, task = Channel(reader, writer), None
        try:
            hello = await asyncio.wait_for(channel.receive(), HEARTBEAT_SECONDS)
            if hello.get("run") != self.training["id"] or str(hello.get("task")) not in self.training["machines"]:
                await channel.send(over=f"{self.training['control']} is in use by another training, {self.training['id']}")
                return
            task = hello["task"]
            self.members[task] = channel
            self.events.put_nowait((task, hello))
            if self.over:
                await channel.send(**self.over)
            while True:
                self.events.put_nowait((task, await channel.receive()))
        except (OSError, asyncio.TimeoutError):
            pass  # reported below
        finally:
            channel.close()
            if task:
                self.members.pop(task, None)
                self.events.put_nowait((task, {"lost": True}))

    async def tell(self, **message: object) -> None:
        """Send a message to all connected tasks."""
        for channel in list(self.members.values()):
            with contextlib.suppress(OSError):  # serve() detects the loss
                await channel.send(**message)

    async def run(self) -> None:
        """Run the training to its end."""
        restarts, failure, attempt = self.training["restarts"], await self.gather(), 1
        while not failure:
            await self.tell(start=attempt)
            failure = await self.watch(attempt)
            if failure and attempt <= restarts and await self.stop(attempt):
                attempt += 1
                log(f"{failure}; all tasks restart (attempt {attempt} of {restarts + 1})")
                failure = ""
            else:
                break
        self.over = {"over": failure, "attempts": attempt}
        await self.tell(**self.over)
        deadline = time.monotonic() + HEARTBEAT_SECONDS
        while self.members and time.monotonic() < deadline:  # the last message must arrive before this process exits
            await asyncio.sleep(POLL_SECONDS)

    async def event(self, deadline: float) -> tuple[str, dict[str, Any]]:
        """Return the next message of any task; raise asyncio.TimeoutError at ``deadline`` (monotonic clock)."""
        return await asyncio.wait_for(self.events.get(), max(0.0, deadline - time.monotonic()))

    async def gather(self) -> str:
        """Wait until all tasks have joined; return a sentence if they cannot start."""
        missing, deadline = set(self.training["machines"]), time.monotonic() + self.training["join"]
        while missing:
            try:
                task, message = await self.event(deadline)
            except asyncio.TimeoutError:
                names = " and ".join(self.name(task) for task in sorted(missing))
                port = cluster_config.split_address(self.training["control"])[1]
                return (
                    f"{names} did not join the training within {self.training['join']:g} s: is it started, and can it reach "
                    f"port {port} of machine {self.training['machines'][self.training['chief']]}?"
                )
            if "refused" in message or "run" not in message:
                return self.sentence(task, message)
            missing.discard(task)
        return ""

    async def watch(self, attempt: int) -> str:
        """Wait until the programs have succeeded or one fails; return a sentence on the failure.

        The others fail when a program ends before them in the middle of a step, so the failure names those that had ended.
        """
        running = set(self.training["machines"])
        done: dict[str, float] = {}
        reported: set[str] = set()
        while running:
            try:
                task, message = await asyncio.wait_for(self.events.get(), WAITING_SECONDS if done.keys() - reported else None)
            except asyncio.TimeoutError:
                log(f"{' and '.join(sorted(done))} finished; waiting for {' and '.join(sorted(running))}")
                reported = set(done)
                continue
            if not message or message.get("attempt", attempt) != attempt:
                continue
            if message.get("ended") != "":
                return "; ".join([self.sentence(task, message), *self.before(done), *self.left(message, running)])
            running.discard(task)
            done[task] = time.monotonic()
            if task == self.training["chief"] and self.training.get("ends_with") == "chief":
                log(f"{task} finished, so the training ends (train_ends_with)")
                return ""
        return ""

    def left(self, message: dict[str, Any], running: set[str]) -> list[str]:
        """Return a phrase on the tasks that were still running when systemd stopped the training."""
        return [f"still running: {', '.join(sorted(running))}"] if "run_timeout" in message.get("leaves", "") else []

    def before(self, done: dict[str, float]) -> list[str]:
        """Return a phrase on the tasks that had ended before a failure: task -> time of the monotonic clock."""
        now = time.monotonic()
        names = [f"{self.name(task)} ({now - ended:.0f} s before)" for task, ended in done.items()]
        return [f"the program of {' and '.join(names)} had already finished"] if names else []

    async def stop(self, attempt: int) -> bool:
        """Stop all programs; return whether all can restart."""
        await self.tell(stop=attempt)
        running, deadline = set(self.training["machines"]), time.monotonic() + STOP_SECONDS
        while running and not self.fatal:
            try:
                task, message = await self.event(deadline)
            except asyncio.TimeoutError:
                return False
            if "stopped" in message:
                running.discard(task)
            elif message and "ended" not in message:
                self.sentence(task, message)
        return not self.fatal

    def name(self, task: str) -> str:
        """Return a task and its machine, for a sentence."""
        return f"{task} on machine {self.training['machines'][task]}"

    def sentence(self, task: str, message: dict[str, Any]) -> str:
        """Return a sentence on a task's failure."""
        self.fatal = self.fatal or "ended" not in message
        if "ended" in message:
            return f"the program of {self.name(task)} {message['ended']}"
        if "refused" in message:
            return f"{self.name(task)} could not start: {message['refused']}"
        if "leaves" in message:
            return f"the process of {self.name(task)} {message['leaves']}"
        return f"the process of {self.name(task)} was lost: its machine, network or systemd stopped it"


class Member:
    """One task of the training: starts and stops the program on the coordinator's messages."""

    def __init__(self, noted: dict[str, Any], output: Path) -> None:
        self.training, self.task, self.command = noted["training"], noted["task"], noted["command"]
        self.begun, self.limit = time.monotonic(), noted["limit"]
        self.output = output
        self.port = cluster_config.split_address(self.training["entries"][self.task])[1]
        self.process: asyncio.subprocess.Process | None = None
        self.attempt, self.outcome = 0, "was not started"
        self.leaving = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """Take part until the training ends; return its ``failure``, ``outcome`` and ``attempts``."""
        try:
            channel = await join(self.training, self.task, self.leaving, self.port_conflict())
            try:
                over = await self.obey(channel)
            finally:
                channel.close()
        except UnreachableError as error:
            over = {"over": str(error)}
        except OSError:
            over = {"over": f"the connection to the chief, {self.training['chief']}, was lost"}
        await self.end()
        return {"failure": over["over"], "outcome": self.outcome, "attempts": over.get("attempts", self.attempt)}

    async def obey(self, channel: Channel) -> dict[str, Any]:
        """Follow the coordinator's messages and report the program's exit; return the final message."""
        waiting: dict[str, asyncio.Task[Any]] = {
            "message": asyncio.create_task(channel.receive()),
            "leave": asyncio.create_task(self.leaving.wait()),
        }
        try:
            while True:
                if self.process and "exit" not in waiting:
                    waiting["exit"] = asyncio.create_task(self.process.wait())
                await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
                if waiting["message"].done():
                    message: dict[str, Any] = waiting["message"].result()
                    waiting["message"] = asyncio.create_task(channel.receive())
                    if "over" in message:
                        return message
                    await self.do(message, channel)
                if waiting["leave"].done():
                    self.leaving.clear()
                    waiting["leave"] = asyncio.create_task(self.leaving.wait())
                    late = time.monotonic() - self.begun > self.limit - POLL_SECONDS
                    self.outcome = f"was stopped after {self.limit:g} s (run_timeout)" if late else "was stopped from outside"
                    await channel.send(leaves=self.outcome)
                if self.process and self.process.returncode is not None:
                    ended = exit_description(self.process.returncode, self.output)
                    self.outcome = ended or "done"
                    await self.end()
                    await channel.send(ended=ended, attempt=self.attempt)
                if not self.process and "exit" in waiting:
                    await waiting.pop("exit")
        finally:
            for task in waiting.values():
                task.cancel()

    async def do(self, message: dict[str, Any], channel: Channel) -> None:
        """Start or stop the program."""
        if "start" in message:
            await self.start(message["start"])
        if "stop" in message:
            await self.end()
            await channel.send(stopped=message["stop"])

    def port_conflict(self) -> str:
        """Return a sentence if the task's port is in use, else an empty string."""
        if ports.port_is_free(self.port):
            return ""
        return f"its port {self.port} is in use by {ports.port_holder(self.port)}; change train_port_offset"

    async def start(self, attempt: int) -> None:
        """Start the program."""
        self.attempt, self.outcome = attempt, "was stopped with the others"
        deadline = time.monotonic() + TERM_SECONDS
        while self.port_conflict() and time.monotonic() < deadline:  # the previous program's server may need a moment to exit
            await asyncio.sleep(POLL_SECONDS)
        self.process = await asyncio.create_subprocess_exec(*self.command, start_new_session=True)

    async def end(self) -> None:
        """Stop the program and all its child processes, including those in other sessions."""
        if not self.process:
            return
        for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            end_all(number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.process.wait(), seconds)
        deadline = time.monotonic() + TERM_SECONDS
        while end_all(signal.SIGKILL) and time.monotonic() < deadline:  # they may have started new processes
            await asyncio.sleep(POLL_SECONDS)
        self.process = None


def adopt_orphans() -> None:
    """Become the parent of the program's orphaned processes, to find and stop them; see prctl(2)."""
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(number: int) -> bool:
    """Send a signal to all descendants of this process; return whether there was any."""
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


async def join(training: dict[str, Any], task: str, leaving: asyncio.Event, refused: str = "") -> Channel:
    """Connect to the coordinator, retrying until it listens, and send the task's name and why it cannot start, if so."""
    deadline = time.monotonic() + training["join"]
    address, port = cluster_config.split_address(training["control"])
    while True:
        try:
            opening = asyncio.open_connection(address, port, limit=MAX_MESSAGE_BYTES)
            channel = Channel(*await asyncio.wait_for(opening, HEARTBEAT_SECONDS))
            await channel.send(run=training["id"], task=task, **({"refused": refused} if refused else {}))
        except (OSError, asyncio.TimeoutError) as error:
            if time.monotonic() > deadline or leaving.is_set():
                reason = f"within {training['join']:g} s: {getattr(error, 'strerror', None) or error or 'no answer'}"
                raise UnreachableError(f"{task} could not reach the chief at {training['control']} {reason}") from None
            await asyncio.sleep(POLL_SECONDS)
        else:
            return channel


def refuse(training: dict[str, Any], task: str, sentence: str) -> None:
    """Tell the coordinator why a task cannot start; raise UnreachableError if it is unreachable."""

    async def tell() -> None:
        channel = await join(training, task, asyncio.Event(), sentence)
        channel.close()
        await asyncio.sleep(0)  # lets the loop close the connection

    asyncio.run(tell())


def exit_description(status: int, output: Path) -> str:
    """Return how a program failed, with the reason in its output; empty if it succeeded."""
    if status == 0:
        return ""
    if status > 0:
        found = reason.reason_of(output)
        remedy = f". {found.remedy}" if found and found.remedy else ""
        return f"exited with status {status}{f': {found}' if found else ''}{remedy}"
    return f"was killed by {signal.Signals(-status).name}"


def log(sentence: str) -> None:
    """Print a sentence to the run's output."""
    print(f"[training] {sentence}", flush=True)


async def take_part(noted: dict[str, Any], part: Path) -> str:
    """Take part in a training, also as coordinator if the task is the chief; return the failure, empty if none.

    ``noted`` is the content of run.json. The result is written to ``part`` as JSON.
    """
    training, member, coordinating = noted["training"], Member(noted, part.with_name("stdout.log")), None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, member.leaving.set)
    try:
        if noted["task"] == training["chief"]:
            coordinator = Coordinator(training)
            await coordinator.listen()
            coordinating = asyncio.create_task(coordinator.run())
        result = await member.run()
    except OSError:
        port = cluster_config.split_address(training["control"])[1]
        holder = ports.port_holder(port)
        sentence = f"port {port}, which coordinates the training, is in use by {holder}; change train_port_offset"
        result = {"failure": sentence, "outcome": member.outcome, "attempts": 0}
    part.write_text(json.dumps(result), encoding="utf-8")
    if coordinating:  # until all others have the final message
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(coordinating, 2 * HEARTBEAT_SECONDS)
    failure: str = result["failure"]
    return failure


def main() -> None:
    """Take part; exit with 0 only if the whole training succeeded."""
    run = runs.Run(sys.argv[1])
    adopt_orphans()
    cli.remove_proxy_variables()
    failure = asyncio.run(take_part(run.read(), run.folder / "part.json"))
    if failure:
        log(failure)
    sys.exit(bool(failure))


if __name__ == "__main__":
    main()
