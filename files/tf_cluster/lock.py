"""Locks between the processes of one machine. Standard library only."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
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
