"""Find in a program's output why it failed: the exception, its first meaningful line, the task that it names, and a remedy."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from .text import plain_lines

TAIL_BYTES = 64 * 1024  # of the output
MAX_CHARACTERS = 300  # of the line

RAISED = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Z]\w*)(?:: (.*))?")  # the line below a traceback
# Without a traceback: the compiler, and programs that catch an exception.
PRINTED = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Interrupt)): (.+)")
TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")
# Lines of TensorFlow's messages that say where, not what.
PREAMBLE = re.compile(
    r"(?:[A-Z_]+: )?From /job:|=+$|Graph execution error:|Detected at node|File \"|Node: |\d+ root error|\(\d+\) [A-Z_]+: ?$|"
    r"Original stack trace|Additional GRPC error|<stack traces unavailable>|.*\d+ root error\(s\) found\.$"
)
# Prefixes that say which of several errors this is, its type and its place.
PREFIX = re.compile(r"(?:\(\d+\) [A-Z_]+: +)?(?:\{\{function_node [^}]*\}\} )?")
AFTER = re.compile(r"Traceback \(most|\[(?:cluster|training)\] |[EFIW]\d{4} \d\d:")  # what follows a message


class Reason(NamedTuple):
    """Why a program failed; texts may be empty."""

    exception: str
    line: str
    task: str  # such as "worker:0"
    remedy: str  # a sentence

    def __str__(self) -> str:
        """Return the reason as the end of a sentence."""
        line = self.line[:-1] if re.search(r"[^.]\.$", self.line) else self.line
        return ": ".join(word for word in (self.exception, line) if word) + (f" ({self.task})" if self.task else "")


# Pattern of the exception and its message -> what to do. The first that matches counts.
REMEDIES = (
    (
        r"Disallowed task type found in cluster spec",
        "MultiWorkerMirroredStrategy runs one program for each worker: start it with playbooks/train.yml",
    ),
    (
        # Keras 3 with the data of MultiWorkerMirroredStrategy and of ParameterServerStrategy, and modules that only Keras 2 has.
        r"convert a value \(PerReplica|pass this dataset to ClusterCoordinator|module 'keras\S*' has no attribute 'experimental'",
        "The fit and evaluate of Keras 3 do not work with this strategy. Use Keras 2: set program_keras=2, and write tf.keras "
        "instead of 'import keras' in the program. Or write your own loop",
    ),
    (r"Keras cannot be imported", "Keras 2 is missing on the machine. Run 'ansible-playbook site.yml'"),
    (
        r"_temp/\S+; (No such file or directory|Read-only file system)",
        "Each task writes its part of a checkpoint to its own disk. Save with "
        'tf.train.CheckpointOptions(experimental_io_device="/job:chief/task:0/device:CPU:0"), or the task of your program',
    ),
    (
        r"(?s)(?=.*/job:(?!host|chief)\w+/).*No such file or directory",
        "The program's files and program_data are on the program's machine, and this task looks on its own. Read the file in "
        "the program and pass on its content, or use a path that all machines share",
    ),
    (
        r"OOM when allocating|CUDA_ERROR_OUT_OF_MEMORY|out of memory|No blas support for stream",
        "Use smaller batches or, for tensors on a task's server, a larger gpu_memory_fraction in tf_task_options. status.yml "
        "shows the memory of each GPU",
    ),
    (
        r"NCCL: invalid usage",
        "NCCL refuses tasks that share a GPU. Leave the implementation of collective operations to TensorFlow, or select RING",
    ),
    (
        r"unknown device|Could not satisfy device specification|could not satisfy explicit device|Cannot assign a device",
        "The cluster has no such device. status.yml shows the GPUs of each task; ready_needs checks them before a run",
    ),
    (
        r"Address already in use|Could not start gRPC server",
        "Another process uses the port. The verdict's tasks have the ports of the cluster",
    ),
    (
        r"(?s)Collective ops is aborted.*stopped sending heartbeats",
        "The named task's program ended or failed before; its own output says why. All tasks must take the same number of steps",
    ),
    (r"UNAVAILABLE|UnavailableError|Socket closed", "A task ended or was unreachable; status.yml shows which"),
)  # fmt: skip


def reason_of(log: Path, own: str = "") -> Reason | None:
    """Return why the program of the task ``own`` failed whose output is in ``log``; None if its output does not say."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return find_reason(plain_lines(file.read().decode(errors="replace")), own)
    except OSError:
        return None


def find_reason(lines: list[str], own: str = "") -> Reason | None:
    """Return the reason in the lines of an output: of the last traceback or, without one, the last line with an exception."""
    begins = [place for place, line in enumerate(lines) if line.startswith("[training] attempt ")]
    lines = lines[begins[-1] :] if begins else lines
    job, _colon, index = own.partition(":")
    here = re.compile(rf"/job:{job}/(?:replica:\d+/)?task:{index}\b")
    for place, exception, first in exceptions(lines):
        message = [first, *lines[place + 1 :]]
        end = next((at for at, line in enumerate(message) if at and AFTER.match(line)), None)
        text = "\n".join([exception, *message[:end]])
        line = meaningful(message[:end])
        task = TASK.search(line) or TASK.search(text)  # the text may begin with the task that only passed the error on
        elsewhere = here.sub("", text)  # the program's own task has its files
        remedy = next((sentence for pattern, sentence in REMEDIES if re.search(pattern, elsewhere)), "")
        return Reason(exception, line, f"{task[1]}:{task[2]}" if task else "", remedy)
    return None


def exceptions(lines: list[str]) -> list[tuple[int, str, str]]:
    """Return place, type and first line of the exception that ended the program, if there is one."""
    begins = [place for place, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    for place in range(begins[-1] + 1 if begins else len(lines), len(lines)):
        found = RAISED.fullmatch(lines[place])
        if found:
            return [(place, found[1], found[2] or "")]
    for place in reversed(range(len(lines))):
        found = PRINTED.fullmatch(lines[place])
        if found:
            return [(place, found[1], found[2])]
    return []


def meaningful(message: list[str]) -> str:
    """Return the first line of a message that says what happened."""
    texts = [line.strip() for line in message]
    if texts[0] == "in user code:":  # the stack of a tf.function, then the exception
        texts = [raised[2] for text in texts if (raised := PRINTED.fullmatch(text))] or texts[1:]
    nodes = [place for place, text in enumerate(texts) if text.startswith("Node: ")]
    if "Graph execution error:" in texts[:2] and nodes:
        texts = texts[nodes[-1] + 1 :]  # between lies the stack of the graph's definition
    found = next((text for text in texts if text and not PREAMBLE.match(text)), "")
    found = PREFIX.sub("", found, count=1)
    return found if len(found) <= MAX_CHARACTERS else f"{found[:MAX_CHARACTERS]} ..."
