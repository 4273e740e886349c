"""Locks between the processes of one machine. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

POLL_SECONDS = 0.05


def acquire(file: IO[Any], seconds: float, while_waiting: Callable[[], None] = lambda: None, shared: bool = False) -> bool:
    """Take a lock on an open file and return whether that was possible within ``seconds``. Several can hold a ``shared`` lock.

    Closing the file releases the lock (``flock(2)``). While another process holds it, ``while_waiting`` is called between two
    attempts. It may raise an exception to stop waiting.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            while_waiting()
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def held(path: Path, seconds: float, shared: bool = False) -> Iterator[IO[bytes]]:
    """Hold the lock of a file that only its owner can open, and yield the file; create it if it is missing.

    Raises BlockingIOError after ``seconds``.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
        if not acquire(file, seconds, shared=shared):
            raise BlockingIOError(f"{path} is locked by another process. 'lslocks' on its machine shows it")
        yield file
