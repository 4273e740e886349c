"""The filters of runs.yml: which runs its table shows, and how."""

from project import load

filters = load("plugins/filter/runs_table.py")


def run(name, state="finished", **more):
    """Return a run as the machine lists it."""
    ended = {"failure": ""} if state == "finished" else {"failure": None}
    return {
        "run": name, "state": state, "position": None, "reason": "", "program": "a.py", "user": "jo",
        "since": f"2026-01-02 {name}", "seconds": 12.4, "tasks": ["worker:0"], "bytes": 2_500_000, **ended, **more,
    }  # fmt: skip


def test_finished_runs_come_first_and_the_queue_last():
    queued = run("q1", "queued", position=1, reason="worker:0 is used by run r2", seconds=None, tasks=[])
    machines = {"m1": {"runs": [queued, run("r2", "running")]}, "m2": {"runs": [run("r1", failure="the program was killed")]}}
    runs = filters.merged_runs(machines)
    assert [(each["run"], each["machine"]) for each in runs] == [("r1", "m2"), ("r2", "m1"), ("q1", "m1")]
    lines = [line.split() for line in filters.runs_table(runs)]
    assert lines[1][:2] == ["r1", "finished"]
    assert "killed" in lines[1]
    assert lines[3][:3] == ["q1", "queued", "1"]
    assert {line[-1] for line in lines[1:]} == {"2.5"}


def test_only_the_latest_finished_runs_are_shown():
    runs = filters.merged_runs({"m": {"runs": [run(f"r{number:02}") for number in range(30)]}})
    lines = filters.runs_table(runs, "output/runs.json")
    assert len(lines) == 22
    assert lines[1].startswith("r10")
    assert lines[-1] == "10 earlier runs are in output/runs.json."


def test_long_cells_are_cut():
    [_head, row] = filters.runs_table(filters.merged_runs({"m": {"runs": [run("r1", tasks=list("abcdef"), failure="x" * 200)]}}))
    assert "a, b, c, d and 2 more" in row
    assert f"{'x' * 77}... " in row


def test_a_message_is_shown_if_there_are_no_runs():
    assert filters.runs_table([]) == ["There are no runs."]
