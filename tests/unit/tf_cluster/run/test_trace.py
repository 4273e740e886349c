"""run/trace.py: which steps are traced, what the program notices, what is in the file. TensorFlow here is a small one."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import gpu_machines
import pytest
from project import ROOT, load

tf_trace = load("tf_cluster.run.trace")
CPU = "/job:{}/replica:0/task:{}/device:CPU:0"
FAKE = {
    "__init__.py": "__version__ = '2.21.0'",
    "core/protobuf/config_pb2.py": """
class Message:
    def __init__(self, **given):
        self.__dict__.update(self.EMPTY, **given)
    def CopyFrom(self, other):
        self.__dict__.clear()
        self.__dict__.update(other.__dict__)
    def ClearField(self, name):
        self.__dict__[name] = self.EMPTY[name]
class RunOptions(Message):
    FULL_TRACE = 3
    EMPTY = {"trace_level": 0, "timeout_in_ms": 0}
class StepStats:
    dev_stats = ()
class RunMetadata(Message):
    EMPTY = {"step_stats": None, "graphs": 0}
""",
    "python/eager/context.py": """
class Context:
    def ensure_initialized(self):
        pass
    def call_function(self):
        pass
""",
    "python/profiler/internal/_pywrap_profiler.py": "class ProfilerSession: pass",
    "python/client/session.py": """
from tensorflow.core.protobuf.config_pb2 import StepStats
class BaseSession:
    def run(self, fetches, feed_dict=None, options=None, run_metadata=None):
        if fetches == "bad":
            raise ValueError("bad")
        if run_metadata is not None:
            full = options is not None and options.trace_level == 3
            run_metadata.step_stats, run_metadata.graphs = StepStats() if full else None, 7
        return fetches, feed_dict, options and options.timeout_in_ms, options and options.trace_level
class Session(BaseSession):
    pass
""",
}
HEAD = """
import tensorflow
from tensorflow.core.protobuf.config_pb2 import RunMetadata, RunOptions
from tensorflow.python.client.session import Session
run = Session().run
"""


def node(name, begun=0, took=1000, label="", size=0, micros=False):
    """Return the statistics of one operation; times are nanoseconds."""
    description = SimpleNamespace(allocation_description=SimpleNamespace(requested_bytes=size))
    return SimpleNamespace(
        node_name=name, timeline_label=label, memory=[SimpleNamespace(total_bytes=64, peak_bytes=32)],
        all_start_nanos=0 if micros else begun, all_end_rel_nanos=0 if micros else took,
        all_start_micros=begun // 1000, all_end_rel_micros=took // 1000,
        scheduled_nanos=0 if micros else begun - 500, output=[SimpleNamespace(tensor_description=description)] if size else [],
    )  # fmt: skip


def stats(**devices):
    """Return step statistics: worker_0=[node, ...]."""
    return SimpleNamespace(
        dev_stats=[SimpleNamespace(device=CPU.format(*task.split("_")), node_stats=nodes) for task, nodes in devices.items()]
    )


@pytest.fixture
def recorder(tmp_path):
    """Return a recorder that began at the second 1."""
    recorder = tf_trace.Recorder(tmp_path / "trace.json", "host:0", {"tensorflow": "2.21.0"})
    recorder.origin = 10**9
    recorder.events = lambda: json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    return recorder


def bars(events, category):
    """Return the events of a category that took time: name -> event."""
    return {event["name"]: event for event in events if event["ph"] == "X" and event["cat"] == category}


@pytest.fixture
def program(tmp_path):
    """Return a function that runs a program with the trace on, and returns what it printed and the trace's steps."""

    def program(text, trace="1", folder=tmp_path):
        for name, content in FAKE.items():
            path = tmp_path / "tensorflow" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        (tmp_path / "program.py").write_text(HEAD + text, encoding="utf-8")
        given = {
            "PYTHONPATH": f"{ROOT}/files/tf_cluster/run/startup:{ROOT}/files",
            "TF_CLUSTER_TRACE": trace,
            "TF_RUN_DIR": str(folder),
        }
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        path = tmp_path / "trace.json"
        found = json.loads(path.read_text(encoding="utf-8"))["traceEvents"] if path.exists() else []
        return done.stdout + done.stderr, [int(name.split()[1]) for name in bars(found, "step")]

    return program


