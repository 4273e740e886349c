"""run/prune.py: which runs and data are deleted, how much that frees, and what is never deleted."""

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import call, load

prune = load("tf_cluster.run.prune")
runs = prune.runs
DAY = 24 * 3600


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return the folder of runs and data, empty; no unit runs."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(prune, "DATA", tmp_path / "data")
    monkeypatch.setattr(runs, "is_alive", lambda _unit, _run: False)
    for name in ("runs", "data"):
        (tmp_path / name).mkdir()
    return tmp_path


def make(place, name, days=100.0, size=0, **changes):
    """Make a run that ended so many days ago and was collected; a change to None removes a note."""
    folder = place / "runs" / name
    (folder / "program").mkdir(parents=True)
    ended = time.time() - days * DAY
    noted = {"run_id": name, "unit": "tf-run-host-0.service", "started": ended, "ended": ended, "collected": ended, **changes}
    (folder / "run.json").write_text(json.dumps({key: value for key, value in noted.items() if value is not None}))
    (folder / "results").mkdir()
    (folder / "results/file").write_bytes(os.urandom(size))
    return folder


def make_data(place, key, days=100.0, size=1_000_000):
    """Make data that was last used so many days ago."""
    folder = place / "data" / key
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/file").write_bytes(os.urandom(size))
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return folder


def left(place):
    """Return the names of all runs and data, also hidden ones."""
    return sorted(path.name for name in ("runs", "data") for path in (place / name).iterdir())


@pytest.mark.parametrize(("age", "kept"), [(6.9, True), (7.1, False)])
def test_what_was_placed_for_the_servers_of_a_machine_stays_a_week(place, age, kept):
    """The run may be queued or running on another machine."""
    folder = place / "runs/placed"
    (folder / "program").mkdir(parents=True)
    (folder / "program/data").write_bytes(os.urandom(1_000_000))
    os.utime(folder, (time.time() - age * DAY,) * 2)
    prune.prune(0, 0.0001, check=False)
    assert left(place) == (["placed"] if kept else [])


def test_old_collected_runs_are_deleted(place):
    make(place, "old", days=31, size=1_000_000)
    make(place, "new", days=29)
    answer = prune.prune(30, 0, check=False)
    assert left(place) == ["new"]
    assert answer["deleted"] == [str(place / "runs/old")]
    assert 1_000_000 <= answer["freed_bytes"] < 1_200_000
    assert answer["lines"] == [f"deleted {place}/runs/old, ended 31 days ago: {answer['freed_bytes'] / 1e6:.1f} MB"]


@pytest.mark.parametrize(
    "changes",
    [
        {"collected": None}, {"ended": None}, {"ended": None, "waiting": True, "collected": None}, {"ended": "x"}, {"ended": [1]},
        {"notify": "http://a", "days": 0.0001}, {"ended": 1e999},
    ],
    ids=str,
)  # fmt: skip
def test_uncollected_running_and_invalid_runs_are_never_deleted(place, changes):
    make(place, "kept", **changes)
    assert prune.prune(0, 1e-9, check=False)["deleted"] == []
    assert left(place) == ["kept"]


@pytest.mark.parametrize(("days", "more", "kept"), [(100, {}, False), (1, {}, True), (100, {"number": 3}, True)])
def test_an_old_run_that_was_prepared_and_never_queued_is_deleted(place, days, more, kept):
    make(place, "part", ended=None, collected=None, waiting=True, asked=time.time() - days * DAY, **more)
    prune.prune(30, 0, check=False)
    assert left(place) == ["part"] * kept


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_damaged_run_is_never_deleted(place, text):
    (make(place, "kept") / "run.json").write_text(text)
    assert prune.prune(0, 1e-9, check=False)["deleted"] == []


def test_a_run_whose_notification_was_sent_is_deleted(place):
    make(place, "old", days=0.0001, notify="http://a", notified={})
    assert len(prune.prune(0, 0, check=False)["deleted"]) == 1


def test_a_run_whose_unit_clears_servers_is_kept(place, monkeypatch):
    make(place, "busy")
    monkeypatch.setattr(runs, "is_alive", lambda _unit, run: run.id == "busy")
    assert prune.prune(0, 0, check=False)["deleted"] == []


