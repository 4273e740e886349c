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
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cli
from ..server import ports
from ..spec import cluster_config
from . import reason, runs, shared
from .coordination import Term, Terms, in_thread
from .unit import STOP_SECONDS, start_seconds

HEARTBEAT_SECONDS = 5.0
HEARTBEAT_TIMEOUT_SECONDS = 30.0  # without a heartbeat, after which the connection counts as lost
TERM_SECONDS = 5.0  # for one program to exit after SIGTERM
CHIEF_SECONDS = 5.0  # for the chief's program to exit after another one has failed, if the training ends with the chief
WAITING_SECONDS = 2.0  # until tasks are reported that have not joined, or are still running after the end of another one
POLL_SECONDS = 0.1
STOPPED = "was stopped from outside"
LEFT_OUT = "was lost and did not take part in the last attempt"
SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
MAX_MESSAGE_BYTES = 64 * 1024
MAX_ATTEMPTS = 100  # of which the last ones are noted
CONNECT_SECONDS = 1.0  # between two attempts to reach a coordinator
CHECKPOINT = re.compile(r'^model_checkpoint_path: ".*?([0-9]+)"', re.MULTILINE)  # in TensorFlow's file "checkpoint"


class UnreachableError(OSError):
    """The coordinator could not be reached; the message is a sentence."""


