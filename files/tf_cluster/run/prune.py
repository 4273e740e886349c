"""Delete old runs and unused data of this machine.

    python -m tf_cluster.run.prune --days 30 --gb 0            called daily by tf-prune.service
    python -m tf_cluster.run.prune --days 30 --gb 0 --check    only lists what it would delete

Deletes runs that have ended and were collected, oldest first: those that ended more than DAYS ago, and more while runs and data
take more than GB gigabytes. The same holds for data that no run uses, by its last use, and for folders that have no notes because
the machine received only a run's data.

Prints a line for each deletion, or with ``--json`` one object: ``lines``, ``deleted`` (paths) and ``freed_bytes``.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from .. import cli
from ..spec import cluster_config
from . import runs
from .runs import RUN_ID, Run

DATA = Path("/var/lib/tf-cluster/data")
DAY_SECONDS = 24 * 3600
# What has no notes may be in preparation, and a run may be about to use data.
MIN_AGE_SECONDS = DAY_SECONDS
MAX_PREPARED_SECONDS = 3 * DAY_SECONDS
MAX_PLACED_SECONDS = 7 * DAY_SECONDS  # that a run may be queued and run whose data was placed for the servers of a machine
NOTIFICATION_SECONDS = 120.0  # after the end of a run, during which its notification may still read the notes
DELETED = ".deleted"  # end of the hidden name of a folder that is being deleted
BLOCK_BYTES = 512  # unit of st_blocks

Inode = tuple[int, int]  # device and number


class Links(NamedTuple):
    """A file: the bytes that it takes on the disk, and how many names it has in a folder and altogether."""

    size: int
    names: int
    all_names: int
    is_folder: bool


class Item(NamedTuple):
    """A folder that may be deleted: its last use in seconds since 1970 (None: keep it), and its files."""

    path: Path
    is_data: bool
    used: float | None
    files: dict[Inode, Links]


class Usage:
    """The disk space of all folders. A file with several names counts once, and is free when its last name is deleted."""

    def __init__(self, items: list[Item]) -> None:
        self.names = {inode: links.all_names for item in items for inode, links in item.files.items()}
        self.total = sum({inode: links.size for item in items for inode, links in item.files.items()}.values())

    def delete(self, item: Item) -> int:
        """Count an item as deleted and return the bytes that this frees."""
        freed = 0
        for inode, links in item.files.items():
            self.names[inode] -= links.names
            if links.is_folder or self.names[inode] <= 0:
                freed += links.size
        self.total -= freed
        return freed

    def is_shared(self, item: Item) -> bool:
        """Return whether a file of the item has a name elsewhere."""
        return any(not links.is_folder and self.names[inode] > links.names for inode, links in item.files.items())


def files_of(folder: Path) -> dict[Inode, Links]:
    """Return the files and folders in a folder. Does not follow links; ignores what is deleted meanwhile or unreadable."""
    names: collections.Counter[Inode] = collections.Counter()
    found: dict[Inode, os.stat_result] = {}
    waiting = [str(folder)]
    with contextlib.suppress(OSError):
        own = os.lstat(folder)
        names[own.st_dev, own.st_ino], found[own.st_dev, own.st_ino] = 1, own
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                inode = status.st_dev, status.st_ino
                names[inode] += 1
                found[inode] = status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
    return {
        inode: Links(status.st_blocks * BLOCK_BYTES, names[inode], status.st_nlink, stat.S_ISDIR(status.st_mode))
        for inode, status in found.items()
    }


def noted_in(folder: Path) -> dict[str, Any] | None:
    """Return the notes of the run in a folder: empty if they are damaged, None if there are none."""
    try:
        noted = json.loads((folder / "run.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def folders(place: Path) -> list[Path]:
    """Return the folders in a folder, without links, hidden folders and others such as lost+found."""
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if RUN_ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def last_use(folder: Path, now: float) -> float | None:
    """Return when a run ended, or when a folder without notes was changed; None if it must be kept."""
    noted = noted_in(folder)
    if noted is None:
        placed = changed(folder, now, MAX_PLACED_SECONDS)
        return placed if (folder / "program").is_dir() else None
    if noted.get("waiting") and "number" not in noted and "ended" not in noted:
        return prepared(noted, now)
    try:
        ended, _collected = float(noted["ended"]), float(noted["collected"])
    except (KeyError, TypeError, ValueError):
        return None  # queued, running, not collected or damaged
    notifies = "notify" in noted and "notified" not in noted and 0 <= now - ended < NOTIFICATION_SECONDS
    # With "uncleared", servers may still hold the run's state: the next run needs to know (queue.py).
    return None if notifies or noted.get("uncleared") or not math.isfinite(ended) else ended


def prepared(noted: dict[str, Any], now: float) -> float | None:
    """Return when a run was requested that never entered the queue, such as a part of a failed training; None if recently."""
    try:
        asked = float(noted["asked"])
    except (KeyError, TypeError, ValueError):
        return None
    return asked if now - asked > MAX_PREPARED_SECONDS else None


def changed(folder: Path, now: float, recent: float = MIN_AGE_SECONDS) -> float | None:
    """Return when a folder without notes was changed; None if that was recently."""
    try:
        moment = folder.stat().st_mtime
    except OSError:
        return None
    return moment if now - moment > recent else None


def choose(items: list[Item], days: float, gigabytes: float, now: float) -> tuple[list[tuple[Item, int]], int]:
    """Return what to delete, oldest first, each with the bytes that this frees, and the bytes that are left."""
    usage = Usage(items)
    left = sorted((item for item in items if item.used is not None), key=lambda item: item.used or 0)
    chosen = []
    while oldest := next((item for item in left if not (item.is_data and usage.is_shared(item))), None):
        if not is_due(oldest, usage, days, gigabytes, now):
            break
        chosen.append((oldest, usage.delete(oldest)))
        left.remove(oldest)
    return chosen, usage.total


def is_due(item: Item, usage: Usage, days: float, gigabytes: float, now: float) -> bool:
    """Return whether an item is too old, or too much space is used."""
    return now - (item.used or now) > days * DAY_SECONDS or (gigabytes > 0 and usage.total > gigabytes * 1e9)


def delete(folder: Path, now: float) -> bool:
    """Delete a folder; return False if it came into use meanwhile. Readers find all of it or nothing."""
    hidden = folder.with_name(f".{folder.name}{DELETED}")
    with contextlib.ExitStack() as held:
        noted = noted_in(folder)
        if noted is not None:
            run = Run(folder.name)
            try:
                held.enter_context(run.locked(runs.COLLECTION, 0))
                if last_use(folder, now) is None or ("unit" in noted and runs.is_alive(noted["unit"], run)):
                    return False  # it is just being cleared
            except (OSError, cluster_config.ConfigError):
                return False  # it is being collected, or systemd does not answer
        elif changed(folder, now) is None:
            return False  # data that is used again
        try:
            folder.rename(hidden)
        except OSError:
            return False
    remove(hidden)
    return True


def interrupted() -> list[Path]:
    """Return the hidden folders of interrupted deletions."""
    return [hidden for place in (runs.RUNS, DATA) for hidden in place.glob(f".*{DELETED}")]


def remove(folder: Path) -> None:
    """Remove a hidden folder. rm follows no links and has no limit of depth."""
    subprocess.run(["rm", "--recursive", "--force", "--one-file-system", "--", str(folder)], capture_output=True, check=False)


def prune(days: float, gigabytes: float, check: bool) -> dict[str, Any]:
    """Delete what is due, or only list it; return lines, paths and bytes."""
    now = time.time()
    if not check:
        for hidden in interrupted():
            remove(hidden)
    items = [Item(path, False, last_use(path, now), files_of(path)) for path in folders(runs.RUNS)]
    items += [Item(path, True, changed(path, now), files_of(path)) for path in folders(DATA)]
    chosen, left = choose(items, days, gigabytes, now)
    lines, deleted, freed = [], [], 0
    for item, size in chosen:
        if check or delete(item.path, now):
            age = (now - (item.used or now)) / DAY_SECONDS
            what = "last used" if item.is_data else "ended"
            lines.append(f"{'would delete' if check else 'deleted'} {item.path}, {what} {age:.0f} days ago: {size / 1e6:.1f} MB")
            deleted.append(str(item.path))
            freed += size
    if not check:
        lines += [f"{hidden} could not be removed completely" for hidden in interrupted()]
    if gigabytes and left > gigabytes * 1e9:
        lines.append(
            f"{left / 1e9:.1f} GB are left, more than {gigabytes:g} GB (runs_keep_gb): they are in use, not collected or new"
        )
    return {"lines": lines, "deleted": deleted, "freed_bytes": freed}


def uncollected(active: set[str]) -> list[dict[str, Any]]:
    """Return ID and end of each run that has ended and was never collected, oldest first; ``active`` runs are left out.

    A part of a training has the training's ID. A run whose machine failed has ended; a damaged one has None as its end.
    """
    found: dict[str, float | None] = {}
    for folder in folders(runs.RUNS):
        noted = noted_in(folder)
        if noted is None or "collected" in noted or folder.name in active:
            continue
        ended = noted.get("ended")
        if ended is None and noted:
            with contextlib.suppress(OSError):
                if noted.get("waiting") or "unit" not in noted or runs.is_alive(noted["unit"], Run(folder.name)):
                    continue
                ended = noted.get("started") or noted.get("asked")
        training = noted.get("training") or {}
        found.setdefault(training.get("id") or folder.name, ended)
    return [{"run": name, "ended": ended} for name, ended in sorted(found.items(), key=lambda each: each[1] or 0)]


def amount(text: str) -> float:
    """Return a text as a number from 0; raise ValueError otherwise."""
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def main() -> None:
    """Delete what is due and report it."""
    parser = argparse.ArgumentParser(description="Delete old runs and unused data of this machine.")
    parser.add_argument("--days", type=amount, required=True, help="days after which a run or data is deleted")
    parser.add_argument("--gb", type=amount, required=True, help="gigabytes (10^9 bytes) of runs and data; 0: no limit")
    parser.add_argument("--check", action="store_true", help="delete nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    try:
        answer = prune(options.days, options.gb, options.check)
    except OSError as error:
        cli.fail(f"{error.filename}: {error.strerror}", 1)
    if options.json:
        print(json.dumps(answer))
    else:
        done = "would be freed" if options.check else "freed"
        print("\n".join([*answer["lines"], f"{len(answer['deleted'])} deleted, {answer['freed_bytes'] / 1e6:.1f} MB {done}"]))


if __name__ == "__main__":
    main()