def test_a_run_is_kept_if_systemd_does_not_answer(place, monkeypatch):
    def fails(_unit, _run):
        raise OSError("systemd did not report the state")

    make(place, "kept")
    monkeypatch.setattr(runs, "is_alive", fails)
    assert prune.prune(0, 0, check=False)["deleted"] == []
    assert left(place) == ["kept"]


def test_a_run_that_is_being_collected_is_kept(place, monkeypatch):
    folder = make(place, "busy")
    for name in ("stdout.log", "results/file"):
        (folder / name).write_text("x")
    deleted = []
    results = load("tf_cluster.collect.results")
    contents = results.contents
    monkeypatch.setattr(
        results, "contents", lambda *words: deleted.extend(prune.prune(0, 0, check=False)["deleted"]) or contents(*words)
    )
    options = SimpleNamespace(run="busy", results="true", seconds=1.0, until=0, tasks=[], note="false", end="")
    assert "data" in results.collect(options)["fetch"]
    assert deleted == []
    with runs.Run("busy").locked(runs.COLLECTION, shared=True), runs.Run("busy").locked(runs.COLLECTION, shared=True):
        assert prune.prune(0, 0, check=False)["deleted"] == []
    assert prune.prune(0, 0, check=False)["deleted"] == [str(folder)]


def test_check_mode_deletes_nothing_and_reports_the_same(place):
    make(place, "old", size=1_000_000)
    make_data(place, "unused")
    make(place, ".leftover.deleted")
    before = left(place)
    listed = prune.prune(30, 0, check=True)
    assert left(place) == before
    assert all(line.startswith("would delete ") for line in listed["lines"])
    done = prune.prune(30, 0, check=False)
    assert (done["deleted"], done["freed_bytes"]) == (listed["deleted"], listed["freed_bytes"])


def test_above_the_limit_the_oldest_runs_are_deleted_first(place):
    for number in range(5):
        make(place, f"run{number}", days=20 - number, size=1_000_000)
    prune.prune(30, 0.0035, check=False)
    assert left(place) == ["run2", "run3", "run4"]


def test_uncollected_runs_count_towards_the_limit_and_are_kept(place):
    make(place, "kept", days=300, size=3_000_000, collected=None)
    make(place, "new", days=1)
    answer = prune.prune(30, 0.002, check=False)
    assert left(place) == ["kept"]
    assert answer["lines"][-1] == "0.0 GB are left, more than 0.002 GB (runs_keep_gb): they are in use, not collected or new"


def test_unused_data_is_deleted_by_its_last_use(place):
    make_data(place, "old", days=31)
    make_data(place, "new", days=29)
    assert prune.prune(30, 0, check=False)["deleted"] == [str(place / "data/old")]


def test_data_of_a_run_is_kept_and_counts_once(place):
    data = make_data(place, "used", size=2_000_000)
    for name, days in (("first", 40), ("second", 10)):
        os.link(data / "deep/file", make(place, name, days) / "program/file")
    answer = prune.prune(30, 0, check=False)
    assert answer["deleted"] == [str(place / "runs/first")]
    assert answer["freed_bytes"] < 100_000
    assert left(place) == ["second", "used"]
    assert prune.prune(30, 0.0025, check=True)["deleted"] == []  # 2 MB, not 4 MB


def test_data_that_only_deleted_runs_used_is_deleted_with_them(place):
    data = make_data(place, "used", days=50, size=2_000_000)
    os.link(data / "deep/file", make(place, "run", 40) / "program/file")
    answer = prune.prune(30, 0, check=False)
    assert sorted(answer["deleted"]) == [str(data), str(place / "runs/run")]
    assert answer["freed_bytes"] >= 2_000_000
    assert left(place) == []


@pytest.mark.parametrize(("days", "gone"), [(0.5, False), (2, True)])
def test_data_is_kept_for_a_day(place, days, gone):
    make_data(place, "data", days)
    prune.prune(0, 1e-9, check=False)
    assert left(place) == ([] if gone else ["data"])


