"""Post the verdict of a run to a URL, which is read from standard input. Called by tf-notify@RUN.service.

    python -m tf_cluster.run.post RUN < notify.url

Connects directly, without a proxy, and follows no redirect. systemd keeps the outcome, also if it ends this process; notify.py
notes it. Standard library only.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import stat
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from ..server.server import notify as tell_systemd
from . import runs
from .notify import outcome, problem
from .reason import remedy_of
from .runs import Run

TIMEOUT_SECONDS = 10.0  # of one attempt
PAUSES_SECONDS = (2.0, 8.0)  # between the attempts
RETRIED_STATUSES = (408, 429)  # and those from 500: the server may answer later
MAX_RESULT_BYTES = 64 * 1024  # a larger result.json is left out


def verdict(noted: dict[str, Any], result: object, problem: str = "") -> dict[str, Any]:
    """Return what is posted: the fields of verdict.json that this machine knows. ``problem``: why the result is invalid."""
    timed = runs.timed(noted)
    failure = noted.get("failure", "")
    failures = [f"{failure[0].upper()}{failure[1:]}.", *remedy_of(noted)] if failure else []
    failures += [f"{address} {text}." for address, text in (noted.get("failed_tasks") or {}).items()]
    started = datetime.datetime.fromtimestamp(timed["started"], datetime.timezone.utc).isoformat(timespec="seconds")
    failures += [problem] if problem else []
    posted = {
        "ok": not failures, "failures": failures, "run_id": noted["run_id"], "program": noted["program"], "started": started,
        "seconds": timed["seconds"],
    }  # fmt: skip
    return posted if result is None else {**posted, "result": result}


def result_of(run: Run) -> tuple[object, str]:
    """Return the content of result.json, and a sentence if it is not JSON. None: it is missing, large, or no regular file."""
    try:
        descriptor = os.open(run.folder / "results/result.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RESULT_BYTES:
                return None, ""
            data = file.read(MAX_RESULT_BYTES + 1)
    except OSError:
        return None, ""
    try:
        result = json.loads(data, parse_constant=lambda _name: None)
    except (ValueError, RecursionError) as error:
        return None, f"The program's result.json is not JSON: {error}."
    try:
        json.dumps(result, allow_nan=False)
    except (ValueError, RecursionError):
        return None, ""  # it has infinite numbers
    return result, ""


def opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https only, without proxies and redirects."""
    made = urllib.request.OpenerDirector()
    handlers = (urllib.request.HTTPHandler, urllib.request.HTTPSHandler, urllib.request.HTTPErrorProcessor)
    for handler in (*handlers, urllib.request.HTTPDefaultErrorHandler):
        made.add_handler(handler())
    return made


def attempt(url: str, data: bytes) -> tuple[bool, str, bool]:
    """Post once; return whether that succeeded, the answer, and whether to try again. The answer does not contain the URL."""
    headers = {"Content-Type": "application/json", "User-Agent": "tf-cluster"}
    try:
        request = urllib.request.Request(url, data, headers, method="POST")  # noqa: S310 (the opener has no other schemes)
        with opener().open(request, timeout=TIMEOUT_SECONDS) as answer:
            return True, f"HTTP {answer.status}", False
    except urllib.error.HTTPError as error:
        error.close()
        more = ", a redirect, which is not followed" if 300 <= error.code < 400 else ""
        return False, f"HTTP {error.code}{more}", error.code >= 500 or error.code in RETRIED_STATUSES
    except http.client.HTTPException as error:
        return False, f"invalid answer ({type(error).__name__})", True
    except ValueError:  # a name that cannot be encoded
        return False, "invalid host name", False
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return False, (getattr(reason, "strerror", None) or str(reason) or type(reason).__name__), True


def attempt_within(url: str, data: bytes) -> tuple[bool, str, bool]:
    """Post once, within the time limit, which also holds for resolving the name and for an answer that arrives slowly."""
    answers: list[tuple[bool, str, bool]] = []
    thread = threading.Thread(target=lambda: answers.append(attempt(url, data)), daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return answers[0] if answers else (False, f"no answer within {TIMEOUT_SECONDS:g} s", True)


def post(run: Run, url: str) -> None:
    """Post the verdict, with retries. systemd keeps the last outcome, also if it ends this process."""
    if problem(url):
        tell_systemd("STATUS=" + json.dumps(outcome(False, "it is not an http or https URL", 0)))
        return
    data = json.dumps(verdict(run.read(), *result_of(run)), allow_nan=False).encode()
    for number, pause in enumerate((0.0, *PAUSES_SECONDS), 1):
        time.sleep(pause)
        ok, answer, again = attempt_within(url, data)
        tell_systemd("STATUS=" + json.dumps(outcome(ok, answer, number)))
        if not again:
            break


def main() -> None:
    """Post the verdict."""
    post(Run(sys.argv[1]), sys.stdin.read().strip())


if __name__ == "__main__":
    main()
