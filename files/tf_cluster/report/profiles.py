"""Turn the profiles of a run (``profile/``, see run/profile.py) into a trace.

Times are in seconds since the first profile began, by the clock of each machine. TensorFlow's profiler records operations by
their thread, GPU kernels by their stream, and no sizes of what tasks send each other.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import xplane
from .trace_figure import Bar, Trace

FOLDER = "profile/plugins/profile"
PROFILE = re.compile(r"(\w+)-(\d+)\.xplane\.pb")  # of a task; a program's own profiles have other names
MAX_BYTES = 100_000_000  # of all profiles that are read: some 15 s
HOST_PLANE, GPU_PLANE = "/host:CPU", re.compile(r"/device:(GPU:\d+)")
STREAM = re.compile(r"Stream #(\d+)")
OPERATION = re.compile(r"([\w.][\w./>-]*):([A-Z_]\w*)")  # as TensorFlow's own tools recognise one: name and type
HANDLER = re.compile(r"\w+Service")  # of calls from other tasks, which encloses the operations and the waits of a call
MOVES = ("_Send", "_Recv", "_HostSend", "_HostRecv", "_Arg", "_Retval")  # types that compute nothing
COLLECTIVE = re.compile(r"(Nccl|Collective)\w+")
DEVICE = r"/job:(\w+)/replica:\d+/task:(\d+)/\S*?"
KEY = re.compile(rf"{DEVICE};\w+;{DEVICE};(\S+?);")  # of a tensor that one device sends another
COPY = re.compile(rf"_Send input (\d+) from {DEVICE} to {DEVICE}")
RECEIVING, RECEIVED = "ExecutorState::ProcessAsync::Start", "ExecutorState::ProcessAsync::Done"
STEPS, CPU, ARRIVING = "steps", "CPU", "from other tasks"  # lanes
ALL_TASKS = "all tasks"  # between which a collective operation works


class Profile(NamedTuple):
    """The profile of a task in a window."""

    task: str
    window: str
    began: int  # nanoseconds since 1970
    events: list[xplane.Event]

    def bar(self, event: xplane.Event, name: str, category: str, lane: str, **more: Any) -> Bar:
        """Return an event as a bar, whose time is in seconds since 1970."""
        return Bar(name, category, self.task, lane, (self.began + event.begun) / 1e9, event.took / 1e9, more)


def gather(folder: Path) -> None:
    """Move the profiles of a training's tasks to those of its chief, as TensorBoard expects them."""
    for path in sorted(folder.glob(f"tasks/*/{FOLDER}/*/*.xplane.pb")):
        if PROFILE.fullmatch(path.name):
            target = folder / FOLDER / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def read(folder: Path, program_task: str) -> Trace | None:
    """Return the trace of a run's profiles; None if it has none. Raise ValueError if they cannot be read."""
    paths = [path for path in sorted((folder / FOLDER).glob("*/*.xplane.pb")) if PROFILE.fullmatch(path.name)]
    total = sum(path.stat().st_size for path in paths)
    if total > MAX_BYTES:
        raise ValueError(f"its profiles have {total / 1e6:.0f} MB, more than the limit of {MAX_BYTES / 1e6:.0f} MB")
    return trace_of([load(path) for path in paths], program_task) if paths else None


def load(path: Path) -> Profile:
    """Return the profile in a file."""
    found = PROFILE.fullmatch(path.name)
    began, planes = xplane.read(path)
    task = f"{found[1]}:{found[2]}" if found else path.stem
    return Profile(task, path.parent.name, began, [event for plane in planes for event in plane.events()])


def trace_of(profiles: list[Profile], program_task: str) -> Trace:
    """Return the trace of some profiles."""
    steps = numbered_steps(profiles, program_task)
    bars = [bar for found in steps.values() for bar in found]
    for profile in profiles:
        own = steps.get(profile.task) or steps.get(program_task, [])
        for bar in laid_out([*operations(profile), *kernels(profile), *transfers(profile, profiles)]):
            step = next((step.more["step"] for step in own if step.begun <= bar.begun <= step.ended), None)
            bars.append(bar if step is None else bar._replace(more={**bar.more, "step": step}))
    origin = min((bar.begun for bar in bars), default=0.0)
    about = {"program_task": program_task, "windows": len({profile.window for profile in profiles})}
    return Trace(about, [bar._replace(begun=bar.begun - origin) for bar in bars], [], profiled=True)


def numbered_steps(profiles: list[Profile], program_task: str) -> dict[str, list[Bar]]:
    """Return task -> its steps. Those of the program's task are counted; those of others get the number of the nearest."""
    found: dict[str, list[Bar]] = {}
    for profile in profiles:
        found.setdefault(profile.task, []).extend(steps_of(profile, profile.task == program_task))
    leading = sorted(found.get(program_task) or [bar for bars in found.values() for bar in bars], key=lambda bar: bar.begun)
    starts = [bar.begun for bar in leading]
    numbered = {}
    for task, bars in found.items():
        numbers = [nearest(starts, bar.begun) + 1 for bar in bars]
        numbered[task] = [bar._replace(more={"step": number}) for bar, number in zip(bars, numbers)]
    return numbered


def nearest(ordered: list[float], value: float) -> int:
    """Return the index of the number that is nearest to a value."""
    place = bisect.bisect(ordered, value)
    return min(range(max(0, place - 1), min(len(ordered), place + 1)), key=lambda index: abs(ordered[index] - value))


