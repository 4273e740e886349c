"""collect/results.py: what is collected of a run."""

import base64
import errno
import io
import json
import os
import pwd
import subprocess
import tarfile
import time
from types import SimpleNamespace

import pytest
from project import load
from run_helpers import plan, pretend_systemd

run_program = load("tf_cluster.run.program")
collect_run = load("tf_cluster.collect.results")
runs = load("tf_cluster.run.runs")


def collect(run):
    """Return the answer to one call of ``collect``."""
    given = {"results": "true", "seconds": 0.0, "until": 0.0, "tasks": [], "note": "false", "end": ""}
    return collect_run.collect(SimpleNamespace(run=run.id, **given))


def test_only_a_run_that_has_ended_is_noted_as_collected(run):
    other = run_program.Run("20260101-000000-demo-ab12.worker-1")
    other.folder.mkdir()
    other.note(run_id=other.id, ended=1.0)
    other.folder.joinpath("stdout.log").touch()
    given = {"results": "true", "seconds": 0.0, "until": 0.0, "tasks": [], "note": "true", "end": ""}
    assert collect_run.collect(SimpleNamespace(run=other.id, **given))["next"] == ["collected", other.id]
    assert [collect_run.collected(SimpleNamespace(run=each.id)) for each in (run, other)] == [{}, {}]
    assert "collected" not in run.read()  # it has not ended
    assert time.time() - other.read()["collected"] < 60


def test_a_run_that_cannot_be_noted_as_collected_is_kept(run, monkeypatch):
    run.note(ended=1.0)

    def full(self, noted):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(runs.Run, "_write", full)
    [line] = collect_run.collected(SimpleNamespace(run=run.id))["lines"]
    assert line.endswith("keeps the run as one that is not collected: [Errno 30] Read-only file system")
    assert "collected" not in run.read()


def pack(run):
    """Return what one call of ``collect`` answers: name -> text, None for a folder."""
    answer = collect(run)
    assert "next" not in answer
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(answer["fetch"]["data"]))) as tar:
        found = {member.name: tar.extractfile(member).read().decode() if member.isfile() else None for member in tar}
    return found | answer["files"]


def test_large_results_are_listed_for_rsync(run, monkeypatch):
    monkeypatch.setattr(collect_run, "SMALL_BYTES", 5000)
    (run.folder / "results/deep").mkdir()
    for name in ("results/deep/a.txt", "results/verdict.json", "program/model"):
        (run.folder / name).write_text("0123456789" * 200, encoding="utf-8")
    answer, renamed = collect(run), {"verdict.json": "program-verdict.json"}
    assert answer["fetch"] == {
        "call": ["results", run.id],
        "size": 6000,
        "parts": [
            {"from": "results", "names": ["deep", "verdict.json", "deep/a.txt"], "renamed": renamed},
            {"from": ".", "names": ["stdout.log", "program", "program/model"]},
        ],
    }
    assert json.loads(answer["files"]["run.json"])["left_behind"] == []


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_becomes_a_link_or_a_pipe_is_not_listed_for_rsync(run, changing, monkeypatch, kind):
    monkeypatch.setattr(collect_run, "SMALL_BYTES", 5)
    (run.folder / "results/a").write_text("left " * 10, encoding="utf-8")
    changing(swap(kind))
    answer = collect(run)
    assert answer["fetch"]["parts"][0]["names"] == []
    assert json.loads(answer["files"]["run.json"])["left_behind"] == [f"a (a {kind})"]


def test_a_file_that_grows_during_the_collection_is_listed_for_rsync(run, changing, monkeypatch):
    monkeypatch.setattr(collect_run, "SMALL_BYTES", 5000)
    (run.folder / "results/a").write_bytes(b"")
    changing(lambda folder: os.truncate(folder / "a", 4 * 10**12))
    assert collect(run)["fetch"]["parts"][0]["names"] == ["a"]


