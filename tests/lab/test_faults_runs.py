"""Failures during a run: no output is lost, and the verdict names the machine or the task that failed."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest
from conftest import AS_ROOT, folder_of, said, verdict

HOST, FIRST, SECOND = "faults-host", "faults-worker-0", "faults-worker-1"
NOTICED = 30  # seconds within which a silent task is to be noticed

# Counts on worker:1 in steps of a second; goes on in a new session from the step that was printed last.
COUNT = """
import time
import tensorflow as tf, tf_cluster
v1 = tf.compat.v1
v1.disable_eager_execution()
done, total = 0, 0
with tf.device(tf_cluster.on("worker", 1)):
    number = v1.placeholder(tf.int64, [])
    square = tf.reduce_sum(tf.ones([1000, 1000], tf.int64) * number) // 1_000_000 * number

def work(session):
    global done, total
    while done < {steps}:
        value = int(session.run(square, {{number: done + 1}}))
        done, total = done + 1, total + value
        print("step", done, flush=True)
        time.sleep(1)

if {retry}:
    tf_cluster.retrying(work, deadline={deadline}, seconds=60)
else:
    with tf_cluster.session(deadline={deadline}) as session:
        work(session)
tf_cluster.save_result({{"total": total}})
"""
TICK = "import time\nfor number in range({steps}): print('step', number + 1, flush=True); time.sleep(1)"
# Fetches 256 MB from worker:1 again and again.
SEND = """
import tensorflow as tf, tf_cluster
v1 = tf.compat.v1
v1.disable_eager_execution()
with tf.device(tf_cluster.on("worker", 1)):
    big = v1.get_variable("big", initializer=tf.zeros([64 * 1024 * 1024]))
    fetched = big + 1
with tf_cluster.session(deadline=30) as session:
    session.run(v1.global_variables_initializer())
    print("step 1", flush=True)
    while True:
        session.run(fetched)
"""
# A training in which each task leaves a file.
TRAINING = """
import json, os, time
import tensorflow as tf
tf.distribute.MultiWorkerMirroredStrategy()
task = json.loads(os.environ["TF_CONFIG"])["task"]
with open(os.environ["TF_RUN_DIR"] + "/kept.txt", "w") as file:
    file.write(f"{task['type']} {task['index']}")
for number in range(600):
    print("step", number, flush=True)
    time.sleep(0.5)
"""
# Lets worker:0 take more memory than its machine has.
GLUTTON = """
import tensorflow as tf, tf_cluster
v1 = tf.compat.v1
v1.disable_eager_execution()
print("step 1", flush=True)
with tf.device(tf_cluster.on("worker", 0)):
    size = v1.placeholder(tf.int64, [])
    total = tf.reduce_sum(tf.random.uniform(tf.stack([size, 1024, 1024])))
with tf_cluster.session(deadline=60) as session:
    session.run(total, {size: 1024})
