"""profiles.py over profiles of real programs: two workers that share a GPU (Keras fit), and an eager program with two servers."""

import shutil
from collections import Counter

import pytest
from project import ROOT, load

profiles = load("tf_cluster.report.profiles")
trace_figure = load("tf_cluster.report.trace_figure")
RECORDED = ROOT / "tests/unit/recorded"
WINDOW = "profile/plugins/profile/20260101-000000-1"


def placed(folder, name):
    """Copy recorded profiles into a run's folder."""
    shutil.copytree(RECORDED / name, folder / name / WINDOW)
    return folder / name


@pytest.fixture
def fit(tmp_path):
    """Return the trace of three steps of two workers on one GPU."""
    return profiles.read(placed(tmp_path, "profile_fit"), "worker:0")


@pytest.fixture
def eager(tmp_path):
    """Return the trace of three steps of an eager program on two servers."""
    return profiles.read(placed(tmp_path, "profile_eager"), "host:0")


def test_kernels_on_a_shared_gpu_belong_to_the_task_that_started_them(fit):
    kernels = Counter((bar.task, bar.lane) for bar in fit.of("kernel"))
    assert {task for task, _lane in kernels} == {"worker:0", "worker:1"}
    assert {lane for _task, lane in kernels} == {f"GPU:0/stream:{number}" for number in (13, 14, 15, 16)}
    assert sum(kernels.values()) == 835
    convolutions = Counter((bar.task, bar.more["step"]) for bar in fit.of("kernel") if bar.more["op"] == "_FusedConv2D")
    assert set(convolutions) == {(task, step) for task in ("worker:0", "worker:1") for step in (1, 2, 3)}


def test_steps_are_those_that_keras_marks(fit):
    steps = [(bar.task, bar.name, bar.more["step"]) for bar in sorted(fit.of("step"), key=lambda bar: (bar.task, bar.begun))]
    assert steps == [(task, f"train {number + 2}", number) for task in ("worker:0", "worker:1") for number in (1, 2, 3)]
    assert trace_figure.totals(fit)["steps"] == 3


def test_collective_operations_are_transfers_not_computation(fit):
    assert {(bar.more["from"], bar.more["op"]) for bar in fit.of("transfer")} == {("all tasks", "CollectiveReduceV2")}
    assert not [bar for bar in fit.of("operation") if "Collective" in bar.more["op"]]
    assert [(row["from"], row["to"], row["tensors"]) for row in trace_figure.by_route(fit)] == [
        ("all tasks", "worker:0", 21),
        ("all tasks", "worker:1", 21),
    ]


def test_operations_are_where_the_program_placed_them(eager):
    ran = {(bar.task, bar.more["op"]) for bar in eager.of("operation")}
    assert {("worker:0", "_MklMatMul"), ("worker:1", "Log"), ("worker:1", "Exp"), ("host:0", "Sum")} <= ran
    assert ("worker:0", "Log") not in ran
    assert not [op for _task, op in ran if op in ("_Send", "_Recv", "_Arg", "_Retval")]


def test_transfers_have_a_route_and_are_shown_at_the_receiving_task(eager):
    routes = {(bar.more["from"], bar.more["to"]) for bar in eager.of("transfer")}
    workers = {("worker:0", "worker:1"), ("worker:1", "worker:0")}
    assert routes == workers | {("host:0", "worker:0"), ("host:0", "worker:1"), ("worker:1", "host:0")}
    assert all(bar.task == bar.more["to"] for bar in eager.of("transfer"))
    assert "bytes" not in trace_figure.totals(eager)  # the profiler does not record them


def test_each_call_of_a_function_is_a_step_of_the_program(eager):
    steps = eager.of("step")
    assert [(bar.task, bar.name, bar.more["step"]) for bar in steps] == [("host:0", "step", number) for number in (1, 2, 3)]
    within = [bar for bar in eager.of("operation") if bar.more.get("step") == 2]
    assert within
    assert all(steps[1].begun <= bar.begun <= steps[1].ended for bar in within)


@pytest.mark.parametrize("name", ["profile_fit", "profile_eager"])
def test_times_start_at_zero_and_bars_of_a_lane_do_not_overlap(tmp_path, name):
    trace = profiles.read(placed(tmp_path, name), "host:0" if "eager" in name else "worker:0")
    assert min(bar.begun for bar in trace.bars) == 0
    assert max(bar.ended for bar in trace.bars) < 1
    ends = {}
    for bar in sorted(trace.bars, key=lambda bar: bar.begun):
        assert bar.begun >= ends.get((bar.task, bar.lane), 0)
        ends[bar.task, bar.lane] = bar.ended


def test_busy_times_and_the_longest_operations_are_computed(eager, fit):
    busy = {task: round(found["seconds"] * 1e6) for task, found in trace_figure.by_task(eager).items()}
    assert busy == {"host:0": 65, "worker:0": 1741, "worker:1": 992}  # without the handlers of calls, which enclose them
    table = trace_figure.longest(fit)
    assert [row["seconds"] for row in table] == sorted((row["seconds"] for row in table), reverse=True)
    assert {row["task"] for row in table} == {"worker:0", "worker:1"}
    assert ("Conv2DBackpropFilter", "GPU") in {(row["name"], row["where"]) for row in table}


def test_the_figure_has_transfers_and_a_view_of_each_step(eager, fit):
    for trace in (eager, fit):
        assert "transfer between tasks" in trace_figure.figure(trace, {"worker:0": "m1"})
        assert len(trace_figure.views(trace)) == 4  # three steps, and all


def test_the_profiles_of_a_training_are_collected_for_tensorboard(tmp_path):
    for number in (0, 1):
        part = tmp_path if number == 0 else tmp_path / "tasks/worker-1"
        (part / WINDOW).mkdir(parents=True)
        shutil.copy(RECORDED / f"profile_fit/worker-{number}.xplane.pb", part / WINDOW)
    own = tmp_path / "tasks/worker-1" / WINDOW / "machine.xplane.pb"
    own.write_bytes(b"the program's own")
    profiles.gather(tmp_path)
    profiles.gather(tmp_path)  # collected again
    assert sorted(path.name for path in (tmp_path / WINDOW).iterdir()) == ["worker-0.xplane.pb", "worker-1.xplane.pb"]
    assert own.exists()


def test_a_run_without_profiles_has_no_trace(tmp_path):
    (tmp_path / WINDOW).mkdir(parents=True)
    shutil.copy(RECORDED / "profile_fit/worker-0.xplane.pb", tmp_path / WINDOW / "machine.xplane.pb")  # the program's own
    assert profiles.read(tmp_path, "worker:0") is None


def test_too_large_profiles_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "MAX_BYTES", 100_000)
    with pytest.raises(ValueError, match="its profiles have 0 MB, more than the limit"):
        profiles.read(placed(tmp_path, "profile_fit"), "worker:0")
