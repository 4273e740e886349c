"""teardown.yml: what is left on the machines, and what it reports."""

from conftest import said

LEFT = "ls -d /etc/tf-cluster /opt/tf-cluster /run/tf-cluster /var/lib/tf-cluster /etc/systemd/system/tf-* 2>/dev/null; "
LEFT += "getent passwd tensorflow; systemctl list-units --all --plain --no-legend 'tf-*'; true"


def test_a_run_after_the_teardown_of_one_machine_reports_the_missing_task(cluster):
    done = cluster.playbook("playbooks/teardown.yml", "--limit=test-worker-1")
    assert done.returncode == 0, said(done)
    done = cluster.playbook("run_demo.yml")
    assert done.returncode != 0
    assert "worker:1 test-worker-1 10.89.78.11:2222 refused" in said(done), said(done)
    assert "test-worker-1: /opt/tf-cluster/venv/bin/python is missing on this machine" in said(done), said(done)


def test_teardown_leaves_the_runs_and_reports_them(cluster):
    done = cluster.playbook("playbooks/teardown.yml")
    assert done.returncode == 0, said(done)
    assert "run(s) are left in /var/lib/tf-cluster/runs" in said(done)
    left = cluster.shell("lab", LEFT)
    assert left == {"test-worker-0": "", "test-worker-1": "", "test-host": "/var/lib/tf-cluster"}


def test_a_disk_that_is_too_small_is_refused(cluster):
    done = cluster.playbook("site.yml", "--extra-vars=preflight_disk_mb=99999999")
    assert done.returncode != 0
    assert "MB of free disk under /opt, but TensorFlow needs 99999999 MB" in said(done), said(done)
    assert "changed=1" not in done.stdout


def test_teardown_removes_the_runs_on_request(cluster):
    done = cluster.playbook("playbooks/teardown.yml", "--extra-vars=server_remove_runs=true")
    assert done.returncode == 0, said(done)
    assert set(cluster.shell("lab", LEFT).values()) == {""}


def test_teardown_leaves_what_this_project_did_not_create(cluster, tmp_path):
    """Such as a machine without a task and an account that existed before."""
    account = "useradd --system --home-dir /var/lib/tf-cluster --no-create-home --shell /usr/sbin/nologin tensorflow"
    cluster.shell("test-worker-1", account)
    (tmp_path / "more.yml").write_text("database: {hosts: {db1: {ansible_host: 192.0.2.1}}}\n", encoding="utf-8")
    done = cluster.playbook("playbooks/teardown.yml", f"--inventory={tmp_path / 'more.yml'}")
    assert done.returncode == 0, said(done)
    assert "Skipped, because the inventory has no task for them: db1." in said(done)
    assert "The user tensorflow is left: this project did not create it." in said(done)
    left = cluster.shell("test-worker-1", "getent passwd tensorflow; userdel tensorflow")["test-worker-1"]
    assert left.startswith("tensorflow:")