"""
CUT = """
nft 'table inet cut {
 chain input { type filter hook input priority -300; policy drop; }
 chain output { type filter hook output priority -300; policy drop; }
}'
"""
READY = "/opt/tf-cluster/venv/bin/python -I -m tf_cluster.ready --config /etc/tf-cluster/config.json --json --timeout {}"
PID = "$(systemctl show --property=MainPID --value {})"
RUNS = "/var/lib/tf-cluster/runs"


class Running:
    """A run that goes on, and the command that follows it."""

    def __init__(self, cluster, path, *words):
        self.cluster = cluster
        before = self.ids()
        self.process = cluster.begin("ansible-playbook", "playbooks/run.yml", f"--extra-vars=program={path}", *words)
        self.id = self.until(lambda: self.ids() - before).pop()

    def ids(self):
        """Return the ids of all runs on the host machine."""
        return set(self.cluster.inside(HOST, f"ls {RUNS} 2>/dev/null || true").split())

    def until(self, look, seconds=60):
        """Wait until ``look`` returns something, and return it."""
        due = time.monotonic() + seconds
        while time.monotonic() < due:
            found = look()
            if found:
                return found
            time.sleep(0.2)
        raise AssertionError(f"after {seconds} s still nothing")

    def until_it_says(self, pattern, seconds=60):
        """Wait until the run prints something, and return for how many seconds."""
        begun = time.monotonic()
        self.until(lambda: re.search(pattern, self.cluster.inside(HOST, f"cat {RUNS}/{self.id}/stdout.log || true")), seconds)
        return time.monotonic() - begun

    def end(self, seconds=120):
        """Wait for the command's end; return its exit status and output, and the run's verdict and output."""
        out, err = self.process.communicate(timeout=seconds)
        done = subprocess.CompletedProcess([], self.process.returncode, out, err)
        assert folder_of(done), said(done)
        return done.returncode, said(done), *collected(folder_of(done))


def collected(folder):
    """Return the verdict and the output of a collected run."""
    return verdict(folder), (folder / "stdout.log").read_text(encoding="utf-8")


def steps(output):
    """Return the steps that a program printed."""
    return [int(number) for number in re.findall(r"(?m)^step (\d+)", output)]


def all_until(last):
    """Return the steps up to ``last``: none is missing, none comes twice."""
    return list(range(1, last + 1))


@pytest.fixture
def run(cluster, tmp_path):
    """Return a function that starts a program; its command is ended with the test."""
    started = []

    def start(text, *words):
        path = tmp_path / "program.py"
        path.write_text(text, encoding="utf-8")
        started.append(Running(cluster, path, *words))
        return started[-1]

    yield start
    for running in started:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait()


@pytest.fixture
def repairs(cluster):
    """Return a list of functions that are called after the test, whatever happened."""
    repairs = []
    yield repairs
    for repair in repairs:
        repair()
    cluster.inside(HOST, READY.format(30))


def cut(cluster, machine, repairs):
    """Let a machine's packets vanish, in both ways; return what gives it its network back."""
    cluster.inside(machine, CUT)

    def repair():
        cluster.inside(machine, "nft delete table inet cut 2>/dev/null || true")

    repairs.append(repair)
    return repair


def kill(cluster, machine, unit):
    """Kill a unit's main process as the kernel does."""
    cluster.inside(machine, f"kill -KILL {PID.format(unit)}")


def test_a_worker_killed_while_idle_answers_again_within_three_seconds(cluster, faults):
    line = f"kill -KILL {PID.format('tf-server@worker-1')}; begun=$(date +%s%N)\n{READY.format(10)} >/dev/null && "
    took = int(cluster.inside(SECOND, line + "echo $(($(date +%s%N) - begun))")) / 1e9
    faults.note("worker killed while idle", took, "nothing", "restarted by systemd, answers")
    assert took < 3


def test_a_program_that_retries_succeeds_after_a_worker_is_killed_while_computing(cluster, faults, run):
    running = run(COUNT.format(steps=12, deadline=20, retry=True))
    running.until_it_says("step 7")
    kill(cluster, SECOND, "tf-server@worker-1")
    took = running.until_it_says("step 8")
    status, text, found, output = running.end()
    assert status == 0, text
    assert found["result"]["total"] == sum(number * number for number in range(13))
    assert steps(output) == all_until(12)
    assert "[cluster] worker:1 on 10.89.86.11:2222 was restarted" in output
    faults.note("worker killed while computing, program retries", took, "nothing", "right result, in a new session")


def test_a_run_fails_and_names_the_worker_that_was_killed_while_sending(cluster, faults, run):
    running = run(SEND)
    running.until_it_says("step 1")
    time.sleep(1)
    kill(cluster, SECOND, "tf-server@worker-1")
    begun = time.monotonic()
    status, text, found, output = running.end()
    assert status != 0
    assert steps(output) == [1]
    assert "worker:1 on machine faults-worker-1 (10.89.86.11:2222) was restarted during the run" in text
    assert len(found["failures"]) == 2
    faults.note("worker killed while sending 256 MB", time.monotonic() - begun, "nothing", "failed; the verdict names the task")


