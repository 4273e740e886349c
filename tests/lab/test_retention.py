"""How long runs are kept, and the notification of their end."""

import json
import re
import time

import pytest
from conftest import said, verdict

RUNS = "/var/lib/tf-cluster/runs"
PORT = 8099
# Answers with the status in the path, or waits; the log has each path and body.
SERVER = """
import http.server, time

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with open("/tmp/received", "a") as file:
            file.write(self.path + " " + body + "\\n")
        if "hang" in self.path:
            time.sleep(100)
        self.send_response(500 if "500" in self.path else 204)
        self.end_headers()

http.server.ThreadingHTTPServer(("", 8099), Receiver).serve_forever()
"""


@pytest.fixture
def program(tmp_path):
    """Return the path of a short program."""
    (tmp_path / "short.py").write_text("import os; open(os.environ['TF_RUN_DIR'] + '/result.json', 'w').write('[1]')")
    return tmp_path / "short.py"


@pytest.fixture(scope="module")
def receiver(cluster):
    """Return the URL of a server on another machine than the host machine, and a function that returns what it received."""
    machine = next(name for name in cluster.machines("worker") if name != cluster.host)
    cluster.write(machine, "/tmp/receiver.py", SERVER)
    cluster.shell(machine, "rm -f /tmp/received; systemd-run --quiet --collect --unit=test-receiver python3 /tmp/receiver.py")
    address = cluster.inventory_data["_meta"]["hostvars"][machine]["ansible_host"]
    cluster.shell(cluster.host, f"timeout 20 bash -c 'until echo >/dev/tcp/{address}/{PORT}; do sleep 0.2; done'")
    yield f"http://{address}:{PORT}", lambda: cluster.shell(machine, "cat /tmp/received 2>/dev/null; true")[machine]
    cluster.shell(machine, "systemctl stop test-receiver")


def detached(cluster, program, *words):
    """Start a run that nobody follows and return its ID."""
    done, _folder = cluster.run(program, "--extra-vars=detach=true", *words)
    assert done.returncode == 0, said(done)
    return re.search(r"The run (\S+) continues", said(done))[1]


def until(cluster, run, word, seconds=60):
    """Wait until the notes of a run contain a word, and return them."""
    line = f"timeout {seconds} sh -c 'until grep -q {word} {RUNS}/{run}/run.json; do sleep 0.1; done'; cat {RUNS}/{run}/run.json"
    notes = json.loads(cluster.shell("host", line)[cluster.host])
    assert word in notes, notes
    return notes


def age(cluster, run, days):
    """Let a run have ended so many days ago. Its servers may still be cleared, which adds notes."""
    script = f"from tf_cluster.run.runs import Run; r = Run('{run}'); r.note(ended=r.read()['ended'] - {days} * 86400)"
    cluster.shell("host", f'PYTHONPATH=/opt/tf-cluster/lib python3 -c "{script}"')


def kept(cluster):
    """Return the runs of the host machine."""
    return cluster.shell("host", f"ls {RUNS}")[cluster.host].split()


def test_each_machine_deletes_old_runs_daily(cluster):
    found = cluster.shell("lab", "systemctl is-enabled tf-prune.timer; systemctl is-active tf-prune.timer")
    assert {text.split()[0] for text in found.values()} == {"enabled"}
    assert {text.split()[1] for text in found.values()} == {"active"}


def test_site_starts_a_stopped_timer_again_without_restarting_tasks(cluster):
    cluster.shell("host", "systemctl disable --now tf-prune.timer")
    before = cluster.pids()
    assert cluster.playbook("site.yml", "--tags=server").returncode == 0
    assert cluster.shell("host", "systemctl is-active tf-prune.timer")[cluster.host] == "active"
    assert cluster.pids() == before


def test_the_retention_of_runs_can_be_changed_without_restarting_tasks(cluster):
    before = cluster.pids()
    words = ("--extra-vars=runs_keep_days=45", "--extra-vars=runs_keep_gb=500")
    assert cluster.playbook("site.yml", "--tags=server", *words).returncode == 0
    again = cluster.playbook("site.yml", "--tags=server", *words)
    assert not re.search(r"changed=[1-9]", again.stdout), said(again)
    assert cluster.pids() == before
    line = "systemctl show --property=ExecStart tf-prune.service"
    assert all("--days=45 --gb=500" in text for text in cluster.shell("lab", line).values())
    assert cluster.playbook("site.yml", "--tags=server").returncode == 0


def test_an_invalid_retention_period_is_refused(cluster):
    done = cluster.playbook("playbooks/prune.yml", "--extra-vars=runs_keep_days=soon")
    assert done.returncode != 0
    assert "runs_keep_days is 'soon'. Set a number of days from 0 to 1000000." in said(done)


