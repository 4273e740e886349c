"""Take part in a training: run the program as one of its tasks, together with all the others or not at all.

    python -m tf_cluster.run.training RUN

The main process in the unit of each training process; tf_cluster.run starts it, and the run's notes (run.json) say of which
training it is a part. The chief's is the coordinator besides: it waits until all are there, lets all start at once, and ends
all when one fails, to start them again as often as the training may. So a training goes on, and ends, whoever watches.

They talk over one TCP port of the chief's machine, a JSON object a line. Nothing but "start", "stop" and "over" can be asked
over it: whoever reaches the training's TensorFlow ports may do more.
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
from . import runs

BEAT = 5.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which the other side is given up
TERM, KILL = 5.0, 10.0  # seconds that a program has after SIGTERM; that all have to be gone
LOOK = 0.1  # seconds between two attempts
SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
LONGEST = 64 * 1024  # bytes of a message


class UnreachableError(OSError):
    """The coordinator could not be reached; the message is a sentence."""


class Channel:
    """A connection that carries JSON objects, a line each, and signs of life in between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.beating = asyncio.create_task(self.beat())

    async def beat(self) -> None:
        """Send signs of life until the connection ends."""
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(BEAT)
                await self.send(alive=True)

    def close(self) -> None:
        """End the connection, once what was sent has gone."""
        self.beating.cancel()
        self.writer.close()

    async def send(self, **message: object) -> None:
        """Send an object; raise OSError if the other side is gone or takes nothing."""
        self.writer.write(json.dumps(message).encode() + b"\n")
        try:
            await asyncio.wait_for(self.writer.drain(), BEAT)
        except asyncio.TimeoutError:
            raise TimeoutError from None

    async def receive(self) -> dict[str, Any]:
        """Return the next object that is not a sign of life; raise OSError if the other side is gone, silent or none of ours."""
        while True:
            try:
                line = await asyncio.wait_for(self.reader.readline(), SILENCE)
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
    """What the chief's process does for all: let them start, watch them, end them."""

    def __init__(self, training: dict[str, Any]) -> None:
        self.training = training
        self.members: dict[str, Channel] = {}
        self.events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.fatal = False  # whether starting again is of no use
        self.server: asyncio.Server | None = None
        self.over: dict[str, Any] = {}  # what all are told at the end, also those that come later

    async def listen(self) -> None:
        """Take connections; raise OSError if the port is in use."""
        port = cluster_config.split_address(self.training["control"])[1]
        self.server = await asyncio.start_server(self.serve, port=port, limit=LONGEST, backlog=512)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what one process says."""
        channel, task = Channel(reader, writer), None
        try:
            hello = await asyncio.wait_for(channel.receive(), BEAT)
            if hello.get("run") != self.training["id"] or str(hello.get("task")) not in self.training["machines"]:
                await channel.send(over=f"another training, {self.training['id']}, has the port {self.training['control']}")
                return
            task = hello["task"]
            self.members[task] = channel
            self.events.put_nowait((task, hello))
            if self.over:
                await channel.send(**self.over)
            while True:
                self.events.put_nowait((task, await channel.receive()))
        except (OSError, asyncio.TimeoutError):
            pass  # said below
        finally:
            channel.close()
            if task:
                self.members.pop(task, None)
                self.events.put_nowait((task, {"lost": True}))

    async def tell(self, **message: object) -> None:
        """Tell all that are there."""
        for channel in list(self.members.values()):
            with contextlib.suppress(OSError):  # the one who serves it notices
                await channel.send(**message)

    async def run(self) -> None:
        """Go through the training."""
        restarts, failure, attempt = self.training["restarts"], await self.gather(), 1
        while not failure:
            await self.tell(start=attempt)
            failure = await self.watch(attempt)
            if failure and attempt <= restarts and await self.stop(attempt):
                attempt += 1
                say(f"{failure}; all start again (attempt {attempt} of {restarts + 1})")
                failure = ""
            else:
                break
        self.over = {"over": failure, "attempts": attempt}
        await self.tell(**self.over)
        deadline = time.monotonic() + BEAT
        while self.members and time.monotonic() < deadline:  # what was said last must arrive before this process is gone
            await asyncio.sleep(LOOK)

    async def event(self, deadline: float) -> tuple[str, dict[str, Any]]:
        """Return what a task says next; raise asyncio.TimeoutError at the deadline (of the monotonic clock)."""
        return await asyncio.wait_for(self.events.get(), max(0.0, deadline - time.monotonic()))

    async def gather(self) -> str:
        """Wait until all are there; return what keeps them from starting."""
        missing, deadline = set(self.training["machines"]), time.monotonic() + self.training["join"]
        while missing:
            try:
                task, message = await self.event(deadline)
            except asyncio.TimeoutError:
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

    async def watch(self, attempt: int) -> str:
        """Wait until all have ended well, or one has not; return a sentence on it."""
        running = set(self.training["machines"])
        while running:
            task, message = await self.events.get()
            if not message or message.get("attempt", attempt) != attempt:
                continue
            if message.get("ended") != "":
                return self.sentence(task, message)
            running.discard(task)
        return ""

    async def stop(self, attempt: int) -> bool:
        """End all programs; tell whether all can start again."""
        await self.tell(stop=attempt)
        running, deadline = set(self.training["machines"]), time.monotonic() + KILL
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
        """Return a task and its machine, as they are named in a sentence."""
        return f"{task} on machine {self.training['machines'][task]}"

    def sentence(self, task: str, message: dict[str, Any]) -> str:
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

    def __init__(self, noted: dict[str, Any]) -> None:
        self.training, self.task, self.command = noted["training"], noted["task"], noted["command"]
        self.begun, self.limit = time.monotonic(), noted["limit"]
        job, index = self.task.split(":")
        self.port = cluster_config.split_address(self.training["cluster"][job][int(index)])[1]
        self.process: asyncio.subprocess.Process | None = None
        self.attempt, self.outcome = 0, "was not started"
        self.leaving = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """Take part until it is over; return how it ended: ``failure``, ``outcome``, ``attempts``."""
        try:
            channel = await join(self.training, self.task, self.leaving, self.taken())
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
        """Do what the coordinator says and tell it how the program ends; return its last word."""
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
                    late = time.monotonic() - self.begun > self.limit - LOOK
                    self.outcome = f"was ended after {self.limit:g} s (run_timeout)" if late else "was ended from outside"
                    await channel.send(leaves=self.outcome)
                if self.process and self.process.returncode is not None:
                    ended = how(self.process.returncode)
                    self.outcome = ended or "done"
                    await self.end()
                    await channel.send(ended=ended, attempt=self.attempt)
                if not self.process and "exit" in waiting:
                    await waiting.pop("exit")
        finally:
            for task in waiting.values():
                task.cancel()

    async def do(self, message: dict[str, Any], channel: Channel) -> None:
        """Start or end the program."""
        if "start" in message:
            await self.start(message["start"])
        if "stop" in message:
            await self.end()
            await channel.send(stopped=message["stop"])

    def taken(self) -> str:
        """Say who has the task's port; nothing if it is free."""
        if ports.port_is_free(self.port):
            return ""
        return f"its port {self.port} is taken by {ports.port_holder(self.port)}; train_port_offset chooses others"

    async def start(self, attempt: int) -> None:
        """Start the program."""
        self.attempt, self.outcome = attempt, "was ended with the others"
        deadline = time.monotonic() + TERM
        while self.taken() and time.monotonic() < deadline:  # the last one's server may take a moment to go
            await asyncio.sleep(LOOK)
        self.process = await asyncio.create_subprocess_exec(*self.command, start_new_session=True)

    async def end(self) -> None:
        """End the program and what it started, if it still runs, also what has a session of its own by now."""
        if not self.process:
            return
        for number, seconds in ((signal.SIGTERM, TERM), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            end_all(number)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.process.wait(), seconds)
        deadline = time.monotonic() + TERM
        while end_all(signal.SIGKILL) and time.monotonic() < deadline:  # they may have started others meanwhile
            await asyncio.sleep(LOOK)
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