def test_other_folders_and_links_are_kept(place):
    (place / "runs/lost+found").mkdir()
    (place / "runs/other").mkdir()
    (place / "elsewhere").mkdir()
    (place / "runs/link").symlink_to(make(place / "elsewhere", "target"))
    for path in (place / "runs").iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    assert prune.prune(0, 1e-9, check=False)["deleted"] == []
    assert left(place) == ["link", "lost+found", "other"]


def test_links_in_a_run_are_not_followed(place):
    outside = place / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(os.urandom(1_000_000))
    folder = make(place, "old")
    (folder / "results/folder").symlink_to(outside)
    (folder / "results/one").symlink_to(outside / "file")
    (folder / "results/loop").symlink_to(folder)
    assert prune.prune(30, 0, check=False)["freed_bytes"] < 100_000
    assert left(place) == []
    assert (outside / "file").stat().st_size == 1_000_000


def test_a_very_deep_folder_is_deleted(place):
    folder = make(place, "old") / "results"
    script = "import os\nfor _ in range(3000):\n os.mkdir('deep')\n os.chdir('deep')"
    subprocess.run(["python3", "-c", script], cwd=folder, check=True)
    prune.prune(30, 0, check=False)
    assert left(place) == []


def test_an_interrupted_deletion_is_completed(place, monkeypatch):
    make(place, "old")
    make_data(place, "unused")
    monkeypatch.setattr(prune, "remove", lambda _folder: None)
    prune.prune(30, 0, check=False)
    assert left(place) == [".old.deleted", ".unused.deleted"]
    monkeypatch.undo()
    monkeypatch.setattr(runs, "RUNS", place / "runs")
    monkeypatch.setattr(prune, "DATA", place / "data")
    prune.prune(30, 0, check=False)
    assert left(place) == []


def test_a_folder_that_cannot_be_removed_is_reported(place, monkeypatch):
    make(place, "old")
    make(place, ".old.deleted")
    monkeypatch.setattr(prune, "remove", lambda _folder: None)
    answer = prune.prune(30, 0, check=False)
    assert answer["deleted"] == []
    assert answer["lines"] == [f"{place}/runs/.old.deleted could not be removed completely"]


def test_missing_folders_count_as_empty(place):
    for name in ("runs", "data"):
        (place / name).rmdir()
    assert prune.prune(30, 1, check=False) == {"lines": [], "deleted": [], "freed_bytes": 0}
    assert prune.uncollected(set()) == []


def test_uncollected_runs_are_listed_oldest_first(place, monkeypatch):
    now = time.time()
    make(place, "collected")
    make(place, "second", days=1, collected=None)
    make(place, "first", days=2, collected=None)
    make(place, "queued", ended=None, collected=None, waiting=True)
    make(place, "active", ended=None, collected=None)
    make(place, "starts", ended=None, collected=None)
    make(place, "lost", ended=None, collected=None, started=now - 3600)
    make(place, "part.worker-1", days=3, collected=None, training={"id": "part"})
    monkeypatch.setattr(runs, "is_alive", lambda _unit, run: run.id == "starts")
    found = prune.uncollected({"active"})
    assert [each["run"] for each in found] == ["part", "first", "second", "lost"]
    assert found[3]["ended"] == now - 3600


def test_a_damaged_run_is_listed_without_a_time(place):
    (make(place, "bad") / "run.json").write_text("{")
    assert prune.uncollected(set()) == [{"run": "bad", "ended": None}]


def test_the_command_reports_its_result_and_refuses_invalid_numbers():
    if Path("/var/lib/tf-cluster").exists():
        pytest.skip("this machine has runs")
    assert call("tf_cluster.run.prune", "--days", 30, "--gb", 0).stdout == "0 deleted, 0.0 MB freed\n"
    assert json.loads(call("tf_cluster.run.prune", "--days", 30, "--gb", 0, "--json").stdout)["deleted"] == []
    for value in ("-1", "nan", "inf", "x"):
        assert call("tf_cluster.run.prune", f"--days={value}", "--gb=0").returncode == 2
