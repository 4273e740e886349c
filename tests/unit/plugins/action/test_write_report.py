"""The action write_report: what it shows and returns. tf_cluster/report/test_report.py tests what it writes."""

from types import SimpleNamespace

import pytest
from ansible.plugins.action import ActionBase
from project import load

write_report = load("plugins/action/write_report.py")
OUTCOME = {
    "run_id": "r",
    "program": "p.py",
    "started": 0,
    "seconds": 1.0,
    "failure": "",
    "ended": 1.0,
    "task": "host:0",
    "machine": "m",
}


@pytest.fixture
def act(monkeypatch, tmp_path):
    """Return a function that runs the action for a folder, and the lines that it shows."""
    shown = []
    monkeypatch.setattr(ActionBase, "run", lambda *_given: {})
    monkeypatch.setattr(write_report.progress, "show_line", shown.append)
    folder = tmp_path / "output" / "r"
    folder.mkdir(parents=True)

    def run(**outcome):
        action = object.__new__(write_report.ActionModule)
        action._task = SimpleNamespace(args={"folder": str(folder), "outcome": OUTCOME | outcome, "tasks": []})
        return action.run(task_vars={})

    return SimpleNamespace(run=run, shown=shown, folder=folder)


def test_the_summary_is_shown_and_the_verdict_returned(act):
    (act.folder / "stdout.log").write_text("a\n", encoding="utf-8")
    result = act.run()
    assert result["verdict"]["ok"]
    assert not result.get("failed")
    assert act.shown[-1].startswith("  Done after 1")
    assert (act.folder / "report.html").exists()


def test_a_failed_run_fails_with_the_reason(act):
    result = act.run(failure="The program ended with exit status 3.")
    assert result["failed"]
    assert result["msg"].startswith("The program ended with exit status 3.")
    assert result["verdict"]["ok"] is False


def test_a_file_that_cannot_be_written_is_named(act):
    (act.folder / "verdict.json").mkdir()
    result = act.run()
    assert result["failed"]
    assert result["msg"] == f"{act.folder / 'verdict.json'} could not be written: Is a directory"
