"""Agree on the coordinator of a training, through a folder that all machines share.

A coordinator owns a file ``<number>.json``, and the highest number counts. It rewrites its file every few seconds. A task that
has lost it, and has not seen the file change for a while, claims the next number: only one can create that file. So after the
chief's machine was lost, another task coordinates the training, and the first coordinator gives up when it sees the new file.

The file has ``task`` and ``control`` (the coordinator and its address), ``beat`` (a counter), ``attempts`` (see training.py),
``released`` (the coordinator has given up), and at the end ``over``, the final message.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

IO_SECONDS = 20.0  # after which the file system counts as not answering
Result = TypeVar("Result")


class Term(NamedTuple):
    """One coordinator: its number and the content of its file."""

    number: int
    content: dict[str, Any]


class Terms:
    """The coordinators of a training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = time.monotonic()  # when the newest file was last seen to change
        self.newest: Term | None = None

    async def read(self) -> Term | None:
        """Return the newest coordinator, None if there is none yet. Raises OSError if the file system does not answer."""
        found = await in_thread(self._read)
        if found != self.newest:
            self.newest, self.changed = found, time.monotonic()
        return found

    def silent_seconds(self) -> float:
        """Return for how long the newest file has not changed, as far as it was read."""
        return time.monotonic() - self.changed

    async def claim(self, number: int, content: dict[str, Any]) -> bool:
        """Create the file of a number; return whether no other task was first."""
        return await in_thread(lambda: self._claim(number, content))

    async def write(self, number: int, content: dict[str, Any]) -> None:
        """Replace the content of a file."""
        await in_thread(lambda: self._fresh(number, content).replace(self._path(number)))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def _read(self) -> Term | None:
        numbers = [int(name[:-5]) for name in os.listdir(self.folder) if name.endswith(".json") and name[:-5].isdecimal()]
        if not numbers:
            return None
        try:
            content = json.loads(self._path(max(numbers)).read_text(encoding="utf-8"))
        except ValueError:
            raise OSError(f"{self._path(max(numbers))} is damaged") from None
        return Term(max(numbers), content)

    def _claim(self, number: int, content: dict[str, Any]) -> bool:
        fresh = self._fresh(number, content)
        try:
            os.link(fresh, self._path(number))  # fails if the file exists, also on NFS
        except FileExistsError:
            return False
        finally:
            fresh.unlink()
        return True

    def _fresh(self, number: int, content: dict[str, Any]) -> Path:
        path = self.folder / f".{number}.{secrets.token_hex(8)}.new"
        with path.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        return path


async def in_thread(call: Callable[[], Result]) -> Result:
    """Return the result of a call that may block; raise TimeoutError after a while.

    Not with asyncio.to_thread, whose threads a process waits for at its end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[Result | None, BaseException | None] = (call(), None)
        except Exception as error:
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    done, _late = await asyncio.wait([future], timeout=IO_SECONDS)
    if not done:
        raise TimeoutError("the shared file system does not answer")
    return future.result()
