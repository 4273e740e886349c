"""Measure the network between two machines with one iperf3 stream; runs on the machines, as root.

    network.py serve PORT SECONDS      run a server as the user tensorflow, for at most SECONDS
    network.py measure LINKS           run clients; LINKS: a JSON list of from, to, address, port
    network.py stop                    stop the server

Prints one JSON object: ``state`` of a server (``missing`` without iperf3, else ``serves``), or the links, each with
``gigabytes_per_second`` or ``failure``, and ``lines`` to show. On errors: exit status 1 and a sentence.
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
USER = "tensorflow"  # the firewall accepts connections from other machines only for this user
# The server obeys its clients, so it is confined.
CONFINED = (
    f"User={USER}", "CapabilityBoundingSet=", "NoNewPrivileges=true", "ProtectSystem=strict", "ProtectHome=true",
    "PrivateTmp=true", "PrivateDevices=true", "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX", "MemoryMax=256M",
)  # fmt: skip
MEASURE_SECONDS = 1  # per link
EXTRA_SECONDS = 5  # allowed in addition


def serve(port: str, seconds: str) -> dict[str, Any]:
    """Start the server; its unit stops it after ``seconds``, even if the controller is lost."""
    program = shutil.which("iperf3")
    if not program:
        return {"state": "missing"}
    command = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--service-type=exec"]
    command += [f"--property={text}" for text in (*CONFINED, f"RuntimeMaxSec={int(seconds)}", "Description=iperf3")]
    done = subprocess.run([*command, program, "--server", "--port", port], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("its server did not start; is another benchmark running? " + done.stderr.strip())
    time.sleep(0.2)
    if subprocess.run(["systemctl", "is-active", "--quiet", UNIT], check=False).returncode:
        raise RuntimeError(f"its server exited at once; is port {port} in use by a training? See 'journalctl -u {UNIT}'")
    return {"state": "serves"}


def measure(text: str) -> dict[str, Any]:
    """Measure the links from this machine, one after the other."""
    links = [{**link, **rate(link["address"], link["port"])} for link in json.loads(text)]
    lines = [f"{link['from']} -> {link['to']}: {shown(link)}" for link in links]
    return {"links": [{name: link[name] for name in link if name not in ("address", "port")} for link in links], "lines": lines}


def shown(link: dict[str, Any]) -> str:
    """Return a link's rate, or its failure, as text."""
    return link.get("failure") or f"{link['gigabytes_per_second']:.3g} GB/s"


def rate(address: str, port: int) -> dict[str, Any]:
    """Return the received rate of one stream, in GB (1e9 bytes) per second, or the failure."""
    command = [
        "iperf3",
        "--client",
        address,
        "--port",
        str(port),
        "--time",
        str(MEASURE_SECONDS),
        "--json",
        "--connect-timeout",
        "2000",
    ]
    for tries in range(2):
        if tries:
            time.sleep(0.5)  # the server may still be starting or busy with another client
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=MEASURE_SECONDS + EXTRA_SECONDS, user=USER, check=False
            )
            found = json.loads(done.stdout)
            if "error" not in found:
                return {"gigabytes_per_second": found["end"]["sum_received"]["bits_per_second"] / 8e9}
            failure = found["error"]
        except subprocess.TimeoutExpired:
            return {"failure": f"timed out after {MEASURE_SECONDS + EXTRA_SECONDS} s"}
        except (ValueError, KeyError, TypeError) as error:
            failure = f"iperf3 printed no JSON: {error!r} {done.stderr.strip()}"
    return {"failure": failure}


def stop() -> dict[str, Any]:
    """Stop the server."""
    subprocess.run(["systemctl", "stop", UNIT], capture_output=True, check=False)
    return {"state": "stopped"}


def main() -> None:
    """Run one command and print its result as JSON."""
    calls: dict[str, Callable[..., dict[str, Any]]] = {"serve": serve, "measure": measure, "stop": stop}
    call = calls[sys.argv[1]]
    try:
        print(json.dumps(call(*sys.argv[2:])))
    except (OSError, RuntimeError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
