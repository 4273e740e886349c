"""Publish the identity of a server and the runs that use it: other machines read both through TensorFlow."""

from __future__ import annotations

import fcntl
import json
import os

from ..spec import cluster_config

# File descriptors of the identity and of the runs: above those that a server has opened by then.
IDENTITY_DESCRIPTOR, RUNS_DESCRIPTOR = 1000, 1001
IDENTITY_PATH, RUNS_PATH = (f"/proc/self/fd/{number}" for number in (IDENTITY_DESCRIPTOR, RUNS_DESCRIPTOR))


def publish_identity(spec: dict[str, list[str]], job: str, index: int, version: str) -> None:
    """Write this task's identity to a file that the gate reads, and create the file for its runs (see control.py).

    Does nothing unless systemd started the server. Both files are in memory: they need no disk space and vanish with the
    process. The identity is sealed: no graph can change it.
    """
    if os.environ.get("NOTIFY_SOCKET"):
        gpus = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
        wanted = int(os.environ.get("TF_TASK_GPUS", "0"))
        spec_digest = cluster_config.digest(spec)
        identity = {"task": f"{job}:{index}", "version": version, "spec": spec_digest, "gpus": gpus, "wanted": wanted}
        memory = os.memfd_create("identity", os.MFD_ALLOW_SEALING)
        os.write(memory, json.dumps(identity).encode())
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        for descriptor, file in ((IDENTITY_DESCRIPTOR, memory), (RUNS_DESCRIPTOR, os.memfd_create("runs"))):
            os.dup2(file, descriptor, inheritable=False)
            os.close(file)
