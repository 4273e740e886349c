"""One session over all workers that computes a step each half second, until a file "stop" is there; it must never be cut."""

import json
import os
import pathlib
import time

import tensorflow as tf

tf.compat.v1.disable_eager_execution()
spec = json.loads(pathlib.Path(os.environ["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8"))
server = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name="host", task_index=0)
counters, total = [], None
for task in range(len(spec["worker"])):
    with tf.device(f"/job:worker/task:{task}"):
        counters.append(tf.compat.v1.get_variable(f"counter_{task}", initializer=tf.zeros([1000])))
additions = [tf.compat.v1.assign_add(counter, tf.ones([1000])) for counter in counters]
with tf.device("/job:host/task:0"):
    total = tf.add_n([tf.reduce_sum(addition) for addition in additions])
with tf.compat.v1.Session(server.target) as session:
    session.run(tf.compat.v1.global_variables_initializer())
    for step in range(1, 601):
        found = session.run(total)
        assert found == 1000.0 * step * len(counters), (step, found)
        print(f"step {step}", flush=True)
        if pathlib.Path("stop").exists():
            break
        time.sleep(0.5)
