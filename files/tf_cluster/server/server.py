"""Run the TensorFlow server of one task of the cluster until SIGTERM.

    create_server.py --task=1                      as in the seed: job "worker", ./config.json
    create_server.py --job ps --task 0 --config /etc/tf-cluster/config.json

It uses TensorFlow's C API, so the server listens a third of a second after the process starts. Under
systemd (Type=notify) the unit is ready when the server listens. Exit status: 0 after SIGTERM or
SIGINT, 1 if the server could not start, 2 if the configuration is invalid.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

from .. import cli
from ..spec import cluster_config
from ..tensorflow import capi
from . import ports
from .identity import publish_identity


def arguments() -> argparse.Namespace:
    """Return the command-line options; defaults come from the task's environment (TF_TASK_...)."""

    def default(name: str, otherwise: str) -> str:
        return os.environ.get(f"TF_TASK_{name}") or otherwise

    def switch(text: str) -> bool:
        return text.lower() in ("1", "true", "yes")

    parser = argparse.ArgumentParser(description="Run the TensorFlow server of one task of the cluster.")
    parser.add_argument("--job", default="worker", help='job name, such as "worker" (the default) or "host"')
    parser.add_argument("--task", type=int, required=True, help="index of the task in config.json, from 0")
    parser.add_argument("--config", default=os.environ.get("TF_CLUSTER_CONFIG", "config.json"), help="cluster spec")
    parser.add_argument(
        "--gpu-memory-fraction", type=float, default=default("GPU_MEMORY_FRACTION", "0.2"),
        help="share of each GPU's memory, 0 to 1 (default 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-allow-growth", type=switch, default=default("GPU_ALLOW_GROWTH", "true"),
        help="allocate GPU memory on demand (default true)",
    )  # fmt: skip
    parser.add_argument("--intra-op-threads", type=int, default=default("INTRA_OP_THREADS", "0"), help="0: TensorFlow's default")
    parser.add_argument("--inter-op-threads", type=int, default=default("INTER_OP_THREADS", "0"), help="0: TensorFlow's default")
    parser.add_argument(
        "--thread-spinning", type=switch, default=default("THREAD_SPINNING", "false"),
        help="let idle threads spin before they sleep, which is TensorFlow's own default (default false)",
    )  # fmt: skip
    return parser.parse_args()


def server_def(spec: dict[str, list[str]], options: argparse.Namespace) -> bytes:
    """Return the serialised ``ServerDef`` of one task. Its GPU options apply; those of a session are ignored."""
    message = capi.message("tensorflow_server_pb2", "ServerDef")()
    for name, tasks in spec.items():
        job = message.cluster.job.add(name=name)
        job.tasks.update(enumerate(tasks))
    message.job_name, message.task_index, message.protocol = options.job, options.task, "grpc"
    config = message.default_session_config
    config.gpu_options.per_process_gpu_memory_fraction = options.gpu_memory_fraction
    config.gpu_options.allow_growth = options.gpu_allow_growth
    config.intra_op_parallelism_threads = options.intra_op_threads
    config.inter_op_parallelism_threads = options.inter_op_threads
    # Spinning threads slow down the threads that move tensors and the machine's other tasks (docs/benchmark.md).
    config.experimental.disable_thread_spinning = not options.thread_spinning
    serialised: bytes = message.SerializeToString()
    return serialised


def inputs() -> str:
    """Return the digest of the files that this task starts with (see plugins/filter/task_environments.py)."""
    found = hashlib.sha256()
    for path in os.environ.get("TF_TASK_FILES", "").split():
        with contextlib.suppress(OSError):  # then the digest differs, and site.yml corrects the file
            found.update(Path(path).read_bytes())
    return found.hexdigest()[:12]


def notify(text: str) -> None:
    """Send a notification to systemd if it started this process (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            channel.send(text.encode())


def start_again(_argument: object) -> None:
    """Replace this process by a new server: TensorFlow's operation Abort ended it (see control.py).

    systemd sees no end: the process ID stays, and the new server reports itself when it listens.
    """
    print("clears itself: starts again without the state of earlier runs", flush=True)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            os.set_inheritable(int(name), int(name) <= 2)  # closed by execv: TensorFlow's threads still use them
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (no shell is needed)


AT_EXIT = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(start_again)  # referenced as long as C may call it


def main() -> None:
    """Start the server, report it, and wait for SIGTERM or SIGINT."""
    begun, started_with = time.monotonic(), inputs()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the library starts threads, which inherit the mask
    options = arguments()
    cli.remove_proxy_variables()
    try:
        spec = cluster_config.load(options.config)
        entry = cluster_config.task_entry(spec, options.job, options.task, options.config)
    except cluster_config.ConfigError as error:
        cli.fail(str(error), 2)
    port = cluster_config.split_address(entry)[1]
    if not ports.port_is_free(port):
        cli.fail(f"port {port} of {options.job}:{options.task} is in use by {ports.port_holder(port)}", 1)
    try:
        library = capi.Library()
        library.start_server(server_def(spec, options))
    except capi.TensorFlowError as error:
        cli.fail(f"{options.job}:{options.task} could not start on {entry}: {error}", 1)
    publish_identity(spec, options.job, options.task, library.version)
    # exit(3) calls this first, before it destroys anything of TensorFlow; Python's own atexit would not be called.
    ctypes.CDLL(None).__cxa_atexit(AT_EXIT, None, None)
    name = f"{options.job}:{options.task} listens on {entry}, TensorFlow {library.version}"
    notify(f"READY=1\nSTATUS={name}, inputs {started_with}")
    print(f"{name}, after {time.monotonic() - begun:.2f} s", flush=True)
    received = signal.sigwait(signals)
    notify("STOPPING=1")
    print(f"{options.job}:{options.task} exits: {signal.Signals(received).name}", flush=True)
    os._exit(0)  # TensorFlow's server has no clean shutdown; its threads would keep the process alive
