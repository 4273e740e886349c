"""Who a server is: what the gate reads of it through TensorFlow itself."""

from __future__ import annotations

import fcntl
import json
import os

from ..spec import cluster_config

# The descriptor of the file that holds it: above those that a server has opened by then.
DESCRIPTOR = 1000
PATH = f"/proc/self/fd/{DESCRIPTOR}"


def publish_identity(spec: dict[str, list[str]], job: str, index: int, version: str) -> None:
    """Keep who this task is in a file that the gate reads; only for servers that systemd started.

    A sealed file in memory: no graph can change it, and a full disk does not matter.
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
