"""What the programs of the benchmark have in common: their job (JSON), the sizes that are moved, how time is taken.

A program is called with the path of its job. It writes ``{"version": ..., "figures": {measure: number}}`` to the path that the
job names as ``result``. Standard library only: each runs in an environment of its own.
"""

import contextlib
import json
import statistics
import sys
import time
from pathlib import Path

MEGABYTE = 1 << 20  # bytes; what the sizes below are counted in
# Name -> megabytes of one array, how many of them at once, how often they are moved.
SIZES = {"1 MB": (1, 1, 30), "16 MB": (16, 1, 10), "64 MB": (64, 1, 6), "256 MB": (256, 1, 4), "8 x 32 MB": (32, 8, 4)}
WARM = 2  # times that are not counted: connections are made, memory is touched


def job():
    """Return this program's job."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def leave(job, version, figures):
    """Write the result."""
    Path(job["result"]).write_text(json.dumps({"version": version, "figures": figures}), encoding="utf-8")


def seconds(step, times, warm=WARM):
    """Return the median time of a step, in seconds."""
    taken = []
    for _time in range(warm + times):
        begun = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[warm:])


def rates(moving):
    """Return how fast arrays move, in GB/s (10^9 bytes), by the name of the size.

    ``moving(bytes, count)`` is a context with a step that moves ``count`` arrays at once and returns how many seconds that
    took, without what had to be made ready for it.
    """
    figures = {}
    for name, (megabytes, count, times) in SIZES.items():
        with moving(megabytes * MEGABYTE, count) as step:
            taken = [step() for _time in range(WARM + times)][WARM:]
        figures[name] = megabytes * MEGABYTE * count / 1e9 / statistics.median(taken)
    return figures


def until(condition, limit):
    """Wait for a condition, looked at each two milliseconds; raise TimeoutError after ``limit`` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"still waiting after {limit} s")
        time.sleep(0.002)


@contextlib.contextmanager
def timer():
    """Give a list that holds the seconds that the block took, when it has ended."""
    taken, begun = [], time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - begun)
