"""run/reason.py: why a program failed, from its output."""

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


def test_the_own_task_of_a_program_has_its_files():
    lines = [*BEGIN, f"{ERRORS}.NotFoundError: From /job:worker/replica:0/task:1:", "/data/a.txt; No such file or directory"]
    assert "program_data" in reason.find_reason(lines, "worker:0").remedy
    assert reason.find_reason(lines, "worker:1").remedy == ""


def test_the_reason_of_an_earlier_attempt_is_not_that_of_the_last():
    assert reason.find_reason([*BEGIN, "ValueError: 1", "[training] attempt 2", "done"]) is None


@pytest.mark.parametrize("lines", [[], ["done"], ["Error: no"], ["Traceback (most recent call last):", "  File"], ["W0000 x: y"]])
def test_an_output_without_an_exception_gives_no_reason(lines):
    assert reason.find_reason(lines) is None


def test_a_long_line_is_cut():
    assert len(str(reason.find_reason([*BEGIN, "ValueError: " + "x" * 5000]))) < 400


def test_the_end_of_a_long_output_is_read(tmp_path):
    log = tmp_path / "stdout.log"
    assert reason.reason_of(log) is None
    log.write_bytes(b"\xff line\n" * 100_000 + "\n".join([*BEGIN, "ValueError: \x1b[31mred\x1b[0m"]).encode())
    assert str(reason.reason_of(log)) == "ValueError: red"
