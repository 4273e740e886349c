"""Return the addresses of a lab's machines."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any


def lab_addresses(machines: dict[str, object], network: str) -> dict[str, str]:
    """Return machine -> address. Raise ValueError for a name without an address in the lab's network."""
    return {machine: _address(machine, str(given), ipaddress.ip_network(network)) for machine, given in machines.items()}


def _address(machine: str, given: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    try:
        return str(ipaddress.ip_address(given))
    except ValueError:
        pass
    try:
        entries = socket.getaddrinfo(given, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        entries = []
    found = [str(entry[4][0]) for entry in entries]
    inside = [address for address in found if ipaddress.ip_address(address.partition("%")[0]) in network]
    if not inside:
        raise ValueError(
            f"{machine}: ansible_host is {given!r}, which the controller resolves to "
            f"{', '.join(dict.fromkeys(found)) or 'no address'}. Set an address in {network}, or make the name resolve to one."
        )
    return inside[0]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"lab_addresses": lab_addresses}
