"""Implementation of the public API; import it from ``tf_cluster``."""

from __future__ import annotations

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

T = TypeVar("T")
_own: dict[str, Any] = {}  # this process's server or connection: TensorFlow allows one per process
_steps: dict[str, float] = {}  # when the last step was printed


class ClusterError(Exception):
    """The cluster spec or a task does not meet the program's needs. The message says why."""


def cluster() -> dict[str, list[str]]:
    """Return the cluster spec: job -> list of ``address:port``, in the order of the task indices.

    Raises ClusterError if it is missing or invalid.
    """
    source, text = "TF_CONFIG", os.environ.get("TF_CONFIG", "")
    spec = _parsed(source, text).get("cluster") if text else None
    if not spec:
        source = os.environ.get("TF_CLUSTER_CONFIG") or "config.json"
        try:
            spec = _parsed(source, Path(source).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ClusterError(
                f"no cluster spec: {source} cannot be read ({error}). Set TF_CONFIG or TF_CLUSTER_CONFIG."
            ) from None
    if not isinstance(spec, dict) or not all(_is_job(entries) for entries in spec.values()):
        raise ClusterError(f'{source} is not a cluster spec, as in {{"worker": ["10.0.0.5:2222"], "host": ["10.0.0.6:2223"]}}')
    return spec


def _parsed(source: str, text: str) -> dict[str, Any]:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"{source} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ClusterError(f"{source} must be a JSON object, not {type(found).__name__}")
    return found


def _is_job(entries: object) -> bool:
    form = re.compile(r".+:[1-9][0-9]{0,4}")
    return isinstance(entries, list) and all(isinstance(entry, str) and form.fullmatch(entry) for entry in entries)


def task() -> tuple[str, int]:
    """Return job and index of this process's task: from TF_CONFIG, else ``("host", 0)``."""
    own = _parsed("TF_CONFIG", os.environ.get("TF_CONFIG") or "{}").get("task") or {}
    try:
        return str(own.get("type", "host")), int(own.get("index", 0))
    except (AttributeError, TypeError, ValueError):
        raise ClusterError(f"the task in TF_CONFIG is {own!r}: it must have a type and an index") from None


def on(job: str, index: int = 0, gpu: int | None = None, cpu: int | None = None) -> str:
    """Return the name of a task's device for ``tf.device``, as in "/job:worker/task:1/device:GPU:0".

    Raises ClusterError if the cluster has no such task. It does not check the GPU; the run variable ``ready_needs`` does.
    """
    spec = cluster()
    if not 0 <= index < len(spec.get(job, [])):
        there = ", ".join(f"{name}:{number}" for name, entries in sorted(spec.items()) for number in range(len(entries)))
        left_out = os.environ.get("TF_CLUSTER_MISSING")
        part = " (this run has a part of the cluster: run_tasks)" if os.environ.get("TF_CLUSTER_PARTIAL") else ""
        without = f" (this run excludes {left_out}, which did not answer)" if left_out else part
        raise ClusterError(f"the cluster has no task {job}:{index}; it has {there}{without}")
    device = "" if gpu is None and cpu is None else f"/device:CPU:{cpu}" if gpu is None else f"/device:GPU:{gpu}"
    return f"/job:{job}/task:{index}{device}"


def tasks(job: str | None = None) -> list[str]:
    """Return the device names of a job's tasks, or of all tasks outside the jobs ``host`` and ``chief``."""
    spec = cluster()
    if job is not None and job not in spec:
        raise ClusterError(f"the cluster has no job {job}; it has {', '.join(sorted(spec))}")
    jobs = [job] if job is not None else [name for name in spec if name not in RUN_JOBS]
    return [on(name, index) for name in jobs for index in range(len(spec[name]))]


def session(
    deadline: float = 60.0, graph: tf.Graph | None = None, config: tf.compat.v1.ConfigProto | None = None
) -> tf.compat.v1.Session:
    """Open a ``tf.compat.v1.Session`` on the cluster. A step that takes longer than ``deadline`` seconds fails.

    It raises TensorFlow's ``DeadlineExceededError``. ``graph`` is the default graph if None; ``config`` is a ``ConfigProto``.
    The first call starts this task's server. The call waits up to ``deadline`` seconds until all tasks answer, then raises
    ClusterError with the names of those that do not.
    """
    import tensorflow as tf

    own = tf.compat.v1.ConfigProto()
    if config is not None:
        own.CopyFrom(config)
    own.operation_timeout_in_ms = int(deadline * 1000)
    target = _server().target
    _await_tasks(deadline)  # a session that opens while a task is frozen hangs despite its limit
    return _session_class()(target, graph=graph, config=own)


@functools.cache
def _session_class() -> type[tf.compat.v1.Session]:
    """Return a session class that does not close after a timeout, because closing would wait for the frozen task."""
    import tensorflow as tf

    class Session(tf.compat.v1.Session):  # type: ignore[misc]  # TensorFlow has no types
        abandoned = False

        def run(self, *words: Any, **more: Any) -> Any:
            try:
                return super().run(*words, **more)
            except tf.errors.DeadlineExceededError:
                if not self.abandoned:
                    import ctypes  # here, because each command of the package imports this module

                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # nor when Python exits
                self.abandoned = True
                raise

        def close(self) -> None:
            if not self.abandoned:
                super().close()

    return Session


def _server() -> tf.distribute.Server:
    """Return this task's server; the first call starts it."""
    import tensorflow as tf

    if "connection" in _own:
        raise ClusterError("this program has called connect(): it cannot open sessions as well")
    if "server" not in _own:
        (job, index), spec = task(), cluster()
        on(job, index)  # raises ClusterError if the task is unknown
        _bypass_proxies(spec)
        _own["server"] = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name=job, task_index=index)
    return _own["server"]


