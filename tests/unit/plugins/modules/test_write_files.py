"""The module write_files, run as Ansible runs it, in a folder of the test's own."""

import json
import os
import subprocess

import pytest
from project import ROOT, call


@pytest.fixture
def write(tmp_path):
    """Return a function that runs the module and returns its answer."""

    def write(files, only=(), check=False):
        arguments = {"files": files, "only": [str(pattern) for pattern in only], "_ansible_check_mode": check}
        (tmp_path / "tmp").mkdir(exist_ok=True)
        (tmp_path / "arguments.json").write_text(
            json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_remote_tmp": str(tmp_path / "tmp")}}), encoding="utf-8"
        )
        done = call("plugins/modules/write_files.py", tmp_path / "arguments.json")
        assert "Traceback" not in done.stdout + done.stderr
        return json.loads(done.stdout)

    return write


@pytest.fixture
def place(tmp_path):
    """Return the folder that is written to; it does not exist yet."""
    return tmp_path / "etc/tf-cluster"


def file(path, content="text\n", **more):
    """Return one entry of the option ``files``."""
    return {"path": str(path), "content": content, **more}


def identity(path):
    """Return the changes when a file is written again."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_mode


def mode_of(path):
    """Return a file's permissions."""
    return oct(path.stat().st_mode & 0o7777)


def test_files_are_written_with_their_permissions(write, place):
    answer = write([file(place / "a", "1\n"), file(place / "deep/b", "é\n", mode="0755"), file(place / "c", "", mode="0600")])
    assert answer["changed"]
    assert answer["paths"] == [str(place / name) for name in ("a", "deep/b", "c")]
    assert [(place / name).read_text(encoding="utf-8") for name in ("a", "deep/b", "c")] == ["1\n", "é\n", ""]
    assert [mode_of(place / name) for name in ("a", "deep/b", "c", "deep")] == ["0o644", "0o755", "0o600", "0o755"]


def test_a_second_call_changes_nothing(write, place):
    files = [file(place / "a"), file(place / "b", mode="0600")]
    write(files)
    before = [identity(place / name) for name in "ab"]
    answer = write(files)
    assert not answer["changed"]
    assert answer["paths"] == answer["diff"] == []
    assert [identity(place / name) for name in "ab"] == before


def test_only_the_file_that_differs_is_written(write, place):
    write([file(place / "a"), file(place / "b")])
    before = identity(place / "a")
    assert write([file(place / "a"), file(place / "b", "new\n")])["paths"] == [str(place / "b")]
    assert identity(place / "a") == before
    assert (place / "b").read_text(encoding="utf-8") == "new\n"


def test_wrong_permissions_are_corrected(write, place):
    write([file(place / "a")])
    (place / "a").chmod(0o666)
    assert write([file(place / "a")])["changed"]
    assert mode_of(place / "a") == "0o644"


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give a file away")
def test_a_wrong_owner_is_corrected(write, place):
    write([file(place / "a")])
    os.chown(place / "a", 65534, 65534)
    assert write([file(place / "a")])["changed"]
    assert ((place / "a").stat().st_uid, (place / "a").stat().st_gid) == (0, 0)


def test_check_mode_reports_the_same_changes_and_writes_nothing(write, place):
    said = write([file(place / "a")], check=True)
    assert not place.exists()
    assert said["changed"]
    assert said["paths"] == write([file(place / "a")])["paths"]


def test_check_mode_removes_nothing(write, place):
    write([file(place / "a"), file(place / "b")])
    assert write([file(place / "a")], only=[place / "*"], check=True)["paths"] == [str(place / "b")]
    assert (place / "b").exists()


def test_the_diff_has_the_text_before_and_after(write, place):
    write([file(place / "a", "old\n"), file(place / "b", "gone\n")])
    diff = write([file(place / "a", "new\n")], only=[place / "*"])["diff"]
    assert [(entry["before"], entry["after"]) for entry in diff] == [("old\n", "new\n"), ("gone\n", "")]
    assert [entry["before_header"] for entry in diff] == [str(place / "a"), str(place / "b")]


def test_only_files_that_match_a_pattern_are_removed(write, place):
    write([file(place / name) for name in ("worker-0.env", "worker-1.env", "other.txt")])
    assert write([file(place / "worker-0.env")], only=[place / "*.env"])["paths"] == [str(place / "worker-1.env")]
    assert sorted(path.name for path in place.iterdir()) == ["other.txt", "worker-0.env"]


def test_an_empty_list_removes_all_files_and_the_empty_folder(write, place):
    write([file(place / "a")])
    assert write([], only=[place / "*"])["changed"]
    assert not place.exists()


def test_patterns_that_match_nothing_change_nothing(write, place):
    assert not write([], only=[place / "*"])["changed"]


def test_crlf_line_endings_are_written_unchanged_and_only_once(write, place):
    write([file(place / "a", "text\r\n")])
    assert (place / "a").read_bytes() == b"text\r\n"
    assert not write([file(place / "a", "text\r\n")])["changed"]


def test_a_file_that_is_not_text_is_replaced(write, place):
    place.mkdir(parents=True)
    (place / "a").write_bytes(b"\xff\xfe\0")
    assert write([file(place / "a")])["changed"]
    assert (place / "a").read_text(encoding="utf-8") == "text\n"


def test_different_line_endings_are_a_change(write, place):
    place.mkdir(parents=True)
    (place / "a").write_bytes(b"text\r\n")
    assert write([file(place / "a")])["changed"]
    assert (place / "a").read_bytes() == b"text\n"


def test_a_folder_at_the_path_of_a_file_is_an_error(write, place):
    (place / "a").mkdir(parents=True)
    answer = write([file(place / "a")])
    assert answer["failed"]
    assert f"{place / 'a'} could not be written: Is a directory" in answer["msg"]


def test_a_file_at_the_path_of_a_folder_is_an_error(write, place):
    place.parent.mkdir()
    place.write_text("", encoding="utf-8")
    answer = write([file(place / "a")])
    assert answer["failed"]
    assert str(place) in answer["msg"]


def test_permissions_that_are_not_a_number_are_an_error(write, place):
    answer = write([file(place / "a", mode="u+rwx")])
    assert answer["failed"]
    assert "u+rwx" in answer["msg"]


def test_ansible_runs_the_module_in_check_mode_with_a_diff(place):
    words = ["ansible", "localhost", "-c", "local", "-m", "distributed.tensorflow.write_files", "--check", "--diff", "-a"]
    done = subprocess.run(
        [*words, json.dumps({"files": [file(place / "a", "hello")]})], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "CHANGED" in done.stdout
    assert "+hello" in done.stdout
    assert not place.exists()
