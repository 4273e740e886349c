"""Find in a program's output why it failed: the exception, its first meaningful line, the task that it names, and a remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .text import plain_lines

TAIL_BYTES = 64 * 1024  # of the output
MAX_CHARACTERS = 300  # of the line
MAX_LINES = 100  # below an exception, without those of stacks: if the program printed more, it has handled the exception
STACK = re.compile(r'\s|$|File "')  # begins of lines in a message that are part of a stack

# The line below a traceback: the exception's class, in its module or function, and the message if there is one.
RAISED = re.compile(r"(?:[\w<>]+\.)*([A-Z]\w*)(?:: ?(.*))?|((?:[\w<>]+\.)*[a-z_]\w*): (.+)")
# Without a traceback: the compiler, and programs that catch an exception.
PRINTED = re.compile(r"(?:[\w<>]+\.)*([A-Z]\w*(?:Error|Exception|Interrupt)): (.+)")
GROUP_CLASS = "ExceptionGroup"
TRACEBACK = "Traceback (most recent call last)"
GROUP = re.compile(r" *\+ Exception Group (?=Traceback \()")  # and below it, the margin of each line
MARGIN = re.compile(r" *\+ Exception Group | *\+[-+].*| *\| ?")
TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")
# Lines of TensorFlow's messages that say where, not what.
PREAMBLE = re.compile(
    r"(?:[A-Z_]+: )?From /job:|=+$|Graph execution error:|Detected at node|File \".*\", line \d+|Node: |\d+ root error|"
    r"\(\d+\) [A-Z_]+: ?$|Original stack trace|Additional GRPC error|<stack traces unavailable>|.*\d+ root error\(s\) found\.$"
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
        if not self.exception:
            return f"its last line is {line!r}"
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
        r"_temp(/\S+)?; (No such file or directory|Read-only file system)",
        "Each task writes its part of a checkpoint to its own disk. Save with "
        'tf.train.CheckpointOptions(experimental_io_device="/job:chief/task:0/device:CPU:0"), or the task of your program',
    ),
    (
        r"(?s)(?=.*/job:(?!host|chief)\w+/).*No such file or directory",
        "The program's files and program_data are on the program's machine, and this task looks on its own. Set "
        "program_data_on=tasks to send them to the tasks' machines too, read the file in the program and pass on its content, or "
        "use a path that all machines share",
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


def reason_of(log: Path, own: str = "", tasks: Sequence[str] = (), status: str = "") -> Reason | None:
    """Return why the program of the task ``own`` failed whose output is in ``log``; None if its output does not say.

    ``tasks``: the tasks of a training, which TensorFlow numbers in this order. ``status``: the program's exit status.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return find_reason(plain_lines(file.read().decode(errors="replace")), own, tasks, status)
    except OSError:
        return None


def find_reason(lines: list[str], own: str = "", tasks: Sequence[str] = (), status: str = "") -> Reason | None:
    """Return the reason in the lines of an output.

    It is the exception of the last traceback and, without one, the last line with an exception. Without both, it is the last line
    of a program that exited with status 1, as ``sys.exit`` does after it has printed a text.
    """
    begins = [place for place, line in enumerate(lines) if line.startswith("[training] attempt ")]
    lines = without_ignored(lines[begins[-1] :] if begins else lines)
    lines = without_margins(lines)
    names = names_in(tasks)
    job, _colon, index = next((name for name, known in names.items() if known == own), own).partition(":")
    here = re.compile(rf"/job:{job}/(?:replica:\d+/)?task:{index}\b")
    for place, exception, first in exceptions(lines):
        message = [first or "", *(lines[place + 1 :] if first is not None else [])]
        end = next((at for at, line in enumerate(message) if at and AFTER.match(line)), None)
        text = "\n".join([exception, *message[:end]])
        line = meaningful(message[:end])
        task = TASK.search(line) or TASK.search(text)  # the text may begin with the task that only passed the error on
        elsewhere = here.sub("", text)  # the program's own task has its files
        remedy = next((sentence for pattern, sentence in REMEDIES if re.search(pattern, elsewhere)), "")
        found = f"{task[1]}:{task[2]}" if task else ""
        return Reason(exception, line, names.get(found, found), remedy)
    if status != "1" or any(line.startswith(TRACEBACK) for line in lines[oldest(lines) :]):  # an incomplete one
        return None
    last = next((line for line in reversed(lines) if line.strip() and not AFTER.match(line)), "")
    return Reason("", shortened(last.strip()), "", "") if last else None


