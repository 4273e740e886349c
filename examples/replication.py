"""Between-graph replication: each worker builds the same graph and trains with its own digits, without waiting for the others.

    ansible-playbook playbooks/train.yml -e program=examples/replication.py -e program_data=output/digits.npz

The variables are on the first worker, which also initializes and saves them. The others find them by name. Output:

    step 300 of 300, loss 0.1775
    accuracy 0.980 on 397 test digits
"""

import os
import time

import numpy as np
import tensorflow as tf
import tf_cluster

STEPS, BATCH, RATE = 300, 50, 0.2  # of each worker

v1 = tf.compat.v1
v1.disable_eager_execution()
job, index = tf_cluster.task()
workers, own, first = len(tf_cluster.cluster()[job]), tf_cluster.on(job, index), tf_cluster.on(job, 0)
server = tf.distribute.Server(tf_cluster.cluster(), job_name=job, task_index=index)
# A session waits only for the tasks that it uses.
config = v1.ConfigProto(device_filters=[first, own])

with np.load("digits.npz") as digits:
    train = [digits[name][index::workers] for name in ("train_x", "train_y")]
    test = digits["test_x"], digits["test_y"]
with v1.device(v1.train.replica_device_setter(ps_tasks=1, ps_device=f"/job:{job}", worker_device=own)):
    x, y = v1.placeholder(tf.float32, [None, 64]), v1.placeholder(tf.int64, [None])
    hidden = tf.nn.relu(x @ v1.get_variable("hidden", [64, 64]) + v1.get_variable("hidden_bias", [64]))
    logits = hidden @ v1.get_variable("output", [64, 10]) + v1.get_variable("output_bias", [10])
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, axis=1), y), tf.float32))
    total = v1.train.get_or_create_global_step()
    step = v1.train.GradientDescentOptimizer(RATE).minimize(loss, global_step=total)
    counted = v1.get_variable("steps", [workers], initializer=v1.zeros_initializer(), trainable=False)
    count = v1.scatter_add(counted, index, 1.0)

if index > 0:  # MonitoredTrainingSession would check it only every 30 seconds
    uninitialized = v1.report_uninitialized_variables()
    with v1.Session(server.target, config=config) as session:
        while len(session.run(uninitialized)):
            time.sleep(0.1)
is_chief, folder = index == 0, os.environ["TF_CHECKPOINT_DIR"]
with v1.train.MonitoredTrainingSession(server.target, is_chief, folder, config=config, save_checkpoint_steps=STEPS) as session:
    for number in range(1, STEPS + 1):
        chosen = np.random.default_rng([index, number]).integers(len(train[1]), size=BATCH)
        value, *_others = session.run([loss, step, count], {x: train[0][chosen], y: train[1][chosen]})
        if number % 100 == 0:
            print(f"step {number} of {STEPS}, loss {value:.4f}", flush=True)
    if is_chief:  # the variables are lost when this program exits
        while session.run(total) < STEPS * workers:
            time.sleep(0.1)
        found, steps = session.run([accuracy, counted], {x: test[0], y: test[1]})
        print(f"accuracy {found:.3f} on {len(test[1])} test digits")
        tf_cluster.save_result({"accuracy": found, "steps": steps})
