"""The helper for programs; ``tf_cluster`` itself has all of it."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import json
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .spec.cluster_config import RUN_JOBS

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["ClusterError", "cluster", "connect", "on", "retrying", "save_result", "session", "step", "task", "tasks"]

T = TypeVar("T")  # what a program's work returns
_own: dict[str, Any] = {}  # this process's server or connection: TensorFlow has one of them a process
_steps: dict[str, float] = {}  # when the last step was printed


class ClusterError(Exception):
    """The cluster is not as the program needs it; the message is a sentence."""


def cluster() -> dict[str, list[str]]:
    """Return the cluster spec: job -> list of ``address:port``, in the order of the task indices.

    Raises ClusterError where there is none, or something else in its place.
    """
    source, text = "TF_CONFIG", os.environ.get("TF_CONFIG", "")
    spec = _parsed(source, text).get("cluster") if text else None
    if not spec:
        source = os.environ.get("TF_CLUSTER_CONFIG") or "config.json"
        try:
            spec = _parsed(source, Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ClusterError(f"no cluster: neither TF_CONFIG nor TF_CLUSTER_CONFIG is set, and {source}: {error}") from None
    if not isinstance(spec, dict) or not all(_is_job(entries) for entries in spec.values()):
        raise ClusterError(f'{source} is not a cluster spec, as in {{"worker": ["10.0.0.5:2222"], "host": ["10.0.0.6:2223"]}}')
    return spec


def _parsed(source: str, text: str) -> dict[str, Any]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"{source} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ClusterError(f"{source} is {type(found).__name__}, not an object")
    return found


def _is_job(entries: object) -> bool:
    form = re.compile(r".+:[1-9][0-9]{0,4}")
    return isinstance(entries, list) and all(isinstance(entry, str) and form.fullmatch(entry) for entry in entries)


def task() -> tuple[str, int]:
    """Return job and index of this process's own task: what TF_CONFIG says, else the seed's ``("host", 0)``."""
    own = _parsed("TF_CONFIG", os.environ.get("TF_CONFIG") or "{}").get("task") or {}
    try:
        return str(own.get("type", "host")), int(own.get("index", 0))
    except (AttributeError, TypeError, ValueError):
        raise ClusterError(f"the task in TF_CONFIG is {own!r}, not a type and an index") from None


def on(job: str, index: int = 0, gpu: int | None = None, cpu: int | None = None) -> str:
    """Return the name of a task's device for ``tf.device``, as in "/job:worker/task:1/device:GPU:0".

    Raises ClusterError where the cluster has no such task; whether it has the GPU, ``ready_needs`` of a run asks before.
    """
    spec = cluster()
    if not 0 <= index < len(spec.get(job, [])):
        there = ", ".join(f"{name}:{number}" for name, entries in sorted(spec.items()) for number in range(len(entries)))
        left_out = os.environ.get("TF_CLUSTER_MISSING")
        without = f" ({left_out} of the cluster did not answer and is left out of this run)" if left_out else ""
        raise ClusterError(f"the cluster has no task {job}:{index}; it has {there}{without}")
    device = "" if gpu is None and cpu is None else f"/device:CPU:{cpu}" if gpu is None else f"/device:GPU:{gpu}"
    return f"/job:{job}/task:{index}{device}"


def tasks(job: str | None = None) -> list[str]:
    """Return the device names of a job's tasks, or of all that are servers of their own (not ``host`` and ``chief``)."""
    spec = cluster()
    if job is not None and job not in spec:
        raise ClusterError(f"the cluster has no job {job}; it has {', '.join(sorted(spec))}")
    jobs = [job] if job is not None else [name for name in spec if name not in RUN_JOBS]
    return [on(name, index) for name in jobs for index in range(len(spec[name]))]


