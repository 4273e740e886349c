"""Measure the cluster through TensorFlow: links between tasks and the speed of each task. playbooks/benchmark.yml runs it.

    benchmark.py '{"seconds": 30, "tasks": {"10.0.0.5:2222": ["worker:0", "machine-a", 0]}, "network": [], "notes": []}'

``tasks``: address -> name in the cluster, machine and number of GPUs. ``network``: results of iperf3, a list of ``from``, ``to``
(machines) and ``gigabytes_per_second``; ``notes``: sentences on it. Prints tables and writes ``benchmark.json`` and
``result.json`` with the same content. Exit status 1 if a task or a link could not be measured.

A link's rate is the bytes per second of a whole step that moves a variable between the main memories of two tasks. Its latency is
the time of a step that moves four bytes. All values are medians; GB are 1e9 bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tf_cluster.spec.cluster_config import RUN_JOBS
from tf_cluster.table import table

if TYPE_CHECKING:
    import tensorflow as tf

Item = TypeVar("Item")
Result = TypeVar("Result")

FORMAT = "tf-cluster-benchmark-1"
SMALL, LARGE = 1_000_000, 64_000_000  # bytes per step
LARGE_STEP_SECONDS = 0.25  # for a large step: slow links get a smaller size
EMPTY_STEPS = 21
STEP_LIMIT_SECONDS = 8.0
LINK_LIMIT_SECONDS, DEVICE_LIMIT_SECONDS = 12.0, 24.0  # then a link or a device counts as failed
CPU_SIZE, GPU_SIZE = 2048, 8192  # of the square matrices
MAX_CHAIN = 32  # products per step, if one is too short compared with the step's overhead
# Typical seconds per link and device; if the total is too long, several are measured in parallel.
LINK_SECONDS, DEVICE_SECONDS = 0.6, 0.8
COMPUTE_SHARE = 0.25  # of the time, for the devices
MAX_ROWS = 60  # of the table of links
FAR_BELOW = 0.5  # of the median


class Task(NamedTuple):
    """A task: name in the cluster, device name in this run, address, machine and number of GPUs."""

    name: str
    device: str
    entry: str
    machine: str
    gpus: int


def standing(spec: dict[str, list[str]], known: dict[str, list[Any]], run_jobs: tuple[str, ...]) -> list[Task]:
    """Return the tasks of a cluster spec, without the jobs ``run_jobs``."""
    found = []
    for job in spec:
        for index, entry in enumerate(spec[job] if job not in run_jobs else []):
            name, machine, gpus = known[entry]
            found.append(Task(name, f"/job:{job}/task:{index}", entry, machine, gpus))
    return found


def rounds(tasks: list[Task]) -> list[list[tuple[Task, Task]]]:
    """Return all ordered pairs of tasks in rounds: in each, every task sends once and receives once.

    Rounds with the most links between different machines come first, because they matter most.
    """
    count = len(tasks)
    found = [[(task, tasks[(place + shift) % count]) for place, task in enumerate(tasks)] for shift in range(1, count)]
    return sorted(found, key=lambda pairs: sum(sender.machine == receiver.machine for sender, receiver in pairs))


def batches(items: list[Item], machines_of: Callable[[Item], Iterable[str]], most: int) -> list[list[Item]]:
    """Return the items in groups of at most ``most`` to measure in parallel, no machine twice in a group."""
    found: list[tuple[set[str], list[Item]]] = []
    for item in items:
        machines = set(machines_of(item))
        place = next((group for group in found if len(group[1]) < most and not machines & group[0]), None)
        if place is None:
            place = (set(), [])
            found.append(place)
        place[0].update(machines)
        place[1].append(item)
    return [group for _machines, group in found]


def concurrency(count: int, each: float, seconds: float) -> int:
    """Return how many of ``count`` items must be measured in parallel to fit into ``seconds``, at least one."""
    return max(1, math.ceil(count * each / seconds))


def large_size(small: float, empty: float) -> int:
    """Return the large size of a link in bytes, from the seconds of a small and an empty step."""
    each = max(small - empty, 1e-9) / SMALL
    return int(min(LARGE, max(SMALL, LARGE_STEP_SECONDS / each))) // 4 * 4


def attempt(work: Callable[[Item], Result], items: list[Item], seconds: float) -> list[Result | Exception]:
    """Do the work for all items in parallel; return a value or an exception for each.

    After ``seconds``, unfinished work is abandoned, because a session on a frozen task cannot be closed.
    """
    done: dict[int, Result | Exception] = {}

    def one(place: int, item: Item) -> None:
        try:
            done[place] = work(item)
        except Exception as error:  # TensorFlow's errors have no other common class
            done[place] = error

    threads = [threading.Thread(target=one, args=pair, daemon=True) for pair in enumerate(items)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [done.get(place, TimeoutError(f"timed out after {seconds:.0f} s")) for place in range(len(items))]


def reason_of(error: Exception) -> str:
    """Return the type and the first non-empty line of an error."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def timed(call: Callable[[], object], spent: float, least: int, most: int) -> list[float]:
    """Repeat a call until ``spent`` seconds have passed; return the seconds of each call."""
    taken: list[float] = []
    while len(taken) < least or (len(taken) < most and sum(taken) < spent):
        begun = time.monotonic()
        call()
        taken.append(time.monotonic() - begun)
    return taken


