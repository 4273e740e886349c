"""run/queue.py: the order in which runs start, and the tasks that they reserve."""

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import load

queue = load("tf_cluster.run.queue")
runs = queue.runs

SPEC = {"worker": ["a:2222", "b:2222", "c:2222", "d:2222"], "ps": ["e:2224"], "host": ["h:2223"]}
ALL = [*SPEC["worker"], *SPEC["ps"]]
OWN = ["h:2223", "h:5223"]


class Machine:
    """Requests runs on a pretended machine, and ends them."""

    def __init__(self):
        self.started, self.active, self.count = [], set(), 0

    def request(self, name, tasks=(), count=0, **more):
        """Put a run into the queue and return what it waits for."""
        run = runs.Run(name)
        (run.folder / "program").mkdir(parents=True)
        wants = {"own": OWN, "tasks": list(tasks), "count": count}
        run.note(
            run_id=name, task="host:0", asked=time.time(), waiting=True, training={}, wants=wants, missing=[], held=[],
            keep_state=False,
        )  # fmt: skip
        run.note(**more)
        queue.enter(run)
        return queue.dispatch().get(name)

    def end(self, name, cleared=True):
        """End a run, as its unit does."""
        run = runs.Run(name)
        run.note(ended=time.time(), failure="")
        report = {"cleared": cleared, "problems": ["worker:0 did not end"]}
        (run.folder / "part.json").write_text(json.dumps(report), encoding="utf-8")
        waits = queue.dispatch(run)
        self.active.discard(name)
        return waits

    def start_unit(self, run, _noted):
        """Stand for systemd-run."""
        self.started.append(run.id)
        self.active.add(run.id)
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a machine without runs."""
    made = Machine()
    (tmp_path / "config.json").write_text(json.dumps(SPEC), encoding="utf-8")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(queue, "CONFIG", tmp_path / "config.json")
    monkeypatch.setattr(queue, "start_unit", made.start_unit)
    monkeypatch.setattr(queue, "active_runs", lambda: set(made.active))
    monkeypatch.setattr(runs, "is_shutting_down", lambda: False)
    return made


def reserved(name):
    """Return the tasks that a run has reserved."""
    return runs.Run(name).read()["reserved"]


def test_a_run_reserves_all_tasks(machine):
    assert machine.request("r1") is None
    assert reserved("r1") == ALL
    assert machine.request("r2").reason == "worker:0, worker:1, worker:2 and 2 more are used by run r1"
    machine.end("r1")
    assert machine.started == ["r1", "r2"]


def test_a_run_without_tasks_and_other_runs_do_not_wait_for_each_other(machine):
    wants = {"own": OWN, "tasks": [], "count": 0, "none": True}
    assert machine.request("r1") is None
    assert machine.request("r2").position == 1
    assert machine.request("r3", wants=wants) is None
    assert reserved("r3") == []
    assert machine.request("r4", wants=wants).reason == "host:0 runs 2 programs (run_slots)"
    machine.end("r1")
    assert machine.started == ["r1", "r3", "r2"]


def test_runs_start_in_the_order_of_their_requests(machine):
    positions = [machine.request(f"r{number}") for number in range(5)]
    assert [each and each.position for each in positions] == [None, 1, 2, 3, 4]
    for number in range(5):
        machine.end(f"r{number}")
    assert machine.started == [f"r{number}" for number in range(5)]


def test_runs_on_different_tasks_run_at_the_same_time_with_separate_servers(machine):
    machine.request("r1", count=2)
    machine.request("r2", tasks=["d:2222", "c:2222"])
    assert machine.started == ["r1", "r2"]
    assert (reserved("r1"), reserved("r2")) == (["a:2222", "b:2222"], ["d:2222", "c:2222"])
    assert [runs.Run(name).read()["own"] for name in ("r1", "r2")] == OWN
    waits = machine.request("r3", tasks=["e:2224"])
    assert waits.reason == "host:0 runs 2 programs (run_slots)"
    machine.end("r1")
    assert machine.started[-1] == "r3"
    assert runs.Run("r3").read()["own"] == OWN[0]


def test_a_requested_number_of_workers_is_taken_from_the_free_workers(machine):
    machine.request("r1", tasks=["b:2222"])
    machine.request("r2", count=2)
    assert reserved("r2") == ["a:2222", "c:2222"]


def test_a_run_overtakes_only_queued_runs_that_need_other_tasks(machine):
    machine.request("r1", tasks=["a:2222"])
    machine.request("r2", tasks=["a:2222", "b:2222"])
    assert machine.request("r3", tasks=["b:2222"]).reason == "run r2 is before it"
    assert machine.request("r4", tasks=["c:2222"]) is None
    machine.end("r1")
    assert machine.started == ["r1", "r4", "r2"]


def test_a_run_that_needs_all_tasks_is_not_overtaken(machine):
    machine.request("r1", count=1)
    machine.request("r2")
    assert machine.request("r3", count=1).position == 2
    machine.end("r1")
    assert machine.started == ["r1", "r2"]


def test_tasks_that_do_not_answer_are_not_reserved(machine):
    machine.request("r1", count=2, missing=["a:2222"])
    assert reserved("r1") == ["b:2222", "c:2222"]
    machine.request("r2", tasks=["d:2222", "a:2222"], missing=["a:2222"])  # allow_missing
    assert reserved("r2") == ["d:2222"]


@pytest.mark.parametrize(
    ("wants", "words"),
    [
        ({"tasks": ["z:2222"]}, "the cluster has changed and has no task at z:2222"),
        ({"count": 5}, "the run needs 5 worker tasks (run_tasks), but the cluster has 4"),
    ],
)
def test_a_run_that_can_never_start_is_refused_with_the_reason(machine, wants, words):
    machine.request("r1", **wants)
    noted = runs.Run("r1").read()
    assert (noted["failure"], noted["refused"], noted["waiting"]) == (words, True, False)
    assert machine.request("r2") is None


def test_a_run_that_systemd_refuses_does_not_block_the_others(machine, monkeypatch):
    monkeypatch.setattr(queue, "start_unit", lambda *_given: SimpleNamespace(returncode=1, stderr="Access denied"))
    machine.request("r1")
    assert runs.Run("r1").read()["failure"] == "systemd could not start the run: Access denied"
    monkeypatch.setattr(queue, "start_unit", machine.start_unit)
    assert machine.request("r2") is None


def test_queued_runs_start_after_a_shutdown_and_not_during_it(machine, monkeypatch):
    """A run that the shutdown stops calls the queue, and systemd refuses to start the next ones."""
    for name in ("r1", "r2", "r3"):
        machine.request(name)
    monkeypatch.setattr(runs, "is_shutting_down", lambda: True)
    monkeypatch.setattr(queue, "start_unit", lambda *_given: SimpleNamespace(returncode=1, stderr="Transaction is destructive"))
    waits = machine.end("r1")
    assert [(name, each.position, each.reason) for name, each in waits.items()] == [
        ("r2", 1, "its machine is shutting down"),
        ("r3", 2, "its machine is shutting down"),
    ]
    monkeypatch.setattr(queue, "start_unit", machine.start_unit)
    queue.dispatch()
    assert machine.started == ["r1", "r2"]


def test_a_run_whose_start_fails_does_not_block_the_others(machine, monkeypatch):
    for name in ("r1", "r2", "r3"):
        machine.request(name)

    def start_unit(run, noted):
        if run.id == "r2":
            raise OSError(errno.E2BIG, "Argument list too long", "systemd-run")
        return machine.start_unit(run, noted)

    monkeypatch.setattr(queue, "start_unit", start_unit)
    machine.end("r1")
    assert machine.started == ["r1", "r3"]
    noted = runs.Run("r2").read()
    assert noted["failure"] == "the run could not be started: Argument list too long (systemd-run)"
    assert noted["uncleared"] == []


def test_queued_runs_start_in_order_after_a_reboot(machine):
    for name in ("r1", "r2", "r3"):
        machine.request(name)
    machine.active.clear()
    queue.dispatch()
    assert runs.Run("r1").read()["failure"] == runs.LOST
    assert machine.started == ["r1", "r2"]
    assert runs.Run("r2").read()["clear_before"] == "lost"  # nothing cleared the servers after r1
    machine.end("r2")
    assert runs.Run("r3").read()["clear_before"] == ""


def test_tasks_of_an_interrupted_run_are_cleared_by_the_next_runs_that_use_them(machine):
    machine.request("r1", tasks=["a:2222", "b:2222"])
    machine.active.clear()
    machine.request("r2", tasks=["c:2222"])
    machine.request("r3", tasks=["a:2222"])
    assert [runs.Run(name).read()["clear_before"] for name in ("r2", "r3")] == ["", "lost"]
    machine.end("r3")
    assert runs.Run("r1").read()["uncleared"] == ["b:2222"]
    machine.end("r2")
    machine.request("r4")
    assert runs.Run("r4").read()["clear_before"] == "lost"


def test_servers_that_a_run_could_not_clear_are_cleared_before_the_next_run(machine):
    machine.request("r1")
    machine.end("r1", cleared=False)
    assert runs.Run("r1").read()["clearing"] == ["worker:0 did not end"]
    machine.request("r2")
    assert runs.Run("r2").read()["clear_before"] == "lost"


def test_state_that_is_kept_is_not_cleared_before_the_next_run(machine):
    machine.request("r1", keep_state=True)
    machine.end("r1", cleared=False)
    machine.request("r2")
    assert runs.Run("r2").read()["clear_before"] == ""


def test_servers_in_use_are_cleared_before_a_run_unless_an_earlier_run_has_cleared_them(machine):
    machine.request("r1")
    machine.request("r2", held=["a:2222"])
    machine.end("r1")
    assert runs.Run("r2").read()["clear_before"] == ""
    machine.end("r2")
    machine.request("r3", held=["a:2222"], asked=time.time() + 60)
    assert runs.Run("r3").read()["clear_before"] == "held"


def test_servers_that_were_started_after_the_gate_are_not_known(machine):
    servers = {entry: f"{number:02}" for number, entry in enumerate(ALL)}
    machine.request("r1", servers=servers)
    machine.request("r2", servers=servers)
    assert runs.Run("r1").read()["servers"] == servers
    machine.end("r1")
    assert runs.Run("r2").read()["servers"] == dict.fromkeys(ALL, "")


def test_parts_of_trainings_reserve_their_own_tasks(machine):
    training = {"chief": "worker:0", "entries": {"worker:0": "a:3222", "worker:1": "b:3222"}}
    machine.request("t1", training=training, task="worker:0")
    machine.request("t1.worker-1", training=training, task="worker:1")
    assert machine.request("t2", training=training, task="worker:0").reason == "worker:0 is used by run t1"
    assert machine.request("r1") is None
    assert machine.started == ["t1", "t1.worker-1", "r1"]


def test_a_part_of_a_training_that_the_others_no_longer_wait_for_is_not_started(machine, monkeypatch):
    training = {"chief": "worker:0", "entries": {"worker:0": "a:3222", "worker:1": "b:3222"}}
    machine.request("t1.worker-1", training=training, task="worker:1")
    machine.request("t2.worker-1", training=training, task="worker:1", queue_timeout=30)
    now = runs.clock()
    monkeypatch.setattr(runs, "clock", lambda: now + 120)
    queue.dispatch()
    assert runs.Run("t2.worker-1").read()["failure"] == "the training did not wait longer for this task"
    assert machine.started == ["t1.worker-1"]


def test_a_part_of_a_training_starts_again_however_long_it_ran(machine, monkeypatch):
    training = {"chief": "worker:0", "entries": {"worker:0": "a:3222", "worker:1": "b:3222"}, "survives": True}
    machine.request("t1.worker-1", training=training, task="worker:1", queue_timeout=30, shared="/mnt/a")
    machine.active.clear()  # its machine is rebooted
    now = runs.clock()
    monkeypatch.setattr(runs, "clock", lambda: now + 120)  # of a container, whose clock continues
    queue.dispatch()
    assert machine.started == ["t1.worker-1", "t1.worker-1"]


def test_the_end_of_a_run_that_cannot_start_the_next_one_lets_systemd_try_again(machine, monkeypatch):
    machine.request("r1")
    machine.request("r2")
    commands = []
    monkeypatch.setattr(queue, "END_SECONDS", 0.1)
    monkeypatch.setattr(queue.subprocess, "run", lambda words, **_more: commands.append(words))
    monkeypatch.setattr(sys, "argv", ["queue.py", "r1"])
    with queue.locked():
        queue.main()
    assert commands == [["systemctl", "start", "--no-block", "tf-runs.service"]]
    machine.end("r1")
    assert machine.started == ["r1", "r2"]


def test_a_run_that_is_only_prepared_is_not_in_the_queue(machine):
    run = runs.Run("r1")
    run.folder.mkdir(parents=True)
    run.note(run_id="r1", waiting=True, training={})
    assert queue.dispatch() == {}
    assert machine.started == []


@pytest.mark.parametrize("word", ["ended", '"ended"', '"ended":'])
def test_a_run_may_have_any_argument(machine, word):
    assert machine.request("first", arguments=[word], program=word) is None
    assert machine.request("second", arguments=[word], user=word).position == 1
    machine.end("first")
    assert machine.started == ["first", "second"]


def test_a_damaged_run_does_not_stop_the_queue(machine):
    (runs.RUNS / "r0").mkdir(parents=True)
    (runs.RUNS / "r0/run.json").write_text("{", encoding="utf-8")
    assert machine.request("r1") is None


def test_a_run_that_is_removed_while_it_is_read_does_not_stop_the_queue(machine, monkeypatch):
    machine.request("r1")
    machine.request("r2")
    read = Path.read_bytes

    def remove_after(path):
        text = read(path)
        shutil.rmtree(path.parent) if path.parent.name == "r0" else None
        return text

    gone = runs.Run("r0")
    gone.folder.mkdir()
    gone.note(run_id="r0", waiting=True, training={})
    monkeypatch.setattr(Path, "read_bytes", remove_after)
    machine.end("r1")
    assert not gone.folder.exists()
    assert machine.started == ["r1", "r2"]


def test_a_running_run_of_an_older_version_uses_all_tasks(machine):
    for name, more in (("r0", {"training": {}}), ("t0", {"training": {"entries": {"worker:0": "a:3222"}}, "task": "worker:0"})):
        run = runs.Run(name)
        run.folder.mkdir(parents=True)
        run.note(**{"run_id": name, "task": "host:0", "asked": time.time(), "waiting": False, "started": time.time(), **more})
        machine.active.add(name)
    assert machine.request("r1").reason == "worker:0, worker:1, worker:2 and 2 more are used by run r0"
    training = {"chief": "worker:0", "entries": {"worker:0": "a:3222"}}
    assert machine.request("t1", training=training, task="worker:0").reason == "worker:0 is used by run t0"
    machine.end("r0")
    assert machine.started == ["r1"]


def test_a_queued_run_of_an_older_version_is_refused(machine):
    run = runs.Run("r0")
    run.folder.mkdir(parents=True)
    run.note(run_id="r0", task="host:0", asked=time.time(), waiting=True, training={}, missing=[])
    queue.enter(run)
    assert machine.request("r1") is None
    assert "an older version of this project prepared the run" in run.read()["failure"]


def test_a_unit_that_systemd_is_about_to_start_is_active(monkeypatch):
    units = (
        ("r1", "active", ""),
        ("r2", "inactive", "12"),
        ("r3", "deactivating", ""),
        ("r4", "failed", ""),
        ("r5", "inactive", ""),
    )
    shown = "\n\n".join(
        f"Id=tf-run-host-0-{name}.service\nActiveState={state}\nDescription=run {name}" + (f"\nJob={job}" if job else "")
        for name, state, job in units
    )
    monkeypatch.setattr(runs.subprocess, "run", lambda command, **_more: subprocess.CompletedProcess(command, 0, shown, ""))
    assert queue.active_runs() == {"r1", "r2", "r3"}


def test_runs_are_listed_with_their_state_and_the_reason_of_their_wait(machine, monkeypatch, capsys):
    listing = load("tf_cluster.run.listing")
    monkeypatch.setattr(listing, "CONFIG", queue.CONFIG)
    for name, wants in (("r1", {"count": 2}), ("r2", {}), ("r3", {"tasks": ["e:2224"]})):
        machine.request(name, program=f"{name}.py", user="jo", **wants)
    listing.main()
    found = {run["run"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert [(name, run["state"], run["position"]) for name, run in found.items()] == [
        ("r1", "running", None),
        ("r2", "queued", 1),
        ("r3", "queued", 2),
    ]
    assert found["r1"]["tasks"] == ["worker:0", "worker:1"]
    assert found["r2"]["reason"] == "worker:0 and worker:1 are used by run r1"
    assert found["r2"]["failure"] is None
    assert {run["user"] for run in found.values()} == {"jo"}
    assert all(run["bytes"] > 0 for run in found.values())


def test_a_training_is_listed_once_with_its_tasks(machine, monkeypatch, capsys):
    listing = load("tf_cluster.run.listing")
    monkeypatch.setattr(listing, "CONFIG", queue.CONFIG)
    entries = {"worker:0": "a:3222", "worker:1": "b:3222"}
    training = {"chief": "worker:0", "entries": entries, "machines": {"worker:0": "a", "worker:1": "b"}}
    machine.request("t1", training=training, task="worker:0", program="t.py")
    machine.request("t1.worker-1", training=training, task="worker:1", program="t.py")
    listing.main()
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert (run["run"], run["tasks"]) == ("t1", ["worker:0", "worker:1"])


@pytest.mark.parametrize(("more", "resumed"), [({}, True), ({"cancelled": "by somebody"}, False), ({"shared": ""}, False)])
def test_a_part_of_a_training_starts_again_after_a_reboot(machine, more, resumed):
    training = {"id": "t1", "chief": "worker:0", "entries": {"worker:1": "b:3222"}, "survives": True}
    machine.request("t1.worker-1", task="worker:1", training=training, **{"shared": "/mnt/cluster", **more})
    begun = runs.Run("t1.worker-1").read()["started"]
    machine.active.clear()  # the machine was rebooted
    queue.dispatch()
    noted = runs.Run("t1.worker-1").read()
    assert machine.started == ["t1.worker-1"] * (2 if resumed else 1)
    assert ("ended" in noted, noted.get("resumed", False)) == (not resumed, resumed)
    assert noted["started"] == begun
