"""Return a variable of many machines as one dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def machine_values(machines: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]], path: str) -> dict[str, Any]:
    """Return machine -> value of the variable at the dotted ``path``, without the machines that lack it."""
    found = {}
    for machine in machines:
        value: Any = hostvars.get(machine, {})
        for name in path.split("."):
            if not isinstance(value, Mapping) or name not in value:
                break
            value = value[name]
        else:
            found[machine] = value
    return found


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"machine_values": machine_values}
