"""run/reason.py: why a program failed, from its output."""

import subprocess
import sys

import pytest
from project import load

reason = load("tf_cluster.run.reason")

BEGIN = ["some output", "Traceback (most recent call last):", '  File "main.py", line 3, in <module>', "    run()"]
ERRORS = "tensorflow.python.framework.errors_impl"
OOM = "OOM when allocating tensor on /job:worker/replica:0/task:0/device:GPU:0"
ABORTED = "Collective ops is aborted by: Error from /job:worker/task:1: it stopped sending heartbeats"
PARAMETER_SERVERS = "To use this dataset, you need to pass this dataset to ClusterCoordinator.create_per_worker_dataset."
MISSING = "/r1/results/ckpt-1_temp/part; No such file or directory"


@pytest.mark.parametrize(
    ("lines", "found", "task", "remedy"),
    [
        ([*BEGIN, "ValueError: too small"], "ValueError: too small", "", ""),
        ([*BEGIN, "KeyboardInterrupt"], "KeyboardInterrupt", "", ""),
        ([*BEGIN, "AssertionError"], "AssertionError", "", ""),
        ([*BEGIN, "mine.Stop: enough", "", "[cluster] worker:1 was restarted"], "Stop: enough", "", ""),
        # The last of a chain counts.
        ([*BEGIN, "KeyError: 1", "", "During handling of the above exception, another exception occurred:", "", *BEGIN[1:],
          "OSError: 2"], "OSError: 2", "", ""),
        (['  File "main.py", line 3', "    x = = 1", "SyntaxError: invalid syntax"], "SyntaxError: invalid syntax", "", ""),
        (
            [*BEGIN, f"{ERRORS}.NotFoundError: From /job:worker/replica:0/task:1:", "/data/a.txt; No such file or directory",
             "\t [[{{node ReadFile}}]]"],
            "NotFoundError: /data/a.txt; No such file or directory (worker:1)", "worker:1", "program_data",
        ),
        (
            [*BEGIN, f"{ERRORS}.NotFoundError: Graph execution error:", "", "Detected at node 'save' defined at",
             '    File "x.py", line 1', "Node: 'save'", "From /job:ps/replica:0/task:0:",
             MISSING, "\t [[{{node save}}]] [Op:__inference_9]"],
            f"NotFoundError: {MISSING} (ps:0)", "ps:0", "experimental_io_device",
        ),
        (
            [*BEGIN, f"{ERRORS}.UnavailableError: Graph execution error:", "", "Detected at node Reduce defined at",
             '  File "main.py", line 15', "", ABORTED],
            f"UnavailableError: {ABORTED} (worker:1)", "worker:1", "same number of steps",
        ),
        (
            [*BEGIN, f"{ERRORS}.PermissionDeniedError: /r1/results/ckpt-1_temp/part-0.data; Read-only file system"],
            "PermissionDeniedError: /r1/results/ckpt-1_temp/part-0.data; Read-only file system", "", "experimental_io_device",
        ),
        (
            [*BEGIN, "ValueError: in user code:", "", '    File "bad.py", line 3, in f  *', "        def f(x): return g(x)", "",
             "    ValueError: Cannot reshape a tensor"],
            "ValueError: Cannot reshape a tensor", "", "",
        ),
        (
            [*BEGIN, "ValueError: Disallowed task type found in cluster spec. Allowed types are {'chief', 'worker'}"],
            "ValueError: Disallowed task type found in cluster spec. Allowed types are {'chief', 'worker'}", "", "train.yml",
        ),
        (
            [*BEGIN, f"{ERRORS}.ResourceExhaustedError: {OOM}"],
            f"ResourceExhaustedError: {OOM} (worker:0)",
            "worker:0", "gpu_memory_fraction",
        ),
        ([*BEGIN, f"{ERRORS}.InternalError: NCCL: invalid usage"], "InternalError: NCCL: invalid usage", "", "RING"),
        # The task of the line counts before the one that passed the error on.
        (
            [*BEGIN, f"{ERRORS}.ResourceExhaustedError: Graph execution error:", "", "Detected at node 'r' defined at",
             "Node: 'r'", "From /job:host/replica:0/task:0:", OOM, "\t [[{{node r}}]]"],
            f"ResourceExhaustedError: {OOM} (worker:0)",
            "worker:0", "gpu_memory_fraction",
        ),
        # Several errors at once.
        (
            [*BEGIN, f"{ERRORS}.InternalError: Graph execution error:", "", "Detected at node 'c' defined at", "Node: 'c'",
             "=====================", "INTERNAL: From /job:worker/replica:0/task:1:", "No blas support for stream",
             "\t [[{{node c}}]]", "CANCELLED: From /job:host/replica:0/task:0:", "RecvFromRemoteAsync is cancelled.",
             "====================="],
            "InternalError: No blas support for stream (worker:1)", "worker:1", "gpu_memory_fraction",
        ),
        (
            [*BEGIN, f"{ERRORS}.InternalError: Graph execution error:", "", "Detected at node MatMul defined at (most",
             *['  File "layer.py", line 1002, in __call__', ""] * 60, "2 root error(s) found.",
             "  (0) INTERNAL:  No blas support for stream", "\t [[{{node dense/MatMul}}]]",
             "  (1) INTERNAL:  No blas support for stream", "0 derived errors ignored. [Op:__inference_step_394]",
             "[training] the program of worker:1 on machine b exited with status 1"],
            "InternalError: No blas support for stream", "", "gpu_memory_fraction",
        ),
        (
            [*BEGIN, f"{ERRORS}.InternalError: {{{{function_node __Next_/job:worker/replica:0/task:1/device:GPU:0}}}} "
             "Error in user-defined function passed to ParallelMapDatasetV2:5 transformation: 2 root error(s) found.",
             "  (0) INTERNAL: {{function_node __inference_lambda_49}} No unary variant device copy function found",
             "W0000 00:00:1 48820 rendezvous.cc:412] Local rendezvous is aborting with status: UNAVAILABLE: Socket closed"],
            "InternalError: No unary variant device copy function found (worker:1)", "worker:1", "",
        ),
        (
            [*BEGIN, "ValueError: Attempt to convert a value (PerReplica:{", "  0: <tf.Tensor>", "}) with an unsupported type"],
            "ValueError: Attempt to convert a value (PerReplica:{", "", "program_keras=2",
        ),
        (
            [*BEGIN, f"ValueError: {PARAMETER_SERVERS}"], f"ValueError: {PARAMETER_SERVERS[:-1]}", "", "program_keras=2",
        ),
        *(
            ([*BEGIN, f"AttributeError: {text}"], f"AttributeError: {text}", "", "program_keras=2")
            for text in (f"module 'keras{name}' has no attribute 'experimental'" for name in (".utils", "._tf_keras.keras"))
        ),
    ],
)  # fmt: skip
def test_the_exception_and_its_first_meaningful_line_are_found(lines, found, task, remedy):
    result = reason.find_reason(lines)
    assert (str(result), result.task) == (found, task)
    assert (remedy in result.remedy) if remedy else not result.remedy