class Benchmark:
    """The measurements, through sessions on this run's server."""

    def __init__(self, target: str, own: str, tasks: list[Task], seconds: float) -> None:
        import tensorflow as tf

        self.tf, self.v1, self.target, self.own = tf, tf.compat.v1, target, own
        self.tasks, self.seconds = tasks, seconds
        self.begun = time.monotonic()
        self.failed: dict[str, str] = {}  # task -> why it is no longer measured
        self.computed: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.printed_at = -math.inf
        # Unclosed sessions: closing a session with a lost task would hang.
        self.kept: list[tf.compat.v1.Session] = []

    def left(self) -> float:
        """Return the remaining seconds."""
        return self.begun + self.seconds - time.monotonic()

    def progress(self, text: str) -> None:
        """Print the progress, at most once a second."""
        if time.monotonic() - self.printed_at >= 1:
            self.printed_at = time.monotonic()
            print(f"{text}  ({self.printed_at - self.begun:.0f} s of at most {self.seconds:.0f})", flush=True)

    @contextlib.contextmanager
    def session(self, *tasks: Task) -> Iterator[tf.compat.v1.Session]:
        """Open a session on these tasks only, with its own state. It is closed only after success."""
        config = self.v1.ConfigProto(
            # Include this task: a run without some tasks does not include it implicitly.
            device_filters=[self.own, *(task.device for task in tasks)],
            operation_timeout_in_ms=int(STEP_LIMIT_SECONDS * 1000),
            isolate_session_state=True,
        )
        # No optimisation: it would move and fold the operations.
        config.graph_options.optimizer_options.opt_level = self.v1.OptimizerOptions.L0
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        with self.tf.Graph().as_default():
            session = self.v1.Session(self.target, config=config)
            self.kept.append(session)
            yield session
            session.close()
            self.kept.remove(session)

    def variable(self, name: str, device: str, value: Callable[[], tf.Tensor]) -> tf.Variable:
        """Return a variable on a device, initialised there by the function ``value``."""
        with self.tf.device(device):
            return self.v1.get_variable(name, initializer=value())

    def link(self, sender: Task, receiver: Task, spent: float) -> dict[str, Any]:
        """Measure a link; ``spent``: seconds for the large steps."""
        tf, source, goal = self.tf, f"{sender.device}/device:CPU:0", f"{receiver.device}/device:CPU:0"

        def moving(count: int) -> Callable[[], object]:
            held = self.variable(f"of_{count}", source, lambda: tf.ones([count]))
            with tf.device(goal):
                moved = tf.identity(held).op
            session.run(held.initializer)
            call: Callable[[], object] = session.make_callable(moved)  # fetches nothing, so the result stays on the receiver
            call()
            return call

        with self.session(sender, receiver) as session:
            empty = statistics.median(timed(moving(1), 0, EMPTY_STEPS, EMPTY_STEPS))
            small = statistics.median(timed(moving(SMALL // 4), spent / 4, 3, 9))
            size = large_size(small, empty)
            large = small if size == SMALL else statistics.median(timed(moving(size // 4), spent, 3, 9))
        return {
            "step_milliseconds": empty * 1e3,
            "bytes": size,
            "gigabytes_per_second": size / 1e9 / large,
            "small_bytes": SMALL,
            "small_gigabytes_per_second": SMALL / 1e9 / small,
        }

    def products(self, task: Task, device: str, spent: float) -> dict[str, Any]:
        """Measure a device's matrix products for ``spent`` seconds. GPUs use TF32 if available."""
        tf, size, place = self.tf, GPU_SIZE if device.startswith("GPU") else CPU_SIZE, f"{task.device}/device:{device}"

        def chain(count: int) -> Callable[[], object]:
            with tf.device(place):
                made = factor
                for _each in range(count):
                    made = tf.matmul(factor, made)
            with tf.device(f"{task.device}/device:CPU:0"):
                call: Callable[[], object] = session.make_callable(tf.identity(made[0, 0]))  # also waits for the GPU
            return call

        with self.session(task) as session:
            width = math.sqrt(3 / size)  # keeps the magnitude of the products
            factor = self.variable("factor", place, lambda: tf.random.uniform([size, size], -width, width))
            session.run(factor.initializer)
            call, count = chain(1), 1
            taken = timed(call, 0, 1, 1)
            if taken[0] < spent / 2:  # otherwise the warm-up step must suffice
                taken = timed(call, 0, 1, 1)
            if taken[0] < spent / 20:
                count = min(MAX_CHAIN, int(spent / 10 / taken[0]))
                call, taken = chain(count), []
                call()
            taken += timed(call, spent / 2 - sum(taken), 0 if taken else 1, 9)
        return {"size": size, "gigaflops": 2 * size**3 * count / 1e9 / statistics.median(taken)}

    def compute(self) -> None:
        """Measure all devices, in parallel if there are many."""
        devices = [(task, name) for task in self.tasks for name in ("CPU:0", *(f"GPU:{place}" for place in range(task.gpus)))]
        seconds = self.seconds * COMPUTE_SHARE
        most = concurrency(len(devices), DEVICE_SECONDS, seconds)
        spent = min(1.0, most * seconds / len(devices))
        for group in batches(devices, lambda item: [item[0].machine], most):
            group = [(task, device) for task, device in group if task.name not in self.failed]
            answers = attempt(lambda item: self.products(*item, spent), group, DEVICE_LIMIT_SECONDS)
            self.find_failed([task for (task, _device), answer in zip(group, answers) if isinstance(answer, Exception)])
            for (task, device), answer in zip(group, answers):
                answer = {"failure": reason_of(answer)} if isinstance(answer, Exception) else answer
                self.computed.append({"task": task.name, "machine": task.machine, "device": device, **answer})
            self.progress(f"computed: {len(self.computed)} of {len(devices)} devices")

    def move(self) -> int:
        """Measure the links, round by round within the time; return the number of parallel links."""
        planned = rounds(self.tasks)
        count = sum(map(len, planned))
        most = concurrency(len(self.tasks), LINK_SECONDS, max(1.0, self.left()))
        spent = min(0.4, max(0.1, most * self.left() / max(1, count) / 2))
        begun = time.monotonic()
        for number, pairs in enumerate(planned):
            mean = (time.monotonic() - begun) / max(1, number)
            if number and mean > self.left():
                break
            for group in batches(pairs, lambda pair: [pair[0].machine, pair[1].machine], most):
                self.move_group(group, spent)
                self.progress(f"links: {len(self.links)} of {count}")
        return most

    def move_group(self, group: list[tuple[Task, Task]], spent: float) -> None:
        """Measure some links in parallel."""
        alive = [pair for pair in group if not {task.name for task in pair} & self.failed.keys()]
        late = self.left() < -self.seconds  # failing links take long: stop at twice the time
        answers = [] if late else attempt(lambda pair: self.link(*pair, spent), alive, LINK_LIMIT_SECONDS)
        answer_of = dict(zip(alive, answers))
        self.find_failed(list({task for pair in alive if isinstance(answer_of.get(pair), Exception) for task in pair}))
        for pair in group:
            sender, receiver = pair
            answer = answer_of.get(pair)
            if answer is None or isinstance(answer, Exception):
                dead = [f"{task.name} does not answer" for task in pair if task.name in self.failed]
                answer = {"failure": " and ".join(dead) or (reason_of(answer) if answer else "no time was left")}
            about = {"from": sender.name, "to": receiver.name, "from_machine": sender.machine, "to_machine": receiver.machine}
            self.links.append({**about, **answer})

    def find_failed(self, tasks: list[Task]) -> None:
        """Mark the tasks that do not answer as failed."""
        from tf_cluster import api

        asked = attempt(lambda task: api.answers(("", 0), task.entry), tasks, 5)
        silent = [task for task, answer in zip(tasks, asked) if isinstance(answer, Exception) or not answer]
        self.failed |= {task.name: "does not answer" for task in silent}


def with_network(links: list[dict[str, Any]], network: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the links, each with the measured network rate between its machines, if any."""
    rates = {(row["from"], row["to"]): row["gigabytes_per_second"] for row in network}
    return [{**row, "network_gigabytes_per_second": rates.get((row["from_machine"], row["to_machine"]))} for row in links]


def findings(result: dict[str, Any]) -> list[str]:
    """Return sentences: what failed, the slowest link, the slowest task, and how much was measured."""
    lines = [f"{task} FAILED: it {reason}" for task, reason in result["failed"].items()]
    lines += [
        f"{row['device']} of {row['task']} FAILED: {row['failure']}"
        for row in result["computed"]
        if "failure" in row and row["task"] not in result["failed"]
    ]
    unmeasured = [row for row in result["links"] if "failure" in row]
    own = [row for row in unmeasured if not {row["from"], row["to"]} & result["failed"].keys()]
    lines += [f"The link {row['from']} -> {row['to']} FAILED: {row['failure']}" for row in own[:5]]
    lines += [f"{len(own) - 5} more links FAILED: benchmark.json has them."] if len(own) > 5 else []
    rated = [row for row in result["links"] if "failure" not in row]
    if rated:
        slowest, usual = extreme(rated, "gigabytes_per_second")
        where = f"{slowest['from']} ({slowest['from_machine']}) -> {slowest['to']} ({slowest['to_machine']})"
        lines.append(f"The slowest link: {where}, {compared(slowest['gigabytes_per_second'], usual, 'GB/s')}")
        slow = sum(row["gigabytes_per_second"] < FAR_BELOW * usual for row in rated)
        lines[-1] += f" (one of {slow} such links)" if slow > 1 else ""
    for kind in ("CPU", "GPU"):
        rows = [row for row in result["computed"] if row["device"].startswith(kind) and "failure" not in row]
        if rows:
            slowest, usual = extreme(rows, "gigaflops")
            where = f"{slowest['task']} ({slowest['machine']}) on {slowest['device']}"
            lines.append(f"The slowest task{' by GPU' if kind == 'GPU' else ''}: {where}, ")
            lines[-1] += compared(slowest["gigaflops"], usual, "GFLOP/s")
    several = f", {result['links_at_once']} at once" if result["links_at_once"] > 1 else ""
    pairs, made = len(result["tasks"]) * (len(result["tasks"]) - 1), len(result["links"])
    lines.append(f"Measured {len(rated)} of {pairs} links between {len(result['tasks'])} tasks{several}.")
    if made < pairs:
        lines[-1] += (
            " NOT ALL: more do not fit into the time (benchmark_seconds). Each task sends "
            f"{made // len(result['tasks'])} times and receives as often."
        )
    return [*lines, *result["notes"]]


def extreme(rows: list[dict[str, Any]], what: str) -> tuple[dict[str, Any], float]:
    """Return the row with the smallest value, and the median of all."""
    return min(rows, key=lambda row: row[what]), statistics.median(row[what] for row in rows)


def compared(value: float, usual: float, unit: str) -> str:
    """Return a value and its ratio to the median, as text."""
    share = value / usual
    return f"{number(value)} {unit}, {share:.0%} of the median{': FAR BELOW the others' if share < FAR_BELOW else ''}"


def tables(result: dict[str, Any]) -> list[str]:
    """Return the lines of two tables: devices and links."""
    shown = sorted(result["links"], key=lambda row: row.get("gigabytes_per_second", -1))[:MAX_ROWS]
    computed = [
        [row["task"], row["machine"], row["device"], number(row.get("gigaflops")), row.get("failure", "")]
        for row in result["computed"]
    ]
    lines = table([["task", "machine", "device", "GFLOP/s"], *computed])
    if len(shown) < len(result["links"]):
        lines += ["", f"The slowest {MAX_ROWS} of {len(result['links'])} links; benchmark.json has all:"]
    else:
        shown = result["links"]
    rows = [
        [
            row["from"], row["to"], f"{row['from_machine']} -> {row['to_machine']}", number(row.get("gigabytes_per_second")),
            f"{row['bytes'] / 1e6:.0f}" if "bytes" in row else "-", number(row.get("small_gigabytes_per_second")),
            number(row.get("step_milliseconds")), number(row["network_gigabytes_per_second"]), row.get("failure", ""),
        ]
        for row in shown
    ]  # fmt: skip
    heads = ["from", "to", "machines", "GB/s", "of MB", "GB/s of 1 MB", "ms a step", "GB/s by iperf3"]
    return [*lines, "", *table([heads, *rows])]


def number(value: float | None) -> str:
    """Return a number with three significant digits, or a dash."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def measured(benchmark: Benchmark, about: dict[str, Any], most: int) -> dict[str, Any]:
    """Return the content of benchmark.json."""
    result = {
        "format": FORMAT,
        "seconds": round(time.monotonic() - benchmark.begun, 2),
        "most_seconds": benchmark.seconds,
        "tasks": [task.name for task in benchmark.tasks],
        "failed": benchmark.failed,
        "computed": benchmark.computed,
        "links": with_network(benchmark.links, about["network"]),
        "links_at_once": most,
        "network": about["network"],
        "notes": about["notes"],
    }
    if os.environ.get("TF_CLUSTER_MISSING"):
        result["notes"] = [f"Not measured, because they did not answer: {os.environ['TF_CLUSTER_MISSING']}.", *about["notes"]]
    return {**result, "findings": findings(result)}


def main() -> None:
    """Measure, print, and write the files."""
    about = json.loads(sys.argv[1])
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # hides warnings about missing GPUs
    import tensorflow as tf

    import tf_cluster

    tf.compat.v1.disable_eager_execution()
    spec = tf_cluster.cluster()
    tasks = standing(spec, about["tasks"], RUN_JOBS)
    job, index = tf_cluster.task()
    server = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name=job, task_index=index)
    benchmark = Benchmark(server.target, f"/job:{job}/task:{index}", tasks, float(about["seconds"]))
    benchmark.compute()
    most = benchmark.move()
    result = measured(benchmark, about, most)
    print("\n".join(["", *tables(result), "", *result["findings"]]), flush=True)
    Path(os.environ.get("TF_RUN_DIR", "."), "benchmark.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    tf_cluster.save_result({"benchmark": result})
    sys.stdout.flush()
    wrong = any("failure" in row for row in (*result["links"], *result["computed"]))
    os._exit(1 if wrong or result["failed"] else 0)  # abandoned sessions would hang


if __name__ == "__main__":
    main()
