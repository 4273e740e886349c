"""What breaks before, during and between calls of site.yml: it says what is wrong, and the next call mends it."""

import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
import yaml
from conftest import AS_ROOT, ROOT, SCENARIO, folder_of, said, verdict

VENV = "/opt/tf-cluster/venv"
CUT = "table inet cut { chain in { type filter hook input priority -300; iif lo accept; drop; }; }"


class Site:
    """The cluster, its machines by what they carry, and what is done to them."""

    def __init__(self, cluster):
        self.cluster = cluster
        listed = cluster.command("ansible", "worker", "--list-hosts").stdout.split()
        self.first, self.second, self.host = *listed[-2:], cluster.host

    def repair(self, *words):
        """Call site.yml, check that the cluster is complete, and return the seconds that it took."""
        begun = time.monotonic()
        done = self.cluster.playbook("site.yml", *words)
        assert done.returncode == 0, said(done)[-4000:]
        return time.monotonic() - begun

    def at_rest(self):
        """Tell whether site.yml has nothing to do."""
        done = self.cluster.playbook("site.yml")
        return done.returncode == 0 and not re.search(r"changed=[1-9]", done.stdout)

    def on(self, machine, line):
        """Run a line of shell on a machine; return what it printed."""
        return self.cluster.shell(machine, line).get(machine, "")

    def from_outside(self, machine, line):
        """Run a line of shell on a machine without its network."""
        command = [*AS_ROOT, "podman", "exec", f"tf-test-{SCENARIO.name}-{machine}", "sh", "-c", line]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    @contextmanager
    def cut_off(self, machine):
        """Drop all that comes to a machine, in silence."""
        self.from_outside(machine, f"nft '{CUT}'")
        try:
            yield
        finally:
            self.from_outside(machine, "nft delete table inet cut")

    @contextmanager
    def started(self, *words):
        """Call site.yml; yield it and a function that waits until it begins a task."""
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"}
        called = subprocess.Popen(
            ["ansible-playbook", *self.cluster.inventory, "site.yml", *words], cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

        def wait_for(text):
            printed = []
            for line in called.stdout:
                if text in line:
                    return
                printed.append(line)
            pytest.fail(f"site.yml ended before '{text}':\n{''.join(printed)[-5000:]}")

        try:
            yield called, wait_for
        finally:
            if called.poll() is None:
                os.killpg(called.pid, signal.SIGKILL)
                called.wait()

    def interrupt(self, at, after=0.5):
        """Kill site.yml and all its processes, so many seconds after it has begun a task."""
        with self.started() as (_called, wait_for):
            wait_for(at)
            time.sleep(after)
        time.sleep(3)  # a machine completes the module that it was executing


@pytest.fixture(scope="module")
def site(cluster):
    """Return the cluster, complete. The first call of the next test repairs what a test leaves behind."""
    site = Site(cluster)
    site.repair()
    return site


def test_an_unreachable_machine_does_not_stop_the_others(site, faults):
    site.on(site.first, "systemctl stop tf-server@worker-0; echo {} > /etc/tf-cluster/config.json")
    begun = time.monotonic()
    with site.cut_off(site.second):
        done = site.cluster.playbook("site.yml")
    seconds = time.monotonic() - begun
    assert done.returncode != 0
    assert re.search(rf"worker:1 {site.second} \S+ unreachable no answer from the machine", said(done)), said(done)
    assert re.search(rf"worker:0 {site.first} \S+ answers", said(done)), said(done)
    assert f"Skipped because of the errors above: {site.second}, with worker:1." in said(done)
    assert re.search(rf"(?m)^{site.second} .*changed=0 +unreachable=1", done.stdout), done.stdout
    assert re.search(rf"(?m)^{site.first} .*changed=[1-9] +unreachable=0 +failed=0", done.stdout), done.stdout
    assert '"worker": [' in site.on(site.first, "cat /etc/tf-cluster/config.json")
    repair_seconds = site.repair()
    faults.note(
        "a machine unreachable at site.yml",
        seconds,
        "nothing",
        f"the others were completed; the message names it; repaired in {repair_seconds:.0f} s",
    )


def test_site_continues_without_a_machine_that_is_lost_between_stages(site, faults):
    site.on(site.first, "systemctl stop tf-server@worker-0")
    begun = time.monotonic()
    with site.started() as (called, wait_for):
        wait_for("TASK [distributed.tensorflow.tensorflow : Validating arguments")
        with site.cut_off(site.second):
            output = called.communicate(timeout=120)[0]
    assert called.returncode != 0
    assert re.search(rf"worker:0 +{site.first} +\S+ +answers", output), output
    assert re.search(rf"worker:1 +{site.second} +\S+ +unreachable", output), output
    faults.note(
        "a machine lost during site.yml", time.monotonic() - begun, "nothing", "the others were completed; the message names it"
    )
    site.repair()


def test_site_reports_unchecked_tasks_if_the_host_machine_is_unreachable(site, tmp_path):
    away = tmp_path / "away.yml"
    away.write_text(yaml.safe_dump({"all": {"hosts": {site.host: {"ansible_port": 3}}}}), encoding="utf-8")
    done = site.cluster.playbook("site.yml", f"--inventory={away}")
    assert done.returncode != 0
    assert f"The tasks were not checked, because {site.host} (host:0) checks them." in said(done), said(done)


def test_a_damaged_environment_and_a_wrong_tensorflow_version_are_repaired(site, faults):
    packages = f"{VENV}/lib/python3*/site-packages"
    site.on(site.first, f"rm {packages}/numpy/version.py")
    site.on(site.second, f"cd {packages} && mv tensorflow_cpu-2.21.0.dist-info tensorflow_cpu-2.20.0.dist-info")
    site.on(site.host, f"truncate --size 1000 {packages}/tensorflow/libtensorflow_framework.so.2")
    before = site.cluster.pids()
    seconds = site.repair()
    after = site.cluster.pids()
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())  # what was started with the damaged files starts again
    assert "version.py" in site.on(site.first, f"ls {packages}/numpy")
    assert "tensorflow_cpu-2.21.0" in site.on(site.second, f"ls {packages}")
    assert site.cluster.playbook("run_demo.yml").returncode == 0
    assert site.at_rest()
    faults.note("Python environment damaged, or with another TensorFlow", seconds, "nothing", "repaired by site.yml")


