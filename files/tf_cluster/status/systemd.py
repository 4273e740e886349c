"""What systemd says of units. Standard library only."""

from __future__ import annotations


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """Return what ``systemctl show`` printed of several units: unit -> property -> value. ``Id`` must be among the properties."""
    units = {}
    for block in text.strip().split("\n\n"):
        properties = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in properties:
            units[properties["Id"]] = properties
    return units
