"""Check the options of a benchmark, and compute its input from the cluster and its network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.plugin_utils.variables import number_of

Cluster = dict[str, Any]  # as the filter cluster_spec returns it
Link = dict[str, Any]  # from and to (machines), address, port; after the measurement also gigabytes_per_second or failure

MIN_SECONDS = 10
MAX_SECONDS = 86400
LINK_SECONDS = 1.3  # per link
MAX_REASONS = 5  # that are shown


def benchmark_problems(seconds: Any) -> list[str]:
    """Return a sentence if the time for the benchmark is invalid."""
    if MIN_SECONDS <= number_of(seconds) <= MAX_SECONDS:
        return []
    return [f"benchmark_seconds is {seconds!r}. Set a number from {MIN_SECONDS} to {MAX_SECONDS}."]


def network_links(cluster: Cluster, seconds: float | str) -> list[Link]:
    """Return the links that fit into the time. In each round, every machine sends once and receives once."""
    names = list(cluster["machines"])
    pairs = [(name, names[(place + shift) % len(names)]) for shift in range(1, len(names)) for place, name in enumerate(names)]
    first = {name: tasks[0] for name, tasks in cluster["machines"].items()}
    offset = cluster["train_port_offset"]
    return [
        {"from": begin, "to": end, "address": first[end]["address"].strip("[]"), "port": first[end]["port"] + offset}
        for begin, end in pairs[: max(1, int(float(seconds) / LINK_SECONDS))]
    ]


def benchmark_about(
    cluster: Cluster, seconds: float | str, iperf: bool, links: list[Link], found: list[Link], problems: dict[str, str]
) -> dict[str, Any]:
    """Return the input of the benchmark's program: ``seconds``, ``tasks``, ``network`` and ``notes``.

    ``links`` are all links for iperf3, ``found`` those that it tried, ``problems`` is machine -> a sentence. The program gets the
    ``seconds`` that iperf3 leaves.
    """
    tasks = {
        f"{task['address']}:{task['port']}": [f"{task['job']}:{task['index']}", machine, len(task["options"]["gpus"])]
        for machine, machine_tasks in cluster["machines"].items()
        for task in machine_tasks
    }
    network = [link for link in found if "failure" not in link]
    reasons = [f"{machine}: {' '.join(str(problem).split())[:200].rstrip(' :')}" for machine, problem in problems.items()]
    reasons += [
        f"{link['from']} -> {link['to']}: {link['failure']}"
        for link in found
        if "failure" in link and not {link["from"], link["to"]} & problems.keys()
    ]
    count = len(cluster["machines"]) * (len(cluster["machines"]) - 1)
    if not iperf:
        notes = ["iperf3 is switched off (benchmark_iperf)."]
    elif not count:
        notes = ["iperf3 had nothing to measure: all tasks are on one machine."]
    else:
        notes = [f"iperf3 measured {len(network)} of {count} links between {len(cluster['machines'])} machines."]
        notes[0] += "" if len(links) == count else " NOT ALL: more do not fit into the time (benchmark_seconds)."
    notes += [f"iperf3 did not work on {reason}" for reason in reasons[:MAX_REASONS]]
    left = float(seconds) - (LINK_SECONDS * len(links) if iperf else 0)
    return {"seconds": round(left, 1), "tasks": tasks, "network": network, "notes": notes}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "benchmark_about": benchmark_about,
            "benchmark_problems": benchmark_problems,
            "network_links": network_links,
        }
