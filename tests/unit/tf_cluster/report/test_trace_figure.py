"""trace_figure.py over traces of real runs: the demo, a step on a GPU, and four steps of a training."""

import itertools
import json
import math

import gpu_machines
import pytest
from project import ROOT, load

trace_figure = load("tf_cluster.report.trace_figure")
tf_trace = load("tf_cluster.run.trace")
RECORDED = ROOT / "tests/unit/recorded"
MACHINES = {"worker:0": "m1", "worker:1": "m2"}


@pytest.fixture
def gpu(tmp_path):
    """Return the trace of a step on two tasks that share a GPU."""
    recorder = tf_trace.Recorder(tmp_path / "trace.json", "host:0", {"tensorflow": "2.21.0"})
    recorder.add(1, 1795678021909 * 10**6, 1795678021917 * 10**6, gpu_machines.step_statistics())
    return trace_figure.read(tmp_path / "trace.json")


@pytest.fixture(params=["demo", "gpu", "train"])
def trace(request, gpu):
    """Return a trace."""
    return gpu if request.param == "gpu" else trace_figure.read(RECORDED / f"{request.param}_trace.json")


@pytest.fixture
def demo():
    """Return the demo's trace."""
    return trace_figure.read(RECORDED / "demo_trace.json")


def drawn(trace):
    """Return the figure's bars: (name, row, begin, duration, what is under the pointer)."""
    data = json.loads(trace_figure.figure(trace, MACHINES))["data"]
    parts = ("text", "y", "base", "x", "hovertext")
    return [bar for entry in data if entry["type"] == "bar" for bar in zip(*(entry[part] for part in parts))]


def test_the_trace_of_the_demo_is_read(demo):
    assert {bar.name: bar.task for bar in demo.of("operation") if bar.name in ("c", "ab", "d", "log")} == {
        "c": "worker:0", "ab": "worker:1", "d": "worker:1", "log": "worker:1",
    }  # fmt: skip
    assert [(bar.name, bar.more["from"], bar.task, bar.more["bytes"]) for bar in demo.of("transfer")] == [
        ("c", "worker:0", "worker:1", 16), ("d", "worker:1", "host:0", 16),
    ]  # fmt: skip
    assert len(demo.arrows) == 2


def test_kernels_are_bars_of_the_task_that_started_them(gpu):
    kernels = {(bar.name, bar.task) for bar in gpu.of("kernel")}
    assert kernels >= {("c", "worker:0"), ("a/RandomUniform", "worker:0"), ("add", "worker:1"), ("log", "worker:1")}
    assert sum("on the GPU" in more for _name, _row, _begun, _took, more in drawn(gpu)) == len(gpu.of("kernel")) == 5
    for task, found in trace_figure.by_task(gpu).items():
        assert found["operations"] == sum(bar.task == task for bar in gpu.of("operation"))


def test_each_event_of_the_trace_is_a_bar_of_the_figure(trace):
    bars = drawn(trace)
    assert (
        len(bars)
        == len(trace.bars)
        == sum(trace_figure.totals(trace)[what] for what in ("steps", "operations", "transfers")) + len(trace.of("kernel"))
    )
    assert sorted(bar[0] for bar in bars) == sorted(bar.name.rsplit("/", 1)[-1] for bar in trace.bars)


def test_bars_of_a_row_do_not_overlap(trace):
    rows = {}
    for _name, row, begun, took, _more in drawn(trace):
        rows.setdefault(row, []).append((begun, begun + took))
    for spans in rows.values():
        spans.sort()
        assert all(before[1] <= after[0] + 1e-5 for before, after in itertools.pairwise(spans))


def test_each_task_has_its_rows_and_its_machine(trace):
    layout = json.loads(trace_figure.figure(trace, MACHINES))["layout"]
    assert [title["text"].strip() for title in layout["annotations"]] == [
        "<b>host:0</b>",
        "<b>worker:0</b>  m1",
        "<b>worker:1</b>  m2",
    ]
    ticks = layout["yaxis"]["ticktext"]
    assert ticks[:3] in (["session.run", "from other tasks", "CPU:0"], ["session.run", "GPU:0", "GPU:0/stream:13"])


def test_bytes_and_rates_are_those_of_the_transfers(demo):
    routes = trace_figure.by_route(demo)
    assert [(route["from"], route["to"], route["tensors"], route["bytes"]) for route in routes] == [
        ("worker:0", "worker:1", 1, 16), ("worker:1", "host:0", 1, 16),
    ]  # fmt: skip
    for route, bar in zip(routes, demo.of("transfer")):
        assert route["rate"] == pytest.approx(bar.more["bytes_per_second"], rel=0.01)


def test_each_worker_has_operations_and_a_share_of_the_time(trace):
    found = trace_figure.by_task(trace)
    assert set(found) == {"worker:0", "worker:1"}
    assert all(0 < task["share"] < 1 and task["operations"] > 2 for task in found.values())


def test_the_figure_has_a_view_of_each_step_and_of_all_steps(trace):
    steps = len(trace.of("step"))
    views = trace_figure.views(trace)
    assert len(views) == (steps if steps == 1 else steps + 1)
    for view in views:
        assert view["range"][0] < view["range"][1]


def test_simultaneous_operations_count_as_busy_once():
    def bar(begun, took):
        return trace_figure.Bar("x", "operation", "w:0", "CPU:0", begun, took, {})

    assert trace_figure.busy([bar(0, 2), bar(1, 2), bar(1.5, 0.1), bar(5, 1)]) == pytest.approx(4)
    assert trace_figure.busy([]) == 0


def test_only_the_longest_bars_are_drawn_above_the_limit(trace, monkeypatch):
    monkeypatch.setattr(trace_figure, "MAX_BARS", 5)
    bars = drawn(trace)
    assert len(bars) == 5
    assert "step 1" in [bar[0] for bar in bars]


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5 s"), (0.0104, "10.4 ms"), (0.9999, "1000 ms"), (4e-6, "4 µs"), (0, "0 µs"), (1234.5, "1234 s")]
)
def test_times_are_formatted_with_units(value, text):
    assert trace_figure.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (16_000_000, "16 MB"), (1.2e9, "1.2 GB"), (43478, "43.5 kB")]
)
def test_sizes_are_formatted_with_units(value, text):
    assert trace_figure.size(value) == text


@pytest.mark.parametrize("wrong", [{"dur": math.nan}, {"pid": 99}, {"ts": "x"}, {"ph": 5, "id": []}])
def test_a_broken_trace_is_an_error_with_a_message(tmp_path, wrong):
    found = json.loads((RECORDED / "demo_trace.json").read_text(encoding="utf-8"))
    next(event for event in found["traceEvents"] if event["ph"] == "X").update(wrong)
    (tmp_path / "trace.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match=r"trace\.json is not a trace"):
        trace_figure.read(tmp_path / "trace.json")


@pytest.mark.parametrize("wrong", [{"args": None}, {"args": {}}, {"name": 5}, {"args": {"step": "x", "from": 1, "bytes": "2"}}])
def test_invalid_transfers_in_a_trace_raise_expected_exceptions(wrong):
    found = json.loads((RECORDED / "demo_trace.json").read_text(encoding="utf-8"))
    next(event for event in found["traceEvents"] if event["ph"] == "X" and event["cat"] == "transfer").update(wrong)
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        drawn(trace_figure.gather(found["otherData"], found["traceEvents"]))
