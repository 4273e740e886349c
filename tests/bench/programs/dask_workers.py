"""Dask: a task on one worker process takes an array that lies in another."""

import contextlib

import distributed
import measures
import numpy


def make(size):
    """Return a new array of ``size`` bytes."""
    return numpy.ones(size // 4, numpy.float32)


def read(arrays):
    """Return one number of each array."""
    return [float(array[0]) for array in arrays]


def main():
    """Measure as the caller sees it."""
    job = measures.job()
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", protocol="tcp://", dashboard_address=None,
        memory_limit=0,
    )  # fmt: skip
    with cluster, distributed.Client(cluster) as client:
        owner, reader = list(client.scheduler_info()["workers"])

        @contextlib.contextmanager
        def moving(size, count):
            def move():
                # New ones: an array that was read once stays at the reader's.
                arrays = [client.submit(make, size, workers=[owner], pure=False) for _i in range(count)]
                distributed.wait(arrays)
                with measures.timer() as taken:
                    client.submit(read, arrays, workers=[reader], pure=False).result()
                return taken[0]

            yield move

        measures.leave(job, f"Dask {distributed.__version__}", measures.rates(moving))


if __name__ == "__main__":
    main()
