"""Data and results of more than a few megabytes: they go with rsync, once, and are continued."""

import hashlib
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import PASSWORD, folder_of, said, verdict

RUNS = "/var/lib/tf-cluster/runs"


@pytest.fixture
def program(tmp_path):
    """Return a function that writes a program and returns its path."""

    def write(text):
        path = tmp_path / "program.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def data(tmp_path):
    """Return a folder with 20 MB, and a name that is not simple."""
    folder = tmp_path / "the data"
    folder.mkdir()
    (folder / "ü\n.bin").write_bytes(os.urandom(20_000_000))
    (folder / "small.txt").write_text("1 2 3", encoding="utf-8")
    return folder


def digest(path):
    """Return the digest of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


BACK = """
import os, shutil
shutil.copy('the data/ü\\n.bin', os.environ['TF_RUN_DIR'] + '/back\\n.bin')
open('model.keras', 'w').write('a model')
open('the data/made.txt', 'w').write('made')
try:
    open('the data/small.txt', 'a')
except PermissionError:
    print('read-only')
"""


def test_data_is_sent_and_results_are_collected_without_the_sent_data(cluster, program, data):
    done, folder = cluster.run(program(BACK), f"--extra-vars={json.dumps({'program_data': str(data)})}")
    assert done.returncode == 0, said(done)
    assert digest(folder / "back\n.bin") == digest(data / "ü\n.bin")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in found if name.startswith("program/")} == {"program/model.keras", "program/the data/made.txt"}
    assert "read-only" in (folder / "stdout.log").read_text(encoding="utf-8")
    assert verdict(folder)["ok"] is True
    assert not list(cluster.output.glob(f".{folder.name}*"))


def test_tens_of_thousands_of_files_are_sent_and_collected(cluster, program, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(30_000):  # rsync asks for all of them before the first one has arrived
        (folder / f"{number}.txt").write_bytes(os.urandom(300))
    script = program(
        "import os, shutil\nprint(len(os.listdir('many')))\nshutil.copytree('many', os.environ['TF_RUN_DIR'] + '/back')"
    )
    done, folder_here = cluster.run(script, f"--extra-vars=program_data={folder}")
    assert done.returncode == 0, said(done)
    assert (folder_here / "stdout.log").read_text(encoding="utf-8") == "30000\n"
    assert len(os.listdir(folder_here / "back")) == 30_000
    assert digest(folder_here / "back/17.txt") == digest(folder / "17.txt")


def test_unchanged_data_is_sent_once_and_stored_once(cluster, program, data):
    values, inodes, seconds = f"--extra-vars={json.dumps({'program_data': str(data)})}", [], []
    for _each in range(2):
        begun = time.monotonic()
        done, folder = cluster.run(program("print('done')"), values)
        seconds.append(time.monotonic() - begun)
        assert done.returncode == 0, said(done)
        line = f"stat --format '%i %U %a %h' {RUNS}/{folder.name}/program/'the data'/*.bin"
        inodes.append(cluster.shell("host", line)[cluster.host].split())
    assert inodes[0][0] == inodes[1][0]
    assert inodes[1][1:] == ["root", "644", "3"]
    (data / "ü\n.bin").write_bytes(os.urandom(20_000_000))
    done, folder = cluster.run(program(BACK), values)
    assert digest(folder / "back\n.bin") == digest(data / "ü\n.bin")


def test_program_data_can_be_sent_to_the_machines_of_the_tasks(cluster, program, data):
    text = """
import json, os, pathlib
import tensorflow as tf
tf1 = tf.compat.v1
tf1.disable_eager_execution()
spec = json.load(open(os.environ["TF_CLUSTER_CONFIG"]))
server = tf1.train.Server(spec, job_name="host", task_index=0)
for index in range(len(spec["worker"])):
    with tf1.device(f"/job:worker/task:{index}"):
        text = tf.io.read_file(str(pathlib.Path(__file__).parent / "the data/small.txt"))
    with tf1.Session(server.target, config=tf1.ConfigProto(operation_timeout_in_ms=20000)) as session:
        print("worker", index, "reads", session.run(text).decode())
"""
    values = {"program_data": str(data), "program_data_on": "tasks"}
    done, folder = cluster.run(program(text), f"--extra-vars={json.dumps(values)}")
    assert done.returncode == 0, said(done)
    lines = (folder / "stdout.log").read_text(encoding="utf-8")
    assert set(re.findall(r"worker (\d) reads 1 2 3", lines)) == {"0", "1", "2"}, lines
    done, _folder = cluster.run(program(text), "--extra-vars=program_data_on=everywhere")
    assert "program_data_on is 'everywhere'. Set host or tasks." in said(done)


def test_an_interrupted_collection_is_continued_even_by_two_commands_at_the_same_time(cluster, program):
    text = "import os; open(os.environ['TF_RUN_DIR'] + '/large.bin', 'wb').write(os.urandom(1 << 20) * 600)"
    done, _folder = cluster.run(program(text), "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) continues", said(done))[1]
    cluster.shell("host", f"until grep -q ended {RUNS}/{run}/run.json; do sleep 0.2; done")
    words = ("ansible-playbook", "playbooks/collect.yml", f"--extra-vars=run={run}")
    part = cluster.output / f".{run}.part/results/large.bin"
    first, deadline = cluster.begin(*words), time.monotonic() + 60
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 30_000_000):
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert 30_000_000 < part.stat().st_size < 600 << 20
    inode = part.stat().st_ino
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _each: cluster.command(*words), range(2)))
    assert [done.returncode for done in both] == [0, 0], said(both[0]) + said(both[1])
    large = folder_of(both[0]) / "large.bin"
    assert (large.stat().st_ino, large.stat().st_size) == (inode, 600 << 20)  # the same file was continued
    block = large.open("rb").read(1 << 20)
    with large.open("rb") as file:
        assert all(file.read(1 << 20) == block for _each in range(600))
    assert not list(cluster.output.glob(f".{run}*"))
    large.unlink()


def test_a_run_succeeds_if_sudo_needs_a_password(cluster, program, data, deploy):
    done, folder = cluster.run(program(BACK), f"--extra-vars={json.dumps({'program_data': str(data)})}", *deploy)
    assert done.returncode == 0, said(done)
    assert digest(folder / "back\n.bin") == digest(data / "ü\n.bin")
    assert PASSWORD not in said(done)


def test_a_run_succeeds_through_a_jump_host(cluster, program, data, jump):
    done, folder = cluster.run(program(BACK), f"--extra-vars={json.dumps({'program_data': str(data)})}", *jump)
    assert done.returncode == 0, said(done)
    assert digest(folder / "back\n.bin") == digest(data / "ü\n.bin")


def test_results_stay_on_the_machine_while_the_disk_of_the_controller_is_full(cluster, program, tmp_path):
    """The controller's disk is a file system of 30 MB, if the tests may mount one."""
    text = "import os; open(os.environ['TF_RUN_DIR'] + '/large.bin', 'wb').write(os.urandom(60_000_000))"
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", small], check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        done, _folder = cluster.run(program(text), f"--extra-vars=tf_output={small}")
        assert done.returncode != 0
        assert "No space left on device" in said(done), said(done)
        run = re.search(r"collect.yml -e run=(\S+?)'", said(done))[1]
    finally:
        subprocess.run(["umount", small], check=True)
    done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    assert (folder_of(done) / "large.bin").stat().st_size == 60_000_000