@pytest.mark.parametrize("path", ["ckpt-1_temp", "ckpt-1_temp/part-00001-of-00002.data"])
def test_a_checkpoint_that_a_task_cannot_write_has_its_remedy(path):
    lines = [*BEGIN, f"{ERRORS}.NotFoundError: From /job:ps/replica:0/task:0: /runs/r1/results/{path}; No such file or directory"]
    assert "experimental_io_device" in reason.find_reason(lines, "chief:0", status="1").remedy


def test_a_handled_exception_far_above_the_end_is_not_the_reason():
    handled = ["Traceback (most recent call last):", '  File "a.py", line 1', "tf.errors.UnavailableError: Socket closed"]
    lines = [*handled, *(f"step {number}: loss 3.1" for number in range(150)), "loss diverged, giving up"]
    assert str(reason.find_reason(lines, status="1")) == "its last line is 'loss diverged, giving up'"
    assert reason.find_reason(lines, status="3") is None
    assert reason.find_reason([*lines[:60], "the end"], status="1").exception == "UnavailableError"


def test_the_own_task_of_a_program_has_its_files():
    lines = [*BEGIN, f"{ERRORS}.NotFoundError: From /job:worker/replica:0/task:1:", "/data/a.txt; No such file or directory"]
    assert "program_data" in reason.find_reason(lines, "worker:0").remedy
    assert reason.find_reason(lines, "worker:1").remedy == ""


def test_the_reason_of_an_earlier_attempt_is_not_that_of_the_last():
    assert reason.find_reason([*BEGIN, "ValueError: 1", "[training] attempt 2", "done"]) is None


