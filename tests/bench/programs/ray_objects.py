"""Ray: an object of one node's store is asked for by an actor on another node. Both nodes are this machine's."""

import contextlib
import os
import tempfile
from pathlib import Path

import measures
import numpy
import ray
from ray.cluster_utils import Cluster

STORE = 1 << 30  # bytes of each node's object store
# Of the loopback, but not 127.0.0.1: Ray would take that for the address by which other machines reach this one.
HEAD, OTHER = "127.0.0.2", "127.0.0.3"
NODE = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}


@ray.remote(num_cpus=0)
class Owner:
    """An actor that puts arrays into its node's store."""

    def make(self, size, count):
        """Return references to ``count`` new arrays of ``size`` bytes."""
        return [ray.put(numpy.ones(size // 4, numpy.float32)) for _i in range(count)]


@ray.remote(num_cpus=0)
class Reader:
    """An actor that asks for them."""

    def read(self, references):
        """Get the arrays and return one number of each."""
        return [float(array[0]) for array in ray.get(references)]


def main():
    """Measure as the caller of both sees it."""
    job = measures.job()
    os.environ |= {"RAY_TMPDIR": tempfile.gettempdir(), "RAY_USAGE_STATS_ENABLED": "0"}
    Path(tempfile.gettempdir(), "ray").mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "node_ip_address": HEAD, "resources": {"reader": 1}})
    cluster.add_node(**NODE, node_ip_address=OTHER, resources={"owner": 1})
    ray.init(address=cluster.address, _node_ip_address=HEAD, log_to_driver=False)
    owner, reader = Owner.options(resources={"owner": 1}).remote(), Reader.options(resources={"reader": 1}).remote()

    @contextlib.contextmanager
    def moving(size, count):
        def move():
            references = ray.get(owner.make.remote(size, count))  # new ones: an object that was read once stays at the reader's
            with measures.timer() as taken:
                ray.get(reader.read.remote(references))
            return taken[0]

        yield move

    measures.leave(job, f"Ray {ray.__version__}", measures.rates(moving))
    ray.shutdown()
    cluster.shutdown()


main()
