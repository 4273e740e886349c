"""The report on runs that were collected: the verdict, the page and the last lines."""

import json
import os
import shutil
import time

import pytest
from project import ROOT, load

report = load("tf_cluster.report.report")

MATRIX = [[26.80402, 32.85203], [54.003944, 69.09987]]
TASKS = [
    {"task": "worker:0", "machine": "m1", "address": "10.0.0.1:2222", "state": "answers", "version": "2.21.0", "gpus": []},
    {"task": "worker:1", "machine": "m2", "address": "10.0.0.2:2222", "state": "answers", "version": "2.21.0", "gpus": []},
]


class Collected:
    """A folder as the role collect leaves it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "logs").mkdir(parents=True)
        self.write("stdout.log", "step 1\nstep 2\n")
        self.write("run.json", "{}")
        for task in TASKS:
            self.write(f"logs/{task['task'].replace(':', '-')}.log", "")

    def write(self, name, text):
        """Write one file of the run."""
        (self.folder / name).write_text(text, encoding="utf-8")

    def report(self, failure="", program="demo.py", must=True, skipped=(), **more):
        """Write the report and return the answer."""
        outcome = {"run_id": self.folder.name, "program": program, "started": 1767225600.0, "seconds": 2.5, "failure": failure}
        outcome |= {"ended": 1767225602.5} | more
        facts = {"outcome": outcome, "tasks": TASKS, "required": must, "skipped": list(skipped)}
        return report.write(self.folder, facts)

    def text(self, name):
        """Return the text of one file."""
        return (self.folder / name).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    """Return a run whose program printed two lines and left nothing."""
    return Collected(tmp_path / "output/20260101-000000-demo-ab12")


def test_a_successful_run_has_a_verdict_with_its_tasks_and_its_result(run):
    run.write("result.json", json.dumps({"matrix": MATRIX}))
    run.report()
    task = {"state": "answers", "version": "2.21.0", "gpus": []}
    assert json.loads(run.text("verdict.json")) == {
        "ok": True,
        "failures": [],
        "run_id": run.folder.name,
        "program": "demo.py",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 2.5,
        "tasks": {
            "worker:0": {"machine": "m1", "address": "10.0.0.1:2222", **task},
            "worker:1": {"machine": "m2", "address": "10.0.0.2:2222", **task},
        },
        "result": {"matrix": MATRIX},
    }


def test_the_answer_equals_verdict_json_and_summary_txt(run):
    answer = run.report()
    assert answer["verdict"] == json.loads(run.text("verdict.json"))
    assert answer["lines"] == run.text("summary.txt").splitlines()


def test_a_matrix_is_shown_row_by_row(run):
    run.write("result.json", json.dumps({"matrix": MATRIX}))
    lines = run.report()["lines"]
    assert lines[0] == "The result:"
    assert [[float(word) for word in line.split()] for line in lines[1:3]] == [pytest.approx(row, rel=1e-6) for row in MATRIX]
    assert lines[-1] == f"Done after 2.5 s; everything is in {run.folder}"


def test_the_operations_of_each_task_are_shown_with_its_machine(run):
    placed = {"d": "/job:worker/replica:0/task:1/device:CPU:0", "c": "/job:worker/replica:0/task:0/device:CPU:0"}
    run.write("placement.json", json.dumps(placed | {"b": placed["d"], "e": "/job:host/replica:0/task:0/device:CPU:0"}))
    lines = run.report()["lines"]
    assert "worker:0 on m1 computed c" in lines
    assert "worker:1 on m2 computed b, d" in lines
    assert "host:0 on the host computed e" in lines
    assert "/job:worker/replica:0/task:1/device:CPU:0" in run.text("report.html")


def test_a_trace_is_counted_and_shown(run):
    run.write("trace.json", (ROOT / "tests/unit/recorded/demo_trace.json").read_text(encoding="utf-8"))
    answer = run.report(trace=True, task="host:0", machine="m3")
    assert answer["verdict"]["trace"] == {"steps": 1, "operations": 10, "transfers": 2, "bytes": 32}
    assert "Traced 1 step, 10 operations, 2 transfers of 32 B: report.html shows them" in answer["lines"]
    page = run.text("report.html")
    assert "plotly.js" in page
    assert 'host:0</b> <span class="soft">ran the program' in page
    lines = page[page.index("What went between tasks") :].splitlines()
    assert len([line for line in lines if line.startswith("<tr><td>worker:")]) == 2  # from where to where
    assert "default-src 'none'" in page


def test_profiles_of_an_eager_program_are_counted_and_shown(run):
    run.write("trace.json", '{"otherData": {"format": "tf-cluster-1"}, "traceEvents": []}')
    shutil.copytree(ROOT / "tests/unit/recorded/profile_eager", run.folder / "profile/plugins/profile/20260101-000000-1")
    answer = run.report(trace=True, task="host:0", machine="m3")
    assert answer["verdict"]["trace"] == {"steps": 3, "operations": 26, "transfers": 19}
    assert "Traced 3 steps, 26 operations, 19 transfers: report.html shows them" in answer["lines"]
    page = run.text("report.html")
    assert "<tr><td>worker:0</td><td>worker:1</td>" in page  # from where to where
    assert "What took longest" in page
    assert "recorded 1 window of the run" in page
    assert page.count('<meter min="0"') == 3  # host:0, worker:0, worker:1


def test_an_incomplete_profile_is_reported(run):
    window = run.folder / "profile/plugins/profile/20260101-000000-1"
    window.mkdir(parents=True)
    (window / "host-0.xplane.pb").write_text("profile", encoding="utf-8")
    assert "The trace cannot be shown: " in run.report(trace=True)["verdict"]["trace"]["missing"]


def test_a_page_without_a_trace_is_small(run):
    run.report()
    assert (run.folder / "report.html").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "it did not import TensorFlow"),
        ("not JSON", "the program wrote its own trace.json"),
        ('{"otherData": {"format": "tf-cluster-1"}, "traceEvents": []}', "ran neither a session step nor an eager operation"),
        ('{"otherData": {"format": "tf-cluster-1"}, "traceEvents": [{"ph": "X"}]}', "cannot be shown"),
        ('{"otherData": {"format": "tf-cluster-1"}, "traceEvents": [', "cannot be shown"),
    ],
)
def test_a_missing_or_invalid_trace_is_explained(run, text, reason):
    if text:
        run.write("trace.json", text)
    answer = run.report(trace=True)
    assert answer["verdict"]["ok"] is True
    assert reason in answer["verdict"]["trace"]["missing"]
    assert reason in run.text("report.html")
    assert any(reason in line for line in answer["lines"])


def test_a_trace_json_that_the_program_wrote_is_an_ordinary_file(run):
    run.write("trace.json", '{"traceEvents": [{}]}')
    assert "trace" not in run.report()["verdict"]


def test_html_in_a_trace_is_escaped(run):
    evil = "</script><script>alert(1)</script><b>"
    text = (ROOT / "tests/unit/recorded/demo_trace.json").read_text(encoding="utf-8")
    for name in ("worker:1", "CPU:0", "add/x", "AddV2", "2.21.0"):
        text = text.replace(f'"{name}"', json.dumps(evil + name))
    run.write("trace.json", text)
    assert run.report()["verdict"]["trace"]["operations"] == 10
    page = run.text("report.html")
    assert page.count("<script>") == 2  # the library and what draws
    assert "<script>alert" not in page


def test_error_lines_are_marked_in_the_page(run):
    lines = ["fine", "Traceback (most recent call last):", '  File "x.py", line 1', "ZeroDivisionError: division by zero", "fine"]
    run.write("stdout.log", "\n".join([*lines, "E0000 00:00:1.2 3 x.cc:4] no GPU", "0 errors"]))
    run.report()
    marked = [line for line in run.text("report.html").splitlines() if 'class="error"' in line]
    assert len(marked) == 4, marked


def test_each_row_of_numbers_is_one_line_of_the_page(run):
    run.write("result.json", json.dumps({"matrix": MATRIX, "text": "[  a,\n  b ]"}))
    run.report()
    page = run.text("report.html")
    assert "[26.80402, 32.85203]," in page
    assert "[  a,\\n  b ]" in page


def test_the_verdict_of_a_run_without_a_result_has_no_result(run):
    assert "result" not in run.report()["verdict"]


def test_a_failed_run_shows_its_reason_and_last_output(run):
    answer = run.report("the program exited with status 3")
    assert answer["verdict"]["ok"] is False
    assert answer["verdict"]["failures"] == ["The program exited with status 3."]
    assert "The program exited with status 3." in answer["lines"]
    assert answer["lines"][-3:-1] == ["    step 1", "    step 2"]
    assert answer["lines"][-1].startswith("Failed after 2.5 s")
    assert "The program exited with status 3." in run.text("report.html")


def test_a_failed_run_is_not_a_failure_of_the_command_if_success_is_not_required(run):
    answer = run.report("the run was canceled by jo", must=False, cancelled="the run was canceled by jo")
    assert (answer["failure"], answer["verdict"]["ok"]) == ("", False)
    assert answer["lines"][-1].startswith("Canceled after 2.5 s")
    (run.folder / "logs/worker-0.log").unlink()
    assert "The log of worker:0 could not be collected" in run.report("the run was canceled by jo", must=False)["failure"]


def test_a_failed_run_keeps_its_result(run):
    run.write("result.json", "[1, 2]")
    assert run.report("the program was killed by SIGKILL")["verdict"]["result"] == [1, 2]


@pytest.mark.parametrize("text", ["", "{", "not json", "[" * 100_000, "9" * 10_000])
def test_a_result_that_is_not_json_is_a_failure(run, text):
    run.write("result.json", text)
    [failure] = run.report()["verdict"]["failures"]
    assert failure.startswith("The program's result.json is not JSON: ")


def test_a_result_that_is_binary_is_a_failure(run):
    (run.folder / "result.json").write_bytes(b"\xff\xfe\0")
    assert run.report()["verdict"]["ok"] is False


def test_a_result_that_is_a_folder_is_a_failure(run):
    (run.folder / "result.json").mkdir()
    assert run.report()["verdict"]["ok"] is False


@pytest.mark.parametrize("depth", [900, *range(980, 1000)])
def test_a_deeply_nested_result_gives_a_page(run, depth):
    run.write("result.json", "[" * depth + "]" * depth)
    run.report()
    assert (run.folder / "report.html").exists()


@pytest.mark.parametrize("text", ['{"loss": NaN}', '{"loss": [Infinity, -Infinity]}', '{"matrix": [[NaN]]}'])
def test_the_verdict_is_valid_json_if_the_result_has_nan_or_infinity(run, text):
    run.write("result.json", text)
    run.report()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(run.text("verdict.json"), parse_constant=refuse)


@pytest.mark.parametrize(
    "result",
    [
        5, "text", [], {}, False, {"matrix": []}, {"matrix": "x"}, {"matrix": [1, "x", None, [True, None, "y"], {}]},
        {"matrix": [[10**400]]},
    ],
    ids=lambda result: str(result)[:40],
)  # fmt: skip
def test_a_result_of_any_shape_is_kept(run, result):
    run.write("result.json", json.dumps(result))
    assert run.report()["verdict"]["result"] == result


@pytest.mark.parametrize("placement", ["", "[]", "5", '{"a": null}', '{"a": "x:y:z"}', "[" * 100_000])
def test_an_invalid_placement_is_not_a_failure(run, placement):
    run.write("placement.json", placement)
    assert run.report()["verdict"]["ok"] is True


def test_a_log_that_could_not_be_collected_is_a_failure(run):
    (run.folder / "logs/worker-1.log").unlink()
    [failure] = run.report()["verdict"]["failures"]
    assert failure == "The log of worker:1 could not be collected: is machine m2 reachable?"


TRAINING = {
    "chief": "worker:0",
    "machines": {"worker:0": "m1", "worker:1": "m2"},
    "cluster": {"worker": ["10.0.0.1:3222", "10.0.0.2:3222"]},
}


def test_the_outcome_of_each_task_of_a_training_is_reported(run):
    (run.folder / "tasks/worker-1").mkdir(parents=True)
    run.write("tasks/worker-1/run.json", json.dumps({"part": {"outcome": "exited with status 3"}}))
    run.write("tasks/worker-1/stdout.log", "its last words\n")
    part = {"outcome": "was stopped with the others", "attempts": 2}
    answer = run.report("worker:1 ended", training=TRAINING, part=part)
    assert answer["verdict"]["training"] == {
        "chief": "worker:0",
        "attempts": 2,
        "tasks": {
            "worker:0": {"machine": "m1", "address": "10.0.0.1:3222", "outcome": "was stopped with the others"},
            "worker:1": {"machine": "m2", "address": "10.0.0.2:3222", "outcome": "exited with status 3"},
        },
    }
    place = answer["lines"].index("The last lines of the output of worker:1:")
    assert answer["lines"][place + 1] == "    its last words"


def test_a_part_of_a_training_that_could_not_be_collected_is_a_failure(run):
    found = run.report(training=TRAINING, part={"outcome": "done", "attempts": 1})["verdict"]
    assert found["ok"] is False
    assert found["failures"] == ["The results of worker:1 could not be collected: is machine m2 reachable?"]


@pytest.mark.parametrize(("tasks", "names"), [(["worker:0", "worker:1"], None), (["worker:1"], {"worker:0": "worker:1"})])
def test_a_training_of_some_tasks_maps_their_names_to_those_of_the_cluster(run, tasks, names):
    history = [{"attempt": 1, "tasks": tasks, "first_step": 0, "ended": "done"}]
    part = {"outcome": "done", "attempts": 1, "history": history}
    assert run.report(training=TRAINING, part=part)["verdict"].get("names") == names


def test_a_failed_run_names_the_failed_tasks(run):
    failed_tasks = {"10.0.0.2:2222": "does not answer: refused, nothing listens", "10.0.0.9:2222": "is no task of the cluster"}
    verdict = run.report("the program exited with status 1", failed_tasks=failed_tasks)["verdict"]
    assert verdict["failures"] == [
        "The program exited with status 1.",
        "worker:1 on machine m2 (10.0.0.2:2222) does not answer: refused, nothing listens.",
    ]


def test_the_log_of_a_task_that_was_left_out_is_not_required(run):
    (run.folder / "logs/worker-0.log").unlink()
    run.write("placement.json", '{"c": "/job:worker/replica:0/task:0/device:CPU:0"}')
    answer = run.report(
        missing=["10.0.0.1:2222"], left_out=["worker:0"], names={"worker:0": "worker:1"}, reserved=["10.0.0.2:2222"]
    )
    assert answer["verdict"]["ok"] is True
    assert answer["verdict"]["missing"] == ["worker:0"]
    assert "worker:0 on m2 computed c" in answer["lines"]


def test_a_run_without_output_has_a_verdict(run):
    (run.folder / "stdout.log").unlink()
    assert run.report("the run was lost")["verdict"]["ok"] is False


def test_huge_output_gives_a_small_page(run):
    with (run.folder / "stdout.log").open("w", encoding="utf-8") as log:
        for number in range(2_000_000):
            log.write(f"this is line number {number}\n")
    begun = time.perf_counter()
    lines = run.report("the program exited with status 1")["lines"]
    assert time.perf_counter() - begun < 5
    assert "    this is line number 1999999" in lines
    assert len(lines) < 30
    assert (run.folder / "report.html").stat().st_size < 1_000_000
    assert "this is line number 1999999" in run.text("report.html")


def test_a_very_long_line_gives_a_small_page(run):
    run.write("stdout.log", "x" * 5_000_000)
    run.report()
    assert (run.folder / "report.html").stat().st_size < 1_000_000


def test_binary_output_is_shown_as_text(run):
    (run.folder / "stdout.log").write_bytes(b"\xff\xfe\0 end\n")
    assert run.report("it failed")["lines"][-2].endswith(" end")


def test_html_from_a_program_is_escaped(run):
    evil = "<script>alert(1)</script>"
    run.write("stdout.log", evil)
    run.write("result.json", json.dumps({"matrix": [evil], "x": evil}))
    run.write("placement.json", json.dumps({evil: evil}))
    run.write("logs/worker-0.log", evil)
    run.write("<b>.txt", "")
    run.write("javascript:alert(1)", "")
    run.report(f"it said {evil}", program=evil)
    page = run.text("report.html")
    assert "<script" not in page
    assert "<b>.txt" not in page
    assert 'href="javascript:' not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6


def test_the_page_has_the_logs_and_the_files(run):
    run.write("logs/worker-0.log", "the words of worker 0")
    run.write("model weights.bin", "12345")
    run.report()
    page = run.text("report.html")
    assert "the words of worker 0" in page
    assert '<a href="model%20weights.bin">model weights.bin</a></td><td>5 bytes' in page
    assert '<a href="logs/worker-0.log">' in page


def test_the_page_needs_no_network(run):
    run.report()
    page = run.text("report.html")
    assert "http://" not in page
    assert "https://" not in page


def test_a_file_whose_name_is_not_text_is_listed(run):
    with open(os.fsencode(run.folder) + b"/\xff.bin", "wb"):
        pass
    assert run.report()["verdict"]["ok"] is True
    assert ".bin" in run.text("report.html")


def test_latest_points_to_the_newest_run(run, tmp_path):
    run.report()
    later = Collected(run.folder.parent / "20260102-000000-demo-cd34")
    later.report()
    assert os.readlink(run.folder.parent / "latest") == later.folder.name
    assert sorted(path.name for path in run.folder.parent.iterdir()) == [run.folder.name, later.folder.name, "latest"]


def test_a_folder_named_latest_stays(run):
    (run.folder.parent / "latest/inner").mkdir(parents=True)
    run.report()
    assert sorted(path.name for path in run.folder.parent.iterdir()) == [run.folder.name, "latest"]


def test_latest_stays_if_an_older_run_is_collected(run):
    later = Collected(run.folder.parent / "20260102-000000-demo-cd34")
    later.report()
    run.report()
    assert os.readlink(run.folder.parent / "latest") == later.folder.name


def test_latest_moves_if_its_target_is_missing(run):
    (run.folder.parent / "latest").symlink_to("20260102-000000-demo-cd34")
    run.report()
    assert os.readlink(run.folder.parent / "latest") == run.folder.name


def test_logs_that_a_limit_leaves_out_are_reported_and_not_a_failure(run):
    (run.folder / "logs/worker-1.log").unlink()
    answer = run.report(skipped=["m2"])
    assert answer["verdict"]["ok"] is True
    assert "Not collected, because --limit leaves out machine m2: the log of worker:1." in answer["lines"]
    assert "is machine m2 reachable?" in run.report()["failure"]


def test_a_second_report_of_a_run_is_the_same(run):
    assert run.report() == run.report()


def test_files_that_were_not_collected_are_reported_and_not_a_failure(run):
    run.write("run.json", json.dumps({"left_behind": [f"link-{number} (a link)" for number in range(7)]}))
    answer = run.report()
    assert answer["verdict"]["ok"] is True
    assert len(answer["verdict"]["left_behind"]) == 7
    [line] = [line for line in answer["lines"] if line.startswith("Not collected: special")]
    assert line.endswith("link-4 (a link) and 2 more")
    assert "link-6 (a link)" in run.text("report.html")


def test_files_of_a_training_that_were_not_collected_are_reported_with_their_task(run):
    (run.folder / "tasks/worker-1").mkdir(parents=True)
    part = {"part": {"outcome": "done"}, "left_behind": ["link (a link)"]}
    run.write("tasks/worker-1/run.json", json.dumps(part))
    verdict = run.report(training=TRAINING, part={"outcome": "done", "attempts": 1})["verdict"]
    assert verdict["left_behind"] == ["worker:1: link (a link)"]


@pytest.mark.parametrize("text", ['{"a": "\\ud83d"}', '{"\\ud83d": 1}', '{"matrix": [["\\ud83d"]]}'])
def test_a_result_with_half_a_surrogate_pair_can_be_encoded(run, text):
    run.write("result.json", text)
    run.write("placement.json", text)
    verdict = run.report(program="\ud83d.py")["verdict"]
    assert verdict["ok"] is True
    json.dumps(verdict["result"], ensure_ascii=False).encode()


@pytest.mark.parametrize("name", ["result.json", "placement.json"])
def test_json_that_is_too_large_is_reported_and_not_shown(run, name):
    run.write(name, json.dumps({"a": ["x" * 100] * 50_000}))
    answer = run.report()
    assert answer["verdict"]["ok"] is True
    assert "result" not in answer["verdict"]
    [note] = answer["verdict"]["notes"]
    assert note.startswith(f"{name} has 5 MB")
    assert note in answer["lines"]
    assert note in run.text("report.html")
    assert (run.folder / "report.html").stat().st_size < 30_000


def test_a_trace_that_is_too_large_is_reported_and_not_shown(run):
    run.write("trace.json", "")
    os.truncate(run.folder / "trace.json", 10**9)
    assert "too large" in run.report(trace=True)["verdict"]["trace"]["missing"]


def test_terminal_control_codes_are_removed_from_the_lines_and_the_page(run):
    run.write("stdout.log", "\x1b]0;title\x07\x1b[31mred\x1b[0m\n10%\r20%\n")
    run.write("logs/worker-0.log", "\x1b[31mred\x1b[0m\n")
    run.write("result.json", json.dumps({"matrix": ["\x1b[2Jrow"]}))
    lines = run.report("it failed")["lines"]
    assert "    red" in lines
    assert "    20%" in lines
    assert "\x1b" not in "".join(lines) + run.text("report.html") + run.text("summary.txt")


@pytest.mark.parametrize(
    ("notified", "line"),
    [
        ({"ok": True, "outcome": "HTTP 204", "attempts": 1}, "Notified https://a.example: HTTP 204"),
        ({"ok": False, "outcome": "HTTP 500", "attempts": 3}, "Could not notify https://a.example: HTTP 500 after 3 attempts"),
        (None, "Notifying https://a.example: pending"),
    ],
)
def test_the_outcome_of_a_notification_is_reported_and_not_a_failure(run, notified, line):
    """Its outcome comes after the run's end, so it is in the collected notes."""
    run.write("run.json", json.dumps({"notify": "https://a.example", **({"notified": notified} if notified else {})}))
    answer = run.report(notify="https://a.example")
    assert line in answer["lines"]
    pending = {"ok": False, "outcome": "pending", "attempts": 0}
    assert answer["verdict"]["notified"] == {"to": "https://a.example", **(notified or pending)}
    assert answer["verdict"]["ok"] is True
    assert line in run.text("report.html")