def test_nothing_is_traced_without_the_option(program, tmp_path):
    assert program("print(run('x'))", trace="") == ("('x', None, None, None)\n", [])
    assert not (tmp_path / "trace.json").exists()


def test_the_first_20_steps_and_every_50th_step_are_traced_up_to_a_limit(program):
    _said, steps = program("for _each in range(5000): run('x')")
    assert steps == [*range(1, 21), *range(50, 4001, 50)]
    assert len(steps) == tf_trace.MAX_STEPS


def test_tracing_does_not_change_the_arguments_and_results_of_a_step(program):
    said, _steps = program("print(run('x', {'a': 1}, RunOptions(timeout_in_ms=5)), run('y', options=None))")
    assert said == "('x', {'a': 1}, 5, 3) ('y', None, 0, 3)\n"


def test_the_run_metadata_of_a_program_has_only_what_it_requested(program):
    said, steps = program(
        "m = RunMetadata(); run('x', run_metadata=m); print(m.graphs, m.step_stats)\n"
        "o = RunOptions(trace_level=3); run('x', options=o, run_metadata=m)\n"
        "print(m.graphs, m.step_stats is None, o.trace_level)\n"
        "o = RunOptions(); run('x', options=o, run_metadata=m); print(m.step_stats, o.trace_level)"
    )
    assert said.splitlines() == ["7 None", "7 False 3", "None 0"]
    assert steps == [1, 2, 3]


def test_a_failed_step_raises_its_exception_and_keeps_earlier_steps(program):
    said, steps = program("run('x')\nrun('bad')")
    assert "ValueError: bad" in said
    assert steps == [1]


def test_the_check_of_a_task_is_not_traced_as_a_step(program):
    text = "check = Session(); check.tf_cluster_check = True; check.run('x'); print(run('x')[0])"
    assert program(text) == ("x\n", [1])


def test_a_program_that_is_killed_keeps_its_trace(program):
    _said, steps = program("import os, signal\nfor _each in range(3): run('x')\nos.kill(os.getpid(), signal.SIGKILL)")
    assert steps == [1, 2, 3]


def test_child_processes_do_not_change_the_trace_of_the_program(program):
    more = "import os, subprocess, sys\nrun('x')\npid = os.fork()\nrun('x')\nif not pid: os._exit(0)\nos.wait()\n"
    more += "if 'again' not in sys.argv: subprocess.run([sys.executable, 'program.py', 'again'])"
    assert program(more) == ("", [1, 2])


def test_a_trace_that_cannot_be_written_is_reported_and_the_program_continues(program):
    said, _steps = program("print(run('x')[0])", folder="/nowhere")
    assert said.startswith("x\n[trace] cannot record a trace: FileNotFoundError")


def test_operations_are_shown_on_the_device_of_their_task(recorder):
    recorder.add(
        1, 10**9, 10**9 + 9000, stats(worker_1=[node("_SOURCE"), node("c", 10**9 + 2000, 3000, "[x 1B 2B] c = MatMul(a, b)")])
    )
    events = recorder.events()
    names = {(event["name"], event["args"]["name"]) for event in events if event["ph"] == "M"}
    assert names == {
        ("process_name", "host:0"), ("thread_name", "session.run"), ("process_name", "worker:1"), ("thread_name", "CPU:0"),
    }  # fmt: skip
    assert bars(events, "step")["step 1"]["dur"] == 9
    [event] = bars(events, "operation").values()
    assert (event["name"], event["ts"], event["dur"]) == ("c", 2, 3)
    more = {"step": 1, "op": "MatMul", "inputs": "a, b", "allocated_bytes": 64, "peak_bytes": 32, "waited_us": 0.5}
    assert event["args"] == more


def test_simultaneous_operations_are_in_separate_lanes(recorder):
    nodes = [node("a", 10**9, 5000), node("b", 10**9 + 1000, 5000), node("c", 10**9 + 5000, 500)]
    recorder.add(1, 10**9, 10**9, stats(worker_0=nodes))
    found = bars(recorder.events(), "operation")
    assert found["a"]["tid"] == found["c"]["tid"] != found["b"]["tid"]


