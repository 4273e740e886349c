"""Copies tensors to GPUs of the workers and back, and records what TensorFlow says to requests that must fail.

gpu_memory.py DEVICE BYTES...     result.json: bytes -> the sum of the numbers that came back, or the error
"""

import json
import os
import pathlib
import sys

import tensorflow as tf

v1 = tf.compat.v1
v1.disable_eager_execution()
spec = json.loads(pathlib.Path(os.environ["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8"))
server = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name="host", task_index=0)
device, sizes = sys.argv[1], [int(word) for word in sys.argv[2:]]
processor = device.partition("/device:")[0] + "/device:CPU:0"
# Each operation runs where it is placed: TensorFlow would fold constants on the processor.
config = v1.ConfigProto(operation_timeout_in_ms=60_000)
config.graph_options.optimizer_options.opt_level = v1.OptimizerOptions.L0
config.graph_options.rewrite_options.disable_meta_optimizer = True


def attempt(make):
    """Run one operation in a session of its own; return its value or the error."""
    with tf.Graph().as_default(), v1.Session(server.target, config=config) as session:
        try:
            return float(session.run(make()))
        except tf.errors.OpError as error:
            return f"{type(error).__name__}: {error}"


def copy(size):
    """Return the sum of ones that were copied to the GPU and back."""
    with tf.device(processor):
        numbers = tf.fill([size // 4], 1.0)
    with tf.device(device):
        copied = tf.identity(numbers)
    with tf.device(processor):
        return tf.reduce_sum(copied)


def exponential():
    """Return what the GPU itself has to compute."""
    with tf.device(device):
        return tf.exp(tf.constant(1.0))


found = {str(size): attempt(lambda size=size: copy(size)) for size in sizes}
found["exp"] = attempt(exponential)
pathlib.Path(os.environ["TF_RUN_DIR"], "result.json").write_text(json.dumps(found), encoding="utf-8")
