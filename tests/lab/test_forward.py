"""The port of a run on the controller: forward.yml over ssh, to the end of the run."""

import json
import re
import socket
import time
import urllib.request

import pytest
from conftest import said

# Listens on the machine's loopback after a while, and exits when it is asked to.
SERVER = """
import http.server, os, sys, time

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.environ['TF_RUN_ID']} {self.path}".encode())
        self.server.asked = self.path

time.sleep(1)
port = int(sys.argv[1])
with http.server.HTTPServer(("127.0.0.1", port), Answer) as server:
    print(f"see http://localhost:{port}/start?token=a1", flush=True)
    server.asked = ""
    while server.asked != "/end":
        server.handle_request()
"""


@pytest.fixture
def busy():
    """Return a port that is in use on the controller."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def get(url):
    """Return what a URL answers."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("way", [None, "deploy", "jump"])  # as root; as a user whose sudo needs a password; through a machine
def test_forward_uses_another_port_if_the_port_is_in_use_and_closes_it_when_the_run_ends(cluster, tmp_path, busy, way, request):
    options = request.getfixturevalue(way) if way else []
    (tmp_path / "serve.py").write_text(SERVER, encoding="utf-8")
    given = {"program": str(tmp_path / "serve.py"), "program_args": [busy], "detach": True, "run_tasks": 0}
    done = cluster.playbook("playbooks/run.yml", f"--extra-vars={json.dumps(given)}", *options)
    assert done.returncode == 0, said(done)
    run = re.search(r"The run (\S+) continues", said(done))[1]
    words = ["playbooks/forward.yml", f"--extra-vars=run={run}", f"--extra-vars=port={busy}", *options]
    process = cluster.begin("ansible-playbook", *words)
    deadline, shown = time.monotonic() + 60, None
    text = ""
    while not shown and time.monotonic() < deadline:
        text += process.stdout.readline()
        shown = re.search(rf"(http://127\.0\.0\.1:(\d+))/start\?token=a1 \(port {busy} of the controller is in use\)", text)
    assert shown, text
    assert int(shown[2]) != busy
    assert get(f"{shown[1]}/first") == f"{run} /first"
    assert get(f"{shown[1]}/end") == f"{run} /end"
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert f"the run {run} has ended: it succeeded" in out
    with pytest.raises(OSError, match="refused"):
        get(shown[1])
    done = cluster.playbook(*words)
    assert done.returncode == 2
    assert f"The run {run} has ended (it succeeded), so its port {busy} cannot be forwarded." in said(done)
