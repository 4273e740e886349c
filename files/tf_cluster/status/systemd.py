"""Parse the output of systemctl. Standard library only."""

from __future__ import annotations


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """Return the output of ``systemctl show`` as unit -> property -> value. It must have the property ``Id``."""
    units = {}
    for block in text.strip().split("\n\n"):
        properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in properties:
            units[properties["Id"]] = properties
    return units
