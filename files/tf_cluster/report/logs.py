"""Merge the journals of tasks by time.

    logs.py FOLDER

FOLDER/logs has one file per task, the output of ``journalctl --output=short-iso-precise``. Writes FOLDER/logs/all.txt, with the
task's name on each line, and prints a JSON object: ``lines``, its last 200 lines. Exit status: 0, or 1 with a sentence.
"""

from __future__ import annotations

import datetime
import heapq
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 200
STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+)([+-]\d\d):?(\d\d) ")


def main() -> None:
    """Merge the journals and print the result as JSON."""
    folder = Path(sys.argv[1]) / "logs"
    files = sorted(folder.glob("*.log"))
    if not files:
        sys.exit(f"{Path(sys.argv[0]).name}: no journals in {folder}: has the run been collected?")
    lines = merge({path.stem: path.read_text(encoding="utf-8", errors="replace") for path in files})
    merged = folder / "all.txt"
    merged.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    left_out = [f"... {len(lines) - MAX_LINES} lines before these ..."] if len(lines) > MAX_LINES else []
    ending = [f"{len(lines)} lines are in {merged}"]
    if (folder.parent / "tasks").exists():  # a training, whose tasks are not servers of the cluster
        ending.append(f"The output of its tasks is in {folder.parent}/stdout.log and {folder.parent}/tasks/*/stdout.log")
    print(json.dumps({"lines": [*left_out, *lines[-MAX_LINES:], *ending]}))


def merge(journals: dict[str, str]) -> list[str]:
    """Return the lines of all journals, sorted by time; ``journals``: task -> text."""
    streams = [list(entries(name, text)) for name, text in journals.items()]
    return [line for _moment, line in heapq.merge(*streams, key=lambda entry: entry[0])]


def entries(name: str, text: str) -> Iterator[tuple[datetime.datetime, str]]:
    """Yield (time, line); a line without a time gets the time of the previous line."""
    moment = datetime.datetime.min.replace(tzinfo=datetime.timezone.utc)
    for line in text.splitlines():
        stamp = STAMP.match(line)
        if stamp:
            moment = datetime.datetime.fromisoformat(f"{stamp[1][:26]}{stamp[2]}:{stamp[3]}")
        elif line.startswith("-- "):
            continue  # journalctl's own messages
        yield moment, f"{name:<12} {line}"


if __name__ == "__main__":
    main()