def test_program_files_are_collected_only_if_the_run_changed_them(run):
    for name in ("main.py", "log.txt", "data/a.csv", "data/b.csv"):
        (run.folder / "program" / name).parent.mkdir(exist_ok=True)
        (run.folder / "program" / name).write_text(name, encoding="utf-8")
    run.note_given()
    assert set(pack(run)) == {"run.json", "stdout.log"}
    (run.folder / "program/log.txt").write_text("new text", encoding="utf-8")
    (run.folder / "program/data/model\n.keras").write_text("model", encoding="utf-8")
    os.utime(run.folder / "program/data/b.csv", (1, 1))
    changed = {"program", "program/log.txt", "program/data", "program/data/model\n.keras", "program/data/b.csv"}
    assert set(pack(run)) == {"run.json", "stdout.log", *changed}


def test_checkpoints_of_a_task_are_collected(run):
    (run.folder / "checkpoints/inner").mkdir(parents=True)
    assert "checkpoints" in pack(run)
    (run.folder / "checkpoints/inner/ckpt-20.index").write_text("kept", encoding="utf-8")
    (run.folder / "results/checkpoints").write_text("the program's own", encoding="utf-8")
    files = {"checkpoints", "checkpoints/inner", "checkpoints/inner/ckpt-20.index", "program-checkpoints"}
    assert set(pack(run)) == {"run.json", "stdout.log", *files}


