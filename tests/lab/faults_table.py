#!/usr/bin/env python3
"""Print the faults that were tried (.cache/faults.json) as a table, and write it to docs/faults.md."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLUMNS = {"fault": "fault", "seconds": "seconds", "lost": "lost", "how": "what became of it"}
ABOUT = """# When machines fail

Each line is a fault that was really made, on a lab of three machines, and what became of it. Seconds until it was noticed or
mended, or until the command had ended. `make test-faults` makes all of them, prints this table and writes this file.

"""


def table(rows):
    """Return the rows as lines of a table, as Markdown has it and as a person reads it."""
    cells = [list(COLUMNS.values()), *([str(row[name]) for name in COLUMNS] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    cells.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in cells]


def main():
    """Print and write."""
    rows = json.loads((ROOT / ".cache/faults.json").read_text(encoding="utf-8"))
    lines = table(rows)
    (ROOT / "docs/faults.md").write_text(ABOUT + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
