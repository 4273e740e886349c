"""Publish the identity of a server: the gate reads it through TensorFlow."""

from __future__ import annotations

import fcntl
import json
import os

from ..spec import cluster_config

# File descriptor of the identity: above those that a server has opened by then.
DESCRIPTOR = 1000
PATH = f"/proc/self/fd/{DESCRIPTOR}"


def publish_identity(spec: dict[str, list[str]], job: str, index: int, version: str) -> None:
    """Write this task's identity to a file that the gate reads. Does nothing unless systemd started the server.

    The file is sealed and in memory: no graph can change it, and it needs no disk space.
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
        os.dup2(memory, DESCRIPTOR, inheritable=False)
        os.close(memory)
