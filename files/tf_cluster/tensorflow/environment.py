"""Create TensorFlow's environment, or report whether it is complete. Runs on the machine, as root.

    python3 - '{"venv": "/opt/tf-cluster/venv", "work": FOLDER, "made_of": "...", "python": PATH, "sync": ["./uv", ...],
                "settings": {...}, "before": ["systemctl", "stop", ...], "timeout": 1800}' PACKAGES.tar

``made-of`` in the environment has its inputs and a digest of its files. A new environment is created in ``work`` and replaces the
old one in one step, so an interruption leaves either the old or the new one; the next call removes the rest. A lock allows
one call at a time; the action tf_program repeats a call that finds it locked, by ``lines`` and ``next``. Prints one JSON object:
``id`` (new for each new environment), ``made`` (false if the environment was complete), and ``failure``, a sentence.
"""

from __future__ import annotations

import errno
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

RETRY_SECONDS, REPORT_SECONDS = 2, 10  # between two attempts to lock, and between two reports
LOCK = "/run/tf-cluster-install.lock"
# Not part of the digest: the note itself, files of the role server, byte code, uv's lock, and headers: two thirds of the files,
# which only a compiler reads.
EXCLUDED_FILES = ("made-of", "tf-cluster.pth", "byte-compiled", "__pycache__", ".lock", "include")


def main() -> None:
    """Create the environment and print the result as JSON."""
    plan = {**json.loads(sys.argv[1]), "packages": sys.argv[2]}
    try:
        print(json.dumps(make(plan)))
    except (OSError, tarfile.TarError) as error:
        print(json.dumps({"failure": f"The packages could not be installed in {plan['venv']}: {error}"}))


def look(venv: str) -> dict[str, Any]:
    """Return ``made_of`` and ``id`` from an environment's note, and ``whole``: whether its files are unchanged."""
    try:
        noted = (Path(venv) / "made-of").read_text(encoding="utf-8")
    except (OSError, ValueError):
        noted = ""
    made_of, _line, found = noted.rpartition("\n")
    return {"made_of": made_of, "id": found, "whole": bool(found) and found == digest(venv)}


def digest(folder: str) -> str:
    """Return a digest of the paths, sizes and times of all files in a folder; reading the files would take seconds."""
    lines = []
    folder = os.path.realpath(folder)  # it may be a link to a larger disk
    for place, folders, names, opened in os.fwalk(folder):
        folders[:] = [name for name in folders if name not in EXCLUDED_FILES]
        within = os.path.relpath(place, folder)
        for name in names:
            if name not in EXCLUDED_FILES:
                found = os.lstat(name, dir_fd=opened)
                lines.append(f"{within}/{name} {found.st_size} {int(found.st_mtime)}")
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()[:16]


def make(plan: dict[str, Any]) -> dict[str, Any]:
    """Create the environment unless it is complete; return the result, or ``lines`` and ``next`` while it is locked."""
    now, seconds = time.clock_gettime(time.CLOCK_BOOTTIME), plan["timeout"]
    waited, reported = now - plan.get("since", now), plan.get("reported", -REPORT_SECONDS)
    with open(LOCK, "w", encoding="utf-8") as lock:  # not the module lock: this file is sent alone
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waited >= seconds:
                return {
                    "failure": f"Timed out after {seconds} s waiting for another site.yml on this machine. "
                    f"'lslocks' shows which process has locked {LOCK}."
                }
            lines = []
            if waited >= reported + REPORT_SECONDS:
                reported, lines = waited, [f"waiting for another site.yml on {os.uname().nodename} ({waited:.0f} s)"]
            time.sleep(RETRY_SECONDS)
            return {"lines": lines, "next": [json.dumps({**plan, "since": now - waited, "reported": reported})]}
        found = look(plan["venv"])
        there = found["whole"] and found["made_of"] == plan["made_of"]
        return {"id": found["id"], "made": False} if there else install(plan, time.monotonic() + seconds - waited)


def install(plan: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Unpack the packages, create a new environment and replace the old one."""
    os.umask(0o022)  # readable for all users, whatever root's umask is
    venv, work = Path(plan["venv"]), Path(plan["work"])
    remove(work)
    work.mkdir(parents=True)
    with tarfile.open(plan["packages"]) as packed:
        os.remove(plan["packages"])  # already now, so that an interruption does not leave it behind
        packed.extractall(work)
    fresh = work / "venv"
    # uv's cache is on the same file system, so that files are linked, not copied.
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
            return {"failure": f"'{' '.join(command[:3])}' timed out after {plan['timeout']} s (tensorflow_timeout)."}
        if done.returncode:
            return {"failure": f"'{' '.join(command[:3])}' failed: {' '.join(done.stderr.split())[-1500:]}"}
    failure = check_libraries(plan, fresh)
    if failure:
        return {"failure": failure}
    made = digest(str(fresh))
    (fresh / "made-of").write_text(f"{plan['made_of']}\n{made}", encoding="utf-8")
    os.sync()  # prevents empty files after a power failure
    # Stops byte-compiling, which would write to the old environment during its removal.
    subprocess.run(plan["before"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    try:
        os.rename(venv, work / "old")
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.EXDEV:  # overlayfs renames no folder that is part of a container's image
            raise
        remove(venv)
    os.rename(fresh, venv)
    remove(work)
    return {"id": made, "made": True}


def check_libraries(plan: dict[str, Any], fresh: Path) -> str:
    """Link the CUDA libraries with cuda_libraries.py from the packages; return a sentence on failures."""
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
    """Remove a folder, a file or a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
