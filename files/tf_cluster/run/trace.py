"""Record TensorFlow's step statistics of all tasks in Chrome's trace-event format.

sitecustomize.py loads this after TensorFlow in a run with a trace (``TF_CLUSTER_TRACE``). It wraps ``Session.run``, runs some
steps with a full trace, and adds the statistics of all tasks to ``trace.json`` in ``TF_RUN_DIR``: of the first 20 steps, then of
every 50th, at most 100 steps, and none after 100,000 operations. Arguments and results of ``run`` do not change.

The file is complete after each traced step. A process is a task of the cluster. A thread is a lane of a device, of a GPU stream
or of transfers from other tasks. Times are microseconds since the trace began, by the clock of each machine.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tensorflow.core.framework.step_stats_pb2 import DeviceStepStats, NodeExecStats, StepStats
    from tensorflow.core.framework.tensor_description_pb2 import TensorDescription
    from tensorflow.core.protobuf.config_pb2 import RunMetadata, RunOptions
    from tensorflow.python.client.session import BaseSession

Event = dict[str, Any]  # of Chrome's trace-event format: name, ph, pid, tid, ts, args, ...

FIRST_STEPS, STEP_INTERVAL, MAX_STEPS = 20, 50, 100
MAX_OPERATIONS = 100_000  # some 40 MB of trace.json
MAX_LABEL_LENGTH = 300  # characters of an operation's inputs
FORMAT = "tf-cluster-1"  # distinguishes this file from a program's own trace.json
END = b"\n]}\n"
NO_TASK = ""
# GPU devices that repeat the entries of the streams.
REPEATED = ("/stream:all", "/memcpy")
TRANSFER = re.compile(r"(?:edge_\d+_)?(\S+) from (\S+) to (\S+)$")


class Recorder:
    """Turns step statistics into events and adds them to the file."""

    def __init__(self, path: Path, program_task: str, versions: dict[str, str]) -> None:
        self.path, self.program_task = path, program_task
        self.origin = time.time_ns()
        self.steps = self.traced = self.operations = self.flows = 0
        self.failed = False
        self.pids: dict[str, int] = {}
        self.lanes: dict[
            tuple[str, str], list[float]
        ] = {}  # (task, device) -> end of the last event of each lane, in microseconds
        self.tids: dict[tuple[str, str, int], int] = {}
        self.lock = threading.Lock()
        self.process = os.getpid()
        # O_EXCL: a second process of the program must not overwrite the first one's trace.
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        limits = {
            "first_steps": FIRST_STEPS,
            "then_each": STEP_INTERVAL,
            "most_steps": MAX_STEPS,
            "most_operations": MAX_OPERATIONS,
        }
        about = {"format": FORMAT, "began": self.origin / 1e9, "program_task": program_task, **versions, **limits}
        head = f'{{"displayTimeUnit": "ms",\n"otherData": {json.dumps(about)},\n"traceEvents": [\n'.encode()
        os.write(self.file, head + END)
        self.place, self.empty = len(head), True

    def remove_if_profiled(self) -> None:
        """Remove the file of a program that ran no session step, if it has a profile (profile.py)."""
        if self.empty and os.getpid() == self.process and (self.path.parent / "profile").is_dir():
            self.path.unlink(missing_ok=True)

    def next_step(self) -> int | None:
        """Count a step; return its number (from 1) if it must be traced, else None."""
        with self.lock:
            self.steps += 1
            wanted = self.steps <= FIRST_STEPS or self.steps % STEP_INTERVAL == 0
            left = self.traced < MAX_STEPS and self.operations < MAX_OPERATIONS
            if not (wanted and left and not self.failed and os.getpid() == self.process):
                return None
            self.traced += 1
            return self.steps

    def add(self, step: int, begun: int, ended: int, step_stats: StepStats) -> None:
        """Add a step that took from ``begun`` to ``ended`` (nanoseconds since 1970) to the file."""
        with self.lock:
            events = self.slice(
                self.program_task, "session.run", f"step {step}", "step", self.since(begun), (ended - begun) / 1e3
            )
            events[-1]["args"] = {"step": step}
            made: dict[tuple[str, str], Event] = {}  # (task, operation) -> its event, the source of transfers
            arrived = []
            owners = kernel_owners(step_stats)
            for place, device in enumerate(step_stats.dev_stats):
                task, name = split_device(device.device)
                if task == NO_TASK:
                    events += self.kernels(step, owners.get(place, self.program_task), name, device)
                    continue
                for node in sorted(device.node_stats, key=start_of):
                    if node.node_name == "RecvTensor":
                        arrived.append(node)
                    elif node.node_name not in ("_SOURCE", "_SINK"):
                        events += self.operation(step, task, name, node)
                        made[task, node.node_name] = events[-1]
                        self.operations += 1
            for node in sorted(arrived, key=start_of):
                events += self.transfer(step, node, made)
            self.write(events)

    def operation(self, step: int, task: str, device: str, node: NodeExecStats) -> list[Event]:
        """Return the events of one operation."""
        events = self.slice(task, device, node.node_name, "operation", self.since(start_of(node)), duration_of(node))
        label = node.timeline_label
        call = re.search(r" = (\w+)\((.*)", label)
        arguments = {
            "step": step,
            "op": call[1] if call else "",
            "inputs": call[2].removesuffix(")")[:MAX_LABEL_LENGTH] if call else label[:MAX_LABEL_LENGTH],
            "outputs": [shape_of(output.tensor_description) for output in node.output][:8],
            "allocated_bytes": sum(memory.total_bytes for memory in node.memory),
            "peak_bytes": sum(memory.peak_bytes for memory in node.memory),
        }
        if node.scheduled_nanos:
            arguments["waited_us"] = round((node.all_start_nanos - node.scheduled_nanos) / 1e3, 3)
        events[-1]["args"] = {name: value for name, value in arguments.items() if value not in ("", [], 0)}
        return events

    def kernels(self, step: int, task: str, name: str, device: DeviceStepStats) -> list[Event]:
        """Return the events of one GPU stream, as the driver recorded them."""
        events: list[Event] = []
        if name.endswith(REPEATED):
            return events
        for node in sorted(device.node_stats, key=start_of):
            operation = node.node_name.rpartition(":")[0] or node.node_name
            events += self.slice(task, name, operation, "kernel", self.since(start_of(node)), duration_of(node))
            events[-1]["args"] = {"step": step, "kernel": node.timeline_label[:MAX_LABEL_LENGTH]}
        return events

    def transfer(self, step: int, node: NodeExecStats, made: dict[tuple[str, str], Event]) -> list[Event]:
        """Return the events of a transfer from another task, with an arrow from the operation that made the tensor."""
        found = TRANSFER.search(node.timeline_label)
        if not found:
            return []
        tensor, source, target = found[1], split_device(found[2]), split_device(found[3])
        size = sum(output.tensor_description.allocation_description.requested_bytes for output in node.output)
        took = duration_of(node)
        events = self.slice(target[0], "from other tasks", tensor, "transfer", self.since(start_of(node)), took)
        event = events[-1]
        event["args"] = {"step": step, "from": source[0], "to": target[0], "device": target[1], "bytes": size}
        if took:
            event["args"]["bytes_per_second"] = round(size / took * 1e6)
        sender = made.get((source[0], tensor))
        if sender:
            self.flows += 1
            arrow = {"name": tensor, "cat": "transfer", "id": self.flows}
            begin = {"ph": "s", "pid": sender["pid"], "tid": sender["tid"], "ts": within(sender, 0.999)}
            end = {"ph": "f", "bp": "e", "pid": event["pid"], "tid": event["tid"], "ts": within(event, 0.001)}
            events += [arrow | begin, arrow | end]
        return events

    def slice(self, task: str, device: str, name: str, category: str, begun: float, took: float) -> list[Event]:
        """Return the event of a period in the device's first free lane, after events that name a new process or thread.

        ``begun`` and ``took`` are microseconds.
        """
        events = []
        if task not in self.pids:
            self.pids[task] = len(self.pids) + 1
            events.append({"name": "process_name", "ph": "M", "pid": self.pids[task], "args": {"name": task}})
        free = self.lanes.setdefault((task, device), [])
        lane = next((lane for lane, until in enumerate(free) if until <= begun), len(free))
        free[lane : lane + 1] = [begun + took]
        new = (task, device, lane) not in self.tids
        place = {"pid": self.pids[task], "tid": self.tids.setdefault((task, device, lane), len(self.tids) + 1)}
        if new:
            shown = f"{device} ({lane + 1})" if lane else device
            events.append({"name": "thread_name", "ph": "M", **place, "args": {"name": shown}})
        return [*events, {"name": name, "cat": category, "ph": "X", **place, "ts": round(begun, 3), "dur": round(took, 3)}]

    def since(self, nanoseconds: int) -> float:
        """Return microseconds since the trace began."""
        return (nanoseconds - self.origin) / 1e3

    def write(self, events: list[Event]) -> None:
        """Insert events before the end of the file, in one call, so that readers always find a complete file."""
        text = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events).encode()
        text = text if self.empty else b",\n" + text
        os.pwrite(self.file, text + END, self.place)
        self.place, self.empty = self.place + len(text), False


def kernel_owners(step_stats: StepStats) -> dict[int, str]:
    """Return index in ``dev_stats`` of each device without a task -> its task.

    GPU kernels are listed under devices such as "/device:GPU:0/stream:13". These names have no task, their nodes are named by
    operation and type ("c:MatMul"), and they precede the devices of their task (seen with TensorFlow 2.21).
    """
    operations: dict[str, str] = {}  # operation -> task
    owners: dict[int, str] = {}
    waiting: list[int] = []
    tasks = [split_device(device.device)[0] for device in step_stats.dev_stats]
    computed = [
        [node.node_name for node in device.node_stats if node.node_name != "RecvTensor"] for device in step_stats.dev_stats
    ]
    for task, own in zip(tasks, computed):
        if task != NO_TASK:
            operations.update(dict.fromkeys(own, task))
    for place, task in enumerate(tasks):
        if task == NO_TASK:
            waiting.append(place)
        elif computed[place]:
            named = [operations.get(name.rpartition(":")[0]) for one in waiting for name in computed[one]]
            known = [owner for owner in named if owner]
            owners.update((one, max(set(known), key=known.count) if known else task) for one in waiting)
            waiting = []
    return owners


def within(event: Event, part: float) -> float:
    """Return a time within an event: viewers attach an arrow to the event that encloses its end."""
    moment: float = event["ts"] + event["dur"] * part
    return round(moment, 3)


def split_device(name: str) -> tuple[str, str]:
    """Return task and device of a full device name, such as ("worker:1", "CPU:0"); the task may be NO_TASK."""
    job, task = re.search(r"/job:([^/]+)", name), re.search(r"/task:(\d+)", name)
    device = re.search(r"/(?:device:)?([a-zA-Z]+:\d+.*)$", re.sub(r"^(/(job|replica|task):[^/]+)+", "", name))
    return f"{job[1]}:{task[1] if task else 0}" if job else NO_TASK, device[1] if device else name


def start_of(node: NodeExecStats) -> int:
    """Return when a node began, in nanoseconds since 1970."""
    begun: int = node.all_start_nanos or node.all_start_micros * 1000
    return begun


def duration_of(node: NodeExecStats) -> float:
    """Return how long a node took, in microseconds."""
    return node.all_end_rel_nanos / 1e3 if node.all_end_rel_nanos else float(node.all_end_rel_micros)


def shape_of(tensor: TensorDescription) -> str:
    """Return type and shape of a tensor: "float[2,3]"."""
    from tensorflow.core.framework import types_pb2

    name = types_pb2.DataType.Name(tensor.dtype).removeprefix("DT_").lower() if tensor.dtype else "?"
    return f"{name}[{','.join(str(dim.size) for dim in tensor.shape.dim)}]"


def program_task() -> str:
    """Return the program's task, such as "host:0"."""
    try:
        task = json.loads(os.environ["TF_CONFIG"])["task"]
        return f"{task['type']}:{task['index']}"
    except (KeyError, TypeError, ValueError):
        return "program:0"


