"""Let a program use a part of the cluster's tasks, without a restart of servers.

sitecustomize.py loads this after TensorFlow in a run that has not reserved all tasks, or whose own server has another port than
config.json says (``TF_CLUSTER_PARTIAL``). The run's config.json lists only its tasks, numbered without gaps, but their servers
still have the names that they were started with. So each session carries the run's cluster spec (``ConfigProto.cluster_def``),
which gives the servers other names for that session. TensorFlow rejects a spec in which the session's own server keeps its name
(``ClusterSpec names the job and task index to be the same names``), so the program's server is started as a task of an unused
job. Eager execution (``experimental_connect_to_cluster``) sends its spec anyway.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow.core.protobuf.cluster_pb2 import ClusterDef
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.tensorflow_server_pb2 import ServerDef
    from tensorflow.python.client.session import BaseSession
    from tensorflow.python.training.server_lib import Server

ALONE = "alone"  # the job that the program's own server is started as
# Target of a server -> (target with the address in the cluster spec, cluster spec).
_carried: dict[str, tuple[str, ClusterDef]] = {}


def install() -> None:
    """Wrap TensorFlow's server and its sessions."""
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.client import session
    from tensorflow.python.training import server_lib

    begin, open_session = server_lib.Server.__init__, session.BaseSession.__init__
    own_target = server_lib.Server.target.fget

    @functools.wraps(begin)
    def start_alone(
        self: Server,
        server_or_cluster_def: Any,
        job_name: str | None = None,
        task_index: int | None = None,
        protocol: str | None = None,
        config: ConfigProto | None = None,
        start: bool = True,
    ) -> None:
        given = server_lib._make_server_def(server_or_cluster_def, job_name, task_index, protocol, config)
        address = address_of(given)
        begin(self, alone(given, address), start=start)
        _carried[own_target(self)] = _carried[f"grpc://{address}"] = (f"grpc://{address}", given.cluster)

    @functools.wraps(open_session)
    def open_carrying(self: BaseSession, target: str = "", graph: Any = None, config: ConfigProto | None = None) -> None:
        if target in _carried and not (config and config.HasField("cluster_def")):
            target, spec = _carried[target]
            carrying = config_pb2.ConfigProto(cluster_def=spec)
            carrying.MergeFrom(config or config_pb2.ConfigProto())
            config = carrying
        open_session(self, target, graph, config)

    server_lib.Server.__init__ = start_alone
    server_lib.Server.target = property(lambda self: _carried[own_target(self)][0])
    session.BaseSession.__init__ = open_carrying


def address_of(server_def: ServerDef) -> str:
    """Return the address of a server in its cluster spec."""
    job = next(job for job in server_def.cluster.job if job.name == server_def.job_name)
    address: str = job.tasks[server_def.task_index]
    return address


def alone(server_def: ServerDef, address: str) -> ServerDef:
    """Return a ``ServerDef`` for a server without other tasks."""
    changed = type(server_def)()
    changed.CopyFrom(server_def)
    changed.ClearField("cluster")
    changed.cluster.job.add(name=ALONE).tasks[0] = address
    changed.job_name, changed.task_index = ALONE, 0
    return changed
