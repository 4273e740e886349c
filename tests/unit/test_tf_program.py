"""The action tf_program: what goes to a machine, and that nothing comes back where it does not belong."""

import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from project import load

tf_program = load("plugins/action/tf_program.py")


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
def test_a_file_within_the_folder_may_come(name):
    assert tf_program.checked(member(name)).name == name


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "../a", "a/../../b", "a/..", "a/../b", "", "//a"])
def test_a_file_outside_the_folder_may_not_come(name):
    with pytest.raises(AnsibleActionFail, match="does not belong"):
        tf_program.checked(member(name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_what_is_neither_a_file_nor_a_folder_may_not_come(kind):
    with pytest.raises(AnsibleActionFail, match="'a', which does not belong"):
        tf_program.checked(member("a", kind))


@pytest.mark.parametrize(("kind", "mode"), [(tarfile.REGTYPE, 0o644), (tarfile.DIRTYPE, 0o755)])
def test_what_comes_belongs_to_the_person_who_asked(kind, mode):
    found = tf_program.checked(member("a", kind))
    assert (found.mode, found.uid, found.gid) == (mode, os.getuid(), os.getgid())


@pytest.mark.parametrize("name", ["a.log", "logs/a.log", "deep/er/a.log", "..a"])
def test_a_text_is_written_below_the_folder(tmp_path, name):
    tf_program.write_below(tmp_path / "run", name, "é\n")
    assert (tmp_path / "run" / name).read_text(encoding="utf-8") == "é\n"


@pytest.mark.parametrize("name", ["../a", "/etc/tf-test", "logs/../../a", "", ".", "..", "../run-2/a"])
def test_a_text_is_written_nowhere_else(tmp_path, name):
    (tmp_path / "run").mkdir()
    with pytest.raises(AnsibleActionFail, match="lies outside"):
        tf_program.write_below(tmp_path / "run", name, "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


def test_a_link_leads_a_text_nowhere_else(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/link").symlink_to(tmp_path)
    with pytest.raises(AnsibleActionFail, match="lies outside"):
        tf_program.write_below(tmp_path / "run", "link/a", "x")


def test_a_file_goes_by_its_name(tmp_path):
    (tmp_path / "demo.py").write_text("", encoding="utf-8")
    assert names_in(tf_program.packed(tmp_path / "demo.py")) == ["demo.py"]


def test_a_folder_goes_without_what_python_left(tmp_path):
    for name in ("demo.py", "lib/a.py", "lib/__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert names_in(tf_program.packed(tmp_path)) == [".", "./demo.py", "./lib", "./lib/a.py"]


def test_a_program_that_is_not_there_gives_a_sentence(tmp_path):
    with pytest.raises(AnsibleActionFail, match="does not exist on the controller"):
        tf_program.packed(tmp_path / "demo.py")


@pytest.fixture
def calls():
    """Return a function that calls a program which ends as given, and returns its answer."""

    def calls(rc=0, stdout="", stderr="", statuses=(0,)):
        action = object.__new__(tf_program.ActionModule)
        action._low_level_execute_command = lambda *_words, **_more: {"rc": rc, "stdout": stdout, "stderr": stderr}
        return action.call(["/venv/bin/python", "/opt/ready.py", "--json"], b"", statuses)

    return calls


def test_the_last_line_is_the_answer(calls):
    assert calls(stdout='a warning\n{"ok": true}\n') == {"ok": True}


def test_an_answer_may_come_with_another_status(calls):
    assert calls(rc=1, stdout='{"ok": false}', statuses=(0, 1)) == {"ok": False}


def test_a_failure_is_told_in_the_programs_own_words(calls):
    with pytest.raises(AnsibleActionFail, match=r"^config.json is not JSON$"):
        calls(rc=2, stderr="some warning\nready.py: config.json is not JSON\nConnection closed\n")


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_a_failure_without_own_words_is_told_with_its_last_lines(calls, where):
    with pytest.raises(AnsibleActionFail, match=r"ready.py ended with status 126: .*Permission denied"):
        calls(rc=126, **{where: "bash: /venv/bin/python: Permission denied\n"})


def test_a_machine_that_is_not_of_the_cluster_yet_is_told_how_it_becomes_so(calls):
    with pytest.raises(AnsibleActionFail, match=r"^/venv/bin/python is not there: .*site.yml"):
        calls(rc=127, stderr="bash: /venv/bin/python: No such file or directory\n")


@pytest.mark.parametrize("stdout", ["", "\n", "hello", '{"ok": tr', "[" * 100_000])
def test_what_is_not_json_is_called_so(calls, stdout):
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
        action = object.__new__(tf_program.ActionModule)
        action._connection = SimpleNamespace(fetch_file=lambda _remote, local: Path(local).write_bytes(buffer.getvalue()))
        action.fetch("/remote.tar", tmp_path / "output/run")

    return fetch


def test_what_a_machine_sends_is_unpacked_in_the_folder_alone(fetch, tmp_path):
    fetch(member("logs", tarfile.DIRTYPE), member("logs/a"), member("b"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "output/run/b",
        "output/run/logs/a",
    ]


def test_of_a_tar_file_that_reaches_outside_nothing_is_unpacked(fetch, tmp_path):
    with pytest.raises(AnsibleActionFail):
        fetch(member("good"), member("../evil"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".tar"] == []
