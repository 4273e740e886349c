"""Transfers with rsync: the real rsync at both ends, and the machine's end (tf_cluster.transfer) on this machine."""

import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import archive, progress, rsync, transport
from project import ROOT, load

transfer = load("tf_cluster.transfer.transfer")

# Stands for the machine's Python: the folders of runs and data are the test's.
MACHINE = """
import pathlib, sys
sys.path.insert(0, {root!r})
sys.argv.pop(0)
from tf_cluster.run import runs
runs.RUNS, runs.USER = pathlib.Path({place!r}) / "runs", {user!r}
from tf_cluster.transfer import transfer
transfer.DATA = pathlib.Path({place!r}) / "data"
{more}
sys.argv[0] = "transfer/__main__.py"
print("Welcome! This machine is watched.")
transfer.main()
"""


class Become:
    """A sudo that reads a password, or does not need it."""

    def __init__(self, reads):
        self.reads = reads

    def build_become_command(self, line, _shell):
        """Return the line as a script that reads the password first."""
        check = 'read -r word; test "$word" = secret || { echo "sudo: wrong password" >&2; exit 1; }; ' if self.reads else ""
        return f"echo BECOME-SUCCESS; {check}exec {line}"

    def get_option(self, _name, **_more):
        """Return the password."""
        return "secret"


@pytest.fixture
def machine(tmp_path):
    """Return a function that returns rsync's end on the controller; the machine has a run "r1"."""
    (tmp_path / "machine/runs/r1/results").mkdir(parents=True)
    (tmp_path / "machine/runs/r1/stdout.log").write_text("output", encoding="utf-8")

    def machine(become=None, more="", connection="local"):
        script = tmp_path / "python.py"
        user = "root" if os.geteuid() == 0 else "nobody"
        text = MACHINE.format(root=str(ROOT / "files"), place=str(tmp_path / "machine"), user=user, more=more)
        script.write_text(text, encoding="utf-8")
        action = SimpleNamespace(
            _connection=SimpleNamespace(transport=connection, become=become, _shell=None),
            _play_context=None, _get_remote_user=lambda: "me", get_become_option=lambda _name: "root",
        )  # fmt: skip
        return rsync.Rsync(action, (sys.executable, str(script)))

    return machine


@pytest.fixture
def send(machine, tmp_path):
    """Return a function that sends a path to the machine for a run, and returns where the run finds it."""

    def send(path, run="r1", top=False, **more):
        machine(**more).send(path, ["store", run], str(path), top)
        return tmp_path / f"machine/runs/.{run}.sent" / ("" if top else path.name)

    return send


@pytest.fixture
def fetch(machine, tmp_path):
    """Return a function that fetches files of the run "r1" into the folder "output/r1"."""

    def fetch(*names, renamed=None, **more):
        parts = [{"from": "results", "names": list(names), "renamed": renamed or {}}, {"from": ".", "names": ["stdout.log"]}]
        machine(**more).fetch(["results", "r1"], {"size": 100, "parts": parts}, tmp_path / "output/r1")
        return tmp_path / "output/r1"

    return fetch


NAMES = ["a b", "ü", "new\nline", "[x]*?\\", "-dash", "deep/er/file", "o'clock", "$HOME"]


