"""run/profile.py: when it records, what the program notices, what is left. TensorFlow's profiler here is a small one."""

import json
import os
import subprocess
import sys

import pytest
from project import ROOT, load

xplane = load("tf_cluster.xplane")
profile = load("tf_cluster.run.profile")
profile_servers = load("tf_cluster.run.profile_servers")
FAKE = {
    "__init__.py": "__version__ = '2.21.0'\nclass config:\n    list_physical_devices = lambda kind: ['GPU:0']\n",
    "core/protobuf/config_pb2.py": """
class RunOptions:
    FULL_TRACE = trace_level = 3
class RunMetadata:
    step_stats = None
""",
    "python/client/session.py": """
class BaseSession:
    def run(self, fetches, feed_dict=None, options=None, run_metadata=None):
        print(fetches)
""",
    "python/eager/context.py": """
class Context:
    _collective_ops_server_def = None
    def ensure_initialized(self):
        pass
    def call_function(self, result):
        if result == "bad":
            raise ValueError("bad")
        return result
    def get_server_def(self):
        return None
here = Context()
context = lambda: here
""",
    "python/profiler/internal/_pywrap_profiler.py": """
import pathlib
running = []
class ProfilerSession:
    def start(self, folder, options):
        if running:
            raise RuntimeError("Another profiler session active.")
        running.append(1)
        self.folder = pathlib.Path(folder)
    def export_to_tb(self):
        running.clear()
        path = self.folder / "plugins/profile/now/machine.xplane.pb"
        path.parent.mkdir(parents=True)
        path.write_text("profile")
    def __del__(self):
        running.clear()
""",
}
HEAD = """
import tensorflow, time
from tensorflow.python.eager.context import Context, here
from tensorflow.python.client.session import BaseSession
from tensorflow.python.profiler.internal import _pywrap_profiler
from tf_cluster.run import profile
profile.WINDOW_SECONDS, profile.MAX_WINDOW_SECONDS, profile.POLL_SECONDS, profile.MIN_CALLS = 0.2, 0.6, 0.01, 3
"""
WORK = "here.ensure_initialized()\nfor _call in range(5): here.call_function(1)\n"


@pytest.fixture
def program(tmp_path):
    """Return a function that runs a program with the trace on, and returns what it printed and its profiles."""

    def program(text, **more):
        for name, content in FAKE.items():
            path = tmp_path / "tensorflow" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        (tmp_path / "program.py").write_text(HEAD + text, encoding="utf-8")
        given = {
            "PYTHONPATH": f"{ROOT}/files/tf_cluster/run/startup:{ROOT}/files",
            "TF_CLUSTER_TRACE": "1",
            "TF_RUN_DIR": str(tmp_path),
            "TF_RUN_ID": "20260101-120000-program-1a2b.worker-1",
            "TF_CONFIG": json.dumps({"task": {"type": "worker", "index": 1}}),
            **more,
        }
        done = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        folder = tmp_path / "profile/plugins/profile"
        return done.stdout + done.stderr, sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    return program


ONE = ["20260101-120000-1/worker-1.xplane.pb"]


def test_a_program_that_exits_within_the_window_has_a_profile(program):
    assert program(WORK) == ("", ONE)


def test_nothing_is_recorded_without_the_option(program):
    assert program(WORK, TF_CLUSTER_TRACE="") == ("", [])


def test_a_program_without_eager_operations_has_no_profile(program):
    assert program("print('done')") == ("done\n", [])


def test_recording_does_not_change_results_and_exceptions(program):
    text = "print(here.call_function(7), Context.call_function.__name__)\n"
    text += "try: here.call_function('bad')\nexcept ValueError: print('bad')"
    assert program(text) == ("7 call_function\nbad\n", ONE)


def test_a_window_ends_and_is_not_repeated(program):
    text = f"{WORK}time.sleep(0.5)\nprint(_pywrap_profiler.running)\n{WORK}time.sleep(0.5)\nprint(_pywrap_profiler.running)"
    assert program(text) == ("[]\n[]\n", ONE)


def test_a_window_without_functions_is_followed_by_one_with_the_first_function(program):
    text = f"here.ensure_initialized()\ntime.sleep(0.4)\nprint(1)\ntime.sleep(0.6)\n{WORK}"
    assert program(text) == ("1\n", [*ONE, "20260101-120000-2/worker-1.xplane.pb"])


def test_the_window_of_a_training_starts_after_its_first_functions(program):
    show = "print(len(_pywrap_profiler.running))\n"
    text = f"Context._collective_ops_server_def = 'cluster'\n{WORK}{show}{WORK}{show}{WORK}"
    assert program(text) == ("0\n1\n", ONE)


def test_a_long_program_has_several_windows(program):
    text = f"profile.WINDOW_STARTS = (0, 0.5, 1.0)\n{WORK}\nfor _try in range(30): time.sleep(0.1); here.call_function(1)"
    said, found = program(text)
    assert said == ""
    assert found == [f"20260101-120000-{number}/worker-1.xplane.pb" for number in (1, 2, 3)]


def test_a_program_with_session_steps_has_no_profile(program):
    said, found = program(f"{WORK}BaseSession().run('x')\n{WORK}")
    assert said.startswith("x\n")
    assert found == []


def test_a_program_can_use_the_profiler_itself(program):
    text = f"{WORK}mine = _pywrap_profiler.ProfilerSession(); mine.start('mine', {{}}); print('mine')"
    said, found = program(text)
    assert sorted(said.splitlines()) == [
        "[trace] the program uses TensorFlow's profiler itself, so the trace ends here", "mine",
    ]  # fmt: skip
    assert found == ONE


def test_child_processes_do_not_change_the_profile_of_the_program(program):
    text = (
        f"import os, subprocess, sys\n{WORK}if 'again' not in sys.argv: subprocess.run([sys.executable, 'program.py', 'again'])\n"
    )
    text += "pid = os.fork()\nhere.call_function(1)\nif not pid: sys.exit()\nos.wait()\n"
    assert program(text) == ("", ONE)


def test_a_profile_that_cannot_be_written_is_reported_and_the_program_continues(program):
    said, _found = program(f"{WORK}print('works')", TF_RUN_DIR="/proc/nowhere")
    assert "works" in said
    assert "[trace] cannot record a profile: FileNotFoundError" in said


def test_a_request_has_the_fields_that_the_service_needs():
    fields = dict(xplane.fields(profile_servers.request("20260101-120000-1")))
    assert fields[profile_servers.DURATION_MS] == 120_000
    assert fields[profile_servers.SESSION_ID] == b"20260101-120000-1"
    assert fields[profile_servers.EMIT_XSPACE] == 1
    options = dict(xplane.fields(fields[profile_servers.OPTIONS]))
    assert options == {1: 1, 2: 2, 3: 1, 5: 1, 9: 120_000}


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**63])
def test_encoded_numbers_are_decoded_to_the_same_value(value):
    assert xplane.varint(profile_servers.varint(value), 0)[0] == value