def connect(deadline: float = 60.0) -> list[str]:
    """Connect this program's eager operations to the cluster; return the device names that ``tasks()`` returns.

    All tasks must compute something within ``deadline`` seconds, otherwise ClusterError names those that did not. If a task
    stops later, the connection fails permanently; use ``retrying`` in programs that must survive that.
    """
    import tensorflow as tf

    if "server" in _own:
        raise ClusterError("this program has opened sessions: it cannot call connect() as well")
    until, (job, index), devices = time.monotonic() + deadline, task(), tasks()
    on(job, index)
    if "connection" not in _own:
        _bypass_proxies(cluster())
        _await_tasks(deadline)
        tf.config.experimental_connect_to_cluster(tf.train.ClusterSpec(cluster()), job_name=job, task_index=index)
        _own["connection"] = True
    computed: dict[str, bool | str] = {}  # device -> True, or the error message

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
        raise ClusterError(f"these tasks computed nothing within {deadline:.0f} s: {', '.join(wrong)}")
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
    """Call ``work(session)`` and return its result. If a task is lost, call it again with a *new* session.

    A session never recovers from a task restart, and the task's variables and queues are lost. So ``work`` must initialise or
    restore all it needs. Each retry waits up to ``seconds`` for the tasks and reports them on standard error. After ``times``
    retries it raises ClusterError.
    """
    import tensorflow as tf

    # Which one a restart of a task causes depends on what the step is waiting for.
    retryable = (tf.errors.AbortedError, tf.errors.UnavailableError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
    for attempt in range(times + 1):
        if attempt:
            time.sleep(min(5.0, 0.5 * 2 ** (attempt - 1)))
            _await_tasks(seconds)
        opened = session(deadline, graph, config)
        try:
            with opened.graph.as_default(), opened.as_default():
                done = work(opened)
        except retryable as error:
            lines = [line for line in error.message.splitlines() if not re.match(r"\s*$|=+$|Graph execution error", line)]
            reason = f"{type(error).__name__}: {' '.join(lines[:2]) or 'no reason given'}"
            if attempt == times:
                raise ClusterError(f"gave up after {times + 1} sessions; the last one failed with {reason}") from error
            _log(f"{reason}; opens session {attempt + 2} of at most {times + 1} when all tasks answer")
        else:
            opened.close()
            return done
    raise ClusterError("times must be 0 or more")


def _await_tasks(seconds: float) -> None:
    """Wait until all tasks answer; report the others every 10 s; raise ClusterError after ``seconds``."""
    spec, begun, due = cluster(), time.monotonic(), time.monotonic() + 2
    left = {(job, index): entry for job in spec if job not in RUN_JOBS for index, entry in enumerate(spec[job])}
    left.pop(task(), None)
    while True:
        import concurrent.futures  # here, because each command of the package imports this module

        with concurrent.futures.ThreadPoolExecutor(max_workers=64) as pool:
            found = pool.map(answers, left, left.values())
        left = {name: entry for (name, entry), answer in zip(left.items(), found) if not answer}
        if not left:
            return
        waited, names = time.monotonic() - begun, ", ".join(f"{job}:{index} at {entry}" for (job, index), entry in left.items())
        if waited > seconds:
            raise ClusterError(f"no answer after {waited:.0f} s from {names}")
        if time.monotonic() > due:
            _log(f"waiting for {names} ({waited:.0f} s of at most {seconds:.0f})")
            due = time.monotonic() + 10
        time.sleep(0.2)


def answers(name: tuple[str, int], entry: str) -> bool:
    """Return whether a task accepts connections and computes something within three seconds."""
    address, _colon, port = entry.rpartition(":")
    try:
        socket.create_connection((address.strip("[]"), int(port)), timeout=1).close()
    except OSError:
        return False
    import tensorflow as tf

    v1 = tf.compat.v1
    # A session on the task's own server, without other tasks: its time limit works.
    config = v1.ConfigProto(operation_timeout_in_ms=3000, device_filters=["/job:nobody"])
    try:
        with tf.Graph().as_default(), v1.Session(f"grpc://{entry}", config=config) as asked:
            asked.tf_cluster_check = True  # not traced: see run/trace.py
            return bool(asked.run(tf.constant(1)) == 1)
    except tf.errors.OpError:
        return False


def _bypass_proxies(spec: dict[str, list[str]]) -> None:
    """Exclude the cluster's addresses from the proxy of the environment, which gRPC would use."""
    addresses = {entry.rpartition(":")[0].strip("[]") for entries in spec.values() for entry in entries}
    os.environ.setdefault("no_grpc_proxy", ",".join(sorted(addresses)))


def _log(sentence: str) -> None:
    print(f"tf_cluster: {sentence}", file=sys.stderr, flush=True)


def save_result(value: object) -> Path:
    """Write ``value`` atomically as result.json in TF_RUN_DIR (else in the working directory); return its path.

    Accepts JSON types and NumPy arrays and scalars, tensors, tuples, sets, bytes and paths, also nested in dicts and lists. NaN
    and infinite numbers become null. Raises TypeError for other types.
    """
    path = Path(os.environ.get("TF_RUN_DIR") or ".", "result.json")
    text = json.dumps(_to_json(value), allow_nan=False, indent=1)
    temporary = path.with_name(f".result.json.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def _to_json(value: Any) -> Any:
    """Return a value as JSON types."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, dict):
        return {str(_to_json(key)): _to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_json(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for method in ("numpy", "to_list", "tolist"):  # a tensor, a ragged tensor, a NumPy array or scalar
        if callable(getattr(value, method, None)):
            inner = getattr(value, method)()
            if type(inner) is not type(value):
                return _to_json(inner)
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"result.json cannot hold {value!r} of type {type(value).__name__}")


def step(number: int, of: int | None = None, every: float = 1.0, **values: object) -> None:
    """Print that a step is done, such as "step 40 of 100, loss 0.25". ``number`` counts from 1; ``values`` are printed.

    Prints at most one line every ``every`` seconds, and always the last step.
    """
    now = time.monotonic()
    if number != of and now - _steps.get("printed", -math.inf) < every:
        return
    _steps["printed"] = now
    words = [f"step {number}" + ("" if of is None else f" of {of}")]
    for name, value in values.items():
        value = _to_json(value)
        words.append(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}")
    print(", ".join(words), flush=True)