def remedy_of(noted: Mapping[str, Any]) -> list[str]:
    """Return the remedy for a failed run as a sentence, if its failure does not contain it.

    If a task was lost, the sentence on that task says more.
    """
    remedy = (noted.get("reason") or {}).get("remedy", "")
    return [f"{remedy}."] if remedy and remedy not in noted["failure"] and not noted.get("failed_tasks") else []


def last_tasks(training: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """Return the tasks of the last attempt of a training, of which the first is the chief; ``part`` is what part.json has."""
    return list(part["history"][-1]["tasks"] if part.get("history") else training.get("machines", []))


def names_in(tasks: Sequence[str]) -> dict[str, str]:
    """Return TensorFlow's names of the tasks of a training, whose indices are contiguous -> their names in the cluster."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for task in tasks:
        job = task.partition(":")[0]
        names[f"{job}:{counts.setdefault(job, 0)}"] = task
        counts[job] += 1
    return names


def without_ignored(lines: list[str]) -> list[str]:
    """Return the lines without exceptions that Python ignored, for example in a destructor at its exit."""
    kept, ignores = [], False
    for line in lines:
        if line.startswith("Exception ignored "):
            ignores = True
        elif not ignores:
            kept.append(line)
        elif line[:1].strip() and not line.startswith(TRACEBACK):
            ignores = False  # the line with the exception ends it
    return kept


def without_margins(lines: list[str]) -> list[str]:
    """Return the lines without the margins of the last exception group."""
    place = max((place for place, line in enumerate(lines) if GROUP.match(line)), default=len(lines))
    return lines[:place] + [MARGIN.sub("", line, count=1) for line in lines[place:]]


def exceptions(lines: list[str]) -> list[tuple[int, str, str | None]]:
    """Return place, type and first line (None: no message) of the exception that ended the program, if there is one."""
    begins = [place for place, line in enumerate(lines) if line.startswith(TRACEBACK)]
    # A thread's exception does not end the program.
    begins = [place for place in begins if not (place and lines[place - 1].startswith("Exception in thread"))] or begins
    if begins and (found := raised(lines, begins[-1])) and found[0] >= oldest(lines):
        group = next((group for begin in begins if (group := raised(lines, begin)) and group[1].endswith(GROUP_CLASS)), None)
        inner = group
        while inner and inner[1].endswith(GROUP_CLASS):
            inner = raised(lines, inner[0])  # below a group are the exceptions in it, of which the first one counts
        if group and inner:
            return [(inner[0], group[1], f"{group[2]}: {inner[1]}: {inner[2] or ''}")]
        return [found]
    for place in reversed(range(oldest(lines), len(lines))):
        printed = PRINTED.fullmatch(lines[place])
        if printed:
            return [(place, printed[1], printed[2])]
    return []


def oldest(lines: list[str]) -> int:
    """Return the place from which a line can have the exception that ended the program."""
    places = [place for place, line in enumerate(lines) if not STACK.match(line)]
    return places[-MAX_LINES] if len(places) >= MAX_LINES else 0


def raised(lines: list[str], begin: int) -> tuple[int, str, str | None] | None:
    """Return place, type and first line of the exception whose traceback begins at a line."""
    for place in range(begin + 1, len(lines)):
        found = RAISED.fullmatch(lines[place])
        if found:
            return (place, found[1] or found[3], found[4] if found[3] else found[2])
    return None


def meaningful(message: list[str]) -> str:
    """Return the first line of a message that says what happened."""
    texts = [line.strip() for line in message]
    if texts[0] == "in user code:":  # the stack of a tf.function, then the exception
        texts = [raised[2] for text in texts if (raised := PRINTED.fullmatch(text))] or texts[1:]
    nodes = [place for place, text in enumerate(texts) if text.startswith("Node: ")]
    if "Graph execution error:" in texts[:2] and nodes:
        texts = texts[nodes[-1] + 1 :]  # between lies the stack of the graph's definition
    found = next((text for text in texts if text and not PREAMBLE.match(text)), "")
    return shortened(PREFIX.sub("", found, count=1))


def shortened(text: str) -> str:
    """Return a text with at most MAX_CHARACTERS characters."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."
