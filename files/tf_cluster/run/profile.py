"""Profile eager programs and trainings with TensorFlow's profiler.

sitecustomize.py loads this after TensorFlow in a run with a trace (``TF_CLUSTER_TRACE``). The profiler runs in windows, so that
a long program fills neither memory nor disk. The first window begins with the first eager operation, in a program with collective
operations (MultiWorkerMirroredStrategy) with the 10th function (``tf.function``), others 60 s and 600 s later. If none of them
has seen a function yet, one more begins with the first. A window takes 4 s; it takes up to 20 s if fewer than 10 functions were
executed, for TensorFlow may be tracing them.

A window is a folder of ``profile/plugins/profile`` in ``TF_RUN_DIR``, as TensorBoard and xprof expect it, with one
``<job>-<index>.xplane.pb`` per task: that of the program, and those that the program connects to (profile_servers.py).

A program that opens sessions is traced by trace.py, and one that uses the profiler itself has it for itself.

TensorFlow 2.21 may crash when it collects events that began in one thread and ended in another: ``TraceMeRecorder::Consume``
writes to memory that it has freed. There are many when tasks execute collective operations for the first time (hence the 10
functions), and few later. So a copy of the process collects the events (``fork``), and the program itself only discards them. If
the copy crashes, another window begins. With GPUs the program collects them itself, because CUDA does not work in a copy.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .trace import program_task

WINDOW_STARTS = (0.0, 60.0, 600.0)  # seconds after the first eager operation
WINDOW_SECONDS, MAX_WINDOW_SECONDS = 4.0, 20.0
WARM_UP_CALLS = 10  # executed functions after which the first window of a training begins
MIN_CALLS = 10  # executed functions, for which a window lasts longer than WINDOW_SECONDS
MOST_LOST = 3  # lost windows after each of which another one begins
POLL_SECONDS = 0.1
NOT_RECORDING = -1  # level of TensorFlow's recorder
EXPORT_SECONDS = 20.0  # that TensorFlow may take to write a profile
SERVERS_SECONDS = 30.0  # that profile_servers.py may take to collect the profiles
# Isolated (-I), because PYTHONPATH is meant for the program.
PROFILE_SERVERS = (sys.executable, "-I", "-m", "tf_cluster.run.profile_servers")


class LostError(Exception):
    """A profile could not be collected; the message is a sentence."""


class Window:
    """A profile that is being recorded."""

    def __init__(self, folder: Path, session: Any, calls: int) -> None:
        self.folder, self.session, self.calls = folder, session, calls
        self.begun = time.monotonic()
        self.servers: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True)  # fails if another process of the run has a profile
        self.local = Path(tempfile.mkdtemp(prefix=".program-", dir=folder))
        session.start(str(self.local), {})

    def complete(self, calls: int) -> bool:
        """Return whether it has lasted long enough; ``calls`` is the number of executed functions so far."""
        lasted = time.monotonic() - self.begun
        return lasted > (WINDOW_SECONDS if calls - self.calls >= MIN_CALLS else MAX_WINDOW_SECONDS)

    def add_servers(self, addresses: dict[str, str]) -> None:
        """Begin to profile servers: task -> address."""
        if addresses and not self.servers:
            command = [*PROFILE_SERVERS, str(self.folder)]
            self.servers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            with contextlib.suppress(OSError):
                print(json.dumps(addresses), file=self.servers.stdin, flush=True)

    def save(self, task: str) -> None:
        """End it and write the profiles."""
        if self.servers and self.servers.stdin:
            self.servers.stdin.close()  # collects the servers' profiles at the same time
        export(self.session)
        self.session = None
        found = list(self.local.rglob("*.xplane.pb"))
        for path in found:
            path.replace(self.folder / f"{task.replace(':', '-')}.xplane.pb")
        shutil.rmtree(self.local)
        if self.servers:
            self.servers.wait(SERVERS_SECONDS)
        if not found:
            raise LostError(f"a profile of {task} is lost: TensorFlow's profiler crashed when it collected the events")

    def drop(self) -> None:
        """End it without a profile."""
        self.session = None  # its destructor ends it
        if self.servers:
            self.servers.kill()
            self.servers.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Profiler:
    """Records the windows of the program in a thread."""

    def __init__(self, folder: Path, run: str, new_session: Any, servers: Any) -> None:
        self.folder, self.name = folder, run[:15] or "program"  # a run's ID begins with its time, the same for all tasks
        self.new_session, self.servers = new_session, servers
        self.window: Window | None = None
        self.windows = self.lost = self.calls = 0  # begun windows, lost windows, executed functions
        self.first_call = 1  # number of the executed function with which a window begins
        self.over = False
        self.first = 0.0  # beginning of the first window
        self.woken = threading.Event()
        self.lock = threading.RLock()
        self.process = os.getpid()

    def begin(self) -> None:
        """Begin a window unless one is open."""
        with self.lock:
            if self.over or self.window or os.getpid() != self.process:
                return
            try:
                self.windows += 1
                self.window = Window(self.folder / f"{self.name}-{self.windows}", self.new_session(), self.calls)
                self.window.add_servers(self.servers())
            except FileExistsError:  # another process of the program records
                self.over = True
                return
            except Exception as error:  # the program must run even without a trace
                self.fail(error)
                return
            if self.windows == 1:
                self.first = self.window.begun
                atexit.register(self.end, last=True)
                threading.Thread(target=self.watch, daemon=True, name="tf_cluster.profile").start()
            self.woken.set()

    def called(self) -> None:
        """Note that a function is executed."""
        self.calls += 1
        if self.calls == self.first_call:
            self.begin()

    def watch(self) -> None:
        """End and begin windows until the last one."""
        starts = list(WINDOW_STARTS[1:])
        while not self.over:
            if self.window:
                with self.lock:
                    if self.window:
                        self.window.add_servers(self.servers())  # the program may have connected meanwhile
                    if self.window and self.window.complete(self.calls):
                        self.end()
                time.sleep(POLL_SECONDS)
            elif starts or self.calls < self.first_call:
                self.woken.clear()
                left = self.first + starts[0] - time.monotonic() if starts else None
                if (left is None or left > 0) and self.woken.wait(left):
                    continue
                starts = starts[1:]
                self.begin()
            else:
                break

    def end(self, last: bool = False) -> None:
        """End the open window, if any, and write its profiles."""
        with self.lock:
            window, self.window = self.window, None
            self.over = self.over or last
            if window and os.getpid() == self.process:
                try:
                    window.save(program_task())
                except LostError as error:
                    print(f"[trace] {error}", file=sys.stderr)
                    self.lost += 1
                    if not self.over and self.lost <= MOST_LOST:
                        self.begin()
                except Exception as error:
                    window.drop()
                    self.fail(error)

    def give_way(self, why: str = "") -> None:
        """Stop for good: drop the open window for sessions, keep it for the program's own use of the profiler (``why``)."""
        with self.lock:
            if self.over:
                return
            if why:
                print(f"[trace] {why}, so the trace ends here", file=sys.stderr)
                self.end()
            elif self.window:
                self.window.drop()
                self.window = None
            self.over = True

    def fail(self, error: Exception) -> None:
        """Stop for good after an error."""
        self.over = True
        print(f"[trace] cannot record a profile: {error!r}", file=sys.stderr)