class Channel:
    """A connection for JSON objects, one per line, with heartbeats in between."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.heard = reader, writer, time.monotonic()
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
            self.heard = time.monotonic()
            if not isinstance(message, dict):
                return {}
            if "alive" not in message:
                return message


class Coordinator:
    """Starts, watches and stops all tasks of a training; part of the chief's process.

    With ``terms``, a training continues after a machine was lost, also that of the coordinator.
    """

    def __init__(self, training: dict[str, Any], checkpoints: Path, task: str = "", terms: Terms | None = None) -> None:
        self.training, self.checkpoints, self.task, self.terms = training, checkpoints, task or training["chief"], terms
        self.number = 0  # of the coordinator's file in terms
        self.members: dict[str, Channel] = {}
        self.events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.fatal = ""  # why a restart is useless
        self.server: asyncio.Server | None = None
        self.attempts: list[dict[str, Any]] = []  # each has attempt, tasks, first_step and ended
        self.over: dict[str, Any] = {}  # the final message, also for tasks that connect later
        self.left = asyncio.Event()  # set if another task has to coordinate the training
        self.predecessor = ""  # task of the lost coordinator before this one
        self.may_leave = True
        # Task -> when it was last heard of before it was lost. Of tasks that were never connected, this is not known.
        self.heard = dict.fromkeys(training["machines"], time.monotonic())
        self.saving = asyncio.Lock()

    @property
    def attempt(self) -> int:
        """Return the number of the last attempt, 0 before the first one."""
        return int(self.attempts[-1]["attempt"]) if self.attempts else 0

    @property
    def ends_with_chief(self) -> bool:
        """Return whether the training has succeeded as soon as the chief's program has."""
        return bool(self.training.get("ends_with") == "chief")

    @property
    def least(self) -> int:
        """Return with how many tasks the training continues after others were lost."""
        return int(self.training.get("min_tasks") or len(self.training["machines"]))

    @property
    def control(self) -> str:
        """Return the address of this coordinator."""
        return control_of(self.training, self.task)

    async def listen(self) -> None:
        """Listen for connections; raise OSError if the port is in use."""
        port = cluster_config.split_address(self.control)[1]
        self.server = await asyncio.start_server(self.serve, port=port, limit=MAX_MESSAGE_BYTES, backlog=512)

    async def claim(self, terms: Terms, before: Term | None) -> bool:
        """Become the coordinator after another one; return whether no other task was first."""
        self.number = before.number + 1 if before else 1
        self.predecessor = before.content["task"] if before else ""
        self.attempts = before.content["attempts"] if before else []
        return await terms.claim(self.number, self.content())

    def content(self) -> dict[str, Any]:
        """Return the content of the coordinator's file."""
        return {
            "task": self.task, "control": self.control, "beat": time.monotonic_ns(), "released": self.left.is_set(),
            "attempts": self.attempts[-MAX_ATTEMPTS:], **({"over": self.over["over"]} if self.over else {}),
        }  # fmt: skip

    async def save(self) -> None:
        """Write the coordinator's file. If that fails, another task becomes the coordinator, or it works again later."""
        if self.terms:
            async with self.saving:
                with contextlib.suppress(OSError):
                    await self.terms.write(self.number, self.content())

    async def keep(self, terms: Terms) -> None:
        """Rewrite the coordinator's file until another one has a higher number."""
        while True:
            with contextlib.suppress(OSError):
                newest = await terms.read()
                if newest and newest.number > self.number:
                    self.left.set()
                    return
            await self.save()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Put the messages of one task into ``events``."""
        channel, task = Channel(reader, writer), None
        try:
            hello = await asyncio.wait_for(channel.receive(), HEARTBEAT_SECONDS)
            if hello.get("run") != self.training["id"] or str(hello.get("task")) not in self.training["machines"]:
                await channel.send(over=f"{self.control} is in use by another training, {self.training['id']}")
                return
            task = hello["task"]
            if task in self.members:  # its earlier connection is broken
                self.members[task].close()
                self.events.put_nowait((task, {"lost": True}))
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
            if task and self.members.get(task) is channel:
                self.drop(task)
                self.events.put_nowait((task, {"lost": True}))

    def drop(self, task: str) -> None:
        """Count a task as lost."""
        channel = self.members.pop(task)
        self.heard[task] = channel.heard
        channel.close()

    async def tell(self, **message: object) -> None:
        """Send a message to all connected tasks."""
        for channel in list(self.members.values()):
            with contextlib.suppress(OSError):  # serve() detects the loss
                await channel.send(**message)

    async def run(self) -> None:
        """Run the training to its end, or until another task has to coordinate it."""
        own: list[asyncio.Task[Any]] = [asyncio.create_task(self.coordinate()), asyncio.create_task(self.left.wait())]
        own += [asyncio.create_task(self.keep(self.terms))] if self.terms else []
        try:
            await asyncio.wait(own[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in own:
                task.cancel()
            if self.server:
                self.server.close()
        while pending := [task for task in own if not task.done()]:
            await asyncio.wait(pending, timeout=POLL_SECONDS)
            for task in pending:
                task.cancel()  # again: asyncio.wait_for can swallow a cancellation before Python 3.12
        if self.left.is_set():
            await self.save()
        for channel in list(self.members.values()):
            channel.close()
        if not self.left.is_set():
            own[0].result()

    async def coordinate(self) -> None:
        """Run the attempts of the training, and send the final message."""
        restarts, tasks = self.training["restarts"], [*self.training["machines"]]
        if self.attempts:  # of the lost coordinator
            tasks, failure = await self.take_over()
        else:
            failure = await self.gather()
        while not failure:
            attempt = self.attempt + 1
            step = await first_step(self.checkpoints)
            self.attempts.append({"attempt": attempt, "tasks": tasks, "first_step": step, "ended": ""})
            await self.save()
            await self.tell(start=attempt, tasks=tasks)
            failure = await self.watch(attempt, tasks)
            restarts_all = bool(failure) and attempt <= restarts and await self.stop(attempt, tasks)
            if self.terms and failure:  # often, the other programs fail before a machine counts as lost
                lost = [self.sentence(task, {"lost": True}) for task in tasks if task not in self.members]
                failure = "; ".join([*(sentence for sentence in lost if sentence not in failure), failure])
            self.attempts[-1]["ended"] = failure or "done"
            if restarts_all:
                tasks, failure = await self.restart(tasks, failure)
            else:
                break
        self.over = {"over": failure, "attempts": max(1, self.attempt)}
        await self.save()
        await self.tell(**self.over)
        deadline = time.monotonic() + HEARTBEAT_SECONDS
        while self.members and time.monotonic() < deadline:  # the last message must arrive before this process exits
            await asyncio.sleep(POLL_SECONDS)

    async def take_over(self) -> tuple[list[str], str]:
        """Return the tasks of the next attempt after the coordinator was lost, or a sentence if there is none."""
        last = self.attempts[-1]
        lost = self.sentence(self.predecessor, {"lost": True})
        if lost not in last["ended"]:
            last["ended"] = "; ".join(filter(None, [lost, last["ended"]]))
        if self.attempt > self.training["restarts"]:
            return [], last["ended"]
        there, missing = await self.remaining(last["tasks"])
        last["ended"] = self.without_mistakes(last["ended"], lost)
        return self.next_tasks(there, missing, last["ended"])

    def without_mistakes(self, failure: str, lost: str) -> str:
        """Return what the lost coordinator noted on a failure, without what only the loss of its connections caused.

        If its machine was disconnected, all other tasks were lost for it, and its program failed without them. Its own loss,
        ``lost``, is kept.
        """
        parts = failure.split("; ")
        there = {self.sentence(task, {"lost": True}) for task in self.members} - {lost}
        if there.isdisjoint(parts):
            return failure
        own = f"the program of {self.name(self.predecessor)} "
        end = next((place for place, part in enumerate(parts) if part.startswith(own)), len(parts))
        return "; ".join(part for part in parts[:end] if part not in there)

    async def restart(self, tasks: list[str], failure: str) -> tuple[list[str], str]:
        """Wait for the tasks that were lost; return the tasks of the next attempt, or a sentence if there are too few.

        Another task coordinates the training if most tasks were lost at once.
        """
        if self.terms and self.may_leave and len(self.members) < self.least <= len(set(tasks) - set(self.members)):
            log("the other tasks may continue without this machine, which may be the one that is disconnected")
            self.left.set()
            await asyncio.sleep(HEARTBEAT_TIMEOUT_SECONDS)  # run() ends this
        return self.next_tasks(*await self.remaining(tasks), failure)

    def next_tasks(self, there: list[str], lost: list[str], failure: str) -> tuple[list[str], str]:
        """Return the tasks of the next attempt after a failure, or a sentence if too few are connected."""
        if self.fatal:  # by a message that came meanwhile
            return [], f"{failure}; {self.fatal}"
        names = " and ".join(map(self.name, lost))
        if self.terms and len(there) < self.least:
            back = f"{names} did not return within {self.training['join']:g} s (train_join)"
            left = f"only {len(there)} of {len(self.training['machines'])} tasks are left (train_min_tasks: {self.least})"
            return [], f"{failure}; {back}, and {left}"
        whom = f"restarting without {names}" if lost else "all tasks restart"
        log(f"{failure}; {whom} (attempt {self.attempt + 1} of {self.training['restarts'] + 1})")
        return there, ""

    async def remaining(self, tasks: list[str]) -> tuple[list[str], list[str]]:
        """Wait until the tasks of the last attempt are connected; return those that are, and those that are not."""
        everyone = list(self.training["machines"])
        if not self.terms:
            return everyone, []
        # A lost task needs so long to notice the loss too, and to stop its program.
        fence = HEARTBEAT_SECONDS + HEARTBEAT_TIMEOUT_SECONDS + STOP_SECONDS
        begun, reported = time.monotonic(), False
        while not self.fatal and (missing := [task for task in tasks if task not in self.members]):
            if not reported:
                log(f"waiting for {' and '.join(map(self.name, missing))}")
                reported = True
            deadline = max(begun + self.training["join"], *(self.heard[task] + fence for task in missing))
            try:
                self.note(*await self.event(deadline))
            except asyncio.TimeoutError:
                break
        while not self.events.empty():  # of the last attempt
            self.note(*self.events.get_nowait())
        there = [task for task in everyone if task in self.members]
        return there, [task for task in everyone if task not in self.members]

    async def event(self, deadline: float) -> tuple[str, dict[str, Any]]:
        """Return the next message of any task; raise asyncio.TimeoutError at ``deadline`` (monotonic clock)."""
        return await asyncio.wait_for(self.events.get(), max(0.0, deadline - time.monotonic()))

    async def gather(self) -> str:
        """Wait until all tasks have joined; return a sentence if they cannot start."""
        missing, seconds = set(self.training["machines"]), start_seconds(self.training)
        begun, reported = time.monotonic(), False
        while missing:
            try:
                task, message = await self.event(begun + (seconds if reported else min(seconds, WAITING_SECONDS)))
            except asyncio.TimeoutError:
                names = " and ".join(self.name(task) for task in sorted(missing))
                if not reported and seconds > WAITING_SECONDS:
                    log(f"waiting for {names} to join")
                    reported = True
                    continue
                port = cluster_config.split_address(self.control)[1]
                return (
                    f"{names} did not join the training within {seconds:g} s: is it started, and can it reach "
                    f"port {port} of machine {self.training['machines'][self.task]}?"
                )
            if self.terms and "lost" in message:
                missing.add(task)  # it may return
            elif "refused" in message or "run" not in message:
                return self.sentence(task, message)
            else:
                missing.discard(task)
        return ""

    async def watch(self, attempt: int, tasks: list[str]) -> str:
        """Wait until the programs have succeeded or one fails; return a sentence on the failure.

        The others fail when a program ends before them in the middle of a step, so the failure names those that had ended.
        """
        running = set(tasks)
        done: dict[str, float] = {}
        reported: set[str] = set()
        while running:
            try:
                task, message = await asyncio.wait_for(self.events.get(), WAITING_SECONDS if done.keys() - reported else None)
            except asyncio.TimeoutError:
                log(f"{' and '.join(sorted(done))} finished; waiting for {' and '.join(sorted(running))}")
                reported = set(done)
                continue
            if not message or message.get("attempt", attempt) != attempt or self.concerns_no_program(task, message, running):
                continue
            if message.get("ended") != "":
                # The chief's server stops before its program has exited, and tasks that use it may fail then.
                if task == tasks[0] or not self.ends_with_chief or not await self.chief_succeeds(tasks[0]):
                    return "; ".join([self.sentence(task, message), *self.before(done), *self.left_running(message, running)])
                task = tasks[0]
            running.discard(task)
            done[task] = time.monotonic()
            if task == tasks[0] and self.ends_with_chief:
                log(f"{task} finished, so the training ends (train_ends_with)")
                return ""
        return ""

    async def chief_succeeds(self, chief: str) -> bool:
        """Wait a moment for the end of the chief's program; return whether it succeeded."""
        deadline = time.monotonic() + CHIEF_SECONDS
        while True:
            try:
                task, message = await self.event(deadline)
            except asyncio.TimeoutError:
                return False
            self.note(task, message)
            if message and task == chief:
                return bool(message.get("ended") == "")

    def concerns_no_program(self, task: str, message: dict[str, Any], running: set[str]) -> bool:
        """Return whether a message is from a task that has returned, or of one that was lost without a running program."""
        if not self.terms or message.get("fatal"):
            return False
        if "run" in message and "refused" not in message:
            log(f"{self.name(task)} has joined and takes part after the next restart")
            return True
        return task not in running or "stopped" in message

    def left_running(self, message: dict[str, Any], running: set[str]) -> list[str]:
        """Return a phrase on the tasks that were still running when systemd stopped the training."""
        return [f"still running: {', '.join(sorted(running))}"] if "run_timeout" in message.get("leaves", "") else []

    def before(self, done: dict[str, float]) -> list[str]:
        """Return a phrase on the tasks that had ended before a failure: task -> time of the monotonic clock."""
        now = time.monotonic()
        names = [f"{self.name(task)} ({now - ended:.0f} s before)" for task, ended in done.items()]
        return [f"the program of {' and '.join(names)} had already finished"] if names else []

    async def stop(self, attempt: int, tasks: list[str]) -> bool:
        """Stop all programs; return whether all can restart."""
        await self.tell(stop=attempt)
        running, deadline = set(tasks), time.monotonic() + STOP_SECONDS
        while not self.fatal and (running := running & set(self.members) if self.terms else running):
            try:
                task, message = await self.event(deadline)
            except asyncio.TimeoutError:
                for task in running if self.terms else ():
                    self.drop(task)
                return self.terms is not None
            if "stopped" in message or (self.terms and "run" in message):
                running.discard(task)
            else:
                self.note(task, message)
        return not self.fatal

    def note(self, task: str, message: dict[str, Any]) -> None:
        """Note whether a message, which is not waited for, makes a restart useless."""
        if message and "ended" not in message:
            self.sentence(task, message)

    def name(self, task: str) -> str:
        """Return a task and its machine, for a sentence."""
        return f"{task} on machine {self.training['machines'][task]}"

    def sentence(self, task: str, message: dict[str, Any]) -> str:
        """Return a sentence on a task's failure, and note whether it makes a restart useless."""
        said = self.cause(task, message)
        survived = self.terms is not None and not message.get("fatal") and "refused" not in message
        if not ("ended" in message or survived):
            self.fatal = self.fatal or said
        return said

    def cause(self, task: str, message: dict[str, Any]) -> str:
        """Return a sentence on a task's failure."""
        if "ended" in message:
            return f"the program of {self.name(task)} {message['ended']}"
        if "refused" in message:
            return f"{self.name(task)} could not start: {message['refused']}"
        if "leaves" in message:
            return left_sentence(self.name(task), message["leaves"])
        return f"the process of {self.name(task)} was lost: its machine, network or systemd stopped it"