def install(begin: Callable[[], None]) -> None:
    """Wrap TensorFlow's ``Session.run``, unless another process of the program records the trace.

    ``begin`` is called before the first step.
    """
    import tensorflow
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.client import session

    versions = {"tensorflow": tensorflow.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    try:
        recorder = Recorder(Path(os.environ.get("TF_RUN_DIR", ".")) / "trace.json", program_task(), versions)
    except FileExistsError:
        return
    atexit.register(recorder.remove_if_profiled)
    plain_run, full = session.BaseSession.run, config_pb2.RunOptions.FULL_TRACE

    @functools.wraps(plain_run)
    def run(
        self: BaseSession,
        fetches: Any,
        feed_dict: Any = None,
        options: RunOptions | None = None,
        run_metadata: RunMetadata | None = None,
    ) -> Any:
        step = None if hasattr(self, "tf_cluster_check") else recorder.next_step()
        if step == 1:
            begin()
        if step is None:
            return plain_run(self, fetches, feed_dict=feed_dict, options=options, run_metadata=run_metadata)
        asked, record = config_pb2.RunOptions(), config_pb2.RunMetadata()
        if options is not None:
            asked.CopyFrom(options)
        traced_already, asked.trace_level = asked.trace_level, full
        begun = time.time_ns()
        result = plain_run(self, fetches, feed_dict=feed_dict, options=asked, run_metadata=record)
        ended = time.time_ns()
        try:
            recorder.add(step, begun, ended, record.step_stats)
        except Exception as error:  # tracing must not stop the program
            recorder.failed = True
            print(f"[trace] no further steps are traced: {error!r}", file=sys.stderr)
        if run_metadata is not None:
            if not traced_already:
                record.ClearField("step_stats")
            run_metadata.CopyFrom(record)
        return result

    session.BaseSession.run = run
