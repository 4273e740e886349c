"""The name of a run."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

DOCUMENTATION = """
name: run_name
short_description: Give a run its name and its folder on the controller
options:
  _input: {description: Path of the program, type: path, required: true}
  output: {description: Folder of the controller that holds the runs' folders, type: path, required: true}
"""

RETURN = """
_value: {description: "C(id), C(folder) and C(since), the time now in seconds since 1970", type: dict}
"""


def run_name(program, output):
    """Return a name that sorts by time and never comes twice; of the program's name only what is safe in a path."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(program).stem).strip("-")[:40] or "program"
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{stem}-{secrets.token_hex(2)}"
    return {"id": run_id, "folder": str(Path(output).resolve() / run_id), "since": time.time() - 1}


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Return the filters by name."""
        return {"run_name": run_name}
