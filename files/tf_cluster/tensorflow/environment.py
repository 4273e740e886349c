"""The environment that TensorFlow lies in: tell whether it is whole, or make it anew. Runs on the machine, as root.

    python3 - '{"venv": "/opt/tf-cluster/venv", "work": FOLDER, "made_of": "...", "python": PATH, "sync": ["./uv", ...],
                "settings": {...}, "before": ["systemctl", "stop", ...], "timeout": 1800}' PACKAGES.tar

``made-of`` in the environment holds what it was made of, and a digest of its files as they were then. An environment is made
beside the one that is there and takes its place in one step: whoever interrupts leaves the old one or the new one, never half of
one, and what is left beside it (in ``work``) goes with the next call. A lock lets one call at a time do that; the
action tf_program repeats a call that finds it locked, by ``lines`` and ``next``. Answers with one JSON object: ``id``
(another one after each making), ``made`` (false where another call had done it), and ``failure``, a sentence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

RETRY, TELL = 2, 10  # seconds between two attempts to take the lock, and between two lines that report the waiting
LOCK = "/run/tf-cluster-install.lock"
# The note itself, what the role server adds, what Python makes of a file that is there, and a lock of uv's.
NOT_COUNTED = ("made-of", "tf-cluster.pth", "byte-compiled", "__pycache__", ".lock")


def main() -> None:
    """Answer."""
    plan = {**json.loads(sys.argv[1]), "packages": sys.argv[2]}
    try:
        print(json.dumps(make(plan)))
    except (OSError, tarfile.TarError) as error:
        print(json.dumps({"failure": f"The packages could not be installed in {plan['venv']}: {error}"}))


def look(venv: str) -> dict[str, Any]:
    """Tell what an environment says that it was made of, its id, and whether each file of it is as it was then (``whole``)."""
    try:
        noted = (Path(venv) / "made-of").read_text(encoding="utf-8")
    except (OSError, ValueError):
        noted = ""
    made_of, _line, found = noted.rpartition("\n")
    return {"made_of": made_of, "id": found, "whole": bool(found) and found == digest(venv)}


def digest(folder: str) -> str:
    """Return a digest of the paths, sizes and times of all files below a folder; reading them all would take seconds."""
    lines = []
    folder = os.path.realpath(folder)  # it may be a link to a larger disk
    for place, folders, names, opened in os.fwalk(folder):
        folders[:] = [name for name in folders if name not in NOT_COUNTED]
        within = os.path.relpath(place, folder)
        for name in names:
            if name not in NOT_COUNTED:
                found = os.lstat(name, dir_fd=opened)
                lines.append(f"{within}/{name} {found.st_size} {int(found.st_mtime)}")
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()[:16]


def make(plan: dict[str, Any]) -> dict[str, Any]:
    """Make the environment, unless another call did while this one waited for it."""
    waited, seconds = plan.get("waited", 0), plan["timeout"]
    with open(LOCK, "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waited >= seconds:
                return {"failure": f"Timed out after {seconds} s waiting for another site.yml on this machine."}
            lines = [] if waited % TELL else [f"waiting for another site.yml on {os.uname().nodename} ({waited} s)"]
            time.sleep(RETRY)
            return {"lines": lines, "next": [json.dumps({**plan, "waited": waited + RETRY})]}
        found = look(plan["venv"])
        there = found["whole"] and found["made_of"] == plan["made_of"]
        return {"id": found["id"], "made": False} if there else install(plan, time.monotonic() + seconds - waited)


def install(plan: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Unpack, install beside, and put it in place."""
    os.umask(0o022)  # for all to read, whatever root's own files are like here
    venv, work = Path(plan["venv"]), Path(plan["work"])
    remove(work)
    work.mkdir(parents=True)
    with tarfile.open(plan["packages"]) as packed:
        os.remove(plan["packages"])  # at once: whoever interrupts leaves none of it
        packed.extractall(work)
    fresh = work / "venv"
    # uv's cache lies beside the environment while it installs, so that files are linked, not copied.
    settings = {**os.environ, **plan["settings"], "VIRTUAL_ENV": str(fresh), "UV_CACHE_DIR": str(work / "cache")}
    for command in (
        ["./uv", "venv", "--quiet", "--relocatable", "--no-python-downloads", "--python", plan["python"], str(fresh)],
        plan["sync"],
    ):
        try:
            done = subprocess.run(
                command, cwd=work, env=settings, capture_output=True, text=True, check=False,
                timeout=max(1, deadline - time.monotonic()), stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failure": f"'{' '.join(command[:3])}' did not end within {plan['timeout']} s (tensorflow_timeout)."}
        if done.returncode:
            return {"failure": f"'{' '.join(command[:3])}' failed: {' '.join(done.stderr.split())[-1500:]}"}
    failure = check_libraries(plan, fresh)
    if failure:
        return {"failure": failure}
    made = digest(str(fresh))
    (fresh / "made-of").write_text(f"{plan['made_of']}\n{made}", encoding="utf-8")
    os.sync()  # a machine that loses its power keeps files of length 0 otherwise
    # What may still byte-compile the old one would write into it while it is removed.
    subprocess.run(plan["before"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    with contextlib.suppress(FileNotFoundError):
        os.rename(venv, work / "old")
    os.rename(fresh, venv)
    remove(work)
    return {"id": made, "made": True}


def check_libraries(plan: dict[str, Any], fresh: Path) -> str:
    """Let TensorFlow find its CUDA libraries; return a sentence if it cannot open one. The program came with the packages."""
    site = next(fresh.glob("lib/python*/site-packages/nvidia"), None)
    if site is None:
        return ""
    command = [str(fresh / "bin/python"), "-I", "-S", "cuda_libraries.py", str(site.parent)]
    done = subprocess.run(command, cwd=plan["work"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        failures = json.loads(done.stdout)["failures"]
    except (ValueError, KeyError):
        failures = [f"cuda_libraries.py failed: {' '.join(done.stderr.split())[-1500:]}"]
    remedy = f"The packages in {plan['venv']} would use no GPU and were not installed. Change roles/tensorflow/files/gpu.in."
    return " ".join([*(f"{failure}." for failure in failures), remedy]) if failures else ""


def remove(path: Path) -> None:
    """Remove a folder, or a file in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