class Member:
    """One task of the training: starts and stops the program on the coordinator's messages.

    With ``terms``, it can become the coordinator.
    """

    def __init__(self, noted: dict[str, Any], output: Path, terms: Terms | None = None) -> None:
        self.training, self.task, self.command = noted["training"], noted["task"], noted["command"]
        self.limit, self.late = noted["timeout"], False  # seconds from the first start of the program; whether they are over
        self.output, self.terms, self.resumed = output, terms, bool(noted.get("resumed"))
        self.checkpoints = shared.checkpoints(noted) or output.with_name("checkpoints")
        self.port = cluster_config.split_address(self.training["entries"][self.task])[1]
        self.process: asyncio.subprocess.Process | None = None
        self.attempt, self.outcome = 0, LEFT_OUT if self.resumed else "was not started"
        self.tasks = list(self.training["machines"])  # of the attempt
        self.leaving, self.left = asyncio.Event(), ""
        self.coordinator: Coordinator | None = None
        self.coordinating: asyncio.Task[None] | None = None

    async def run(self) -> dict[str, Any]:
        """Take part until the training ends; return its ``failure``, ``outcome``, ``attempts`` and ``history``.

        ``final``: the coordinator has ended the training. Otherwise it may continue without this task.
        """
        try:
            over = await (self.obey_each(self.terms) if self.terms else self.obey_one())
        except UnreachableError as error:
            over = {"over": str(error)}
        except OSError:
            over = {"over": self.left or f"the connection to the chief, {self.training['chief']}, was lost"}
        await self.end()
        history = over.get("history") or (self.coordinator.attempts if self.coordinator else [])
        return {
            "failure": over["over"], "outcome": self.outcome, "attempts": over.get("attempts", self.attempt), "history": history,
            "final": "attempts" in over,
        }  # fmt: skip

    async def coordinate(self, before: Term | None = None) -> bool:
        """Become the coordinator; return whether no other task was first. Raises OSError if the port is in use."""
        coordinator = Coordinator(self.training, self.checkpoints, self.task, self.terms)
        coordinator.may_leave = self.coordinator is None
        await coordinator.listen()
        if self.terms and not await coordinator.claim(self.terms, before):
            if coordinator.server:
                coordinator.server.close()
            return False
        self.coordinator, self.coordinating = coordinator, asyncio.create_task(coordinator.run())
        return True

    async def obey_one(self) -> dict[str, Any]:
        """Take part under the coordinator of the chief; return the final message."""
        if self.task == self.training["chief"] and not self.coordinating:
            await self.listen()
        return await self.join(self.training, self.port_conflict())

    async def join(self, training: dict[str, Any], refused: str) -> dict[str, Any]:
        """Connect to the coordinator and obey it; return the final message."""
        channel = await join(training, self.task, self.leaving, refused)
        try:
            return await self.obey(channel)
        finally:
            channel.close()

    async def listen(self) -> None:
        """Become the first coordinator; raise UnreachableError if its port is in use."""
        try:
            await self.coordinate()
        except TimeoutError as error:
            raise UnreachableError(str(error)) from None
        except OSError:
            port = cluster_config.split_address(control_of(self.training, self.task))[1]
            holder = ports.port_holder(port)
            sentence = f"port {port}, which coordinates the training, is in use by {holder}; change train_port_offset"
            raise UnreachableError(sentence) from None

    async def obey_each(self, terms: Terms) -> dict[str, Any]:
        """Take part under one coordinator after the other; return the final message."""
        refused, following = self.port_conflict(), asyncio.create_task(self.watch_terms(terms))
        try:
            while True:
                term = await self.next_term(terms)
                if "over" in term.content:
                    return final_message(term)
                brief = {**self.training, "control": term.content["control"], "join": CONNECT_SECONDS, "queue_timeout": 0}
                try:
                    over = await self.join(brief, refused)
                except OSError as error:
                    await self.end()
                    refused = refused if isinstance(error, UnreachableError) else ""  # until the coordinator has it
                else:
                    with contextlib.suppress(OSError):
                        term = await terms.read() or term
                    return {**final_message(term), **over}
                if self.left or self.leaving.is_set():
                    return {"over": left_sentence(self.task, self.left or STOPPED)}
                self.outcome = LEFT_OUT
        finally:
            following.cancel()

    async def watch_terms(self, terms: Terms) -> None:
        """Notice when the coordinator's file changes, also while the coordinator is reachable."""
        while True:
            with contextlib.suppress(OSError):
                await terms.read()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def next_term(self, terms: Terms) -> Term:
        """Return the coordinator to connect to, or one that has ended the training. If there is none, become it."""
        deadline = time.monotonic() + start_seconds(self.training)
        while not self.leaving.is_set():
            try:
                newest = await terms.read()
            except OSError:  # the shared folder may answer later
                await asyncio.sleep(CONNECT_SECONDS)
                continue
            is_chief = self.task == self.training["chief"]
            if newest and ("over" in newest.content or not self.is_gone(terms, newest)):
                return newest
            if newest:
                with contextlib.suppress(OSError):  # its port may still be in use for a moment
                    await self.coordinate(newest)
            elif is_chief and not self.resumed:
                await self.listen()
            elif time.monotonic() > deadline:
                raise UnreachableError(f"{self.task} could not reach the chief at {self.training['control']}: it has not started")
            await asyncio.sleep(POLL_SECONDS)
        raise UnreachableError(STOPPED)

    def is_gone(self, terms: Terms, term: Term) -> bool:
        """Return whether this task may become the coordinator after another one."""
        place = [*self.training["machines"]].index(self.task)
        own = term.content["task"] == self.task
        if own and self.coordinating and not self.coordinating.done():
            return False
        if own and not term.content["released"]:
            return True  # of this machine before it was rebooted
        delay = place * CONNECT_SECONDS + (0 if term.content["released"] and not own else HEARTBEAT_TIMEOUT_SECONDS)
        return terms.silent_seconds() > delay

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
                    await self.leave(channel)
                if self.process and self.process.returncode is not None:
                    ended = exit_description(self.process.returncode, self.output, self.task, self.tasks)
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
        if "start" in message and self.task in message.get("tasks", [self.task]):
            await self.start(message["start"], message.get("tasks"))
        if "stop" in message:
            await self.end()
            await channel.send(stopped=message["stop"])

    async def leave(self, channel: Channel) -> None:
        """Tell the coordinator that systemd stops this process. Its machine may be shut down, and return."""
        self.outcome = self.left = f"was stopped after {self.limit:g} s (run_timeout)" if self.late else STOPPED
        fatal = self.late or is_cancelled(self.output.with_name("run.json"))
        if self.coordinator and self.terms and not fatal:
            self.coordinator.left.set()
        else:
            await channel.send(leaves=self.outcome, fatal=fatal)
        if self.terms and not fatal:
            raise ConnectionAbortedError  # the others continue

    def expire(self) -> None:
        """Leave the training, because the time of its programs is over."""
        self.late = True
        self.leaving.set()

    def port_conflict(self) -> str:
        """Return a sentence if the task's port is in use, else an empty string."""
        if ports.port_is_free(self.port):
            return ""
        return f"its port {self.port} is in use by {ports.port_holder(self.port)}; change train_port_offset"

    async def start(self, attempt: int, tasks: list[str] | None = None) -> None:
        """Start the program with the tasks of an attempt; all tasks by default."""
        if not self.attempt:
            asyncio.get_running_loop().call_later(self.limit, self.expire)
        else:
            log(f"attempt {attempt}")  # the module reason looks for the last one
        self.attempt, self.outcome = attempt, "was stopped with the others"
        self.tasks = tasks or self.tasks
        deadline = time.monotonic() + TERM_SECONDS
        while self.port_conflict() and time.monotonic() < deadline:  # the previous program's server may need a moment to exit
            await asyncio.sleep(POLL_SECONDS)
        environment = dict(os.environ)
        if self.terms and tasks:
            environment["TF_CONFIG"] = tf_config(self.training, self.task, tasks)
        self.process = await asyncio.create_subprocess_exec(*self.command, start_new_session=True, env=environment)

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
    deadline = time.monotonic() + start_seconds(training)
    address, port = cluster_config.split_address(training["control"])
    while True:
        try:
            opening = asyncio.open_connection(address, port, limit=MAX_MESSAGE_BYTES)
            channel = Channel(*await asyncio.wait_for(opening, HEARTBEAT_SECONDS))
            await channel.send(run=training["id"], task=task, **({"refused": refused} if refused else {}))
        except (OSError, asyncio.TimeoutError) as error:
            if time.monotonic() > deadline or leaving.is_set():
                reason = f"within {start_seconds(training):g} s: {getattr(error, 'strerror', None) or error or 'no answer'}"
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