def test_a_run_fails_within_its_deadline_if_a_machine_is_stopped(cluster, faults, run, repairs):
    running = run(COUNT.format(steps=60, deadline=15, retry=False))
    running.until_it_says("step 2")
    repairs += [lambda: cluster.podman("start", SECOND), lambda: cluster.wait_for(SECOND)]
    cluster.podman("kill", SECOND)
    begun = time.monotonic()
    status, text, found, output = running.end()
    assert status != 0
    assert "worker:1 on machine faults-worker-1 (10.89.86.11:2222) does not answer: unreachable" in text
    assert steps(output) == all_until(max(steps(output)))
    assert found["seconds"] < 40
    faults.note(
        "machine of a worker stopped",
        time.monotonic() - begun,
        "nothing",
        "failed within its deadline; the verdict names the task",
    )


def test_a_program_that_retries_succeeds_after_a_machine_restarts(cluster, faults, run, repairs):
    running = run(COUNT.format(steps=8, deadline=15, retry=True))
    running.until_it_says("step 3")
    cluster.podman("kill", SECOND)
    begun = time.monotonic()
    cluster.podman("start", SECOND)
    running.until_it_says("step 5")
    took = time.monotonic() - begun
    status, text, found, output = running.end()
    assert status == 0, text
    assert found["result"]["total"] == sum(number * number for number in range(9))
    assert steps(output) == all_until(8)
    faults.note("machine of a worker restarted, program retries", took, "nothing", "right result, in a new session")


def test_a_run_reports_a_paused_machine_and_continues_when_it_resumes(cluster, faults, run, repairs):
    running = run(COUNT.format(steps=8, deadline=60, retry=False))
    running.until_it_says("step 3")
    repairs.append(lambda: cluster.podman("unpause", SECOND))
    cluster.podman("pause", SECOND)
    took = running.until_it_says(r"\[cluster\] worker:1 .* does not answer")
    repairs.pop()()
    status, text, found, output = running.end()
    assert took < NOTICED
    assert status == 0, text
    assert found["result"]["total"] == sum(number * number for number in range(9))
    assert "[cluster] worker:1 on 10.89.86.11:2222 answers again" in output
    faults.note("machine of a worker paused", took, "nothing", "reported; continued when the machine resumed")


def test_run_abort_after_silence_stops_a_run_if_the_network_of_a_worker_is_cut(cluster, faults, run, repairs):
    running = run(COUNT.format(steps=90, deadline=120, retry=False), "--extra-vars=run_abort_after_silence=20")
    running.until_it_says("step 2")
    repair = cut(cluster, SECOND, repairs)
    took = running.until_it_says(r"\[cluster\] worker:1 .* has not answered for")
    running.until_it_says("run_abort_after_silence")
    repair()
    status, text, found, output = running.end()
    assert took < NOTICED
    assert status != 0
    assert "task did not answer for 20 s, so the program was stopped (run_abort_after_silence)" in text
    assert "worker:1 on machine faults-worker-1 (10.89.86.11:2222) did not answer for" in text
    assert len(found["failures"]) == 2
    assert steps(output) == all_until(max(steps(output)))
    faults.note(
        "network of a worker cut silently",
        took,
        "nothing",
        "reported; stopped after run_abort_after_silence; the verdict names the task",
    )


def test_a_run_continues_while_the_network_of_the_host_machine_is_cut(cluster, faults, run, repairs):
    running = run(TICK.format(steps=40))
    running.until_it_says("step 2")
    repair = cut(cluster, HOST, repairs)
    begun = time.monotonic()
    running.process.communicate(timeout=60)
    took = time.monotonic() - begun
    assert running.process.returncode != 0
    repair()
    cluster.wait_for(HOST)
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={running.id}")
    assert done.returncode == 0, said(done)
    assert steps(collected(folder_of(done))[1]) == all_until(40)
    faults.note("network of the host machine cut", took, "nothing", "command ended, run continued; attached and collected")


def test_a_killed_program_fails_the_run_and_the_signal_is_named(cluster, faults, run):
    running = run(TICK.format(steps=60))
    running.until_it_says("step 3")
    cluster.inside(HOST, "kill -KILL $(ps -eo pid=,args= | awk '/python program.py/ && !/output.py|awk/ {print $1}')")
    begun = time.monotonic()
    status, _text, found, output = running.end()
    assert status != 0
    assert found["failures"] == ["The program was killed by SIGKILL."]
    assert steps(output) == all_until(max(steps(output)))
    faults.note("program on the host machine killed", time.monotonic() - begun, "nothing", "failed; the verdict names the signal")


