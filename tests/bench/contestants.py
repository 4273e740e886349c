"""The systems that are compared: the environment of each, and the program that measures it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import deployed
import processes

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache/bench"
INSTALLING, MEASURING = 900, 180  # seconds that one may take
TENSORFLOW = ROOT / "roles/tensorflow/files/cpu.txt"  # what machines get
BY_HAND = "by hand"


class Missing(Exception):  # noqa: N818 no error: it is shown as '-'
    """A contestant is not to be had here; the message says why."""


@dataclass
class Contestant:
    """One of those that are measured."""

    name: str
    about: str  # for the page
    program: str
    packages: Path | None  # list of its environment
    servers: int = 0

    def environment(self):
        """Return the folder of its environment, made where it is missing; None where it needs none."""
        return environment(self.packages) if self.packages else None

    def job(self, folder, ports):
        """Return its program's arguments, with free ports."""
        return {"ports": ports}

    def command(self):
        """Return its program's command, without the job."""
        venv = self.environment()
        return [str(venv / "bin/python") if venv else sys.executable, "-u", str(HERE / "programs" / self.program)]

    def plain(self):
        """Return its program's environment: no more than a program needs, and no proxy that gRPC would go through."""
        return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


class ByHand(Contestant):
    """TensorFlow's servers as a person starts them."""

    def job(self, folder, ports):
        """Return the job: servers by the script of TensorFlow's documentation."""
        addresses = [f"127.0.0.1:{port}" for port in ports]
        config = folder / "config.json"
        config.write_text(json.dumps({"worker": addresses}), encoding="utf-8")
        script = [str(self.environment() / "bin/python"), str(HERE / "programs/by_hand.py"), str(config)]
        servers = [{"command": [*script, str(task)], "environment": self.plain()} for task in range(len(ports))]
        return {"servers": servers, "addresses": addresses, "measure": "everything"}


class Deployed(Contestant):
    """The project's servers, started as their unit does it."""

    def job(self, folder, ports):
        """Return the job: servers with the unit's command and environment."""
        config = folder / "config.json"
        try:
            servers, spec = deployed.servers(ports, self.environment(), config)
        except deployed.UnitError as error:
            raise Missing(str(error)) from None
        config.write_text(json.dumps(spec), encoding="utf-8")
        measure = "everything" if len(ports) == 2 else "start"
        return {"servers": servers, "addresses": spec["worker"], "measure": measure}


class Alone(Contestant):
    """TensorFlow without servers."""

    def job(self, folder, ports):
        """Return the job: no servers."""
        return {"servers": [], "addresses": [], "measure": "everything"}


class Iperf(Contestant):
    """iperf3, the distribution's."""

    def found(self):
        """Return the program and the folder of its libraries, empty for the system's; unpacked here where it is not installed."""
        if path := shutil.which("iperf3"):
            return path, ""
        folder = CACHE / "iperf3"
        if not (folder / "complete").exists():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                fetch = ["apt-get", "download", "-q", "iperf3", "libiperf0", "libsctp1"]
                subprocess.run(fetch, cwd=folder, check=True, capture_output=True, timeout=120)
                for package in folder.glob("*.deb"):
                    subprocess.run(["dpkg-deb", "-x", package, folder], check=True, capture_output=True, timeout=60)
            except (OSError, subprocess.SubprocessError):
                raise Missing("neither installed nor to be fetched by apt-get") from None
            (folder / "complete").touch()
        [library] = folder.glob("usr/lib/**/libiperf.so.0")
        return str(folder / "usr/bin/iperf3"), str(library.parent)

    def environment(self):
        """Fetch it where it is missing."""
        self.found()

    def job(self, folder, ports):
        """Return the job."""
        return {"iperf3": self.found()[0], "ports": ports}

    def plain(self):
        """Return the environment, with its libraries."""
        libraries = self.found()[1]
        return super().plain() | ({"LD_LIBRARY_PATH": libraries} if libraries else {})


def requirements(name):
    """Return the list of packages of a peer."""
    return HERE / f"requirements/{name}.txt"


CONTESTANTS = [
    ByHand(BY_HAND, "`tf.distribute.Server` and `join()`, in a plain environment", "servers.py", TENSORFLOW, 2),
    Deployed("deployed", "this project's server, with its unit's command and environment", "servers.py", TENSORFLOW, 2),
    Deployed("eight deployed", "eight of them on one machine, started at once", "servers.py", TENSORFLOW, 8),
    Alone("no server", "TensorFlow in the program's own process", "servers.py", TENSORFLOW),
    Contestant("Ray", "from one node's object store to an actor on another node", "ray_objects.py", requirements("ray")),
    Contestant("Dask", "from one worker process to a task on another, TCP", "dask_workers.py", requirements("dask")),
    Contestant("PyTorch gloo", "send and receive between two processes, into memory that is there already", "torch_gloo.py",
               requirements("torch"), 1),
    Iperf("iperf3", "one TCP stream, whatever the size", "iperf_stream.py", None, 1),
]  # fmt: skip


def environment(packages):
    """Return the folder of an environment with a list of packages; it is made where it is not there as the list says."""
    folder = CACHE / ("tensorflow" if packages == TENSORFLOW else packages.stem)
    digest, stamp = hashlib.sha256(packages.read_bytes()).hexdigest(), folder / "complete"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return folder
    print(f"  making an environment: {packages.relative_to(ROOT)}", flush=True)
    calls = ["venv", "--quiet", "--allow-existing", folder], ["pip", "sync", "--quiet", "--require-hashes", packages]
    for words in calls:
        variables = {**os.environ, "VIRTUAL_ENV": str(folder)}
        try:
            subprocess.run(["uv", *words], env=variables, check=True, capture_output=True, text=True, timeout=INSTALLING)
        except subprocess.TimeoutExpired:
            raise Missing(f"not installed after {INSTALLING} s") from None
        except subprocess.CalledProcessError as error:
            raise Missing(f"not installed: {last_line(error.stderr)}") from None
    stamp.write_text(digest, encoding="utf-8")
    return folder


def last_line(text):
    """Return the last line that is not empty."""
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["it printed nothing"])[-1][:200]


def measure(contestant, limit):
    """Return a contestant's ``version`` and ``figures``; raise Missing where there are none, after ``limit`` seconds at most."""
    folder = CACHE / "work" / contestant.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    job, result, log = folder / "job.json", folder / "result.json", folder / "log"
    result.unlink(missing_ok=True)
    told = {**contestant.job(folder, processes.free_ports(contestant.servers)), "result": str(result)}
    job.write_text(json.dumps(told, indent=1), encoding="utf-8")
    limit = min(limit, MEASURING)
    # A short path, since sockets are named by it; what was left there goes with the processes.
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as temporary:
        variables = {**contestant.plain(), "TMPDIR": temporary}
        status = processes.run([*contestant.command(), str(job)], variables, log, limit)
    if status != 0 or not result.exists():
        why = f"not done after {limit:.0f} s" if status is None else last_line(log.read_text(encoding="utf-8", errors="replace"))
        raise Missing(f"{why} ({log.relative_to(ROOT)})")
    return json.loads(result.read_text(encoding="utf-8"))