def session(
    deadline: float = 60.0, graph: tf.Graph | None = None, config: tf.compat.v1.ConfigProto | None = None
) -> tf.compat.v1.Session:
    """Open a ``tf.compat.v1.Session`` on the cluster. A step that takes longer than ``deadline`` seconds fails.

    It fails with TensorFlow's ``DeadlineExceededError``; without a limit a session with a dead task hangs for ever. ``graph`` is
    the default graph, ``config`` a ``ConfigProto`` of your own. The first call starts this task's own server. A task that does
    not answer is waited for, for ``deadline`` seconds at most; then ClusterError names it.
    """
    import tensorflow as tf

    own = tf.compat.v1.ConfigProto()
    if config is not None:
        own.CopyFrom(config)
    own.operation_timeout_in_ms = int(deadline * 1000)
    target = _server().target
    _await_tasks(deadline)  # a session that begins while a task is frozen hangs, whatever its limit
    return _session_class()(target, graph=graph, config=own)


@functools.cache
def _session_class() -> type[tf.compat.v1.Session]:
    """Return TensorFlow's session, but that it is not closed once a step took too long: that would wait for the frozen task."""
    import tensorflow as tf

    class Session(tf.compat.v1.Session):  # type: ignore[misc]  # TensorFlow has no types
        left_alone = False

        def run(self, *words: Any, **more: Any) -> Any:
            try:
                return super().run(*words, **more)
            except tf.errors.DeadlineExceededError:
                if not self.left_alone:
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # nor when Python ends
                self.left_alone = True
                raise

        def close(self) -> None:
            if not self.left_alone:
                super().close()

    return Session


def _server() -> tf.distribute.Server:
    """Return this task's own server, started once."""
    import tensorflow as tf

    if "connection" in _own:
        raise ClusterError("this program is connected to the cluster by connect(): it cannot open sessions as well")
    if "server" not in _own:
        (job, index), spec = task(), cluster()
        on(job, index)  # says what is there if it is not
        _leave_proxies(spec)
        _own["server"] = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name=job, task_index=index)
    return _own["server"]


