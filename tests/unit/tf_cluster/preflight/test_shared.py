"""The check of a shared folder: steps on a machine, and the filters that judge all machines."""

import errno
import os
import time

import pytest
from project import load

shared = load("tf_cluster.preflight.shared")
filters = load("plugins/filter/shared_problems.py")
PATH = "/mnt/cluster"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Let there be no account tensorflow."""
    monkeypatch.setattr(shared, "account", lambda: None)


def checked(path, *machines):
    """Let machines check a folder; return what each finds and sees."""
    found = {machine: shared.limited(shared.check, str(path), machine, "t1", True) for machine in machines}
    return found, {machine: shared.limited(shared.seen, str(path), "t1")["machines"] for machine in machines}


def test_machines_that_share_a_folder_see_each_other_and_leave_no_files(tmp_path):
    found, seen = checked(tmp_path, "a", "b")
    assert seen == {"a": ["a", "b"], "b": ["a", "b"]}
    assert found["a"]["mount"]
    assert filters.shared_problems(found, PATH, seen) == []
    for machine in "ab":
        assert shared.limited(shared.clean, str(tmp_path), machine, "t1") == {"problem": ""}
    assert list(tmp_path.iterdir()) == []


def test_a_check_without_writing_leaves_no_files(tmp_path):
    assert shared.limited(shared.check, str(tmp_path), "a", "t1", False)["problem"] == ""
    assert list(tmp_path.iterdir()) == []


def test_files_of_an_interrupted_check_are_removed_later(tmp_path):
    old, new = tmp_path / f"{shared.PROBE}t0.b", tmp_path / f"{shared.PROBE}t9.c"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    shared.limited(shared.check, str(tmp_path), "a", "t1", True)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, f"{shared.PROBE}t1.a"}


def test_a_missing_folder_and_a_file_are_reported(tmp_path):
    (tmp_path / "file").touch()
    assert shared.limited(shared.check, str(tmp_path / "none"), "a", "t1", True)["problem"] == "is missing"
    assert shared.limited(shared.check, str(tmp_path / "file"), "a", "t1", True)["problem"] == "is not a folder"


@pytest.mark.parametrize(
    ("number", "phrase"),
    [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full: the quota is exceeded"), (errno.EROFS, "is read-only")],
)
def test_a_full_or_read_only_folder_is_reported_and_no_files_are_left(tmp_path, monkeypatch, number, phrase):
    def fail(_descriptor):
        raise OSError(number, "")

    monkeypatch.setattr(shared.os, "fsync", fail)
    assert shared.limited(shared.check, str(tmp_path), "a", "t1", True)["problem"] == phrase
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_does_not_answer_is_reported_after_the_timeout(monkeypatch):
    monkeypatch.setattr(shared, "TIMEOUT_SECONDS", 0.3)
    begun = time.monotonic()
    assert shared.limited(lambda: time.sleep(30) or {})["problem"] == "does not answer within 0.3 s"
    assert time.monotonic() - begun < 5


def test_the_projects_folder_is_created_once(tmp_path, monkeypatch):
    owner = shared.pwd.getpwuid(os.getuid())
    monkeypatch.setattr(shared, "account", lambda: owner)
    assert shared.limited(shared.prepare, str(tmp_path), False) == {"problem": "", "changed": True}
    assert list(tmp_path.iterdir()) == []
    assert shared.limited(shared.prepare, str(tmp_path), True)["changed"] is True
    assert (tmp_path / shared.FOLDER).stat().st_mode & 0o777 == 0o700
    assert shared.limited(shared.prepare, str(tmp_path), True)["changed"] is False


GOOD, ELSEWHERE = {"problem": "", "mount": "nas:/x (nfs4)"}, {"problem": "", "mount": "/dev/sda1 (ext4)"}


def test_a_machine_with_another_file_system_is_named():
    seen = {"a": ["a", "c"], "b": ["b"], "c": ["a", "c"]}
    [sentence] = filters.shared_problems({"a": GOOD, "b": ELSEWHERE, "c": GOOD}, PATH, seen)
    assert sentence == (
        "b: /mnt/cluster (tf_shared) is not the folder that a and c have: here /dev/sda1 (ext4), there nas:/x (nfs4). "
        "Mount the same file system on all machines."
    )


def test_a_machine_whose_file_the_others_do_not_see_is_named():
    [sentence] = filters.shared_problems({"a": GOOD, "b": GOOD}, PATH, {"a": ["a"], "b": ["a"]})
    assert sentence == "b: the other machines do not see what it writes to /mnt/cluster (tf_shared)."


def test_a_problem_of_one_machine_is_reported_once():
    found = {"a": GOOD, "b": {"problem": "is read-only", "mount": "nas:/x (nfs4)"}}
    [sentence] = filters.shared_problems(found, PATH, {"a": ["a"], "b": ["a"]})
    assert sentence.startswith("b: /mnt/cluster (tf_shared) is read-only. It is on nas:/x (nfs4). Mount the shared file system")


def test_check_mode_does_not_compare_the_machines():
    assert filters.shared_problems({"a": GOOD, "b": ELSEWHERE}, PATH, {}) == []


def account(user):
    """Return an entry of /etc/passwd."""
    return ["tensorflow", "x", user, user, "", "/var/lib/tf-cluster", "/usr/sbin/nologin"]


def test_different_user_ids_are_reported_with_their_machines():
    accounts = {"a": account(997), "b": account(998), "c": [], "d": account(997)}
    [sentence] = filters.shared_problems({}, PATH, {}, accounts)
    assert "997 on a and d and 998 on b" in sentence


def test_an_id_that_another_user_has_is_reported():
    accounts, users = {"a": account(997), "b": [], "c": []}, {"a": [0, 997], "b": [0, 997], "c": [0]}
    [sentence] = filters.shared_problems({}, PATH, {}, accounts, users)
    assert sentence.startswith("b: another user has the ID 997, which the user tensorflow has on a and needs for ")


@pytest.mark.parametrize(
    ("accounts", "users", "expected"),
    [(([], []), ([0, 999], [0, 998]), 997), ((account(990), []), ([0, 990], [0]), 990), (([], []), (range(1000), [0]), "")],
)
def test_the_user_gets_an_id_that_is_free_on_all_machines(accounts, users, expected):
    facts = {str(place): {"account": account, "users": list(its)} for place, (account, its) in enumerate(zip(accounts, users))}
    assert filters.shared_user(facts) == expected