def exit_description(status: int, output: Path, task: str, tasks: Sequence[str]) -> str:
    """Return how the program of one of the tasks failed, with the reason in its output; empty if it succeeded."""
    if status == 0:
        return ""
    if status > 0:
        found = reason.reason_of(output, task, tasks, str(status))
        remedy = f". {found.remedy}" if found and found.remedy else ""
        return f"exited with status {status}{f': {found}' if found else ''}{remedy}"
    known = {int(each): each.name for each in signal.Signals}
    return f"was killed by {known.get(-status, f'signal {-status}')}"


def log(sentence: str) -> None:
    """Print a sentence to the run's output."""
    print(f"[training] {sentence}", flush=True)


def left_sentence(task: str, left: str) -> str:
    """Return a sentence on a task that systemd stopped. The time limit is that of the whole training."""
    return f"the training {left}" if "run_timeout" in left else f"the process of {task} {left}"


def control_of(training: dict[str, Any], task: str) -> str:
    """Return the address at which a task coordinates a training."""
    address: str = training["control"] if task == training["chief"] else training["controls"][task]
    return address


def tf_config(training: dict[str, Any], task: str, tasks: list[str]) -> str:
    """Return TF_CONFIG for a task of an attempt: indices are contiguous, and the first task is the chief."""
    jobs: dict[str, list[str]] = {}
    for name in tasks:
        jobs.setdefault(name.partition(":")[0], []).append(training["entries"][name])
    job = task.partition(":")[0]
    return json.dumps({"cluster": jobs, "task": {"type": job, "index": jobs[job].index(training["entries"][task])}})


