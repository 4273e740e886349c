"""How fast tensors move from worker:1 to worker:0, and how long an empty step over both takes."""

import json
import os
import pathlib
import statistics
import time

import tensorflow as tf

tf.compat.v1.disable_eager_execution()
spec = json.loads(pathlib.Path(os.environ["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8"))
server = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name="host", task_index=0)
SIZE = 64 * 1024 * 1024
with tf.device("/job:worker/task:1"):
    source = tf.compat.v1.get_variable("source", initializer=tf.ones([SIZE // 4]))
    small = tf.identity(tf.constant("a word that everybody on the way can read"))
with tf.device("/job:worker/task:0"):
    moved = tf.identity(source)[0]
    word = tf.strings.length(tf.identity(small) + "!")


def seconds(operation, times):
    """Return how long an operation takes, the median of several times."""
    taken = []
    for _time in range(times + 2):
        begun = time.monotonic()
        session.run(operation)
        taken.append(time.monotonic() - begun)
    return statistics.median(taken[2:])


with tf.compat.v1.Session(server.target) as session:
    session.run(tf.compat.v1.global_variables_initializer())
    result = {"gigabytes_per_second": SIZE / 1e9 / seconds(moved.op, 7), "step_milliseconds": 1000 * seconds(word, 50)}
print(result)
pathlib.Path(os.environ["TF_RUN_DIR"], "result.json").write_text(json.dumps(result), encoding="utf-8")
