"""Who may reach whom: the cluster's addresses and ports, for the firewall."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

Cluster = dict[str, Any]  # as the filter cluster_spec makes it


def cluster_peers(cluster: Cluster, more: object = ()) -> dict[str, list[str]]:
    """Return the addresses by which the machines of a cluster are seen; ValueError for a name without any."""
    more = [item.strip() for item in more.split(",") if item.strip()] if isinstance(more, str) else more or []
    if not isinstance(more, (list, tuple)):
        raise ValueError(f"The variable firewall_extra_peers is {more!r}: make it a list of addresses.")
    given = [tasks[0]["address"].strip("[]") for tasks in cluster["machines"].values()]
    addresses = {found for text in [*given, *map(str, more)] for found in _addresses(text, len(given) == 1)}
    by_version: dict[int, list[str]] = {4: [], 6: []}
    for address in sorted(addresses, key=lambda address: (address.version, int(address))):
        by_version[address.version].append(str(address))
    return {"ipv4": by_version[4], "ipv6": by_version[6]}


def _addresses(text: str, alone: bool) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        return [ipaddress.ip_address(text)]
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(text, None, type=socket.SOCK_STREAM)}
    except (OSError, ValueError) as error:  # ValueError: it cannot even be asked for
        reason = getattr(error, "strerror", None) or "it is none"
        raise ValueError(
            f"The address {text!r} is a name that the controller cannot resolve ({reason}), and the firewall needs "
            "addresses: set tf_address (or firewall_extra_peers) to one."
        ) from None
    abroad = [address for address in map(ipaddress.ip_address, found) if alone or not address.is_loopback]
    if not abroad:
        raise ValueError(
            f"The address {text!r} is a name that means the controller itself, to the controller: set tf_address to the address "
            "that the other machines know it by."
        )
    return abroad


def tunnel_machines(cluster: Cluster) -> list[dict[str, str]]:
    """Return the machines as ends of the tunnel: name, address in the tunnel without brackets, reached_by."""
    return [
        {"name": name, "address": tasks[0]["address"].strip("[]"), "reached_by": tasks[0]["reached_by"]}
        for name, tasks in cluster["machines"].items()
    ]


def tunnel_keys(states: dict[str, dict[str, Any]], machines: list[dict[str, str]]) -> dict[str, str]:
    """Return address -> public key: what each machine says of itself, and before that what the others know of it.

    So a machine that is away keeps its place. ``states`` is machine -> what files/tf_cluster/tunnel/state.py says there.
    """
    known = {address: key for state in states.values() for address, key in state["peers"].items()}
    own = {machine["address"]: states[machine["name"]]["key"] for machine in machines if machine["name"] in states}
    return {address: key for address, key in {**known, **own}.items() if key}


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "cluster_peers": cluster_peers,
            "tunnel_machines": tunnel_machines,
            "tunnel_keys": tunnel_keys,
        }