def test_a_run_continues_after_the_command_on_the_controller_is_killed(cluster, faults, run):
    running = run(TICK.format(steps=12))
    running.until_it_says("step 2")
    os.killpg(running.process.pid, signal.SIGKILL)
    running.process.wait()
    begun = time.monotonic()
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={running.id}")
    assert done.returncode == 0, said(done)
    assert steps(collected(folder_of(done))[1]) == all_until(12)
    faults.note("controller killed", time.monotonic() - begun, "nothing", "run continued; attached and collected")


def test_a_task_that_exhausts_the_memory_is_named_and_does_not_affect_other_tasks(cluster, faults, run, repairs):
    others = "pgrep 'sshd|systemd-journal' | head -2"
    before, second = cluster.inside(FIRST, others), cluster.inside(SECOND, f"echo {PID.format('tf-server@worker-1')}")
    repairs.append(lambda: cluster.podman("update", FIRST, "--memory", "64g", "--memory-swap", "64g"))
    cluster.podman("update", FIRST, "--memory", "1500m", "--memory-swap", "1500m")
    running = run(GLUTTON)
    running.until_it_says("step 1")
    begun = time.monotonic()
    status, text, _found, output = running.end()
    assert status != 0
    assert steps(output) == [1]
    # The kernel kills it, or lets it crawl, reading its own program again and again, until the run's deadline.
    named = re.search(r"worker:0 on machine faults-worker-0 \(10.89.86.10:2222\) (was restarted|does not answer)", text)
    assert named, text
    assert cluster.inside(FIRST, others) == before
    assert cluster.inside(SECOND, f"echo {PID.format('tf-server@worker-1')}") == second
    how = "killed and restarted" if named[1] == "was restarted" else "slow until the run's deadline"
    faults.note(
        "memory exhausted by one task", time.monotonic() - begun, "nothing", f"only that task {how}; the verdict names it"
    )


def small_disk(cluster, machine, repairs):
    """Let a machine's folder of runs be on a disk of 1 MB; return what makes it larger."""
    cluster.inside(machine, f"mkdir -p {RUNS}; mount -t tmpfs -o size=1m,mode=755 tmpfs {RUNS}")
    repairs.append(lambda: cluster.inside(machine, f"umount {RUNS}"))
    return lambda: cluster.inside(machine, f"mount -o remount,size=50m {RUNS}")


def test_a_run_succeeds_while_the_disk_of_a_worker_is_full(cluster, faults, repairs):
    small_disk(cluster, SECOND, repairs)
    cluster.inside(SECOND, f"head -c 2000000 /dev/zero > {RUNS}/full || true")
    begun = time.monotonic()
    done = cluster.playbook("run_demo.yml")
    assert done.returncode == 0, said(done)
    faults.note("disk of a worker full", time.monotonic() - begun, "nothing", "not needed by a run: right result")


def test_a_run_fails_with_the_reason_if_the_disk_of_the_host_machine_is_full(cluster, faults, run, repairs):
    more_room = small_disk(cluster, HOST, repairs)
    text = "import os, time\nfor n in range(9): print('step', n + 1, flush=True)\ntime.sleep(2)\n"
    text += "open(os.environ['TF_RUN_DIR'] + '/big', 'wb', 0).write(bytes(3_000_000))\nprint('step 10', flush=True)\n"
    text += "open(os.environ['TF_RUN_DIR'] + '/more', 'wb', 0).write(bytes(3_000_000))\n"
    running = run(text)
    begun = time.monotonic()
    running.process.communicate(timeout=60)
    took = time.monotonic() - begun
    assert running.process.returncode != 0
    more_room()
    done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={running.id}")
    found, output = collected(folder_of(done))
    assert steps(output) in (all_until(9), all_until(10))
    [failure] = found["failures"]
    reason = "(: OSError: .*No space left on device)?"  # the output may be lost too
    assert re.fullmatch(rf"The program exited with status 1{reason}; the disk that holds {RUNS} is full\.", failure), said(done)
    faults.note("disk of the host machine full", took, "nothing written before", "failed; collected when there was room")


