"""Programs that work and programs that do not: each ends within its limit, and all that it left is here."""

import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, folder_of, said, verdict

# The seed's own program, against tensorflow.compat.v1, word for word but for the import.
SEED_PROGRAM = """
import json

import tensorflow.compat.v1 as tf
tf.disable_eager_execution()

cluster_spec = json.load(open('config.json', 'rt'))
cluster = tf.train.ClusterSpec(cluster_spec)
server = tf.train.Server(cluster, job_name='host', task_index=0)

with tf.device('/job:worker/task:0'):
    a = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[2, 3], name='a')
    b = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[3, 2], name='b')
    c = tf.matmul(a, b)

with tf.device('/job:worker/task:1'):
    d = tf.matmul(a, b) + tf.log(100 + c)

gpu_options = tf.GPUOptions(per_process_gpu_memory_fraction=0.1, allow_growth=True)
with tf.Session(server.target, config=tf.ConfigProto(gpu_options=gpu_options)) as sess:
    result = sess.run(d)
    print(result)
"""


@pytest.fixture
def program(tmp_path):
    """Return a function that writes a program and returns its path."""

    def write(text, name="program.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_seed_program_runs_unchanged(cluster, program):
    done, folder = cluster.run(program(SEED_PROGRAM))
    assert done.returncode == 0, said(done)
    assert "[54.003944 69.09987 ]" in (folder / "stdout.log").read_text(encoding="utf-8")
    assert verdict(folder)["ok"] is True


def test_the_output_of_a_run_is_not_mixed_with_the_json_of_a_callback(cluster):
    done = cluster.playbook("run_demo.yml", ANSIBLE_STDOUT_CALLBACK="json")
    assert done.returncode == 0, said(done)
    assert json.loads(done.stdout)["stats"]["test-host"]["failures"] == 0
    assert "26.80402" in done.stderr


def test_only_root_and_the_user_of_programs_can_read_a_run(cluster, program):
    _done, folder = cluster.run(program("print('done')"), "--extra-vars=program_args=secret")
    path = f"/var/lib/tf-cluster/runs/{folder.name}"
    line = f"stat --format '%a %U:%G' {path} {path}/run.json {path}/stdout.log"
    assert cluster.shell("host", line)[cluster.host].splitlines() == [
        "750 root:tensorflow",
        "640 root:tensorflow",
        "640 root:tensorflow",
    ]
    line = f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {path}/run.json || echo refused"
    assert cluster.shell("host", line)[cluster.host].endswith("refused")


def test_a_program_gets_its_configuration_user_and_results_folder(cluster, program):
    text = """
import json, os, pwd, sys
config = json.loads(os.environ["TF_CONFIG"])
assert config["task"] == {"type": "host", "index": 0}, config
assert config["cluster"] == json.load(open(os.environ["TF_CLUSTER_CONFIG"]))
assert os.path.exists("program.py") and pwd.getpwuid(os.getuid()).pw_name == "tensorflow"
os.makedirs(os.environ["TF_RUN_DIR"] + "/deep/er")
open(os.environ["TF_RUN_DIR"] + "/deep/er/file.txt", "w").write("kept")
open(os.environ["TF_RUN_DIR"] + "/verdict.json", "w").write("mine")
"""
    done, folder = cluster.run(program(text))
    assert done.returncode == 0, said(done)
    assert (folder / "deep/er/file.txt").read_text(encoding="utf-8") == "kept"
    assert verdict(folder)["ok"] is True
    assert (folder / "program-verdict.json").read_text(encoding="utf-8") == "mine"


def test_a_program_folder_runs_with_arguments_data_and_a_name(cluster, tmp_path):
    for name, text in {
        "mine/main.py": "import sys, lib, os\nprint(lib.WORD, sys.argv[1:], open('numbers/a.txt').read(), open('b.txt').read())",
        "mine/lib.py": "WORD = 'from-lib'",
        "numbers/a.txt": "one",
        "b.txt": "two",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    values = {
        "program_args": ["--", "$HOME", "$1 costs 5$ or 5%h", ""],
        "program_data": [str(tmp_path / "numbers"), str(tmp_path / "b.txt")],
        "run_name": "try",
    }
    done, folder = cluster.run(tmp_path / "mine", f"--extra-vars={json.dumps(values)}")
    assert done.returncode == 0, said(done)
    assert (folder / "stdout.log").read_text(encoding="utf-8") == "from-lib ['--', '$HOME', '$1 costs 5$ or 5%h', ''] one two\n"
    assert "-try-" in folder.name


def test_additional_packages_are_installed_for_one_run_only(cluster, program, tmp_path):
    (tmp_path / "requirements.txt").write_text("tabulate\n", encoding="utf-8")
    text = "import tabulate, tensorflow; print(tabulate.tabulate([[1, 2]]), tabulate.__file__)"
    relative = os.path.relpath(tmp_path / "requirements.txt", ROOT)  # to where the command is called
    done, folder = cluster.run(program(text), f"--extra-vars=program_requirements={relative}")
    assert done.returncode == 0, said(done)
    assert "/layer/packages/tabulate" in (folder / "stdout.log").read_text(encoding="utf-8")
    done, folder = cluster.run(program("import tabulate"))
    assert "No module named 'tabulate'" in (folder / "stdout.log").read_text(encoding="utf-8")


def test_a_trace_shows_the_task_of_each_operation_and_the_transfers(cluster):
    for _try in range(3):  # TensorFlow tells its tasks to note transfers without waiting for it, so one may be missed
        done = cluster.playbook("run_demo.yml", "--extra-vars=trace=true")
        assert done.returncode == 0, said(done)
        folder = folder_of(done)
        events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
        tasks = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
        ran = {(event["name"], tasks[event["pid"]]) for event in events if event.get("cat") == "operation"}
        assert {("c", "worker:0"), ("ab", "worker:1"), ("log", "worker:1"), ("d", "worker:1")} <= ran
        moved = {event["name"]: event["args"] for event in events if event["ph"] == "X" and event["cat"] == "transfer"}
        if "c" in moved:
            break
    assert (moved["c"]["from"], moved["c"]["to"], moved["c"]["bytes"]) == ("worker:0", "worker:1", 16)
    assert moved["c"]["bytes_per_second"] > 0
    trace = verdict(folder)["trace"]
    assert (trace["steps"], trace["transfers"], trace["bytes"]) == (1, len(moved), 16 * len(moved))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "worker:0 \\u2192 worker:1: 16 B" in page  # under the pointer, in the figure's JSON


def test_a_syntax_error_is_reported_before_a_run_starts(cluster, program):
    done, folder = cluster.run(program("print('a'\n"))
    assert done.returncode != 0
    assert folder is None
    assert "program.py, line 1 is not Python" in said(done)


@pytest.fixture
def detached(cluster, program):
    """Return a function that starts a program without following it and returns the run's id."""

    def start(text):
        done, _folder = cluster.run(program(text), "--extra-vars=detach=true")
        assert done.returncode == 0, said(done)
        found = re.search(r"The run (\S+) continues", said(done))
        assert found, said(done)
        return found[1]

    return start


def test_a_detached_run_can_be_attached_and_collected_later(cluster, detached):
    run = detached("import time\nfor i in range(8): print('step', i, flush=True); time.sleep(1)")
    early = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={run}")
    assert early.returncode == 0, said(early)  # collecting is what was asked for
    assert "The run is still running." in said(early)
    assert (verdict(folder_of(early))["ok"], verdict(folder_of(early))["failures"]) == (False, ["The run is still running."])
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    assert folder_of(done).name == run
    assert "step 0" in said(done)
    assert verdict(folder_of(done))["ok"] is True
    again = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={run}")
    assert again.returncode == 0, said(again)
    assert {path.stem for path in (folder_of(again) / "logs").iterdir()} == {"worker-0", "worker-1"}
    merged = cluster.playbook("playbooks/logs.yml", f"--extra-vars=run={run}")
    assert merged.returncode == 0, said(merged)
    assert (folder_of(again) / "logs/all.txt").exists()


def test_a_detached_run_can_be_canceled_and_its_files_are_collected(cluster, detached):
    run = detached("import os, time; open(os.environ['TF_RUN_DIR'] + '/kept.txt', 'w').write('kept'); time.sleep(300)")
    done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    assert "was canceled by" in verdict(folder_of(done))["failures"][0]
    again = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")
    assert again.returncode == 0, said(again)
    assert f"run {run} has already ended" in said(again)
    assert (folder_of(done) / "kept.txt").read_text(encoding="utf-8") == "kept"


def test_a_queued_run_can_be_attached_and_canceled(cluster, detached):
    first, waiting = detached("import time; time.sleep(300)"), None
    waiter = cluster.begin("ansible-playbook", "run_demo.yml")
    for line in waiter.stdout:
        waiting = waiting or re.search(r"attach.yml -e run=(\S+)", line)
        if "queued at position 1:" in line:
            break
    follower = cluster.begin("ansible-playbook", "playbooks/attach.yml", f"--extra-vars=run={waiting[1]}")
    shown = []
    for line in follower.stdout:
        shown.append(line)
        if "queued at position 1:" in line:
            break
    assert f"queued at position 1: worker:0 and worker:1 are used by run {first} (" in shown[-1], "".join(shown)
    for run in (waiting[1], first):
        done = cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={run}")
        assert done.returncode == 0, said(done)
    for process in (waiter, follower):
        assert "was canceled by" in process.communicate(timeout=60)[0]
        assert process.returncode != 0


def test_limit_reports_what_is_not_collected(cluster, program):
    _done, older = cluster.run(program("print('older')"))
    done = cluster.playbook("run_demo.yml", f"--limit={cluster.host},test-worker-0")
    assert done.returncode == 0, said(done)
    assert "Not collected, because --limit leaves out machine test-worker-1: the log of worker:1." in said(done), said(done)
    newest = folder_of(done)
    done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={older.name}", f"--limit={cluster.host}")
    assert done.returncode == 0, said(done)
    assert "--limit leaves out machine test-worker-0" in said(done), said(done)
    assert (older.parent / "latest").resolve() == newest


def test_attach_reports_that_the_machine_of_a_run_is_unreachable(cluster):
    cluster.podman("pause", cluster.host)
    try:
        done = cluster.playbook("playbooks/attach.yml", "--extra-vars=run=some-run")
    finally:
        cluster.podman("unpause", cluster.host)
    assert done.returncode != 0
    assert f"The run some-run is on no reachable machine, and {cluster.host} cannot be reached" in said(done), said(done)


def test_the_status_is_shown_while_the_host_machine_is_unreachable(cluster):
    cluster.podman("pause", cluster.host)
    try:
        done = cluster.playbook("playbooks/status.yml")
    finally:
        cluster.podman("unpause", cluster.host)
    assert done.returncode != 0
    assert "Incomplete: worker:0, worker:1, host:0" in said(done), said(done)
    assert f"the host machine could not check it: {cluster.host} is unreachable" in said(done), said(done)
    status = json.loads((cluster.output / "status.json").read_text(encoding="utf-8"))
    assert [task["unit"] for task in status["tasks"]] == ["active", "active", "unreachable"]


def test_a_run_does_not_start_if_the_inventory_has_changed(cluster, tmp_path):
    (tmp_path / "more.yml").write_text("ps: {hosts: {test-worker-0: }}\n", encoding="utf-8")
    done = cluster.playbook("run_demo.yml", f"--inventory={tmp_path / 'more.yml'}")
    assert done.returncode != 0
    assert "config.json is out of date" in said(done), said(done)


@pytest.mark.parametrize(("run", "words"), [("no-such-run", "There is no run no-such-run on "), ("../x", "set it to a run's ID")])
def test_attach_reports_an_unknown_or_invalid_run_id(cluster, run, words):
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert done.returncode != 0
    assert words in said(done), said(done)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("print('before'); raise SystemExit(7)", "exited with status 7"),
        ("import os, signal; print('before'); os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import time; print('before'); time.sleep(600)", "still running after 4"),
        ("print('before'); 1 / 0", "exited with status 1: ZeroDivisionError: division by zero."),
    ],
)
def test_the_files_of_a_failed_program_are_collected(cluster, program, text, reason):
    begin = "import os; open(os.environ['TF_RUN_DIR'] + '/kept.txt', 'w').write('kept')\n"
    begun = time.monotonic()
    done, folder = cluster.run(program(begin + text), "--extra-vars=run_timeout=4")
    assert done.returncode != 0
    assert reason in said(done)
    assert time.monotonic() - begun < 60
    found = verdict(folder)
    assert found["ok"] is False
    assert reason in found["failures"][0]
    assert (folder / "kept.txt").read_text(encoding="utf-8") == "kept"
    assert "before" in (folder / "stdout.log").read_text(encoding="utf-8")
    assert (folder / "report.html").exists()


