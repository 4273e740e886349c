"""Measure the network between two machines with iperf3, one stream; called on the machines, as root.

    network.py serve PORT SECONDS      run a server as the user tensorflow, for so many seconds at most
    network.py measure LINKS           be its client: a JSON list of from, to, address, port
    network.py stop                    end the server

Answers with one JSON object: ``state`` of a server (``missing`` where there is no iperf3, else ``serves``), or the links, each
with ``gigabytes_per_second`` or ``failure``, and ``lines`` for people. Exit status 1 with a sentence if something is wrong.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

UNIT = "tf-benchmark.service"
USER = "tensorflow"  # the firewall lets programs of this user's alone take connections from the other machines
# The server does what it is sent, so it gets no more of the machine than it needs.
CONFINED = (
    f"User={USER}", "CapabilityBoundingSet=", "NoNewPrivileges=true", "ProtectSystem=strict", "ProtectHome=true",
    "PrivateTmp=true", "PrivateDevices=true", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "MemoryMax=256M",
)  # fmt: skip
TIME = 1  # seconds that a link is measured
MORE = 5  # seconds that it may take besides


def serve(port: str, seconds: str) -> dict[str, Any]:
    """Start the server; the unit ends it, whatever becomes of those who asked for it."""
    program = shutil.which("iperf3")
    if not program:
        return {"state": "missing"}
    command = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--service-type=exec"]
    command += [f"--property={text}" for text in (*CONFINED, f"RuntimeMaxSec={int(seconds)}", "Description=iperf3")]
    done = subprocess.run([*command, program, "--server", "--port", port], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("its server did not start; does another benchmark go on? " + done.stderr.strip())
    time.sleep(0.2)
    if subprocess.run(["systemctl", "is-active", "--quiet", UNIT], check=False).returncode:
        raise RuntimeError(f"its server ended at once; is port {port} taken, by a training? journalctl -u {UNIT} says more")
    return {"state": "serves"}


def measure(text: str) -> dict[str, Any]:
    """Measure links that begin here, one after the other."""
    links = [{**link, **rate(link["address"], link["port"])} for link in json.loads(text)]
    lines = [f"{link['from']} -> {link['to']}: {shown(link)}" for link in links]
    return {"links": [{name: link[name] for name in link if name not in ("address", "port")} for link in links], "lines": lines}


def shown(link: dict[str, Any]) -> str:
    """Return a link's rate, or why there is none."""
    return link.get("failure") or f"{link['gigabytes_per_second']:.3g} GB/s"


def rate(address: str, port: int) -> dict[str, Any]:
    """Return what arrives of one stream, in GB (1e9 bytes) a second."""
    command = ["iperf3", "--client", address, "--port", str(port), "--time", str(TIME), "--json", "--connect-timeout", "2000"]
    for tries in range(2):
        if tries:
            time.sleep(0.5)  # the server may not be there yet, or at the end of another's
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIME + MORE, user=USER, check=False)
            found = json.loads(done.stdout)
            if "error" not in found:
                return {"gigabytes_per_second": found["end"]["sum_received"]["bits_per_second"] / 8e9}
            failure = found["error"]
        except subprocess.TimeoutExpired:
            return {"failure": f"no end within {TIME + MORE} s"}
        except (ValueError, KeyError, TypeError) as error:
            failure = f"iperf3 did not answer in JSON: {error!r} {done.stderr.strip()}"
    return {"failure": failure}


def stop() -> dict[str, Any]:
    """End the server."""
    subprocess.run(["systemctl", "stop", UNIT], capture_output=True, check=False)
    return {"state": "stopped"}


def main() -> None:
    """Answer one call."""
    calls: dict[str, Callable[..., dict[str, Any]]] = {"serve": serve, "measure": measure, "stop": stop}
    call = calls[sys.argv[1]]
    try:
        print(json.dumps(call(*sys.argv[2:])))
    except (OSError, RuntimeError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
