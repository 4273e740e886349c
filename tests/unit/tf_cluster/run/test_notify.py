"""run/notify.py and run/post.py: what a server receives of a run's end, and what is noted of servers that do not work."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from project import load

notify, post = load("tf_cluster.run.notify"), load("tf_cluster.run.post")
runs = notify.runs


class Receiver(BaseHTTPRequestHandler):
    """Notes what it receives and answers with the statuses in the path, one for each request, or not at all."""

    def do_POST(self):
        """Answer one request."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], json.loads(body)))
        statuses = self.path.strip("/").split(",")
        what = statuses[min(len(self.server.received), len(statuses)) - 1]
        if what == "hang":
            self.server.released.wait(10)
        elif what == "garbage":
            self.wfile.write(b"\0\1\2\n\n")
        elif what == "slow":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for number in range(100):
                if self.server.released.wait(0.1):
                    break
                self.wfile.write(f"X-{number}: more\r\n".encode())
        else:
            self.send_response(int(what))
            if what.startswith("30"):
                self.send_header("Location", "/204")
            self.end_headers()

    def log_message(self, *_words):
        """Print nothing."""

    def handle(self):
        """Ignore a sender that has gone."""
        with contextlib.suppress(ConnectionError):
            super().handle()


@pytest.fixture
def server():
    """Return an HTTP server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.received, server.released, server.daemon_threads = [], threading.Event(), True
        server.base = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run that has ended well."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    monkeypatch.setattr(post, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(post, "PAUSES_SECONDS", (0.01, 0.02))
    run = runs.Run("20260101-000000-demo-ab12")
    (run.folder / "results").mkdir(parents=True)
    run.note(run_id=run.id, program="demo.py", started=1767225600.0, asked=1767225600.0, task="host:0")
    run.note(ended=1767225602.5, started_clock=10.0, ended_clock=12.5, failure="")
    return run


@pytest.fixture
def status(tmp_path, monkeypatch):
    """Return a function that returns the last status that systemd got."""
    path = str(tmp_path / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(path)
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)

        def last():
            texts = []
            while True:
                try:
                    texts.append(channel.recv(65536).decode().removeprefix("STATUS="))
                except BlockingIOError:
                    return json.loads(texts[-1])

        yield last


def test_a_server_receives_the_verdict(run, server, status):
    (run.folder / "results/result.json").write_text('{"total": 5, "bad": NaN}')
    post.post(run, f"{server.base}/204")
    [(path, kind, body)] = server.received
    assert (path, kind) == ("/204", "application/json")
    assert body == {
        "ok": True, "failures": [], "run_id": run.id, "program": "demo.py", "started": "2026-01-01T00:00:00+00:00",
        "seconds": 2.5, "result": {"total": 5, "bad": None},
    }  # fmt: skip
    assert status() == {"ok": True, "outcome": "HTTP 204", "attempts": 1}


def test_a_server_receives_why_a_run_failed(run, server, status):
    run.note(failure="the program exited with status 1: OOM", reason={"remedy": "Use smaller batches"})
    run.note(failed_tasks={"10.0.0.1:2222": "does not answer: refused"})
    post.post(run, f"{server.base}/200")
    body = server.received[0][2]
    assert body["ok"] is False
    assert body["failures"] == [
        "The program exited with status 1: OOM.", "10.0.0.1:2222 does not answer: refused.",
    ]  # fmt: skip
    assert "result" not in body
    run.note(failed_tasks={})
    post.post(run, f"{server.base}/200")
    assert server.received[1][2]["failures"] == ["The program exited with status 1: OOM.", "Use smaller batches."]


@pytest.mark.parametrize(
    ("task", "more", "notifies"),
    [
        ("worker:0", {"part": {"final": True, "history": [{"tasks": ["worker:0", "worker:1"]}]}}, True),
        ("worker:1", {"part": {"final": True, "history": [{"tasks": ["worker:0", "worker:1"]}]}}, False),
        ("worker:1", {"part": {"final": True, "history": [{"tasks": ["worker:1"]}]}}, True),
        ("worker:0", {"part": {}}, False),  # its unit was killed: the others continue
        ("worker:0", {"part": {"attempts": 0, "final": False}}, True),  # nothing was started
    ],
)
def test_the_last_chief_of_a_training_notifies(task, more, notifies):
    training = {"chief": "worker:0", "machines": {"worker:0": "a", "worker:1": "b"}, "survives": True}
    assert notify.is_notifier({"notify": "http://a", "task": task, "ended": 1.0, "training": training, **more}) is notifies
    assert notify.is_notifier({"task": task, "ended": 1.0, "training": training, **more}) is False


def test_a_run_that_ended_with_its_machine_notifies_after_the_boot(run, monkeypatch):
    commands = []
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(notify.subprocess, "run", lambda words, **_more: commands.append(words[-1]) or done)
    run.note(**notify.prepare(run, "http://a", "host:0", {}))
    for shuts_down in (True, False):
        monkeypatch.setattr(runs, "is_shutting_down", lambda shuts_down=shuts_down: shuts_down)
        commands.clear()
        notify.start(run)
        assert commands == ([] if shuts_down else [f"tf-notify@{run.id}.service"])
    commands.clear()
    notify.start_missed()
    assert commands == [f"tf-notify@{run.id}.service"]
    run.note(notified={"ok": True})
    notify.start_missed()
    assert commands == [f"tf-notify@{run.id}.service"]


@pytest.mark.parametrize(
    ("path", "expected", "attempts"),
    [
        ("500", "HTTP 500", 3), ("503", "HTTP 503", 3), ("429", "HTTP 429", 3), ("404", "HTTP 404", 1), ("401", "HTTP 401", 1),
        ("302", "HTTP 302, a redirect, which is not followed", 1), ("307", "HTTP 307, a redirect, which is not followed", 1),
        ("hang", "no answer within 0.3 s", 3), ("slow", "no answer within 0.3 s", 3),
        ("garbage", "invalid answer (BadStatusLine)", 3),
    ],
)  # fmt: skip
def test_a_server_that_does_not_accept_the_notification_is_reported(run, server, status, path, expected, attempts):
    begun = time.monotonic()
    post.post(run, f"{server.base}/{path}")
    assert time.monotonic() - begun < 3
    found = status()
    if path == "hang":  # the socket's own limit is the same
        assert found.pop("outcome") in (expected, "timed out")
        assert found == {"ok": False, "attempts": 3}
    else:
        assert found == {"ok": False, "outcome": expected, "attempts": attempts}
    assert len(server.received) == attempts


@pytest.mark.parametrize("path", ["500,204", "hang,hang,200"])
def test_a_server_that_recovers_receives_the_notification(run, server, status, path):
    post.post(run, f"{server.base}/{path}")
    found = status()
    assert (found["ok"], found["attempts"]) == (True, path.count(",") + 1)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1/hidden", "Connection refused"),
        ("http://name.invalid/hidden", ""),  # the resolver's words
        (f"http://{'a' * 70}.example/hidden", ""),
        ("https://127.0.0.1:1/hidden", "Connection refused"),
    ],
)
def test_an_unreachable_server_is_reported_without_the_url(run, status, url, expected):
    post.post(run, url)
    found = status()
    assert found["ok"] is False
    assert expected in found["outcome"]
    assert found["outcome"]
    assert "hidden" not in found["outcome"]


def test_a_server_without_tls_is_reported(run, server, status):
    post.post(run, server.base.replace("http:", "https:") + "/hidden")
    found = status()
    assert (found["ok"], found["attempts"]) == (False, 3)
    assert "hidden" not in found["outcome"]


def test_no_proxy_is_used(run, server, status, monkeypatch):
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    post.post(run, f"{server.base}/200")
    assert status()["ok"] is True


def test_a_notification_to_a_file_url_fails(run, status, tmp_path):
    (tmp_path / "secret").write_text("x")
    post.post(run, f"file://{tmp_path}/secret")
    assert status()["ok"] is False


@pytest.mark.parametrize("text", ["{", "[" * 100_000, " " * 70_000 + "1", "1e999"])
def test_a_result_that_cannot_be_sent_is_left_out(run, server, status, text):
    (run.folder / "results/result.json").write_text(text)
    post.post(run, f"{server.base}/200")
    assert "result" not in server.received[0][2]
    assert status()["ok"] is True


def test_an_invalid_result_is_a_failure_as_in_the_verdict(run, server):
    (run.folder / "results/result.json").write_text("{")
    post.post(run, f"{server.base}/200")
    assert server.received[0][2]["ok"] is False
    assert server.received[0][2]["failures"][0].startswith("The program's result.json is not JSON: ")


def test_a_result_that_is_not_a_regular_file_is_left_out(run, tmp_path):
    path = run.folder / "results/result.json"
    (tmp_path / "other.json").write_text("1")
    path.symlink_to(tmp_path / "other.json")
    assert post.result_of(run) == (None, "")
    path.unlink()
    os.mkfifo(path)
    assert post.result_of(run) == (None, "")
    path.unlink()
    path.mkdir()
    assert post.result_of(run) == (None, "")


@pytest.mark.parametrize(
    "url", ["http://a", "https://hooks.example.org/path?token=x", "http://10.0.0.1:8080/", "http://[fd00::1]:80/x"]
)
def test_http_and_https_urls_are_accepted(url):
    assert notify.problem(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example.org/hidden", "ftp://a/hidden", "file:///hidden", "http://", "http:///hidden", "http://a:99999/hidden",
        "http://a:b/hidden", "http://a b/hidden", "http://a/hidden\n", "http://[::1/hidden", "http://é/hidden", 5, ["http://a"],
    ],
)  # fmt: skip
def test_an_invalid_url_is_refused_and_not_shown(url):
    assert notify.problem(url).startswith("run_notify is not an http or https URL")
    assert "hidden" not in notify.problem(url)


def test_a_url_with_a_user_name_is_refused_and_not_shown():
    assert notify.problem("https://me:hidden@a/") == "run_notify contains a user name, which is not supported. Remove it."


def test_only_root_can_read_the_url_and_the_notes_have_no_secret(run):
    assert notify.prepare(run, "https://a.example:8443/hidden?x=1", "host:0", {}) == {"notify": "https://a.example:8443"}
    path = run.folder / notify.URL_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "https://a.example:8443/hidden?x=1"


def test_nothing_is_stored_without_a_url(run):
    assert notify.prepare(run, "", "host:0", {}) == {}
    assert not (run.folder / notify.URL_FILE).exists()


@pytest.mark.parametrize(("task", "status"), [("worker:0", True), ("worker:1", False)])
def test_only_the_chief_of_a_training_notifies(run, task, status):
    assert bool(notify.prepare(run, "http://a", task, {"chief": "worker:0"})) is status


@pytest.fixture
def systemctl(monkeypatch):
    """Return a function that sets what systemctl answers, and the list of its calls."""
    calls = []

    def answer(status, out="", err=""):
        def pretend(command, **_more):
            calls.append(command)
            return subprocess.CompletedProcess(command, status, out, err)

        monkeypatch.setattr(runs.subprocess, "run", pretend)
        return calls

    return answer


def test_the_end_of_a_run_does_not_wait_for_its_notification(run, systemctl):
    calls = systemctl(0)
    notify.start(run)
    assert calls == []
    run.note(notify="http://a")
    notify.start(run)
    assert calls[1:] == [["systemctl", "start", "--no-block", f"tf-notify@{run.id}.service"]]
    assert "notified" not in run.read()


def test_a_unit_that_cannot_be_started_is_noted(run, systemctl):
    run.note(notify="http://a")
    systemctl(5, err="Unit not found.\n")
    notify.start(run)
    assert run.read()["notified"] == {
        "ok": False, "outcome": f"systemd could not start tf-notify@{run.id}.service: Unit not found.", "attempts": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"ok": true, "outcome": "HTTP 200", "attempts": 2}', {"ok": True, "outcome": "HTTP 200", "attempts": 2}),
        ('{"ok": 1, "outcome": "' + "x" * 1000 + '", "attempts": "3"}', {"ok": False, "outcome": "x" * 200, "attempts": 3}),
        *((text, {"ok": False, "outcome": "its process reported nothing", "attempts": 0})
          for text in ("", "{", "[1]", "5", '{"ok": true}', '{"ok": true, "outcome": "", "attempts": 1e999}', "[" * 100_000)),
    ],
)  # fmt: skip
def test_the_report_of_the_unit_is_noted(run, systemctl, text, expected):
    systemctl(0, text)
    notify.note(run)
    assert run.read()["notified"] == expected


def test_a_run_that_was_removed_is_not_an_error(run, systemctl, tmp_path, monkeypatch):
    systemctl(0)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "empty")
    notify.note(runs.Run(run.id))
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("noted", "waits"),
    [
        ({"ended": None}, False),
        ({"notify": "http://a", "notified": {}}, False),
        ({"notify": "http://a", "ended": 1767225602.5}, False),
        ({"notify": "http://a"}, True),
    ],
)
def test_a_collection_waits_only_for_a_pending_notification(run, monkeypatch, noted, waits):
    monkeypatch.setattr(notify, "WAIT_SECONDS", 0.2)
    run.note(**{"ended": time.time(), **{name: value for name, value in noted.items() if value is not None}})
    begun = time.monotonic()
    notify.wait(run)
    assert (time.monotonic() - begun >= 0.2) is waits


def test_a_collection_continues_when_the_notification_has_an_outcome(run):
    run.note(notify="http://a", ended=time.time())
    timer = threading.Timer(0.1, lambda: run.note(notified={}))
    timer.start()
    begun = time.monotonic()
    notify.wait(run)
    timer.join()
    assert time.monotonic() - begun < 1
