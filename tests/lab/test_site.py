"""What site.yml does to a cluster that stands: nothing, or just what is asked for."""

import re

import pytest
import yaml
from conftest import UNTIL_COMPILED, said


@pytest.fixture
def changed_inventory(cluster, tmp_path):
    """Return a function that runs a playbook on the inventory with variables of machines changed. What it changed is restored."""
    changed = []

    def run(playbook, variables, *words):
        path = tmp_path / "changed.yml"
        path.write_text(yaml.safe_dump({"all": {"hosts": variables}}), encoding="utf-8")
        done = cluster.playbook(playbook, f"--inventory={path}", *words)
        if re.search(r"changed=[1-9]", done.stdout):
            changed.append(variables)
        return done

    yield run
    if any(changed[-1:]):
        assert cluster.playbook("site.yml").returncode == 0


def test_interrupted_byte_compiling_continues_at_the_next_start(cluster):
    """An interrupted compilation does not count as finished, and the next start compiles the remaining files."""
    unit, folder = "tf-cluster-compile.service", "/opt/tf-cluster/venv"
    count = f"find {folder}/lib -name '*.pyc' | wc -l"
    compiled = int(cluster.shell("host", count)[cluster.host])
    assert compiled > 3000
    again = f"find {folder}/lib -name '*.pyc' -delete; rm {folder}/byte-compiled; systemctl start {unit}; "
    interrupted = f"sleep 1; systemctl stop {unit}; test -e {folder}/byte-compiled || echo not done; {count}"
    words, left = cluster.shell("host", again + interrupted)[cluster.host].splitlines()
    assert words == "not done"
    assert 0 < int(left) < compiled
    found = cluster.shell("host", f"systemctl start {unit}; {UNTIL_COMPILED}; systemctl is-failed {unit}; {count}")[cluster.host]
    assert found.split() == ["done", "inactive", str(compiled)]


def test_repeating_site_changes_nothing_and_restarts_no_task(cluster):
    before = cluster.pids()
    done = cluster.playbook("site.yml")
    assert done.returncode == 0, said(done)
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}
    assert cluster.pids() == before


def test_only_the_task_whose_inputs_changed_is_restarted(cluster, changed_inventory):
    before = cluster.pids()
    done = changed_inventory("site.yml", {"test-worker-1": {"tf_tasks": {"worker": [{"intra_op_threads": 1}]}}})
    assert done.returncode == 0, said(done)
    after = cluster.pids()
    assert after["tf-server@worker-0.service"] == before["tf-server@worker-0.service"]
    assert after["tf-server@worker-1.service"] != before["tf-server@worker-1.service"]


def test_a_second_task_is_added_and_removed(cluster, changed_inventory):
    done = changed_inventory("site.yml", {"test-worker-1": {"tf_tasks": {"worker": 2}}})
    assert done.returncode == 0, said(done)
    assert "tf-server@worker-2.service" in cluster.pids()
    assert changed_inventory("site.yml", {}).returncode == 0
    assert set(cluster.pids()) == {"tf-server@worker-0.service", "tf-server@worker-1.service"}
    assert "worker-2" not in cluster.shell("test-worker-1", "ls /etc/tf-cluster/tasks")["test-worker-1"]


def test_a_tag_runs_only_its_stage(cluster):
    cluster.shell("test-worker-0", "systemctl stop tf-server@worker-0; echo >>/etc/tf-cluster/firewall.nft")
    done = cluster.playbook("site.yml", "--tags=firewall")
    assert done.returncode == 0, said(done)
    assert "firewall : Close | " in done.stdout
    assert "tf-server@worker-0.service" not in cluster.pids()
    done = cluster.playbook("site.yml", "--tags=server,ready")
    assert done.returncode == 0, said(done)
    assert "tf-server@worker-0.service" in cluster.pids()