@pytest.mark.parametrize(
    "lines", [[], ["Traceback (most recent call last):", "  File"], ["W0000 00:00:17 x: y"], ["[training] a"]]
)
def test_an_output_that_says_nothing_gives_no_reason(lines):
    assert reason.find_reason(lines, status="1") is None


@pytest.mark.parametrize("lines", [["done"], ["Error: no"]])
def test_the_last_line_is_no_reason_for_another_status(lines):
    assert reason.find_reason(lines, status="3") is None


@pytest.mark.parametrize("after", [[], ["", "W0000 00:00:17 x: y"], ["[training] worker:0 finished"]])
def test_without_an_exception_the_last_line_is_the_reason_of_status_1(after):
    found = reason.find_reason(["step 1", "cannot open the data set", *after], status="1")
    assert str(found) == "its last line is 'cannot open the data set'"


PROGRAMS = {
    "import atexit\nclass A:\n    def __del__(self):\n        raise RuntimeError('noise')\na = A()\nraise ValueError('real')":
        "ValueError: real",
    "import atexit\natexit.register(lambda: 1 / 0)\nraise ValueError('real')": "ValueError: real",
    "import struct\nstruct.unpack('i', b'')": "struct.error: unpack requires a buffer of 4 bytes",
    "class stop(Exception):\n    pass\nraise stop('enough')": "stop: enough",
    "def main():\n    class MyError(Exception):\n        pass\n    raise MyError('x')\nmain()": "MyError: x",
    "import socket\ntry:\n    int('a')\nexcept ValueError:\n    raise socket.gaierror(-2, 'unknown name')":
        "socket.gaierror: [Errno -2] unknown name",
    "import atexit\natexit.register(print, 'Saving the model')\nassert False": "AssertionError",
    "raise ValueError('\\nthe second line')": "ValueError: the second line",
    "import atexit\natexit.register(print, 'bye')\nraise ValueError('File \"data.csv\" has 3 columns')":
        'ValueError: File "data.csv" has 3 columns',
    "import sys\nsys.exit('cannot open the data set')": "its last line is 'cannot open the data set'",
    "raise SystemExit('bad arguments')": "its last line is 'bad arguments'",
    "def f(:": "SyntaxError: invalid syntax",
    "import threading\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()\nraise KeyError('a')": "KeyError: 'a'",
    "import threading, sys\nt = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()\nsys.exit(1)":
        "ZeroDivisionError: division by zero",
}  # fmt: skip
GROUPS = {
    "raise ExceptionGroup('two parts failed', [ValueError('a'), TypeError('b')])":
        "ExceptionGroup: two parts failed (2 sub-exceptions): ValueError: a",
    "raise ExceptionGroup('x', [ExceptionGroup('y', [OSError('z')])])": "ExceptionGroup: x (1 sub-exception): OSError: z",
}  # fmt: skip


@pytest.mark.parametrize(("program", "expected"), PROGRAMS.items())
def test_the_reason_of_a_real_program_is_found(program, expected):
    done = subprocess.run(
        [sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 1
    assert str(reason.find_reason(done.stdout.splitlines(), status="1")).startswith(expected)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are new in Python 3.11")
@pytest.mark.parametrize(("program", "expected"), GROUPS.items())
def test_the_first_exception_of_a_group_is_named(program, expected):
    test_the_reason_of_a_real_program_is_found(program, expected)


def test_a_task_of_a_training_is_named_as_in_the_cluster():
    lines = [*BEGIN, f"{ERRORS}.NotFoundError: From /job:worker/replica:0/task:1:", "/data/a.txt; No such file or directory"]
    found = reason.find_reason(lines, "worker:1", ["worker:1", "worker:2"])
    assert found.task == "worker:2"
    assert "program_data" in found.remedy
    assert reason.find_reason(lines, "worker:2", ["worker:1", "worker:2"]).remedy == ""


def test_a_long_line_is_cut():
    assert len(str(reason.find_reason([*BEGIN, "ValueError: " + "x" * 5000]))) < 400


def test_the_end_of_a_long_output_is_read(tmp_path):
    log = tmp_path / "stdout.log"
    assert reason.reason_of(log) is None
    log.write_bytes(b"\xff line\n" * 100_000 + "\n".join([*BEGIN, "ValueError: \x1b[31mred\x1b[0m"]).encode())
    assert str(reason.reason_of(log)) == "ValueError: red"