def test_a_run_succeeds_if_the_disk_of_the_host_machine_is_temporarily_full(cluster, faults, run, repairs):
    more_room = small_disk(cluster, HOST, repairs)
    text = "import os, threading\npath = os.environ['TF_RUN_DIR'] + '/big'\nopen(path, 'wb', 0).write(bytes(3_000_000))\n"
    text += "threading.Timer(4, os.remove, [path]).start()\nfor n in range(20): print('step', n + 1, 'x' * 10_000, flush=True)\n"
    running = run(text)
    running.process.communicate(timeout=60)
    more_room()
    done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={running.id}")
    assert done.returncode == 0, said(done)
    found, output = collected(folder_of(done))
    assert steps(output) == all_until(20)
    faults.note("disk of the host machine full for a while", found["seconds"], "nothing", "waited for room; right result")


def test_results_can_be_collected_after_the_disk_of_the_controller_was_full(cluster, faults, repairs, tmp_path):
    cluster.output.mkdir(parents=True, exist_ok=True)
    subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", f"size=20m,uid={os.getuid()}", "tmpfs", cluster.output], check=True)
    repairs.append(lambda: subprocess.run([*AS_ROOT, "umount", cluster.output], check=True))
    program = tmp_path / "large.py"
    program.write_text(
        "import os, random\nos.chdir(os.environ['TF_RUN_DIR'])\n"
        "open('large', 'wb').write(random.Random(1).randbytes(40_000_000))\n",
        encoding="utf-8",
    )
    begun = time.monotonic()
    done = cluster.run(program)[0]
    took = time.monotonic() - begun
    assert done.returncode != 0
    again = re.search(
        r"could not be transferred: .*No space left on device.*'ansible-playbook (\S+) -e (run=[^']+)'+ to continue", said(done)
    )
    assert again, said(done)
    subprocess.run([*AS_ROOT, "mount", "-o", "remount,size=100m", cluster.output], check=True)
    done = cluster.playbook(again[1], f"--extra-vars={again[2]}")
    assert done.returncode == 0, said(done)
    assert (folder_of(done) / "large").read_bytes() == random.Random(1).randbytes(40_000_000)
    assert verdict(folder_of(done))["ok"]
    faults.note(
        "disk of the controller full", took, "nothing", "reported, with the command that collected it when there was room"
    )


# A program in the seed's style: it uses what config.json lists.
PLAIN = """
import json
import tensorflow.compat.v1 as tf
tf.disable_eager_execution()
cluster = json.load(open("config.json"))
server = tf.train.Server(tf.train.ClusterSpec(cluster), job_name="host", task_index=0)
parts = []
for index in range(len(cluster["worker"])):
    with tf.device(f"/job:worker/task:{index}"):
        parts.append(tf.reduce_sum(tf.ones([10])))
with tf.Session(server.target) as session:
    print(len(parts), sum(session.run(parts)), cluster)
"""
HELPED = """
import tensorflow as tf, tf_cluster
tf.compat.v1.disable_eager_execution()
with tf.device(tf_cluster.on("worker", 0)):
    total = tf.reduce_sum(tf.ones([10]))
with tf_cluster.session(deadline=20) as session:
    print(session.run(total))
print(tf_cluster.on("worker", 1))
"""
EAGER = """
import tensorflow as tf, tf_cluster
for device in tf_cluster.connect(20):
    with tf.device(device):
        print(tf.ones([2]).device)
"""


@pytest.fixture
def detached(cluster, tmp_path):
    """Return a function that requests a detached run and returns its ID."""

    def detached(text):
        path = tmp_path / "program.py"
        path.write_text(text, encoding="utf-8")
        done = cluster.playbook("playbooks/run.yml", f"--extra-vars=program={path}", "--extra-vars=detach=true")
        assert done.returncode == 0, said(done)
        return re.search(r"The run (\S+) continues", said(done))[1]

    return detached


def notes(cluster, run):
    """Return the notes of a run."""
    return json.loads(cluster.inside(HOST, f"cat {RUNS}/{run}/run.json"))


def collected_later(cluster, run):
    """Collect a run after its end; return its verdict and output."""
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert folder_of(done), said(done)
    return collected(folder_of(done))


