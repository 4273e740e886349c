#!/usr/bin/env python3
"""Print what a scenario's tests noted (.cache/SCENARIO.json) as tables; the faults' goes to docs/faults.md as well.

figures_table.py SCENARIO
"""

import itertools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ABOUT = """# Failures

Each line is a failure that was caused in a lab of three machines, and its outcome. Seconds are counted until the failure was
reported or repaired, or until the command ended. `make test-faults` causes all of them, prints this table and writes this page.
[Operations](operations.md#when-something-fails) explains the behavior.

"""


def table(rows):
    """Return rows of the same columns as lines of a table, as Markdown has it and as a person reads it."""
    cells = [list(rows[0]), *([str(cell) for cell in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    cells.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in cells]


def main():
    """Print and write."""
    scenario = sys.argv[1]
    path = ROOT / f".cache/{scenario}.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    tables = ["\n".join(table(list(alike))) for _columns, alike in itertools.groupby(rows, key=list)]
    if tables and scenario == "faults":
        (ROOT / "docs/faults.md").write_text(ABOUT + tables[0] + "\n", encoding="utf-8")
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