def test_a_result_that_is_not_json_fails_the_run(cluster, program):
    done, folder = cluster.run(program("import os; open(os.environ['TF_RUN_DIR'] + '/result.json', 'w').write('{')"))
    assert done.returncode != 0
    assert "result.json is not JSON" in verdict(folder)["failures"][0]


def test_two_runs_at_the_same_time_are_both_collected(cluster):
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _each: cluster.playbook("run_demo.yml"), range(2)))
    folders = {folder_of(done) for done in runs}
    assert [done.returncode for done in runs] == [0, 0], said(runs[0]) + said(runs[1])
    assert len(folders) == 2
    assert "queued at position 1: worker:0 and worker:1 are used by run 2" in said(runs[0]) + said(runs[1])


def test_a_run_that_times_out_in_the_queue_reports_the_run_that_uses_its_tasks(cluster, program):
    with ThreadPoolExecutor() as pool:
        long = pool.submit(cluster.run, program("import time; time.sleep(15)", "long.py"))
        time.sleep(6)
        done, _folder = cluster.run(program("pass"), "--extra-vars=run_queue_timeout=1")
        assert done.returncode != 0
        assert "-long-" in said(done)
        assert re.search(r"still queued after \d+ s: worker:0 and worker:1 are used by run \S+-long-", said(done)), said(done)
        assert long.result()[0].returncode == 0