def until_ended(cluster, runs, seconds=90):
    """Wait until runs have ended, with nobody connected; return for how many seconds."""
    begun = time.monotonic()
    while time.monotonic() < begun + seconds and not all("ended" in notes(cluster, run) for run in runs):
        time.sleep(0.5)
    return time.monotonic() - begun


def test_queued_runs_run_in_order_after_the_host_machine_reboots(cluster, faults, repairs, detached):
    repairs.append(lambda: cluster.wait_for(HOST))
    first = detached(TICK.format(steps=300))
    queued = [detached(TICK.format(steps=3)) for _each in range(3)]
    time.sleep(6)
    cluster.podman("kill", HOST)
    cluster.podman("start", HOST)
    begun = time.monotonic()
    cluster.wait_for(HOST)
    until_ended(cluster, queued)
    took = time.monotonic() - begun
    found = [notes(cluster, run) for run in queued]
    assert [each["failure"] for each in found] == ["", "", ""]
    assert sorted(each["started"] for each in found) == [each["started"] for each in found]
    lost, output = collected_later(cluster, first)
    assert lost["failures"][0] == "The run was lost: its machine or its systemd was restarted."
    assert steps(output) == all_until(max(steps(output)))
    for run in queued:
        verdict, output = collected_later(cluster, run)
        assert verdict["ok"]
        assert steps(output) == all_until(3)
    faults.note(
        "host machine rebooted with three queued runs", took, "nothing", "the running one was lost, the others ran in their order"
    )


def test_canceling_running_and_queued_runs_does_not_affect_the_others(cluster, faults, detached):
    runs = [detached(TICK.format(steps=steps)) for steps in (300, 3, 300, 3)]
    begun = time.monotonic()
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={runs[2]},{runs[0]}")
    assert done.returncode == 0, said(done)
    until_ended(cluster, runs)
    took = time.monotonic() - begun
    outcomes = [collected_later(cluster, run) for run in runs]
    assert [verdict["ok"] for verdict, _output in outcomes] == [False, True, False, True]
    assert all("was canceled by" in outcomes[place][0]["failures"][0] for place in (0, 2))
    assert [steps(output) for _verdict, output in outcomes[1::2]] == [all_until(3)] * 2
    assert steps(outcomes[0][1]) == all_until(max(steps(outcomes[0][1])))
    faults.note("running and queued runs canceled", took, "nothing", "the others ran in their order")


def test_queued_runs_end_with_their_reason_if_the_disk_of_the_host_machine_is_full(cluster, faults, repairs, detached):
    more_room = small_disk(cluster, HOST, repairs)
    text = "import os, time\nprint('step 1', flush=True)\ntime.sleep(12)\n"
    # The first write fills the disk and may be short, without an error.
    text += "for name in ('big', 'more'): open(f'{os.environ[\"TF_RUN_DIR\"]}/{name}', 'wb', 0).write(bytes(3_000_000))"
    runs = [detached(text), detached(TICK.format(steps=2)), detached(TICK.format(steps=2))]
    begun = time.monotonic()
    until_ended(cluster, runs)
    took = time.monotonic() - begun
    assert all("ended" in notes(cluster, run) for run in runs)
    more_room()
    first, output = collected_later(cluster, runs[0])
    assert steps(output)[0] == 1
    assert f"the disk that holds {RUNS} is full." in first["failures"][0]
    for run in runs[1:]:
        found, output = collected_later(cluster, run)
        assert steps(output) == all_until(2) if found["ok"] else "No space left on device" in found["failures"][0], found
    assert collected_later(cluster, detached(TICK.format(steps=2)))[0]["ok"]
    faults.note(
        "disk of the host machine full with a queue",
        took,
        "nothing written before",
        "each run ended with its reason; the next ran",
    )


