"""PyTorch: torch.distributed with gloo, one process sends to another, which has the memory ready."""

import contextlib
import os

import measures
import torch
import torch.distributed
import torch.multiprocessing


def process(rank, job):
    """Send as process 1; receive and measure as process 0."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{job['ports'][0]}", rank=rank, world_size=2)

    @contextlib.contextmanager
    def moving(size, count):
        arrays = [torch.ones(size // 4) for _i in range(count)]

        def move():
            torch.distributed.barrier()
            with measures.timer() as taken:
                call = torch.distributed.isend if rank else torch.distributed.irecv
                for work in [call(array, 1 - rank) for array in arrays]:
                    work.wait()
            return taken[0]

        yield move

    figures = measures.rates(moving)
    if rank == 0:
        measures.leave(job, f"PyTorch {torch.__version__}", figures)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(process, (measures.job(),), nprocs=2)
