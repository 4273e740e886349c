"""The action tf_program: what is sent to a machine, and that nothing is written outside of the given folder."""

import base64
import fcntl
import io
import os
import socket
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import archive, progress, rsync
from project import load

tf_program = load("plugins/action/tf_program.py")
OPTIONS = ("send", "send_call", "send_keys", "input", "save_to", "announce", "reconnect", "script", "put", "forward")


def member(name, kind=tarfile.REGTYPE):
    """Return a member of a tar file as a machine could send it."""
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.uid, member.linkname = kind, 0o6777, 12345, "/etc/passwd"
    return member


def names_in(data):
    """Return the names of a tar file's members."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return sorted(tar.getnames())


@pytest.mark.parametrize("name", ["a", "a/b", "logs/worker-0.log", "..a", "a..", "a/...", "é", "a b", "."])
def test_a_member_inside_the_folder_is_accepted(name):
    assert archive.check_member(member(name)).name == name


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "../a", "a/../../b", "a/..", "a/../b", "", "//a"])
def test_a_member_outside_the_folder_is_rejected(name):
    with pytest.raises(AnsibleActionFail, match="does not belong"):
        archive.check_member(member(name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_neither_a_file_nor_a_folder_is_rejected(kind):
    with pytest.raises(AnsibleActionFail, match="'a', which does not belong"):
        archive.check_member(member("a", kind))


@pytest.mark.parametrize(("kind", "mode"), [(tarfile.REGTYPE, 0o644), (tarfile.DIRTYPE, 0o755)])
def test_received_files_belong_to_the_calling_user(kind, mode):
    found = archive.check_member(member("a", kind))
    assert (found.mode, found.uid, found.gid) == (mode, os.getuid(), os.getgid())


@pytest.mark.parametrize("name", ["a.log", "logs/a.log", "deep/er/a.log", "..a"])
def test_text_is_written_below_the_folder(tmp_path, name):
    archive.write_below(tmp_path / "run", name, "é\n")
    assert (tmp_path / "run" / name).read_text(encoding="utf-8") == "é\n"


@pytest.mark.parametrize("name", ["../a", "/etc/tf-test", "logs/../../a", "", ".", "..", "../run-2/a"])
def test_text_is_not_written_outside_the_folder(tmp_path, name):
    (tmp_path / "run").mkdir()
    with pytest.raises(AnsibleActionFail, match="is outside"):
        archive.write_below(tmp_path / "run", name, "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_text_is_not_written_through_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/link").symlink_to(tmp_path)
    with pytest.raises(AnsibleActionFail, match="is outside"):
        archive.write_below(tmp_path / "run", "link/a", "x")


def packed(*paths):
    """Return the names in the tar file that paths become."""
    file = io.BytesIO()
    archive.pack(paths, file, paths[0])
    return names_in(file.getvalue())


def test_a_program_file_is_packed_under_its_name(tmp_path):
    (tmp_path / "demo.py").write_text("", encoding="utf-8")
    assert packed(tmp_path / "demo.py") == ["demo.py"]


def test_a_program_folder_is_packed_without_pycache(tmp_path):
    for name in ("demo.py", "lib/a.py", "lib/__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert packed(tmp_path) == [".", "./demo.py", "./lib", "./lib/a.py"]


def test_special_files_of_a_folder_are_not_sent(tmp_path, monkeypatch):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/main.py").write_text("", encoding="utf-8")
    os.mkfifo(tmp_path / "p/pipe")
    monkeypatch.chdir(tmp_path / "p")  # the path of a socket is limited to 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert packed(tmp_path / "p") == [".", "./main.py"]


def test_data_is_packed_beside_the_program(tmp_path):
    for name in ("p/main.py", "data/a.csv", "b.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert packed(tmp_path / "p", tmp_path / "data", tmp_path / "b.csv") == [".", "./main.py", "b.csv", "data", "data/a.csv"]


def content(path, name):
    """Return the text of one file of the tar file that a path becomes."""
    file = io.BytesIO()
    archive.pack([path], file, path)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        return tar.extractfile(name).read().decode()


def test_links_are_packed_as_the_files_they_point_to(tmp_path):
    for name in ("p/main.py", "p/lib.py", "outside/deep/a.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "p/inner.py").symlink_to("lib.py")
    (tmp_path / "p/outer.csv").symlink_to(tmp_path / "outside/deep/a.csv")
    (tmp_path / "p/data").symlink_to(tmp_path / "outside")
    (tmp_path / "p/.#main.py").symlink_to("an editor's lock")
    os.link(tmp_path / "p/lib.py", tmp_path / "p/second.py")
    assert content(tmp_path / "p", "./inner.py") == "p/lib.py"
    assert content(tmp_path / "p", "./outer.csv") == content(tmp_path / "p", "./data/deep/a.csv") == "outside/deep/a.csv"
    assert content(tmp_path / "p", "./second.py") == "p/lib.py"
    assert "./.#main.py" not in packed(tmp_path / "p")


def test_a_link_to_a_folder_that_contains_it_is_an_error(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/main.py").write_text("", encoding="utf-8")
    (tmp_path / "p/loop").symlink_to(tmp_path)
    with pytest.raises(AnsibleActionFail, match=r"p/loop/p is a link to a folder that contains it"):
        packed(tmp_path / "p")


def test_a_program_that_is_a_link_is_packed_under_the_name_of_the_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v3.py").write_text("third", encoding="utf-8")
    (tmp_path / "latest.py").symlink_to("v3.py")
    entry = load("plugins/filter/program.py").program_entry("latest.py")
    assert content(tf_program.Path("latest.py"), entry) == "third"


def test_a_missing_program_is_an_error(tmp_path):
    with pytest.raises(AnsibleActionFail, match="does not exist on the controller"):
        packed(tmp_path / "demo.py")


def test_data_is_packed_read_only(tmp_path):
    for name in ("main.py", "data.csv", "tool"):
        (tmp_path / name).write_text("", encoding="utf-8")
        (tmp_path / name).chmod(0o755 if name == "tool" else 0o664)
    file = io.BytesIO()
    archive.pack(paths := [tmp_path / name for name in ("main.py", "data.csv", "tool")], file, paths[0])
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        assert {member.name: member.mode for member in tar} == {"main.py": 0o664, "data.csv": 0o444, "tool": 0o555}


@pytest.fixture
def sending(monkeypatch, tmp_path):
    """Return a function that sends files of given sizes, and returns the names in the tar file and those sent with rsync."""

    def sending(*sizes):
        sent, paths = [], []
        monkeypatch.setattr(rsync.Rsync, "check", lambda _self: None)
        monkeypatch.setattr(
            rsync.Rsync, "send", lambda _self, path, call, key, top: sent.append((path.name, call, key == str(path), top))
        )
        for number, size in enumerate(sizes):
            paths.append(tmp_path / str(number))
            with paths[-1].open("wb") as file:
                file.truncate(size)
        data = object.__new__(tf_program.ActionModule).send(paths, ["store", "r1"], {str(tmp_path / "2"): "/kept/as"})
        return names_in(data), sent

    return sending


def test_small_files_are_sent_with_the_call(sending):
    assert sending(1000, 2_000_000, 1_000_000) == (["0", "1", "2"], [])


def test_files_too_large_for_the_call_are_sent_with_rsync(sending):
    names, sent = sending(1000, 3_000_000, 5_000_000, 1_500_000, 10)
    assert names == ["0", "1", "4"]
    assert sent == [("2", ["store", "r1"], False, False), ("3", ["store", "r1"], True, False)]


@pytest.fixture
def calls():
    """Return a function that calls a program which ends as given, and returns its answer."""

    def calls(rc=0, stdout="", stderr="", statuses=(0,)):
        action = object.__new__(tf_program.ActionModule)
        action._low_level_execute_command = lambda *_words, **_more: {"rc": rc, "stdout": stdout, "stderr": stderr}
        return action.call(["/venv/bin/python", "/opt/ready.py", "--json"], b"", statuses)

    return calls


@pytest.mark.parametrize(("put", "last"), [(None, []), ("/cache/packages.tar", ["/tmp/made/packages.tar"])])
def test_a_script_is_sent_with_each_follow_up_call(tmp_path, monkeypatch, put, last):
    (tmp_path / "script.py").write_text("print(1)", encoding="utf-8")
    answers, called = [{"next": ["again"]}, {"done": True}], []
    action = object.__new__(tf_program.ActionModule)
    options = dict.fromkeys(OPTIONS)
    options |= {"argv": ["python", "-", "first"], "script": str(tmp_path / "script.py"), "statuses": [0], "put": put}
    action._connection = SimpleNamespace(_shell=SimpleNamespace(join_path=os.path.join))
    action._make_tmp_path, transferred = lambda: "/tmp/made", []
    action._transfer_file = lambda *paths: transferred.append(paths)
    action.validate_argument_spec = lambda _spec: (None, options)
    action.call = lambda argv, data, _statuses: called.append((argv, data)) or answers.pop(0)
    monkeypatch.setattr(tf_program.ActionBase, "run", lambda *_words: {})
    action._templar = SimpleNamespace(template=lambda text: text)
    assert action.run(task_vars={"ansible_python_interpreter": "/usr/bin/env python3"}) == {
        "changed": True,
        "answer": {"done": True},
    }
    assert called == [(["/usr/bin/env", "python3", "-", word, *last], b"print(1)") for word in ("first", "again")]
    assert transferred == [(put, path) for path in last]


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ({}, b"\n"),
        ({"input": {"a": 1}}, b'{"a": 1}\n'),
        ({"send": ["x"]}, b"tar"),
        ({"input": {"a": 1}, "send": ["x"]}, b'{"a": 1}\ntar'),
    ],
)
def test_input_is_a_line_of_json_before_the_sent_files(monkeypatch, given, data):
    action, called = object.__new__(tf_program.ActionModule), []
    options = dict.fromkeys(
        ("send", "send_call", "send_keys", "input", "save_to", "announce", "reconnect", "script", "put", "forward")
    )
    action.validate_argument_spec = lambda _spec: (None, options | {"argv": ["/run.py"], "statuses": [0]} | given)
    action.send = lambda _paths, _call, _keys: b"tar"
    action.call = lambda _argv, data, _statuses: called.append(data) or {}
    monkeypatch.setattr(tf_program.ActionBase, "run", lambda *_words: {})
    action.run(task_vars={})
    assert called == [data]


@pytest.mark.parametrize(
    ("answer", "msg"),
    [({"failure": "the run failed", "verdict": {}}, "the run failed"), (AnsibleActionFail("no such program"), "no such program")],
)
def test_a_failure_is_returned_as_a_failed_result(monkeypatch, answer, msg):
    action = object.__new__(tf_program.ActionModule)
    options = dict.fromkeys(
        ("send", "send_call", "send_keys", "input", "save_to", "announce", "reconnect", "script", "put", "forward")
    )
    action.validate_argument_spec = lambda _spec: (None, options | {"argv": ["/run.py"], "statuses": [0]})
    monkeypatch.setattr(tf_program.ActionBase, "run", lambda *_words: {})

    def call(*_words):
        if isinstance(answer, Exception):
            raise answer
        return answer

    action.call = call
    assert action.run(task_vars={}) == {"failed": True, "msg": msg}


def test_a_script_runs_with_the_python_that_ansible_discovers(monkeypatch):
    action = object.__new__(tf_program.ActionModule)
    action._templar = SimpleNamespace(template=lambda text: text)
    asked = []
    action._low_level_execute_command = lambda command, **_more: (
        asked.append(command) or {"rc": 0, "stdout": "FOUND\n/usr/bin/python3.12\n/usr/bin/python3\nENDFOUND\n", "stderr": ""}
    )
    python, facts = action.python({"ansible_python_interpreter": "auto_silent"})
    assert python == ["/usr/bin/python3.12"]
    # For all that comes later, Ansible's modules too.
    assert action.python({"ansible_python_interpreter": "auto_silent", **facts}) == (python, facts)
    assert len(asked) == 1


def test_the_last_line_of_the_output_is_the_answer(calls):
    assert calls(stdout='a warning\n{"ok": true}\n') == {"ok": True}


def test_an_answer_with_an_accepted_nonzero_status_is_returned(calls):
    assert calls(rc=1, stdout='{"ok": false}', statuses=(0, 1)) == {"ok": False}


def test_a_failure_is_reported_with_the_message_of_the_program(calls):
    with pytest.raises(AnsibleActionFail, match=r"^config.json is not JSON$"):
        calls(rc=2, stderr="some warning\nready.py: config.json is not JSON\nConnection closed\n")


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_a_failure_without_a_program_message_is_reported_with_the_last_lines(calls, where):
    with pytest.raises(AnsibleActionFail, match=r"ready.py exited with status 126: .*Permission denied"):
        calls(rc=126, **{where: "bash: /venv/bin/python: Permission denied\n"})


def test_a_missing_python_is_reported_with_the_command_that_installs_it(calls):
    with pytest.raises(AnsibleActionFail, match=r"^/venv/bin/python is missing on this machine.*site.yml"):
        calls(rc=127, stderr="bash: /venv/bin/python: No such file or directory\n")


def test_a_missing_module_is_reported_with_the_command_that_installs_it(calls):
    with pytest.raises(AnsibleActionFail, match=r"^tf_cluster.status is missing on this machine.*site.yml"):
        calls(rc=1, stderr="python: Error while finding module specification for 'tf_cluster.status' (...)\n")


@pytest.mark.parametrize("stdout", ["", "\n", "hello", '{"ok": tr', "[" * 100_000])
def test_an_answer_that_is_not_json_is_an_error(calls, stdout):
    with pytest.raises(AnsibleActionFail, match="did not answer in JSON"):
        calls(stdout=stdout)


@pytest.fixture
def fetch(tmp_path):
    """Return a function that fetches a tar file of some members from a machine into the folder "output/run"."""

    def fetch(*members):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for member in members:
                tar.addfile(member)
        given = {"data": base64.b64encode(buffer.getvalue()).decode()}
        object.__new__(tf_program.ActionModule).fetch(given, tmp_path / "output/run")

    return fetch


def test_a_small_file_is_received_after_an_interrupted_fetch(fetch, tmp_path):
    (tmp_path / "output/.run.part/results").mkdir(parents=True)
    (tmp_path / "output/.run.part/results/a").write_text("half", encoding="utf-8")
    fetch(member("a"))
    assert (tmp_path / "output/run/a").is_file()
    assert os.listdir(tmp_path / "output") == ["run"]


def test_unpacking_waits_for_another_collection_of_the_same_run(fetch, tmp_path):
    (tmp_path / "output").mkdir()
    with ThreadPoolExecutor() as pool:
        with (tmp_path / "output/.run.part.lock").open("wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            waiting = pool.submit(fetch, member("a"))
            time.sleep(0.3)
            assert not waiting.done()
        waiting.result(timeout=10)
    assert (tmp_path / "output/run/a").is_file()


def test_waiting_for_a_stopped_collection_is_shown_and_times_out(fetch, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(rsync, "REPORT_SECONDS", 0.2)
    monkeypatch.setattr(rsync, "STUCK_SECONDS", 0.6)
    monkeypatch.setattr(progress.Display, "display", lambda _self, line, **_more: shown.append(line))
    (tmp_path / "output").mkdir()
    with (tmp_path / "output/.run.part.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AnsibleActionFail, match=r"/.run.part.lock is locked .*received nothing for 0.6 s"):
            fetch(member("a"))
    assert shown[0] == "  waiting for another ansible-playbook that collects the run (0 MB so far)"
    fetch(member("a"))


def test_waiting_for_another_collection_continues_while_it_receives_data(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(rsync, "STUCK_SECONDS", 0.4)
    (tmp_path / "output/.run.part").mkdir(parents=True)
    with (
        ThreadPoolExecutor() as pool,
        (tmp_path / "output/.run.part.lock").open("wb") as held,
        (tmp_path / "output/.run.part/big").open("wb", 0) as file,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = pool.submit(fetch, member("a"))
        for _each in range(10):
            time.sleep(0.15)
            file.write(os.urandom(8192))
            os.fsync(file)
        fcntl.flock(held, fcntl.LOCK_UN)
        waiting.result()
    assert (tmp_path / "output/run/a").is_file()


def test_received_files_are_unpacked_only_in_the_run_folder(fetch, tmp_path):
    fetch(member("logs", tarfile.DIRTYPE), member("logs/a"), member("b"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "output/run/b",
        "output/run/logs/a",
    ]


def test_received_files_replace_folders_and_links_and_folders_replace_files(fetch, tmp_path):
    fetch(member("model"), member("data", tarfile.DIRTYPE), member("data/a"))
    (tmp_path / "output/run/link").symlink_to(tmp_path)
    fetch(member("model", tarfile.DIRTYPE), member("model/a"), member("data"), member("link"))
    found = {str(path.relative_to(tmp_path / "output/run")): path.is_dir() for path in (tmp_path / "output/run").rglob("*")}
    assert found == {"model": True, "model/a": False, "data": False, "link": False}


def test_a_received_file_does_not_replace_the_run_folder(fetch, tmp_path):
    fetch(member("kept"))
    with pytest.raises(AnsibleActionFail, match="could not be written"):
        fetch(member("."))
    assert (tmp_path / "output/run/kept").exists()


def test_a_tar_file_with_a_member_outside_the_folder_is_not_unpacked(fetch, tmp_path):
    with pytest.raises(AnsibleActionFail):
        fetch(member("good"), member("../evil"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


@pytest.fixture
def silence(monkeypatch):
    """Return a function that lets a run print lines (or nothing) second by second, and returns what was shown of its silence."""

    def silence(*printed):
        shown, clock = [], iter(range(len(printed) + 1))
        monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(progress.Display, "display", lambda _self, line, **_more: shown.append(line))
        watched = progress.Silence()
        for second, lines in enumerate(printed, 1):
            watched.show(lines, second)
        return shown

    return silence


def test_a_run_without_output_shows_the_elapsed_time_every_ten_seconds(silence):
    assert silence(["a"], *[[]] * 16) == ["  ... 6 s, nothing printed for 5 s", "  ... 16 s, nothing printed for 15 s"]


def test_a_run_without_new_output_shows_its_last_reported_step(silence):
    assert silence(["step 1 of 9", "step 2 of 9, loss 3", "b"], *[[]] * 6) == ["  ... 6 s, step 2 of 9, nothing printed for 5 s"]


def test_a_run_that_prints_shows_no_elapsed_time(silence):
    assert silence(*[["a"], [], [], []] * 10) == []


def test_a_call_that_is_not_a_run_shows_no_elapsed_time(monkeypatch):
    monkeypatch.setattr(progress, "SILENT_SECONDS", -1)
    monkeypatch.setattr(progress.Display, "display", lambda *_words, **_more: pytest.fail("shown"))
    progress.Silence().show([], None)


@pytest.mark.parametrize(
    ("callback", "to_stderr"),
    [("default", False), ("ansible.builtin.default", False), ("json", True), ("ansible.posix.json", True), ("jsonl", True)],
)
def test_live_lines_go_to_stderr_with_a_json_callback(monkeypatch, callback, to_stderr):
    shown = []
    monkeypatch.setattr(progress.Display, "display", lambda _self, line, stderr: shown.append((line, stderr)))
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", callback)
    progress.show_line("step 1")
    assert shown == [("step 1", to_stderr)]


@pytest.mark.parametrize("reconnects", [True, False])
def test_a_broken_connection_is_reset_only_with_the_option_reconnect(reconnects):
    action, called = object.__new__(tf_program.ActionModule), []

    def execute(_line, **_more):
        called.append("call")
        if len(called) == 1:
            raise tf_program.AnsibleConnectionFailure("Data could not be sent")
        return {"rc": 0, "stdout": '{"done": true}', "stderr": ""}

    action._low_level_execute_command = execute
    action._connection = type("Connection", (), {"reset": lambda _self: called.append("reset")})()
    action.reconnects = reconnects
    if reconnects:
        assert action.call(["x"], b"", [0]) == {"done": True}
        assert called == ["call", "reset", "call"]
    else:
        with pytest.raises(tf_program.AnsibleConnectionFailure):
            action.call(["x"], b"", [0])