def test_edited_files_are_repaired_and_a_drop_in_of_the_user_is_kept(site, faults):
    """The files were edited by hand, and the tasks were restarted with them."""
    units = "/etc/systemd/system"
    site.on(
        site.first,
        'echo \'{"worker": ["10.0.0.1:2222"]}\' > /etc/tf-cluster/config.json && systemctl restart tf-server@worker-0; '
        "rm /etc/tf-cluster/tasks/worker-0.env",
    )
    site.on(
        site.second,
        f"mkdir -p {units}/tf-server@worker-1.service.d && "
        f"printf '[Service]\\nEnvironment=MINE=1\\n' > {units}/tf-server@worker-1.service.d/override.conf && "
        f"sed -i -e 's/^RestartSec=.*/RestartSec=9/' -e 's/^User=.*/User=root/' {units}/tf-server@.service && "
        "sed -i 's/FRACTION=.*/FRACTION=0.7/' /etc/tf-cluster/tasks/worker-1.env && "
        "systemctl daemon-reload && systemctl restart tf-server@worker-1 && "
        "systemctl disable tf-server@worker-1 tf-cluster.target && systemctl mask tf-server@worker-1",
    )
    site.on(site.host, "head -c 20 /etc/tf-cluster/config.json > /tmp/half; cp /tmp/half /etc/tf-cluster/config.json")
    seconds = site.repair()
    assert len({site.on(name, "sha256sum < /etc/tf-cluster/config.json") for name in (site.first, site.second, site.host)}) == 1
    assert site.on(site.second, "systemctl show -P RestartUSec -P User tf-server@worker-1").split() == ["1s", "tensorflow"]
    assert site.on(site.second, "systemctl is-enabled tf-server@worker-1 tf-cluster.target").split() == ["enabled", "enabled"]
    assert "MINE=1" in site.on(site.second, "cat /etc/systemd/system/tf-server@worker-1.service.d/override.conf")
    assert site.at_rest()
    faults.note(
        "config.json, unit, environment file edited; unit masked", seconds, "nothing", "repaired; a drop-in of the user's is kept"
    )


def test_a_drop_in_that_breaks_a_task_is_named(site, faults):
    drop_in = "/etc/systemd/system/tf-server@worker-1.service.d/override.conf"
    site.on(
        site.second,
        f"mkdir -p $(dirname {drop_in}) && printf '[Service]\\nUser=nobody-of-this-name\\n' > {drop_in} && "
        "systemctl daemon-reload && systemctl restart tf-server@worker-1; true",
    )
    begun = time.monotonic()
    done = site.cluster.playbook("site.yml")
    seconds = time.monotonic() - begun
    site.on(site.second, f"rm -r $(dirname {drop_in})")
    assert done.returncode != 0
    assert f"It is changed by {drop_in}, not part of this project. Correct or remove that." in said(done), said(done)
    site.repair()
    faults.note("a drop-in of the user's breaks a task", seconds, "nothing", "the message names the file")


def test_another_program_on_the_port_of_a_task_is_named(site, faults):
    site.on(
        site.first, "systemctl stop tf-server@worker-0; systemd-run --unit other-program python3 -m http.server 2222; sleep 1"
    )
    begun = time.monotonic()
    done = site.cluster.playbook("site.yml")
    seconds = time.monotonic() - begun
    site.on(site.first, "systemctl stop other-program")
    assert done.returncode != 0
    assert f"{site.first}: port 2222 is in use by python3" in said(done), said(done)
    site.repair()
    faults.note("another program uses a task's port", seconds, "nothing", "the message names it; nothing was changed")