def filled(folder):
    """Return a folder with files of all kinds of names."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    return folder


def content(folder):
    """Return name -> text."""
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


def test_files_with_any_name_are_sent(send, tmp_path):
    data = filled(tmp_path / "data")
    (data / ".#[lock]").symlink_to("an editor's")
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("linked", encoding="utf-8")
    (data / "__pycache__").mkdir()
    assert content(send(data)) == {**{name: name for name in NAMES}, "link": "linked"}


@pytest.mark.parametrize("top", [True, False])
def test_a_folder_or_its_content_is_sent(send, tmp_path, top):
    place = send(filled(tmp_path / "data"), top=top)
    assert (place.name == "data") is not top
    assert (place / "a b").is_file()


@pytest.mark.parametrize("reads", [True, False])
def test_the_become_password_is_passed_and_never_reaches_rsync(send, tmp_path, reads):
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    assert send(tmp_path / "data", become=Become(reads)).read_bytes() == (tmp_path / "data").read_bytes()


def test_the_become_password_is_not_in_the_command_line(machine):
    with machine(become=Become(True)).transport(["store"]) as (shell, descriptor):
        assert "secret" not in shell
        assert json.loads(os.read(descriptor, 10_000))["password"] == "secret"


def test_unchanged_data_is_sent_and_stored_only_once(send, tmp_path):
    (tmp_path / "data").write_bytes(b"x" * 5_000_000)
    first = send(tmp_path / "data")
    inode = first.stat().st_ino
    assert send(tmp_path / "data", run="r2").stat().st_ino == inode
    (tmp_path / "data").write_bytes(b"y" * 5_000_000)
    assert send(tmp_path / "data", run="r3").stat().st_ino != inode
    assert first.read_bytes() == b"x" * 5_000_000


def test_files_removed_on_the_controller_are_not_in_the_next_run(send, tmp_path):
    data = filled(tmp_path / "data")
    send(data)
    (data / "ü").unlink()
    (data / "a b").unlink()
    (data / "a b").symlink_to("nowhere")
    assert sorted(content(send(data, run="r2"))) == sorted(set(NAMES) - {"ü", "a b"})


def test_sent_files_are_readable_by_everyone_and_writable_only_by_the_owner(send, tmp_path):
    for name, mode in (("data/tool", 0o700), ("data/text", 0o666)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
        (tmp_path / name).chmod(mode)
    place = send(tmp_path / "data")
    assert {path.name: path.stat().st_mode & 0o7777 for path in place.iterdir()} == {"tool": 0o755, "text": 0o644}


def test_data_is_copied_if_hard_links_are_not_supported(send, tmp_path):
    (tmp_path / "data").write_text("text", encoding="utf-8")
    more = "def no(*_words): raise OSError(18, 'Invalid cross-device link')\ntransfer.os.link = no"
    found = send(tmp_path / "data", more=more)
    assert (found.read_text(encoding="utf-8"), found.stat().st_nlink) == ("text", 1)


def test_concurrent_transfers_of_the_same_data_run_one_after_the_other(send, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(progress.Display, "display", lambda _self, line, **_more: shown.append(line))
    (tmp_path / "data").write_text("text", encoding="utf-8")
    send(tmp_path / "data", run="r0")
    [lock] = (tmp_path / "machine/data").glob(".*.lock")
    more = "transfer.REPORT_SECONDS = 0.2"
    with lock.open("wb") as held, ThreadPoolExecutor() as pool:
        transfer.lock.acquire(held, 1)
        waiting = pool.submit(send, tmp_path / "data", more=more)
        deadline = time.monotonic() + 20
        while not shown and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not waiting.done()
        transfer.lock.fcntl.flock(held, transfer.lock.fcntl.LOCK_UN)
        assert waiting.result(timeout=10).read_text(encoding="utf-8") == "text"
    assert shown[0] == "  waiting for another command that sends the same data (0 s)"


def test_folders_with_the_same_name_have_different_keys():
    assert rsync.key_of("/a/data", "data") != rsync.key_of("/b/data", "data")
    assert rsync.key_of("/a/o'c lock/ü", "o'c lock ü").startswith("o-c-lock-")


def test_files_with_any_name_are_fetched(fetch, tmp_path):
    filled(tmp_path / "machine/runs/r1/results")
    folder = fetch(*NAMES, "deep", "deep/er")
    assert content(folder) == {**{name: name for name in NAMES}, "stdout.log": "output"}
    assert os.listdir(tmp_path / "output") == ["r1"]


def test_only_listed_files_are_fetched_and_never_links(fetch, tmp_path):
    results = filled(tmp_path / "machine/runs/r1/results")
    (results / "link").symlink_to("/etc/passwd")
    assert set(content(fetch("a b", "link", "vanished"))) == {"a b", "stdout.log"}
    assert not os.path.lexists(tmp_path / "output/r1/link")


def test_a_result_with_a_reserved_name_is_renamed(fetch, tmp_path):
    (tmp_path / "machine/runs/r1/results/stdout.log").write_text("mine", encoding="utf-8")
    folder = fetch("stdout.log", renamed={"stdout.log": "program-stdout.log"})
    assert content(folder) == {"stdout.log": "output", "program-stdout.log": "mine"}


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", "a//b", ".", "a\0b", "./a"])
def test_a_name_outside_the_run_folder_is_rejected(fetch, tmp_path, name):
    with pytest.raises(AnsibleActionFail, match="does not belong"):
        fetch(name)
    with pytest.raises(AnsibleActionFail, match="does not belong"):
        fetch("a", renamed={"a": name})
    assert [path for path in tmp_path.rglob("*") if path.name in ("evil", "passwd", "b")] == []


def test_a_link_sent_by_the_machine_is_rejected(tmp_path):
    for name in ("part", "output"):
        (tmp_path / name).mkdir()
    (tmp_path / "part/a").symlink_to("/etc/passwd")
    with pytest.raises(AnsibleActionFail, match="neither a file nor a folder"):
        rsync.publish(["a"], tmp_path / "part", tmp_path / "output", {})


def test_a_fetched_folder_replaces_a_file_of_an_earlier_collection(fetch, tmp_path):
    (tmp_path / "output/r1/deep").parent.mkdir(parents=True)
    (tmp_path / "output/r1/deep").write_text("of an earlier collection", encoding="utf-8")
    filled(tmp_path / "machine/runs/r1/results")
    assert content(fetch("deep", "deep/er", "deep/er/file"))["deep/er/file"] == "deep/er/file"


def test_an_interrupted_fetch_is_resumed(machine, fetch, tmp_path):
    """The transfer continues the partial file instead of sending it again."""
    data = os.urandom(30_000_000)
    (tmp_path / "machine/runs/r1/results/big").write_bytes(data)
    (tmp_path / "output/.r1.part/results").mkdir(parents=True)
    (tmp_path / "output/.r1.part/results/big").write_bytes(data[:20_000_000])
    counted = []
    command = rsync.COMMON
    rsync.COMMON = [*command, "--stats"]
    watch = rsync.watch
    rsync.watch = lambda process, shown: watch(SimpleNamespace(**counting(process, counted)), shown)
    try:
        assert (fetch("big") / "big").read_bytes() == data
    finally:
        rsync.COMMON, rsync.watch = command, watch
    assert sum(counted) < 15_000_000


def counting(process, counted):
    """Return a process whose standard output is noted: the bytes that rsync received, as --stats prints them."""
    read, write = os.pipe()

    def copy():
        text = process.stdout.read().decode()
        counted.extend(int(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("Total bytes received"))
        os.close(write)

    threading.Thread(target=copy).start()
    return {"stdout": open(read, "rb"), "stderr": process.stderr, "wait": process.wait}


def test_rsync_holds_the_lock_that_prevents_deletion_of_the_run(fetch, tmp_path):
    script = "flock --nonblock ../collect.lock true; echo $? > ../status; exit 1"
    with pytest.raises(AnsibleActionFail):
        fetch("a", more=f"transfer.rsync = lambda _options: ['/bin/sh', '-c', {script!r}]")
    assert (tmp_path / "machine/runs/r1/status").read_text(encoding="utf-8") == "1\n"


def test_a_failed_fetch_reports_how_to_resume(fetch, tmp_path):
    with pytest.raises(AnsibleActionFail, match=r"could not be transferred: .* stay on the machine.*collect.yml -e run=r1'"):
        fetch("a", more="transfer.rsync = lambda _options: ['/bin/false']")
    assert not (tmp_path / "output/r1/stdout.log").exists()
    assert (tmp_path / "output/.r1.part").exists()


def test_rsync_missing_on_the_machine_is_reported(send, tmp_path):
    (tmp_path / "data").write_text("x", encoding="utf-8")
    with pytest.raises(
        AnsibleActionFail, match=r"^rsync is missing on this machine. Run 'ansible-playbook site.yml', or install"
    ):
        send(tmp_path / "data", more="transfer.shutil.which = lambda _name: None")


def test_rsync_missing_on_the_controller_is_reported(send, tmp_path, monkeypatch):
    (tmp_path / "data").write_text("x", encoding="utf-8")
    monkeypatch.setattr(rsync.shutil, "which", lambda _name: None)
    with pytest.raises(AnsibleActionFail, match=r"^rsync is missing on the controller"):
        send(tmp_path / "data")


def test_a_connection_without_rsync_support_is_an_error(machine):
    with pytest.raises(AnsibleActionFail, match=r"^ansible_connection is podman, .*Set it to ssh or local.$"):
        machine(connection="containers.podman.podman").check()


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        (
            'rsync: [receiver] write failed on "/var/x": No space left on device (28)\nrsync error: (code 11)',
            'data could not be transferred: rsync: [receiver] write failed on "/var/x": No space left on device (28)',
        ),
        ("Welcome\ntf_cluster.transfer: /var/x: Permission denied\nrsync error: (code 12)", "/var/x: Permission denied."),
        ("python: No module named 'tf_cluster.transfer'\nrsync error", "tf_cluster.transfer is missing on this machine. Run"),
    ],
)
def test_a_failed_transfer_is_reported_with_its_cause(errors, sentence):
    assert rsync.failure(errors, 11, "data").startswith(sentence)


@pytest.mark.parametrize("sshpass", [["sshpass", "-d11"], ["sshpass", "-d1", "-P", "pin"], []])
@pytest.mark.parametrize("ssh", [["ssh", "-o", "x"], ["/usr/bin/ssh", "-o", "x"]])
def test_sshpass_is_removed_from_the_command_of_the_master_connection(sshpass, ssh):
    assert rsync.without_sshpass([*sshpass, *ssh]) == ssh


def test_controller_and_machine_use_the_same_protocol_markers():
    assert transfer.READY.encode() == transport.READY
    assert f"{transfer.BEGIN}\n".encode() == transport.BEGIN
    assert transfer.WAITING.encode().startswith(transport.WAITING)
    assert rsync.PARTIAL == transfer.PARTIAL


def test_progress_of_a_large_transfer_is_shown_every_three_seconds(monkeypatch):
    shown, clock = [], iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress.Display, "display", lambda _self, line, **_more: shown.append(line))
    transferred = progress.Progress("sent", 300_000_000)
    for done in range(0, 100_000_000, 20_000_000):
        transferred.show(done)
    transferred.start_part()
    transferred.show(100_000_000)
    assert shown == ["  sent 40 of 300 MB", "  sent 180 of 300 MB"]


def test_listed_returns_the_total_size_and_the_broken_links(tmp_path):
    data = filled(tmp_path / "data")
    (data / "broken").symlink_to("nowhere")
    listed = archive.listed(data)
    assert (listed.size, listed.broken) == (sum(len(name.encode()) for name in NAMES), ["broken"])


def test_many_small_files_are_not_small_in_a_tar_file(tmp_path):
    for number in range(3000):
        (tmp_path / str(number)).write_text("abc", encoding="utf-8")
    with (tmp_path.parent / "packed.tar").open("wb") as file:
        archive.pack([tmp_path], file, program=tmp_path)
        assert 3_000_000 < file.tell() <= archive.listed(tmp_path).packed + tarfile.RECORDSIZE


def test_data_that_changes_while_it_is_sent_is_an_error(send, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_bytes(os.urandom(30_000_000))
    (data / "z").write_text("z", encoding="utf-8")
    monkeypatch.setattr(rsync, "COMMON", [*rsync.COMMON, "--bwlimit=15000"])
    threading.Timer(1, (data / "z").unlink).start()
    with pytest.raises(
        AnsibleActionFail, match=r"data changed while it was sent \(file has vanished: .*/z.*\)\. Run the command"
    ):
        send(data)


def test_the_transport_passes_all_bytes_and_the_status():
    """Also if the machine prints more than a pipe holds and rsync does not read immediately."""
    line = f"echo '{transfer.READY}'; read -r word; head -c 3000000 /dev/zero; exit 7"
    read, write = os.pipe()
    os.write(write, json.dumps({"command": ["/bin/sh", "-c", line], "password": ""}).encode())
    os.close(write)
    done = subprocess.run(
        [sys.executable, transport.__file__, str(read), "machine", "rsync"], pass_fds=[read], capture_output=True, timeout=30,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert (len(done.stdout), done.returncode) == (3_000_000, 7)