@pytest.mark.parametrize("text", [5, "x", [1], {"ok": True}])
def test_an_invalid_outcome_of_a_notification_is_not_a_failure(run, text):
    run.write("run.json", json.dumps({"notify": "https://a.example", "notified": text}))
    assert run.report()["verdict"]["ok"] is True


def test_the_verdict_of_a_run_without_a_notification_has_no_notification(run):
    assert "notified" not in run.report()["verdict"]


HISTORY = [
    {"attempt": 1, "tasks": ["worker:0", "worker:1"], "first_step": 0, "ended": "the process of worker:1 on machine m2 was lost"},
    {"attempt": 2, "tasks": ["worker:0"], "first_step": 40, "ended": "done"},
]


def test_a_training_that_continued_without_a_lost_machine_succeeds(run):
    (run.folder / "logs/worker-1.log").unlink()
    answer = run.report(training=TRAINING, part={"outcome": "done", "attempts": 2, "history": HISTORY})
    verdict = answer["verdict"]
    assert verdict["failures"] == []
    assert verdict["training"]["history"] == HISTORY
    assert verdict["training"]["tasks"]["worker:1"]["outcome"] == "was lost"
    [note] = verdict["notes"]
    assert note.startswith(
        "Not collected, because machine m2 was lost: the log of worker:1, the results of worker:1. When it is back: "
    )
    assert "Attempt 2 from step 40 with worker:0: done." in answer["lines"]