def steps_of(profile: Profile, of_program: bool) -> list[Bar]:
    """Return the steps of a profile.

    A step is what the program (or Keras) marks as one, else an outermost call of a ``tf.function``. A program without both has
    one step in a window: all of it.
    """
    marked, called = [], []
    for event in profile.events:
        if event.plane.name == HOST_PLANE and event.line == "python" and event.raw_stats:
            stats = event.stats()
            if "step_num" in stats:
                marked.append(profile.bar(event, f"{event.name} {stats['step_num']}", "step", STEPS))
            elif "tf_function_call" in stats:
                called.append(profile.bar(event, event.name, "step", STEPS))
    steps = outermost(marked or called)
    if steps or not of_program or not profile.events:
        return steps
    begun = min(event.begun for event in profile.events)
    ended = max(event.begun + event.took for event in profile.events)
    return [Bar("window", "step", profile.task, STEPS, (profile.began + begun) / 1e9, (ended - begun) / 1e9, {})]


def outermost(bars: list[Bar]) -> list[Bar]:
    """Return the bars that lie in no other one, in their order."""
    found: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: (bar.begun, -bar.took)):
        if not found or bar.begun >= found[-1].ended:
            found.append(bar)
    return found


def operations(profile: Profile) -> Iterator[Bar]:
    """Return the operations that threads of the task executed. Those on a GPU are there while they start their kernels."""
    for event in profile.events:
        found = OPERATION.fullmatch(event.name)
        if not found or event.plane.name != HOST_PLANE or HANDLER.fullmatch(found[1]):
            continue
        if not found[2].startswith(MOVES) and not COLLECTIVE.fullmatch(found[2]):
            yield profile.bar(event, found[1], "operation", CPU, op=found[2])


def kernels(profile: Profile) -> Iterator[Bar]:
    """Return what ran on the task's GPUs: a process records its own kernels, also if tasks share a GPU."""
    for event in profile.events:
        gpu, stream = GPU_PLANE.match(event.plane.name), STREAM.match(event.line)
        if gpu and stream:
            operation, _colon, kind = str(event.stats().get("tf_op", "")).rpartition(":")
            lane = f"{gpu[1]}/stream:{stream[1]}"
            yield profile.bar(event, operation or event.name, "kernel", lane, kernel=event.name, op=kind or event.name)


def transfers(profile: Profile, profiles: list[Profile]) -> Iterator[Bar]:
    """Return what came from other tasks, each from the moment in which the task waited for it."""
    waiting: dict[tuple[str, Any], xplane.Event] = {}
    sources = senders(profile, profiles)
    for event in sorted((event for event in profile.events if event.plane.name == HOST_PLANE), key=lambda event: event.begun):
        operation = OPERATION.fullmatch(event.name)
        kind = operation[2] if operation else ""
        if event.name in (RECEIVING, RECEIVED):
            stats = event.stats()
            if stats.get("kernel_type") == "_Recv":
                name = str(stats["name"])
                if event.name == RECEIVING:
                    waiting[name, stats.get("step_id")] = event
                    continue
                begun, source = waiting.pop((name, stats.get("step_id")), None), sources.get(name.rpartition("/_")[0])
                if begun and source:
                    whole = begun._replace(took=event.begun - begun.begun)
                    yield moved(profile, whole, name.rpartition("/_")[0], source)
        elif kind == "_Recv" and (found := KEY.match(str(event.stats().get("key", "")))):
            if task_of(found, 1) != profile.task == task_of(found, 3):
                yield moved(profile, event, found[5], task_of(found, 1))
        elif operation and COLLECTIVE.fullmatch(kind) and event.line.startswith("collective_ops"):
            yield moved(profile, event, operation[1], ALL_TASKS, op=kind)
        elif (found := COPY.match(event.name)) and task_of(found, 2) == profile.task != task_of(found, 4):
            # Only the sender records it.
            sent = moved(profile, event, f"input {found[1]}", profile.task, task_of(found, 4))
            yield sent._replace(task=task_of(found, 4))


def moved(profile: Profile, event: xplane.Event, name: str, source: str, target: str = "", **more: Any) -> Bar:
    """Return a transfer from a task to another, by default to the profile's."""
    return profile.bar(event, name, "transfer", ARRIVING, **{"from": source, "to": target or profile.task}, **more)


def senders(profile: Profile, profiles: list[Profile]) -> dict[str, str]:
    """Return name of a tensor -> task that sends it to the profile's task."""
    sent = (
        (event.name.rpartition("/_")[0], KEY.match(str(event.stats().get("key", ""))))
        for other in profiles
        if other.task != profile.task and other.window == profile.window
        for event in other.events
        if event.name.endswith(":_Send")
    )
    return {name: task_of(key, 1) for name, key in sent if key and task_of(key, 1) != profile.task == task_of(key, 3)}


def task_of(found: re.Match[str], place: int) -> str:
    """Return the task that two groups name."""
    return f"{found[place]}:{found[place + 1]}"


def laid_out(bars: list[Bar]) -> list[Bar]:
    """Return bars in lanes, so that no two of a lane lie on each other."""
    lanes: dict[tuple[str, str], list[float]] = {}  # (task, lane) -> end of the last bar of each of its rows
    found = []
    for bar in sorted(bars, key=lambda bar: bar.begun):
        rows = lanes.setdefault((bar.task, bar.lane), [])
        row = next((row for row, until in enumerate(rows) if until <= bar.begun), len(rows))
        rows[row : row + 1] = [bar.ended]
        found.append(bar._replace(lane=f"{bar.lane} ({row + 1})" if row else bar.lane))
    return found