def final_message(term: Term) -> dict[str, Any]:
    """Return how a training ended, from the file of its last coordinator."""
    history = term.content["attempts"]
    return {"over": term.content.get("over", ""), "attempts": history[-1]["attempt"] if history else 1, "history": history}


def is_cancelled(notes: Path) -> bool:
    """Return whether a user has canceled the run."""
    try:
        return bool(json.loads(notes.read_text(encoding="utf-8")).get("cancelled"))
    except (OSError, ValueError):
        return False


async def first_step(folder: Path) -> int | None:
    """Return the number of the newest checkpoint in a folder, 0 if there is none; None if it is unknown."""

    def read() -> int | None:
        found = sorted(folder.rglob("checkpoint"), key=lambda path: path.stat().st_mtime)
        number = CHECKPOINT.search(found[-1].read_text(encoding="utf-8", errors="replace")) if found else None
        return int(number[1]) if number else None if found else 0

    try:
        return await in_thread(read)
    except (OSError, ValueError):
        return None


async def take_part(noted: dict[str, Any], part: Path) -> str:
    """Take part in a training, also as coordinator if the task is the chief; return the failure, empty if none.

    ``noted`` is the content of run.json. The result is written to ``part`` as JSON.
    """
    folder = shared.folder_of(noted)
    terms = Terms(folder / "coordinators") if folder and noted["training"]["restarts"] else None
    member = Member(noted, part.with_name("stdout.log"), terms)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, member.leaving.set)
    result = await member.run()
    part.write_text(json.dumps(result), encoding="utf-8")
    if member.coordinating:  # until all others have the final message
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(member.coordinating, 2 * HEARTBEAT_SECONDS)
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