async def join(training: dict[str, Any], task: str, leaving: asyncio.Event, refused: str = "") -> Channel:
    """Connect to the coordinator, which may not be there yet, and say who we are, or what keeps us from taking part."""
    deadline = time.monotonic() + training["join"]
    address, port = cluster_config.split_address(training["control"])
    while True:
        try:
            opening = asyncio.open_connection(address, port, limit=LONGEST)
            channel = Channel(*await asyncio.wait_for(opening, BEAT))
            await channel.send(run=training["id"], task=task, **({"refused": refused} if refused else {}))
        except (OSError, asyncio.TimeoutError) as error:
            if time.monotonic() > deadline or leaving.is_set():
                reason = f"within {training['join']:g} s: {getattr(error, 'strerror', None) or error or 'no answer'}"
                raise UnreachableError(f"{task} could not reach the chief at {training['control']} {reason}") from None
            await asyncio.sleep(LOOK)
        else:
            return channel


def refuse(training: dict[str, Any], task: str, sentence: str) -> None:
    """Tell the coordinator what keeps a task from taking part; raise UnreachableError if it cannot be reached."""

    async def tell() -> None:
        channel = await join(training, task, asyncio.Event(), sentence)
        channel.close()
        await asyncio.sleep(0)  # the connection is closed by the loop

    asyncio.run(tell())


def how(status: int) -> str:
    """Say how a program ended, nothing if well."""
    if status >= 0:
        return f"ended with exit status {status}" if status else ""
    return f"was killed by {signal.Signals(-status).name}"


def say(sentence: str) -> None:
    """Write a sentence into the run's output."""
    print(f"[training] {sentence}", flush=True)


async def take_part(noted: dict[str, Any], part: Path) -> str:
    """Take part in a training, as its coordinator besides if the task is the chief; return what failed.

    ``noted`` are the run's notes; how it ended is written to ``part`` as JSON.
    """
    training, member, coordinating = noted["training"], Member(noted), None
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
        sentence = f"port {port}, over which the training is coordinated, is taken by {holder}; train_port_offset chooses others"
        result = {"failure": sentence, "outcome": member.outcome, "attempts": 0}
    part.write_text(json.dumps(result), encoding="utf-8")
    if coordinating:  # until all the others were told
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(coordinating, 2 * BEAT)
    failure: str = result["failure"]
    return failure


def main() -> None:
    """Take part; exit with 0 only if the whole training was good."""
    run = runs.Run(sys.argv[1])
    adopt_orphans()
    cli.remove_proxy_variables()
    failure = asyncio.run(take_part(run.read(), run.folder / "part.json"))
    if failure:
        say(failure)
    sys.exit(bool(failure))


if __name__ == "__main__":
    main()