def connect(deadline: float = 60.0) -> list[str]:
    """Connect this program's eager operations to the cluster, and return the names of the standing tasks.

    Each task has to compute something within ``deadline`` seconds altogether, otherwise ClusterError names those that did not.
    A task that goes away later ends the connection for good: a program that has to survive that uses ``retrying``.
    """
    import tensorflow as tf

    if "server" in _own:
        raise ClusterError("this program has opened sessions on the cluster: it cannot connect to it as well")
    until, (job, index), devices = time.monotonic() + deadline, task(), tasks()
    on(job, index)
    if "connection" not in _own:
        _leave_proxies(cluster())
        _await_tasks(deadline)
        tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(cluster()), job_name=job, task_index=index)
        _own["connection"] = True
    computed: dict[str, bool | str] = {}  # device -> whether it computed, or why not

    def compute(device: str) -> None:
        try:
            with tf.device(f"{device}/device:CPU:0"):
                computed[device] = int(tf.constant(1) + tf.constant(1)) == 2
        except tf.errors.OpError as error:
            computed[device] = error.message

    threads = [threading.Thread(target=compute, args=(device,), daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    wrong = [f"{device} ({computed.get(device) or 'hangs'})" for device in devices if computed.get(device) is not True]
    if wrong:
        raise ClusterError(f"after {deadline:.0f} s these tasks had computed nothing: {', '.join(wrong)}")
    return devices


def retrying(
    work: Callable[[tf.compat.v1.Session], T],
    *,
    deadline: float = 60.0,
    seconds: float = 120.0,
    times: int = 5,
    graph: tf.Graph | None = None,
    config: tf.compat.v1.ConfigProto | None = None,
) -> T:
    """Call ``work(session)`` and return what it returns; again with a *new* session when a task went away meanwhile.

    A session never recovers from a task that was restarted, and what the task held (variables, queues) is gone: ``work`` begins
    anew, so it initialises or restores what it needs. Waits at most ``seconds`` for tasks to come back, each time, and makes at
    most ``times`` further sessions; says on standard error what it waits for. After that, ClusterError.
    """
    import tensorflow as tf

    gone = (tf.errors.AbortedError, tf.errors.UnavailableError, tf.errors.DeadlineExceededError)
    for attempt in range(times + 1):
        if attempt:
            time.sleep(min(5.0, 0.5 * 2 ** (attempt - 1)))
            _await_tasks(seconds)
        opened = session(deadline, graph, config)
        try:
            with opened.graph.as_default(), opened.as_default():
                done = work(opened)
        except gone as error:
            lines = [line for line in error.message.splitlines() if not re.match(r"\s*$|=+$|Graph execution error", line)]
            reason = f"{type(error).__name__}: {' '.join(lines[:2]) or 'no reason given'}"
            if attempt == times:
                raise ClusterError(f"gave up after {times + 1} sessions; the last one failed with {reason}") from error
            _say(f"{reason}; makes session {attempt + 2} of at most {times + 1} when all tasks answer")
        else:
            opened.close()
            return done
    raise ClusterError("times is less than 0")


def _await_tasks(seconds: float) -> None:
    """Wait until every standing task answers; say every few seconds which do not; ClusterError after ``seconds``."""
    spec, begun, due = cluster(), time.monotonic(), time.monotonic() + 2
    left = {(job, index): entry for job in spec if job not in RUN_JOBS for index, entry in enumerate(spec[job])}
    left.pop(task(), None)
    while True:
        with concurrent.futures.ThreadPoolExecutor(max_workers=64) as pool:
            found = pool.map(answers, left, left.values())
        left = {name: entry for (name, entry), answer in zip(left.items(), found) if not answer}
        if not left:
            return
        waited, names = time.monotonic() - begun, ", ".join(f"{job}:{index} at {entry}" for (job, index), entry in left.items())
        if waited > seconds:
            raise ClusterError(f"still no answer after {waited:.0f} s from {names}")
        if time.monotonic() > due:
            _say(f"waits for {names} ({waited:.0f} s of at most {seconds:.0f})")
            due = time.monotonic() + 10
        time.sleep(0.2)


def answers(name: tuple[str, int], entry: str) -> bool:
    """Tell whether a task takes connections, and computes something within three seconds."""
    address, _colon, port = entry.rpartition(":")
    try:
        socket.create_connection((address.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    import tensorflow as tf

    v1 = tf.compat.v1
    # The task's own session, which has a real limit; it knows of no other task.
    config = v1.ConfigProto(operation_timeout_in_ms=3000, device_filters=["/job:nobody"])
    try:
        with tf.Graph().as_default(), v1.Session(f"grpc://{entry}", config=config) as asked:
            return bool(asked.run(tf.constant(1)) == 1)
    except tf.errors.OpError:
        return False


def _leave_proxies(spec: dict[str, list[str]]) -> None:
    """Keep gRPC from sending the cluster's traffic to a proxy that the environment names."""
    addresses = {entry.rpartition(":")[0].strip("[]") for entries in spec.values() for entry in entries}
    os.environ.setdefault("no_grpc_proxy", ",".join(sorted(addresses)))


def _say(sentence: str) -> None:
    print(f"tf_cluster: {sentence}", file=sys.stderr, flush=True)


def save_result(value: object) -> Path:
    """Write ``value`` as the run's result.json, whole or not at all, and return its path (in TF_RUN_DIR, else here).

    Takes what JSON has, and NumPy arrays and scalars, tensors, tuples, sets, bytes and paths, in dicts and lists too. NaN and
    infinite numbers, which JSON does not have, become null. TypeError names anything else.
    """
    path = Path(os.environ.get("TF_RUN_DIR") or ".", "result.json")
    text = json.dumps(_plain(value), allow_nan=False, indent=1)
    temporary = path.with_name(f".result.json.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for method in ("numpy", "to_list", "tolist"):  # a tensor, a ragged one, an array or a scalar of NumPy's
        if callable(getattr(value, method, None)):
            inner = getattr(value, method)()
            if type(inner) is not type(value):
                return _plain(inner)
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"a result cannot hold {value!r}, a {type(value).__name__}")


def step(number: int, of: int | None = None, every: float = 1.0, **values: object) -> None:
    """Print that a step is done, as in "step 40 of 100, loss 0.25": ``number`` from 1, ``values`` what a person wants to see.

    At most one line every ``every`` seconds, but always the last step, so that a million steps are no million lines.
    """
    now = time.monotonic()
    if number != of and now - _steps.get("printed", -math.inf) < every:
        return
    _steps["printed"] = now
    words = [f"step {number}" + ("" if of is None else f" of {of}")]
    for name, value in values.items():
        value = _plain(value)
        words.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
    print(", ".join(words), flush=True)