@pytest.mark.parametrize("text", ["", "\0" * 300, '{"run_id": "20', "\udcff"])
def test_a_run_with_damaged_notes_is_collected_but_not_followed_or_canceled(run, text):
    (run.folder / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    (run.folder / "stdout.log").write_bytes(b"step 1")
    (run.folder / "results/a.txt").write_text("left", encoding="utf-8")
    answer = collect_run.outcome(SimpleNamespace(run=run.id))
    assert "is damaged" in answer["outcome"]["failure"]
    assert answer["outcome"]["seconds"] >= 0
    packed = pack(run)
    assert (packed["stdout.log"], packed["a.txt"]) == ("step 1", "left")
    assert json.loads(packed["run.json"])["failure"] == answer["outcome"]["failure"]
    sentence = "run=20260101-000000-demo-ab12' to collect the results"
    with pytest.raises(run_program.cluster_config.ConfigError, match=sentence):
        run_program.follow(SimpleNamespace(run=run.id, offset=0, reported=-1))
    assert sentence in run_program.cancel(SimpleNamespace(run=[run.id], by="jo", after=0, here=False))["failure"]


@pytest.mark.parametrize(("noted", "failure"), [({}, "the run is still running"), ({"ended": 1e10, "failure": ""}, "")])
def test_the_state_and_the_age_of_a_run_are_reported(run, noted, failure):
    run.note(asked=time.time() - 60, **noted)
    answer = collect_run.outcome(SimpleNamespace(run=run.id))
    assert answer["outcome"]["failure"] == failure
    assert 60 <= answer["age"] < 70


def test_links_and_pipes_in_the_working_directory_are_named(run):
    run.note_given()
    (run.folder / "program/latest").symlink_to("ckpt-5")
    (run.folder / "program/config.json").symlink_to(run.folder / "config.json")  # of the project
    os.mkfifo(run.folder / "results/pipe")
    os.mkfifo(run.folder / "program/pipe")
    noted = json.loads(pack(run)["run.json"])
    assert sorted(noted["left_behind"]) == ["pipe (a pipe)", "program/latest (a link)", "program/pipe (a pipe)"]


def test_all_files_of_a_run_are_packed(run):
    (run.folder / "program/demo.py").write_text("code", encoding="utf-8")
    (run.folder / "results/deep").mkdir()
    (run.folder / "results/deep/a.txt").write_text("left", encoding="utf-8")
    packed = pack(run)
    assert packed["program/demo.py"] == "code"
    assert packed["deep/a.txt"] == "left"
    assert set(packed) == {"run.json", "stdout.log", "program", "program/demo.py", "deep", "deep/a.txt"}


@pytest.mark.parametrize("name", ["run.json", "stdout.log", "verdict.json", "report.html", "summary.txt"])
def test_a_result_with_a_reserved_file_name_is_renamed(run, name):
    (run.folder / "results" / name).write_text("the program's", encoding="utf-8")
    packed = pack(run)
    assert packed[f"program-{name}"] == "the program's"
    assert packed.get(name) != "the program's"


def test_renamed_results_do_not_replace_other_results(run):
    results = run.folder / "results"
    (results / "logs").mkdir()
    left = ("verdict.json", "program-verdict.json", "program-program-verdict.json", "logs/a", "program-logs")
    for name in left:
        (results / name).write_text(name, encoding="utf-8")
    packed = pack(run)
    assert packed["program-program-program-verdict.json"] == "verdict.json"
    assert packed["program-program-logs/a"] == "logs/a"
    assert sorted(text for text in packed.values() if text in left) == sorted(left)


def test_links_and_special_files_are_listed_and_not_collected(run):
    (run.folder / "results/link").symlink_to("/etc/passwd")
    (run.folder / "results/folder").symlink_to("/etc")
    os.mkfifo(run.folder / "results/pipe")
    packed = pack(run)
    assert set(packed) == {"run.json", "stdout.log"}
    assert json.loads(packed["run.json"])["left_behind"] == ["folder (a link)", "link (a link)", "pipe (a pipe)"]


def test_the_list_of_files_that_were_not_collected_is_limited(run):
    for number in range(100):
        (run.folder / f"results/{number:03}\n").symlink_to("x")
    reported = json.loads(pack(run)["run.json"])["left_behind"]
    assert (len(reported), reported[0], reported[-1]) == (51, "'000\\n' (a link)", "50 more")


def test_each_hard_link_to_a_file_is_packed_as_a_file(run):
    (run.folder / "results/a").write_text("left", encoding="utf-8")
    os.link(run.folder / "results/a", run.folder / "results/b")
    assert (pack(run)["a"], pack(run)["b"]) == ("left", "left")


@pytest.fixture
def changing(run, monkeypatch):
    """Return a function that lets something happen between the listing of the program's files and their packing."""

    def changing(change):
        listed = collect_run.contents

        def contents(*words):
            found = listed(*words)
            change(run.folder / "results")
            return found

        monkeypatch.setattr(collect_run, "contents", contents)

    return changing


def swap(kind):
    """Return a function that puts something else in the place of the file "a"."""

    def change(folder):
        (folder / "a").unlink()
        (folder / "a").symlink_to("/etc/passwd") if kind == "link" else os.mkfifo(folder / "a")

    return change


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_becomes_a_link_or_a_pipe_during_the_collection_is_not_packed(run, changing, kind):
    (run.folder / "results/a").write_text("left", encoding="utf-8")
    changing(swap(kind))
    packed = pack(run)
    assert "a" not in packed
    assert json.loads(packed["run.json"])["left_behind"] == [f"a (a {kind})"]


def test_a_file_that_is_deleted_during_the_collection_is_ignored(run, changing):
    (run.folder / "results/deep").mkdir()
    for name in ("a", "b", "deep/c"):
        (run.folder / "results" / name).write_text("left", encoding="utf-8")
    changing(lambda folder: (folder / "deep/c").unlink())
    packed = pack(run)
    assert packed["a"] == packed["b"] == "left"
    assert "deep/c" not in packed
    assert json.loads(packed["run.json"])["left_behind"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's rights")
def test_files_that_the_user_of_the_program_cannot_read_are_not_collected(run, monkeypatch):
    monkeypatch.setattr(load("tf_cluster.preflight.shared"), "USER", "nobody")
    monkeypatch.setattr(runs, "USER", "nobody")
    for folder in (run.folder, *run.folder.parents[:-1]):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    for name, mode in (("open", 0o644), ("secret", 0o600)):
        (run.folder / "results" / name).write_text("left", encoding="utf-8")
        (run.folder / "results" / name).chmod(mode)
    packed = pack(run)
    assert packed["open"] == "left"
    assert json.loads(packed["run.json"])["left_behind"] == ["secret (Permission denied)"]
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to a group")
def test_only_the_user_of_the_program_and_root_can_read_a_run(run, monkeypatch):
    """The user can have another ID by now."""
    monkeypatch.setattr(runs, "USER", "nobody")
    run.folder.chmod(0o755)
    collect_run.collect(SimpleNamespace(run=run.id, results="true", seconds=100.0, until=0, tasks=[], note="false", end=""))
    run.note(arguments=["secret"])
    found = [path.stat() for path in (run.folder, run.folder / "run.json")]
    assert [status.st_mode & 0o777 for status in found] == [0o750, 0o640]
    assert {(status.st_uid, status.st_gid) for status in found} == {(0, pwd.getpwnam("nobody").pw_gid)}


def test_very_deep_folders_are_packed(run):
    place = run.folder / "results"
    descriptor = os.open(place, os.O_RDONLY)
    for _level in range(1500):  # deeper than Python's functions may call themselves
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    packed = len(pack(run))
    subprocess.run(["rm", "-r", run.folder / "results"], check=True)  # pytest could not
    assert packed > 1500


def test_journals_are_collected_until_the_end_of_the_run(run, monkeypatch):
    commands = []
    monkeypatch.setattr(
        collect_run.subprocess, "run", lambda command, **_more: commands.append(command) or SimpleNamespace(stdout=b"")
    )
    collect_run.collect(SimpleNamespace(run=run.id, results="false", seconds=100.0, until=40.0, tasks=["worker-0"], end=""))
    [until] = [float(word.removeprefix("--until=@")) for word in commands[0] if word.startswith("--until")]
    assert until == pytest.approx(time.time() - 40, abs=2)


def test_the_outcome_of_a_queued_run_says_that_it_is_queued(run):
    run.note(waiting=True, asked=time.time(), task="host:0")
    found = collect_run.outcome(SimpleNamespace(run=run.id))
    assert found["outcome"]["failure"] == "the run is queued for host:0"
    assert found["ended"] == 0


@pytest.mark.parametrize("task", ["worker:0", "worker:1"])
def test_a_result_named_tasks_is_renamed_in_a_part_of_a_training(run, task):
    (run.folder / "program/model").write_text("left", encoding="utf-8")
    (run.folder / "results/tasks").mkdir()
    run.note(training=plan(), task=task)
    assert set(pack(run)) == {"run.json", "stdout.log", "program-tasks", "program", "program/model"}


def test_a_part_that_does_not_end_with_its_training_is_canceled_before_it_is_collected(run, monkeypatch):
    run.note(reserved=[])
    commands = pretend_systemd(monkeypatch, active=[run.id])
    monkeypatch.setattr(collect_run, "END_SECONDS", 0.1)
    given = {"results": "true", "seconds": 0.0, "until": 0.0, "tasks": [], "note": "false"}
    answer = collect_run.collect(SimpleNamespace(run=run.id, end="its end on machine a", **given))
    assert answer["lines"] == [f"run {run.id} was canceled"]
    assert json.loads(answer["files"]["run.json"])["cancelled"] == "the run was canceled by its end on machine a"
    assert [command[:2] for command in commands if "stop" in command] == [["systemctl", "stop"]]


def test_each_part_of_a_training_returns_the_outcome_of_the_training(run):
    run.note(task="worker:1", ended=time.time(), failure="", training=plan())
    outcome = runs.outcome(run.read())
    assert outcome["run_id"] == "r1"
    assert (outcome["training"]["chief"], outcome["training"]["first_chief"]) == ("worker:1", "worker:0")
    [part] = collect_run.parts(SimpleNamespace(run=run.id))["parts"]
    assert part == {"id": run.id, "task": "worker:1", "ended": True, "attempts": 0, "tasks": [], "over": True}


def test_the_attempts_of_a_running_training_are_those_of_its_coordinator(run, tmp_path):
    run.note(task="worker:1", shared=str(tmp_path), training={**plan(), "survives": True})
    assert collect_run.parts(SimpleNamespace(run=run.id))["parts"][0]["tasks"] == []
    folder = tmp_path / "tf-cluster/r1/coordinators"
    folder.mkdir(parents=True)
    content = {"task": "worker:1", "attempts": [{"attempt": 1, "tasks": ["worker:0"]}, {"attempt": 2, "tasks": ["worker:1"]}]}
    (folder / "2.json").write_text(json.dumps(content), encoding="utf-8")
    [part] = collect_run.parts(SimpleNamespace(run=run.id))["parts"]
    assert part == {"id": run.id, "task": "worker:1", "ended": False, "attempts": 2, "tasks": ["worker:1"], "over": False}