@pytest.mark.parametrize("detached", [False, True])
def test_the_results_of_the_others_are_collected_if_the_chief_of_a_training_is_lost(cluster, faults, repairs, tmp_path, detached):
    """Without a shared folder. A command that follows the training collects them, and so does collect.yml."""
    (tmp_path / "train.py").write_text(TRAINING, encoding="utf-8")
    process = cluster.begin(
        "ansible-playbook", "playbooks/train.yml", f"--extra-vars=program={tmp_path}/train.py", f"--extra-vars=detach={detached}"
    )
    text = "" if not detached else process.communicate(timeout=120)[0]
    while not detached and "step 2" not in text:
        text += process.stdout.readline()
    training = re.search(r"the run (\S+) starts on", text)[1]
    cluster.inside(SECOND, f"until grep -q 'step 2' {RUNS}/{training}.worker-1/stdout.log; do sleep 0.2; done")
    repairs += [lambda: cluster.podman("start", FIRST), lambda: cluster.wait_for(FIRST)]
    cluster.podman("kill", FIRST)
    begun = time.monotonic()
    if detached:
        cluster.inside(SECOND, f"timeout 60 sh -c 'until grep -q ended {RUNS}/{training}.worker-1/run.json; do sleep 0.5; done'")
        done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={training}")
        status, text = done.returncode, said(done)
    else:
        out, err = process.communicate(timeout=180)
        status, text = process.returncode, " ".join((text + out + err).split())
    assert status != 0
    assert "The results of worker:0 could not be collected: is machine faults-worker-0 reachable?" in text
    folder = cluster.output / training
    assert "The connection to the chief, worker:0, was lost." in verdict(folder)["failures"]
    assert "step 2" in (folder / "stdout.log").read_text(encoding="utf-8")
    assert (folder / "kept.txt").read_text(encoding="utf-8") == "worker 1"
    # Nothing of it may be deleted before all of it is collected.
    assert "collected" not in json.loads(cluster.inside(SECOND, f"cat {RUNS}/{training}.worker-1/run.json"))
    fault = f"machine of a training's chief stopped, {'collect.yml' if detached else 'train.yml'}"
    faults.note(fault, time.monotonic() - begun, "what that machine had", "what the others have is collected")


def test_a_run_with_allow_missing_uses_the_tasks_that_answer(cluster, faults, run, repairs, tmp_path):
    """The first worker is missing, so the name of the second worker in the run differs from its name in the cluster."""
    repairs += [lambda: cluster.podman("start", FIRST), lambda: cluster.wait_for(FIRST)]
    cluster.podman("kill", FIRST)
    begun = time.monotonic()
    few = ("--extra-vars=allow_missing=1", "--extra-vars=ready_timeout=4")
    done = cluster.playbook("run_demo.yml", *few)
    took = time.monotonic() - begun
    assert done.returncode == 0, said(done)
    assert "CONTINUES WITHOUT worker:0 (allow_missing)" in said(done)
    assert "worker:0 on faults-worker-1 computed ab, c, d, log" in said(done)
    found = verdict(folder_of(done))
    assert (found["missing"], found["names"]["worker:0"]) == (["worker:0"], "worker:1")
    assert found["result"]["matrix"][1] == pytest.approx([54.003944, 69.09987], abs=1e-4)
    for text, good, words in [
        (PLAIN, True, "1 10.0 {'worker': ['10.89.86.11:2222'], 'host': ['10.89.86.20:2223']}"),
        (HELPED, False, "the cluster has no task worker:1; it has host:0, worker:0 (this run excludes worker:0"),
        (EAGER, True, "/job:worker/replica:0/task:0/device:CPU:0"),
    ]:
        path = tmp_path / "program.py"
        path.write_text(text, encoding="utf-8")
        done, folder = cluster.run(path, *few)
        assert (done.returncode == 0) is good, said(done)
        assert words in (folder / "stdout.log").read_text(encoding="utf-8")
    refused = cluster.playbook("run_demo.yml", "--extra-vars=ready_timeout=2")
    assert "Not every task of the cluster answers." in said(refused)
    faults.note("a machine missing, -e allow_missing=1", took, "nothing", "right result from the tasks that answer")


def test_site_completes_the_cluster_after_all_faults(cluster, faults):
    begun = time.monotonic()
    done = cluster.playbook("site.yml")
    assert done.returncode == 0, said(done)
    took = time.monotonic() - begun
    done = cluster.playbook("run_demo.yml")
    assert done.returncode == 0, said(done)
    assert verdict(folder_of(done))["result"]["matrix"][1] == pytest.approx([54.003944, 69.09987], abs=1e-4)
    faults.note("after all of these: site.yml", took, "nothing", "the cluster is complete, run_demo.yml works")
