"""Start the servers of a cluster, and measure: start, bandwidth, latency, computation.

The job names ``servers`` (for each its ``command`` and ``environment``; none: TensorFlow computes in this process), their
``addresses`` and what to ``measure``: ``everything``, or ``start``, how long it takes until all of them answer.
"""

import concurrent.futures
import contextlib
import itertools
import os
import socket
import subprocess
import threading
import time

import measures

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import tensorflow as tf

v1 = tf.compat.v1
v1.disable_eager_execution()
DEADLINE = 60_000  # milliseconds that a step may take
WINDOW = 3.0  # seconds for which two tasks compute at the same time
SIDE = 2048  # of the matrices
LAYERS, BATCH = (784, 512, 512, 10), 128  # of the network
CHAIN = 100


def config(job, optimised=True):
    """Return a session's configuration. Without the optimiser the graph runs as it stands, and nothing is folded away."""
    options = v1.ConfigProto(operation_timeout_in_ms=DEADLINE)
    options.graph_options.rewrite_options.disable_meta_optimizer = not optimised
    return options


def target(job, task):
    """Return what a session on a task is opened with: nothing where TensorFlow computes in this process."""
    return f"grpc://{job['addresses'][task]}" if job["addresses"] else ""


def on(job, task):
    """Return where operations of a task are placed."""
    return tf.device(f"/job:worker/task:{task}" if job["addresses"] else None)


def listens(address):
    """Return whether a process accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


def answers(job, task):
    """Wait until a task answers at TensorFlow's level: it says which devices it has."""
    host, port = job["addresses"][task].rsplit(":", 1)
    # Not by gRPC from the start: it would try again only a second after a connection was refused.
    measures.until(lambda: listens((host, int(port))), 60)
    options = v1.ConfigProto(operation_timeout_in_ms=DEADLINE, device_filters=[f"/job:worker/task:{task}"])
    with tf.Graph().as_default(), v1.Session(target(job, task), config=options) as session:
        if not session.list_devices():
            raise RuntimeError(f"task {task} has no device")


def start(job, tasks):
    """Start servers at once and return how long it took until the last one answered, in seconds from its process's start."""

    def one(task):
        begun = time.perf_counter()
        server = job["servers"][task]
        subprocess.Popen(server["command"], env=server["environment"])
        answers(job, task)
        return time.perf_counter() - begun

    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        return max(pool.map(one, tasks))


@contextlib.contextmanager
def moving(job, size, count):
    """Read variables of task 1 on task 0; nothing large comes to this process."""
    graph = tf.Graph()
    with graph.as_default():
        with on(job, 1):
            sources = [v1.get_variable(f"source{i}", initializer=tf.ones([size // 4])) for i in range(count)]
            read = [tf.identity(source) for source in sources]
        with on(job, 0):
            step = tf.group(*(tf.identity(one)[0] for one in read))
        ready = v1.global_variables_initializer()
    with v1.Session(target(job, 0), graph=graph, config=config(job, optimised=False)) as session:
        session.run(ready)
        call = session.make_callable(step)

        def move():
            with measures.timer() as taken:
                call()
            return taken[0]

        yield move


def latency(job):
    """Return how long a step takes that does nearly nothing on two tasks, and a chain that goes to and fro, in milliseconds."""
    graph = tf.Graph()
    with graph.as_default():
        with on(job, 1):
            number = v1.get_variable("number", initializer=tf.ones([]))
            there = tf.identity(number)
        with on(job, 0):
            empty = tf.identity(there).op
        chain = number
        for link in range(CHAIN):
            with on(job, link % 2):
                chain = chain + 1.0
        ready = v1.global_variables_initializer()
    with v1.Session(target(job, 0), graph=graph, config=config(job, optimised=False)) as session:
        session.run(ready)
        return {
            "empty step": 1000 * measures.seconds(session.make_callable(empty), 200, 10),
            "chain": 1000 * measures.seconds(session.make_callable(chain.op), 30, 5),
        }


def product(job, task):
    """Return a matrix product on a task as an operation, and how much one run of it counts for, in GFLOP."""
    with on(job, task):
        a, b = (v1.get_variable(name, initializer=tf.random.uniform([SIDE, SIDE])) for name in "ab")
        return tf.linalg.matmul(a, b).op, 2 * SIDE**3 / 1e9


def training(job, task):
    """Return a training step of a small dense network on a task as an operation, and how much one run of it counts for: 1."""
    with on(job, task):
        values = v1.get_variable("examples", initializer=tf.random.uniform([BATCH, LAYERS[0]]), trainable=False)
        labels = v1.get_variable("labels", initializer=tf.one_hot(tf.range(BATCH) % LAYERS[-1], LAYERS[-1]), trainable=False)
        weights = [
            v1.get_variable(f"weights{i}", initializer=tf.random.normal(shape, stddev=0.05))
            for i, shape in enumerate(itertools.pairwise(LAYERS))
        ]
        for i, weight in enumerate(weights):
            values = tf.linalg.matmul(values, weight)
            values = tf.nn.relu(values) if i < len(weights) - 1 else values
        loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, values))
        slopes = tf.gradients(loss, weights)
        return tf.group(*(v1.assign_sub(weight, 0.01 * slope) for weight, slope in zip(weights, slopes))), 1


def computes(job, computation, tasks):
    """Return how much tasks compute that run at the same time, all together, a second (GFLOP/s, or steps/s)."""
    begin, amounts = threading.Barrier(len(tasks)), []

    def one(task):
        graph = tf.Graph()
        with graph.as_default():
            operation, worth = computation(job, task)
            ready = v1.global_variables_initializer()
        with v1.Session(target(job, task), graph=graph, config=config(job)) as session:
            session.run(ready)
            step, done = session.make_callable(operation), 0
            for _time in range(measures.WARM):
                step()
            begin.wait(60)
            begun = time.perf_counter()
            while time.perf_counter() - begun < WINDOW:
                step()
                done += 1
            amounts.append(worth * done / (time.perf_counter() - begun))

    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        list(pool.map(one, tasks))
    return sum(amounts)


def measure(job):
    """Return the figures that the job asks for."""
    figures, tasks = {}, range(len(job["servers"]))
    if job["measure"] == "start":
        return {"start of eight": start(job, tasks)}
    if tasks:
        figures["start"] = start(job, tasks[:1])
        start(job, tasks[1:])
        figures |= measures.rates(lambda size, count: moving(job, size, count))
        figures |= latency(job)
    for name, computation in (("product", product), ("training", training)):
        figures[name] = computes(job, computation, [0])
        if tasks:
            figures[f"{name}, two tasks"] = computes(job, computation, tasks)
    return figures


def main():
    """Measure what the job asks for."""
    job = measures.job()
    measures.leave(job, f"TensorFlow {tf.__version__}", measure(job))


main()
