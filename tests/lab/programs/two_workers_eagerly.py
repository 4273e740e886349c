"""Compute on two workers with eager operations and a tf.function for a few seconds."""

import argparse
import time

import tensorflow as tf
import tf_cluster

parser = argparse.ArgumentParser()
parser.add_argument("--seconds", type=float, default=2)
options = parser.parse_args()
tf_cluster.connect()


@tf.function
def step(a, b):
    """Multiply on the first worker, and use the product on the second."""
    with tf.device(tf_cluster.on("worker", 0)):
        product = tf.matmul(a, b)
    with tf.device(tf_cluster.on("worker", 1)):
        return tf.reduce_sum(tf.math.log(1 + product * product))


a, b = tf.random.stateless_normal((200, 200), (1, 2)), tf.random.stateless_normal((200, 200), (3, 4))
total = float(step(a, b))  # traced
steps, begun = 0, time.monotonic()
while time.monotonic() < begun + options.seconds:
    with tf.device(tf_cluster.on("worker", 0)):
        shifted = tf.add(a, 0.001)
    total = float(step(shifted, b))
    steps += 1
tf_cluster.save_result({"total": total, "steps_per_second": steps / (time.monotonic() - begun)})