def export(session: Any) -> None:
    """Write the events of a profile to its folder, and end it."""
    recorder = event_recorder()
    if not recorder:
        session.export_to_tb()
        return
    level, clear = recorder
    wanted, level.value = level.value, NOT_RECORDING
    copy = ctypes.PyDLL(None).fork()  # os.fork() refuses to work at the program's exit (Python 3.12)
    if copy == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what glibc says of a crash
            level.value = wanted
            session.export_to_tb()
        finally:
            os._exit(0)
    clear()
    deadline = time.monotonic() + EXPORT_SECONDS
    while os.waitpid(copy, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(copy, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 10)


def event_recorder() -> tuple[Any, Callable[[], None]] | None:
    """Return the level at which TensorFlow records events, and the function that discards them.

    None if the program has GPUs, or if its TensorFlow has no such names.
    """
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return None
    try:
        library = ctypes.CDLL(str(Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"))
        clear = library._ZN3tsl8profiler15TraceMeRecorder5ClearEv
        return ctypes.c_int.in_dll(library, "_ZN3tsl8profiler8internal13g_trace_levelE"), clear
    except (OSError, ValueError, AttributeError):
        return None


def connected_servers() -> dict[str, str]:
    """Return task -> address of the servers that the program is connected to, without its own."""
    from tensorflow.python.eager import context

    server = context.context().get_server_def()
    if server is None:
        return {}
    found = {f"{job.name}:{index}": address for job in server.cluster.job for index, address in job.tasks.items()}
    own = (f"{server.job_name}:{server.task_index}", program_task())
    return {task: address for task, address in found.items() if task not in own}


def install() -> Profiler:
    """Wrap what TensorFlow calls for eager operations, for functions, and for a profile."""
    from tensorflow.python.eager import context
    from tensorflow.python.profiler.internal import _pywrap_profiler

    folder = Path(os.environ.get("TF_RUN_DIR", ".")) / "profile/plugins/profile"
    new_session = _pywrap_profiler.ProfilerSession
    profiler = Profiler(folder, os.environ.get("TF_RUN_ID", ""), new_session, connected_servers)
    plain_initialize, plain_call = context.Context.ensure_initialized, context.Context.call_function

    @functools.wraps(plain_initialize)
    def ensure_initialized(self: Any) -> None:
        plain_initialize(self)
        context.Context.ensure_initialized = plain_initialize
        if self._collective_ops_server_def is not None:
            profiler.first_call = WARM_UP_CALLS
        else:
            profiler.begin()

    @functools.wraps(plain_call)
    def call_function(self: Any, *arguments: Any, **named: Any) -> Any:
        profiler.called()
        return plain_call(self, *arguments, **named)

    def program_session() -> Any:
        profiler.give_way("the program uses TensorFlow's profiler itself")
        return new_session()

    context.Context.ensure_initialized = ensure_initialized
    context.Context.call_function = call_function
    _pywrap_profiler.ProfilerSession = program_session
    return profiler