def test_old_runs_are_deleted_once_they_are_collected(cluster, program):
    """Check mode lists them; a run that nobody collected stays and is reported."""
    _done, folder = cluster.run(program)
    left = detached(cluster, program)
    until(cluster, left, "ended")
    for run in (folder.name, left):
        age(cluster, run, 40)
    checked = cluster.playbook("playbooks/prune.yml", "--check", "--extra-vars=runs_keep_days=39")
    assert checked.returncode == 0, said(checked)
    assert f"would delete {RUNS}/{folder.name}, ended 40 days ago" in said(checked)
    assert re.search(rf"{cluster.host} +: .*changed=1 ", checked.stdout), said(checked)
    assert {folder.name, left} <= set(kept(cluster))
    unchanged = cluster.playbook("playbooks/prune.yml", "--extra-vars=runs_keep_days=41")
    assert re.search(rf"{cluster.host} +: .*changed=0 ", unchanged.stdout), said(unchanged)
    done = cluster.playbook("playbooks/prune.yml", "--extra-vars=runs_keep_days=39")
    assert "1 folder(s) deleted, which freed" in said(done)
    assert (folder.name in kept(cluster), left in kept(cluster)) == (False, True)
    assert (folder / "verdict.json").exists()
    status = cluster.playbook("playbooks/status.yml")
    assert status.returncode == 0, said(status)
    assert f"To collect the oldest: ansible-playbook playbooks/collect.yml -e run={left}" in said(status)
    assert f"{left} on {cluster.host}, ended" in said(status)
    assert cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={left}").returncode == 0
    assert left not in said(cluster.playbook("playbooks/status.yml"))
    line = "systemctl start tf-prune.service; journalctl --unit=tf-prune --lines=20 --output=cat --no-pager"
    printed = cluster.shell("host", line)
    assert f"deleted {RUNS}/{left}, ended 40 days ago" in printed[cluster.host]
    assert left not in kept(cluster)


def test_a_failed_run_is_marked_as_collected(cluster, tmp_path):
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    done, folder = cluster.run(tmp_path / "fails.py")
    assert done.returncode != 0
    assert "collected" in until(cluster, folder.name, "collected", 1)


def test_the_end_of_a_detached_run_is_posted(cluster, program, receiver):
    base, received = receiver
    run = detached(cluster, program, f"--extra-vars=run_notify={base}/204?token=hidden")
    notes = until(cluster, run, "notified")
    assert notes["notified"] == {"ok": True, "outcome": "HTTP 204", "attempts": 1}
    [body] = [json.loads(line.partition(" ")[2]) for line in received().splitlines() if run in line]
    assert {name: body[name] for name in ("ok", "failures", "result")} == {"ok": True, "failures": [], "result": [1]}
    done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={run}")
    assert f"Notified {base}: HTTP 204" in said(done)
    folder = cluster.output / run
    assert verdict(folder)["notified"] == {"to": base, "ok": True, "outcome": "HTTP 204", "attempts": 1}
    assert "hidden" not in said(done)
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]
    line = f"setpriv --reuid=tensorflow --regid=tensorflow --clear-groups cat {RUNS}/{run}/notify.url || echo refused"
    assert cluster.shell("host", line)[cluster.host] == "refused"


def test_a_notification_server_that_hangs_does_not_delay_runs(cluster, program, receiver):
    base, received = receiver
    run = detached(cluster, program, f"--extra-vars=run_notify={base}/hang")
    ended = until(cluster, run, "ended")["ended"]
    done, folder = cluster.run(program, f"--extra-vars=run_notify={base}/hang")
    assert done.returncode == 0, said(done)
    assert f"Notifying {base}: pending" in said(done)
    assert verdict(folder)["ok"] is True
    assert verdict(folder)["notified"]["outcome"] == "pending"
    assert json.loads((folder / "run.json").read_text())["started"] - ended < 30
    notes = until(cluster, run, "notified")
    assert (notes["notified"]["ok"], notes["notified"]["attempts"]) == (False, 3)
    assert time.time() - ended < 60
    assert sum(run in line for line in received().splitlines()) == 3


@pytest.mark.parametrize(
    ("url", "outcome", "attempts"),
    [("{base}/500", "HTTP 500", 3), ("http://127.0.0.1:1/", "Connection refused", 3), ("http://name.invalid/", "", 3)],
)
def test_a_failed_notification_does_not_fail_the_run(cluster, program, receiver, url, outcome, attempts):
    run = detached(cluster, program, f"--extra-vars=run_notify={url.format(base=receiver[0])}")
    notes = until(cluster, run, "notified")
    assert (notes["notified"]["ok"], notes["notified"]["attempts"], notes["failure"]) == (False, attempts, "")
    assert outcome in notes["notified"]["outcome"]


def test_the_end_of_a_killed_run_is_posted(cluster, tmp_path, receiver):
    (tmp_path / "sleeps.py").write_text("import time; print('here', flush=True); time.sleep(600)")
    run = detached(cluster, tmp_path / "sleeps.py", f"--extra-vars=run_notify={receiver[0]}/204")
    cluster.shell("host", f"timeout 30 sh -c 'until systemctl kill --signal=KILL tf-run-host-0-{run}; do sleep 0.2; done'")
    until(cluster, run, "notified")
    [body] = [json.loads(line.partition(" ")[2]) for line in receiver[1]().splitlines() if run in line]
    assert body["failures"] == ["The program was killed by SIGKILL."]


def test_an_invalid_notification_url_is_refused_before_a_run_starts(cluster, program):
    done, folder = cluster.run(program, "--extra-vars=run_notify=ftp://a.example/hidden")
    assert done.returncode != 0
    assert folder is None
    assert "run_notify is not an http or https URL" in said(done)
    assert "hidden" not in said(done)