def test_a_proxy_in_the_environment_does_not_affect_the_cluster(site, faults):
    """The proxy is set for systemd and for each login. gRPC would send the cluster's traffic to it."""
    proxies = " ".join(
        f"{name}=http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy")
    )
    site.cluster.shell(
        "lab",
        f"systemctl set-environment {proxies}; cp /etc/environment /tmp/environment; "
        f"printf '%s\\n' {proxies} >> /etc/environment; systemctl restart 'tf-server@*' || true",
    )
    try:
        site.repair()
        begun = time.monotonic()
        done = site.cluster.playbook("run_demo.yml")
        seconds = time.monotonic() - begun
    finally:
        names = " ".join(word.partition("=")[0] for word in proxies.split())
        site.cluster.shell("lab", f"systemctl unset-environment {names}; cp /tmp/environment /etc/environment")
    assert done.returncode == 0, said(done)
    assert verdict(folder_of(done))["ok"]
    faults.note("http_proxy in the environment", seconds, "nothing", "the demo's result is right")


def test_site_completes_after_it_was_killed_at_several_stages(site, faults):
    """Each call is killed with all its processes. The last call is not killed and completes."""
    site.on(site.first, f"rm {VENV}/made-of")
    begun = time.monotonic()
    site.interrupt("TASK [distributed.tensorflow.tensorflow : Install | Send and install the packages")
    site.on(site.first, f"rm -f {VENV}/made-of")  # the machine may have completed what it had received
    site.interrupt("TASK [distributed.tensorflow.tensorflow : Install | Send and install the packages", after=6)
    site.on(site.first, "rm -f /etc/tf-cluster/firewall.nft")
    site.interrupt("TASK [distributed.tensorflow.firewall : Close | Write the rules")
    site.on(site.first, "systemctl stop tf-firewall")
    site.interrupt("TASK [distributed.tensorflow.firewall : Close | Load the rules", after=0)
    site.cluster.shell("worker", "echo {} > /etc/tf-cluster/config.json; sed -i s/FILES/EDITED/ /etc/tf-cluster/tasks/*.env")
    site.interrupt("TASK [distributed.tensorflow.server : Update | Write the cluster spec", after=1)
    site.cluster.shell("worker", "systemctl stop 'tf-server@*'")
    site.interrupt("TASK [distributed.tensorflow.server : Update | Start new tasks", after=0.3)
    interrupted = time.monotonic() - begun
    seconds = site.repair()
    assert site.at_rest()
    assert "packages" not in site.on(site.first, "ls /opt/tf-cluster").split()
    faults.note(
        "site.yml killed at 6 stages", seconds, "nothing", f"completed by the next call (killed calls: {interrupted:.0f} s)"
    )


def test_two_site_playbooks_at_the_same_time_do_not_damage_the_cluster(site, faults):
    site.cluster.shell("lab", f"rm {VENV}/made-of; echo {{}} > /etc/tf-cluster/config.json")
    begun = time.monotonic()
    with site.started() as (one, _wait), site.started() as (other, _wait_too):
        outputs = [called.communicate(timeout=300)[0] for called in (one, other)]
    seconds = time.monotonic() - begun
    assert 0 in (one.returncode, other.returncode), [output[-3000:] for output in outputs]
    how = "both succeeded" if one.returncode == other.returncode == 0 else "one succeeded"
    if how == "one succeeded":
        site.repair()
    assert site.at_rest(), outputs
    faults.note("two site.yml at once", seconds, "nothing", how)


LONG = """
import json, os, time
import tensorflow as tf
tf.compat.v1.disable_eager_execution()
spec = tf.train.ClusterSpec(json.load(open(os.environ["TF_CLUSTER_CONFIG"])))
server = tf.distribute.Server(spec, job_name="host", task_index=0)
with tf.device("/job:worker/task:1"):
    value = tf.constant(1.0) + 1.0
with tf.compat.v1.Session(server.target) as session:
    for step in range(int(os.environ.get("STEPS", "60"))):
        session.run(value)
        print("step", step, flush=True)
        time.sleep(0.5)
"""


def test_site_interrupts_a_run_only_if_the_inputs_of_its_task_changed(site, faults, tmp_path):
    """A changed task is restarted, and the run that uses it fails with the reason."""
    program = tmp_path / "long.py"
    program.write_text(LONG, encoding="utf-8")
    for variables, words in (({}, ""), ({"tf_task_options": {"intra_op_threads": 2}}, "step 1")):
        changed = tmp_path / "changed.yml"
        changed.write_text(yaml.safe_dump({"all": {"hosts": {site.second: variables}}}), encoding="utf-8")
        done = site.cluster.playbook("playbooks/run.yml", f"--extra-vars=program={program}", "--extra-vars=detach=true")
        assert done.returncode == 0, said(done)
        run = re.search(r"-e run=(\S+?)'", said(done)).group(1)
        seconds = site.repair(f"--inventory={changed}")
        done = site.cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
        assert words in done.stdout
        assert (done.returncode == 0) is (not variables), said(done)
    assert f"worker:1 on machine {site.second} (10.89.86.11:2222) was restarted during the run" in said(done), said(done)
    site.repair()
    faults.note("site.yml during a run", seconds, "nothing", "not disturbed; if its task changed, the run fails with the reason")
