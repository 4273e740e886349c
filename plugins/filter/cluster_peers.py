"""Compute the addresses of the cluster's machines for the firewall and the tunnel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.plugin_utils.addresses import extra_peers, resolve

Cluster = dict[str, Any]  # as the filter cluster_spec returns it


def cluster_peers(cluster: Cluster, more: object = ()) -> dict[str, list[str]]:
    """Return the IP addresses of a cluster's machines. Raise ValueError for a name without a usable address."""
    own = [tasks[0]["address"].strip("[]") for tasks in cluster["machines"].values()]
    addresses = {found for text in [*own, *extra_peers(more)] for found in resolve(text, len(own) == 1)}
    by_version: dict[int, list[str]] = {4: [], 6: []}
    for address in sorted(addresses, key=lambda address: (address.version, int(address))):
        by_version[address.version].append(str(address))
    return {"ipv4": by_version[4], "ipv6": by_version[6]}


def tunnel_machines(cluster: Cluster) -> list[dict[str, str]]:
    """Return name, address (in the tunnel, without brackets) and reached_by of each machine."""
    return [
        {"name": name, "address": tasks[0]["address"].strip("[]"), "reached_by": tasks[0]["reached_by"]}
        for name, tasks in cluster["machines"].items()
    ]


def tunnel_keys(states: dict[str, dict[str, Any]], machines: list[dict[str, str]]) -> dict[str, str]:
    """Return address -> public key. ``states`` is machine -> what files/tf_cluster/tunnel/state.py found there.

    The other machines' peers provide the key of an unreachable machine.
    """
    known = {address: key for state in states.values() for address, key in state["peers"].items()}
    own = {machine["address"]: states[machine["name"]]["key"] for machine in machines if machine["name"] in states}
    return {address: key for address, key in {**known, **own}.items() if key}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "cluster_peers": cluster_peers,
            "tunnel_machines": tunnel_machines,
            "tunnel_keys": tunnel_keys,
        }
