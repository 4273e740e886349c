"""report/logs.py: journals of several machines in one order."""

import json

import pytest
from project import call, load

merge = load("tf_cluster.report.logs").merge
A = """\
2026-11-24T20:00:01.000001+0000 a python[1]: first
2026-11-24T20:00:03.000000+0000 a python[1]: third
    goes on
-- Boot 1234 --
"""
B = "2026-11-24T21:00:02.500000+0100 b python[2]: second\n2026-11-24T20:00:04.000000+00:00 b python[2]: fourth\n"


def test_lines_are_ordered_by_time_across_time_zones():
    words = [line.split()[-1] for line in merge({"worker-0": A, "worker-1": B})]
    assert words == ["first", "second", "third", "on", "fourth"]


def test_each_line_names_its_task():
    assert [line.split()[0] for line in merge({"worker-0": A, "ps-0": B})][:2] == ["worker-0", "ps-0"]


@pytest.mark.parametrize("journals", [{}, {"worker-0": ""}, {"worker-0": "-- No entries --\n"}])
def test_journals_without_entries_give_no_lines(journals):
    assert merge(journals) == []


def test_the_last_lines_are_shown_and_all_are_kept(tmp_path):
    (tmp_path / "logs").mkdir()
    text = "".join(f"2026-11-24T20:00:01.{number:06}+0000 a p[1]: line {number}\n" for number in range(1000))
    (tmp_path / "logs/worker-0.log").write_text(text, encoding="utf-8")
    done = call("tf_cluster.report.logs", tmp_path)
    lines = json.loads(done.stdout)["lines"]
    assert lines[0] == "... 800 lines before these ..."
    assert lines[-2].endswith("line 999")
    assert len((tmp_path / "logs/all.txt").read_text(encoding="utf-8").splitlines()) == 1000


def test_the_last_line_names_the_output_files_of_the_tasks_of_a_training(tmp_path):
    for name in ("logs/worker-0.log", "tasks/worker-1/stdout.log"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    lines = json.loads(call("tf_cluster.report.logs", tmp_path).stdout)["lines"]
    assert lines[-1] == f"The output of its tasks is in {tmp_path}/stdout.log and {tmp_path}/tasks/*/stdout.log"


def test_a_folder_without_journals_is_an_error(tmp_path):
    done = call("tf_cluster.report.logs", tmp_path)
    assert done.returncode == 1
    assert "no journals in" in done.stderr
