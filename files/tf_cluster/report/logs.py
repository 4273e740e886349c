"""Merge the journals of tasks by time.

    logs.py FOLDER

FOLDER/logs has a file a task, as ``journalctl --output=short-iso-precise`` prints it. Writes FOLDER/logs/all.txt, each line
with the name of its task, and answers with one JSON object: ``lines``, its last 200 lines. Exit status: 0, or 1 with a sentence.
"""

from __future__ import annotations

import datetime
import heapq
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MOST_SHOWN = 200
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+)([+-]\d\d):?(\d\d) ")


def main() -> None:
    """Merge and answer."""
    folder = Path(sys.argv[1]) / "logs"
    files = sorted(folder.glob("*.log"))
    if not files:
        sys.exit(f"{Path(sys.argv[0]).name}: there are no journals in {folder}: has the run been collected?")
    lines = merge({path.stem: path.read_text(encoding="utf-8", errors="replace") for path in files})
    merged = folder / "all.txt"
    merged.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    left_out = [f"... {len(lines) - MOST_SHOWN} lines before these ..."] if len(lines) > MOST_SHOWN else []
    ending = [f"{len(lines)} lines are in {merged}"]
    if (folder.parent / "tasks").exists():  # a training: it makes servers of its own
        ending.append(f"What its tasks printed is in {folder.parent}/stdout.log and {folder.parent}/tasks/*/stdout.log")
    print(json.dumps({"lines": [*left_out, *lines[-MOST_SHOWN:], *ending]}))


def merge(journals: dict[str, str]) -> list[str]:
    """Return the lines of all journals in the order of time; ``journals`` is name of the task -> its journal."""
    streams = [list(entries(name, text)) for name, text in journals.items()]
    return [line for _moment, line in heapq.merge(*streams, key=lambda entry: entry[0])]


def entries(name: str, text: str) -> Iterator[tuple[datetime.datetime, str]]:
    """Yield (time, line); a line without a time belongs to the one before."""
    moment = datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
    for line in text.splitlines():
        stamp = STAMP.match(line)
        if stamp:
            moment = datetime.datetime.fromisoformat(f"{stamp[1][:26]}{stamp[2]}:{stamp[3]}")
        elif line.startswith("-- "):
            continue  # journalctl's own remarks
        yield moment, f"{name:<12} {line}"


if __name__ == "__main__":
    main()
