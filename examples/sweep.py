r"""Hyper-parameter sweep: each run trains on one worker with another rate, as many at the same time as there are workers.

    for rate in 0.01 0.1 1; do
      ansible-playbook playbooks/run.yml -e program=examples/sweep.py -e program_data=output/digits.npz -e program_args=$rate \
        -e run_name=rate-$rate -e run_tasks=1 -e detach=true
    done

The runs continue with nobody connected. playbooks/runs.yml lists them, playbooks/attach.yml -e run=ID waits for one and collects
it. Output of the second run:

    rate 0.1: accuracy 0.935
"""

import sys

import numpy as np
import tensorflow as tf
import tf_cluster

rate, EPOCHS, BATCH = float(sys.argv[1]), 10, 50

tf_cluster.connect()
with np.load("digits.npz") as digits:
    train, test = (digits["train_x"], digits["train_y"]), (digits["test_x"], digits["test_y"])
with tf.device(tf_cluster.on("worker", 0)):
    weights = [tf.Variable(tf.zeros([64, 10])), tf.Variable(tf.zeros([10]))]


@tf.function
def epoch(x, y):
    """Train with each batch once."""
    for start in tf.range(0, len(y) - BATCH + 1, BATCH):
        with tf.GradientTape() as tape:
            logits = x[start : start + BATCH] @ weights[0] + weights[1]
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y[start : start + BATCH], logits))
        for weight, gradient in zip(weights, tape.gradient(loss, weights)):
            weight.assign_sub(rate * gradient)
    return loss


with tf.device(tf_cluster.on("worker", 0)):
    x, y = tf.constant(train[0]), tf.constant(train[1])
    for number in range(1, EPOCHS + 1):
        tf_cluster.step(number, of=EPOCHS, loss=float(epoch(x, y)))
    guesses = tf.argmax(tf.constant(test[0]) @ weights[0] + weights[1], axis=1)
accuracy = float(np.mean(guesses.numpy() == test[1]))
print(f"rate {rate}: accuracy {accuracy:.3f}")
tf_cluster.save_result({"rate": rate, "accuracy": accuracy, "device": weights[0].device})