@pytest.fixture
def broken(cluster):
    """Return a function that breaks something on a worker; it is mended afterwards."""
    mending = []

    def do(line, mend):
        mending.append(mend)
        cluster.shell("test-worker-1", line)

    yield do
    for line in mending:
        cluster.shell("test-worker-1", line)
    time.sleep(2)


@pytest.mark.parametrize(
    ("line", "mend", "state"),
    [
        ("systemctl stop tf-server@worker-1", "systemctl start tf-server@worker-1", "refused"),
        (
            "systemctl stop tf-server@worker-1; systemd-run -u stranger python3 -m http.server 2222; sleep 1",
            "systemctl stop stranger; systemctl start tf-server@worker-1",
            "not_tensorflow",
        ),
    ],
)
def test_a_run_does_not_start_while_a_task_does_not_answer(cluster, broken, line, mend, state):
    broken(line, mend)
    begun = time.monotonic()
    done = cluster.playbook("run_demo.yml", "--extra-vars=ready_timeout=3")
    assert time.monotonic() - begun < 20
    assert done.returncode != 0
    row = rf"worker:1 test-worker-1 10.89.78.11:2222 {state}"
    assert row in said(done), said(done)
    assert "worker:0 test-worker-0 10.89.78.10:2222 answers" in said(done)
    assert "tf-server@worker-1.service is" in said(done)