def test_a_task_started_with_out_of_date_inputs_is_restarted(cluster):
    """The inputs are out of date if site.yml is interrupted between writing them and restarting the task."""
    cluster.shell("test-worker-0", "sed -i s/PACKAGES=.*/PACKAGES=old/ /etc/tf-cluster/tasks/worker-0.env")
    cluster.shell("test-worker-0", "systemctl restart tf-server@worker-0")
    before = cluster.pids()
    assert cluster.playbook("site.yml").returncode == 0
    after = cluster.pids()
    assert after["tf-server@worker-0.service"] != before["tf-server@worker-0.service"]
    assert after["tf-server@worker-1.service"] == before["tf-server@worker-1.service"]


def test_a_stopped_task_is_started(cluster):
    cluster.shell("test-worker-0", "systemctl stop tf-server@worker-0")
    assert cluster.playbook("site.yml").returncode == 0
    assert "tf-server@worker-0.service" in cluster.pids()


def test_a_killed_task_is_restarted_by_systemd(cluster):
    cluster.shell("test-worker-0", "systemctl kill -s KILL tf-server@worker-0; sleep 4")
    assert cluster.playbook("run_demo.yml").returncode == 0


@pytest.mark.parametrize(
    ("machine", "variables", "sentence"),
    [
        ("test-worker-0", {"tf_address": "10.89.78.99"}, "test-worker-0: 10.89.78.99 is not an address of this machine"),
        ("test-worker-0", {"tf_adress": "10.89.78.10"}, "test-worker-0: unknown variable tf_adress. Did you mean tf_address?"),
        ("test-worker-0", {"tensorflow_source": "whels"}, "test-worker-0: tensorflow_source is 'whels'. Set wheels or index."),
    ],
)
def test_invalid_variables_are_reported_and_change_nothing(cluster, changed_inventory, machine, variables, sentence):
    done = changed_inventory("site.yml", {machine: variables})
    assert done.returncode != 0
    assert sentence in said(done), said(done)
    assert "changed=0" in done.stdout
    assert "changed=1" not in done.stdout


# A training's part of worker:1, and what worker:0 coordinates it by.
@pytest.mark.parametrize(("index", "port"), [(1, 3222), (0, 4222)])
def test_ssh_on_a_port_that_the_firewall_would_close_is_refused(cluster, changed_inventory, index, port):
    """SSH stays reachable, also on a machine without a firewall, as before the first site.yml."""
    setting, machine = "/etc/ssh/sshd_config.d/port.conf", f"test-worker-{index}"
    variables = {machine: {"ansible_port": port, "ansible_ssh_extra_args": f"-o HostKeyAlias=10.89.78.1{index}"}}
    cluster.shell(machine, f"printf 'Port 22\\nPort {port}\\n' >{setting}; systemctl restart ssh; sleep 1")
    try:
        cluster.shell(machine, f"systemctl stop tf-firewall tf-server@worker-{index}")
        done = changed_inventory("site.yml", variables)
        assert done.returncode != 0
        assert f"{machine}: port {port} is in use by sshd" in said(done), said(done)
        assert "changed=1" not in done.stdout
        reached = changed_inventory("playbooks/logs.yml", variables, "--extra-vars=seconds=1")
        assert reached.returncode == 0, said(reached)
    finally:
        cluster.inside(machine, f"rm {setting}; systemctl restart ssh; systemctl start tf-firewall tf-server@worker-{index}")


def test_a_port_that_another_program_uses_is_refused(cluster, changed_inventory):
    cluster.shell("test-worker-0", "systemd-run -u other-program python3 -m http.server 2300; sleep 1")
    try:
        done = changed_inventory("site.yml", {"test-worker-0": {"tf_tasks": {"worker": [{"port": 2300}]}}})
    finally:
        cluster.shell("test-worker-0", "systemctl stop other-program")
    assert done.returncode != 0
    assert "test-worker-0: port 2300 is in use by python3" in said(done), said(done)
    assert "changed=1" not in done.stdout
