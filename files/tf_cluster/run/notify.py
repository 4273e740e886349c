"""Let the machine of a run post the verdict to a URL when the run ends (run_notify).

    python -m tf_cluster.run.notify RUN      notes the outcome; called by tf-notify@RUN.service as root at its end

post.py posts the verdict, in that unit, as the user tensorflow. The URL may contain a secret: only root can read its file, and
the notes have its scheme, host and port only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.parse
from typing import Any

from ..spec import cluster_config
from . import runs
from .reason import last_tasks
from .runs import Run

URL_FILE = "notify.url"
WAIT_SECONDS = 2.0  # that a collection waits for the outcome
MAX_AGE_SECONDS = 60.0  # of a run whose outcome may still come; systemd ends the unit after 60 s
MAX_OUTCOME_CHARACTERS = 200


def problem(url: object) -> str:
    """Return a sentence if this is no URL to post to, without the URL."""
    try:
        if not isinstance(url, str):
            raise ValueError
        parts = urllib.parse.urlsplit(url)
        _port = parts.port
        if parts.scheme not in ("http", "https") or not parts.hostname or not (url.isascii() and url.isprintable()) or " " in url:
            raise ValueError
    except ValueError:
        return "run_notify is not an http or https URL. Set one, as in https://hooks.example.org/path"
    if parts.username is not None or parts.password is not None:
        return "run_notify contains a user name, which is not supported. Remove it."
    return ""


def shown(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def prepare(run: Run, url: str, task: str, training: dict[str, Any]) -> dict[str, str]:
    """Keep the URL for the end of the run and return what to note. Of a training, only a part that can be the chief has it."""
    if not url or (training and task != training["chief"] and not training.get("survives")):
        return {}
    with open(os.open(run.folder / URL_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(url)
    return {"notify": shown(url)}


def unit_of(run: Run) -> str:
    """Return the unit that posts the verdict of a run."""
    return f"tf-notify@{run.id}.service"


def start(run: Run) -> None:
    """Start the unit if the run has a URL, and do not wait for it. If the machine shuts down, start_missed does it."""
    if is_notifier(run.read()) and not runs.is_shutting_down():
        done = subprocess.run(["systemctl", "start", "--no-block", unit_of(run)], capture_output=True, text=True, check=False)
        if done.returncode:
            run.note(notified=outcome(False, f"systemd could not start {unit_of(run)}: {' '.join(done.stderr.split())}", 0))


def is_notifier(noted: dict[str, Any]) -> bool:
    """Return whether the machine of this run posts its verdict: of a training, that of the last chief."""
    training, part = noted.get("training") or {}, noted.get("part") or {}
    if "notify" not in noted or not training.get("survives"):
        return "notify" in noted
    ends = runs.is_over(noted) or noted.get("refused") or part.get("attempts") == 0  # the others may continue without the chief
    return bool(noted["task"] == last_tasks(training, part)[0] and ends)


def start_missed() -> None:
    """Start the units of the runs that ended with the machine, after it was started again."""
    for path in runs.RUNS.glob("[!.]*/" + URL_FILE):
        with contextlib.suppress(OSError, cluster_config.ConfigError):
            run = Run(path.parent.name)
            noted = run.read()
            if "ended" in noted and "notified" not in noted:
                start(run)


def outcome(ok: bool, text: str, attempts: int) -> dict[str, Any]:
    """Return the outcome of a notification."""
    return {"ok": ok, "outcome": text[:MAX_OUTCOME_CHARACTERS], "attempts": attempts}


def note(run: Run) -> None:
    """Note the outcome. The process that reported it has the user of the programs, so the report can be invalid."""
    try:
        answer = json.loads(runs.property_of(unit_of(run), "StatusText", 1.0))
        found = outcome(answer["ok"] is True, str(answer["outcome"]), int(answer["attempts"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        found = outcome(False, "its process reported nothing", 0)
    with contextlib.suppress(OSError, cluster_config.ConfigError):  # the run was removed, or the disk is full
        run.note(notified=found)


def wait(run: Run) -> None:
    """Wait for the outcome if the run has just ended."""
    deadline = time.monotonic() + WAIT_SECONDS
    with contextlib.suppress(cluster_config.ConfigError):
        while time.monotonic() < deadline:
            noted = run.read()
            age = time.time() - noted.get("ended", 0)
            if not is_notifier(noted) or "notified" in noted or not 0 <= age < MAX_AGE_SECONDS:
                return
            time.sleep(0.05)


def main() -> None:
    """Note the outcome."""
    note(Run(sys.argv[1]))


if __name__ == "__main__":
    main()
