"""List the runs of this machine: queued, running and finished.

    python -m tf_cluster.run.listing

Prints a JSON object with ``runs``, in the order of their requests. Each has ``run``, ``state`` (queued, running, finished),
``position`` and ``reason`` (if it is queued), ``program``, ``user``, ``since`` (ISO 8601: the request, the start or the end),
``seconds``, ``tasks`` (names), ``failure`` (a sentence; empty: it succeeded; null: it has not ended), ``bytes``, and
``requested``, ``started`` and ``ended`` in seconds since 1970. A training is one run, that of its chief.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any

from .. import cli
from ..spec import cluster_config
from . import prune, queue, runs
from .unit import CONFIG


def main() -> None:
    """Print the runs."""
    try:
        names = {entry: f"{job}:{index}" for job, index, entry in cluster_config.standing_tasks(cluster_config.load(CONFIG))}
        waiting = queue.dispatch()
    except (cluster_config.ConfigError, OSError) as error:
        cli.fail(str(error), 1)
    found = []
    for path in runs.RUNS.glob("[!.]*/run.json"):
        with contextlib.suppress(OSError, ValueError):  # removed meanwhile, or damaged
            noted = json.loads(path.read_bytes())
            training = noted.get("training") or {}
            if not training or training["chief"] == noted["task"]:
                found.append((noted["asked"], described(noted, waiting.get(noted["run_id"]), names, path.parent)))
    print(json.dumps({"runs": [run for _asked, run in sorted(found, key=lambda each: each[0])]}))


def described(noted: dict[str, Any], waits: queue.Waiting | None, names: dict[str, str], folder: Path) -> dict[str, Any]:
    """Return the description of a run. ``waits`` is what it waits for, ``names`` are the tasks' names by address."""
    timed = runs.timed(noted)
    state = "finished" if "ended" in noted else "queued" if noted.get("waiting") else "running"
    since = {"finished": noted.get("ended"), "queued": noted["asked"], "running": timed["started"]}[state]
    training = noted.get("training") or {}
    return {
        "run": noted["run_id"],
        "state": state,
        "position": waits.position if waits else None,
        "reason": waits.reason if waits else "",
        "program": noted["program"],
        "user": noted.get("user", ""),
        "since": datetime.datetime.fromtimestamp(float(since or 0), datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": timed["seconds"] if noted.get("started") else None,
        "tasks": list(training.get("machines", [])) or [names.get(entry, entry) for entry in noted.get("reserved", [])],
        "failure": noted.get("failure", "") if state == "finished" else None,
        "requested": noted["asked"],
        "started": noted.get("started"),
        "ended": noted.get("ended"),
        "bytes": sum(file.size for file in prune.files_of(folder).values()),
    }


if __name__ == "__main__":
    main()