def test_a_task_that_hangs_is_restarted_unless_a_run_uses_it(cluster, broken, program):
    text = "print('begun', flush=True); import time; time.sleep(40)"
    done, _folder = cluster.run(program(text), "--extra-vars=detach=true", "--extra-vars=run_name=slow")
    slow = re.search(r"The run (\S+) continues", said(done))[1]
    # Before, servers may be cleared of the run before, which ends them.
    cluster.shell(
        "host", f"timeout 60 sh -c 'until grep -q begun /var/lib/tf-cluster/runs/{slow}/stdout.log; do sleep 0.2; done'"
    )
    broken("systemctl kill -s STOP tf-server@worker-1", "systemctl kill -s CONT tf-server@worker-1")
    done = cluster.playbook("run_demo.yml", "--extra-vars=ready_timeout=3")
    assert done.returncode != 0
    assert "worker:1 test-worker-1 10.89.78.11:2222 hangs" in said(done), said(done)
    assert "tf-server@worker-1.service is" in said(done)
    cluster.playbook("playbooks/cancel.yml", f"--extra-vars=run={slow}")
    done = cluster.playbook("run_demo.yml", "--extra-vars=ready_timeout=3")
    assert done.returncode == 0, said(done)
    assert "worker:1 on test-worker-1, which does not answer and is used by no run" in said(done)


def test_a_task_that_hangs_is_restarted_while_a_run_uses_others(cluster, broken, program):
    cluster.run(program("import time; time.sleep(20)"), "--extra-vars=detach=true", '--extra-vars={"run_tasks": ["worker:0"]}')
    broken("systemctl kill -s STOP tf-server@worker-1", "systemctl kill -s CONT tf-server@worker-1")
    done, _folder = cluster.run(program("pass"), '--extra-vars={"run_tasks": ["worker:1"], "ready_timeout": 3}')
    assert done.returncode == 0, said(done)
    assert "worker:1 on test-worker-1, which does not answer and is used by no run" in said(done)


def test_a_stopped_task_fails_the_status(cluster, broken):
    broken("systemctl stop tf-server@worker-1", "systemctl start tf-server@worker-1")
    done = cluster.playbook("playbooks/status.yml")
    assert done.returncode != 0
    assert "waiting for worker:1 (refused)" in said(done)
    status = json.loads((cluster.output / "status.json").read_text(encoding="utf-8"))
    states = {task["task"]: (task["unit"], task["state"]) for task in status["tasks"]}
    assert (status["ok"], states["worker:1"]) == (False, ("inactive", "refused"))


def test_a_task_on_a_paused_machine_is_reported_as_hanging(cluster):
    cluster.podman("pause", "test-worker-1")
    try:
        done = cluster.playbook("run_demo.yml", "--extra-vars=ready_timeout=3", seconds=120)
    finally:
        cluster.podman("unpause", "test-worker-1")
    assert done.returncode != 0
    assert "worker:1 test-worker-1 10.89.78.11:2222 hangs" in said(done)


def test_a_run_succeeds_after_the_faults_are_repaired(cluster):
    assert cluster.playbook("run_demo.yml").returncode == 0
