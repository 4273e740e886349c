"""The addresses of the cluster's machines and of further peers."""

from __future__ import annotations

import ipaddress
import socket


def extra_peers(given: object) -> list[str]:
    """Return the addresses and names in firewall_extra_peers, a list or text with commas. Raise ValueError for other values."""
    if isinstance(given, str):
        return [item.strip() for item in given.split(",") if item.strip()]
    if not isinstance(given, (list, tuple, type(None))):
        raise ValueError(f"firewall_extra_peers is {given!r}. Set a list of addresses.")
    return [str(item) for item in given or ()]


def resolve(text: str, allow_loopback: bool = False) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return the IP addresses of a name or an address. Raise ValueError if there is none that other machines can use."""
    try:
        return [ipaddress.ip_address(text)]
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)}
    except (OSError, ValueError) as error:  # ValueError: the name is invalid
        reason = getattr(error, "strerror", None) or "invalid name"
        raise ValueError(
            f"The controller cannot resolve the name {text!r} ({reason}). Set an IP address in tf_address or "
            "firewall_extra_peers."
        ) from None
    usable = [address for address in map(ipaddress.ip_address, found) if allow_loopback or not address.is_loopback]
    if not usable:
        raise ValueError(
            f"The controller resolves the name {text!r} to a loopback address. Set tf_address to the address that other machines "
            "use."
        )
    return usable
