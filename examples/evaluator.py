"""Evaluator: while the workers train, the task evaluator:0 computes the accuracy of the weights so far.

    ansible-playbook playbooks/run.yml -e program=examples/evaluator.py -e program_data=output/digits.npz -e run_task=chief:0

This program is chief:0. It distributes the steps to the workers, and does not wait for them while it evaluates. Output:

    accuracy 0.940 so far
    accuracy 0.950 after 500 steps, computed on /job:evaluator/replica:0/task:0/device:CPU:0
"""

import time

import numpy as np
import tensorflow as tf
import tf_cluster

STEPS, BATCH, RATE = 500, 50, 0.2

strategy = tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
with np.load("digits.npz") as digits:
    train, test = (digits["train_x"], digits["train_y"]), (digits["test_x"], digits["test_y"])
with strategy.scope():
    weights = [tf.Variable(tf.zeros([64, 10])), tf.Variable(tf.zeros([10]))]


def batches():
    """Return a worker's batches."""
    return tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1])).repeat().batch(BATCH)


@tf.function
def step(iterator):
    """Do one step on one worker."""
    x, y = next(iterator)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, x @ weights[0] + weights[1]))
    for weight, gradient in zip(weights, tape.gradient(loss, weights)):
        weight.assign_sub(RATE * gradient)


with tf.device(tf_cluster.on("evaluator", 0)):
    test_x, test_y = tf.constant(test[0]), tf.constant(test[1])


def evaluate():
    """Return the accuracy, computed by the evaluator, and its device."""
    with tf.device(tf_cluster.on("evaluator", 0)):
        guesses = tf.argmax(test_x @ tf.identity(weights[0]) + weights[1], axis=1)
        accuracy = tf.reduce_mean(tf.cast(guesses == test_y, tf.float32))
    return float(accuracy), accuracy.device


iterator = iter(coordinator.create_per_worker_dataset(batches))
for _number in range(STEPS):
    coordinator.schedule(step, args=(iterator,))
found = []
while not coordinator.done():
    accuracy, device = evaluate()
    found.append(accuracy)
    print(f"accuracy {accuracy:.3f} so far", flush=True)
    time.sleep(0.2)
coordinator.join()
accuracy, device = evaluate()
print(f"accuracy {accuracy:.3f} after {STEPS} steps, computed on {device}")
tf_cluster.save_result({"accuracy": accuracy, "device": device, "so_far": found})