def test_a_transfer_has_bytes_a_rate_and_an_arrow_from_the_sending_operation(recorder):
    label = f"[15.3MB] [8.9Gb/s] edge_7_in/c from {CPU.format('worker', 0)} to {CPU.format('worker', 1)}"
    made, got = node("in/c", 10**9, 2000), node("RecvTensor", 10**9 + 4000, 8000, label, 16000, micros=True)
    recorder.add(1, 10**9, 10**9, stats(worker_1=[got], worker_0=[made]))
    events = recorder.events()
    event = bars(events, "transfer")["in/c"]
    more = {"step": 1, "from": "worker:0", "to": "worker:1", "device": "CPU:0", "bytes": 16000, "bytes_per_second": 2 * 10**9}
    assert event["args"] == more
    begin, end = (next(event for event in events if event["ph"] == kind) for kind in "sf")
    sender = bars(events, "operation")["in/c"]
    assert (begin["id"], begin["pid"], begin["tid"]) == (end["id"], sender["pid"], sender["tid"])
    assert sender["ts"] <= begin["ts"] < sender["ts"] + sender["dur"]
    assert event["ts"] <= end["ts"] < event["ts"] + event["dur"]


def test_tracing_stops_at_the_maximum_number_of_operations(recorder, monkeypatch):
    monkeypatch.setattr(tf_trace, "MAX_OPERATIONS", 2)
    assert recorder.next_step() == 1
    recorder.add(1, 10**9, 10**9, stats(worker_0=[node("a"), node("b")]))
    assert recorder.next_step() is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("/job:worker/replica:0/task:3/device:GPU:1", ("worker:3", "GPU:1")),
        ("/job:ps/replica:0/task:0/device:GPU:0/stream:all", ("ps:0", "GPU:0/stream:all")),
        ("/device:CPU:0", ("", "CPU:0")),
        ("strange", ("", "strange")),
    ],
)
def test_a_device_name_is_split_into_task_and_device(name, parts):
    assert tf_trace.split_device(name) == parts


@pytest.fixture
def gpu_step():
    """Return the step statistics of one step on two tasks that share a GPU."""
    return gpu_machines.step_statistics()


def test_kernels_belong_to_the_task_whose_operation_started_them(recorder, gpu_step):
    recorder.add(1, 10**9, 2 * 10**9, gpu_step)
    events = recorder.events()
    tasks = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    kernels = [event for event in events if event.get("cat") == "kernel"]
    assert [(tasks[event["pid"]], lanes[event["tid"]], event["name"]) for event in kernels] == [
        ("worker:1", "GPU:0/stream:14<MemcpyH2D>", "MakeTensorFromProto"),
        ("worker:1", "GPU:0/stream:13", "add"),
        ("worker:1", "GPU:0/stream:13", "log"),
        ("worker:0", "GPU:0/stream:13", "a/RandomUniform"),
        ("worker:0", "GPU:0/stream:13", "c"),
    ]
    assert set(tasks.values()) == {"host:0", "worker:0", "worker:1"}
    assert "cutlass" in kernels[-1]["args"]["kernel"]


def test_kernels_without_any_operation_belong_to_the_program(recorder, gpu_step):
    gpu_step.dev_stats.devices = [each for each in gpu_step.dev_stats.devices if not each["device"].startswith("/job:")]
    recorder.add(1, 10**9, 2 * 10**9, gpu_step)
    assert {event["args"]["name"] for event in recorder.events() if event["name"] == "process_name"} == {"host:0"}


def test_a_trace_without_steps_is_removed_only_if_there_is_a_profile(recorder, tmp_path):
    recorder.remove_if_profiled()
    assert (tmp_path / "trace.json").exists()  # says that TensorFlow was imported
    (tmp_path / "profile").mkdir()
    recorder.remove_if_profiled()
    assert not (tmp_path / "trace.json").exists()


def test_a_program_with_steps_keeps_its_trace(recorder, tmp_path):
    recorder.add(1, 0, 1000, stats())
    (tmp_path / "profile").mkdir()
    recorder.remove_if_profiled()
    assert (tmp_path / "trace.json").exists()
