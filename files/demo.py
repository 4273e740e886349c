"""The demo: the seed's computation on two workers, with the result on the host.

    c = a b                    on /job:worker/task:0
    d = a b + log(100 + c)     on /job:worker/task:1

A plain TensorFlow program: it reads config.json, starts the host's server, runs one session, and writes the result and
TensorFlow's record of which task ran which operation.
"""

import json
import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # hides the warning that a CPU has no GPU trace

import tensorflow as tf

DEADLINE = 60_000  # milliseconds per step: without a limit, a session with a dead worker hangs forever

with open(os.environ.get("TF_CLUSTER_CONFIG", "config.json"), encoding="utf-8") as file:
    cluster_spec = json.load(file)
v1 = tf.compat.v1
v1.disable_eager_execution()
cluster = tf.train.ClusterSpec(cluster_spec)
server = tf.distribute.Server(cluster, job_name="host", task_index=0)
last_worker = f"/job:worker/task:{min(1, len(cluster_spec['worker']) - 1)}"  # with one worker, it computes both

with tf.device("/job:worker/task:0"):
    a = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[2, 3], name="a")
    b = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[3, 2], name="b")
    c = tf.matmul(a, b, name="c")

with tf.device(last_worker):
    d = tf.add(tf.matmul(a, b, name="ab"), tf.math.log(100 + c, name="log"), name="d")

# No optimisation: it would fold the constants and compute them on the host.
config = v1.ConfigProto(operation_timeout_in_ms=DEADLINE)
config.graph_options.optimizer_options.opt_level = v1.OptimizerOptions.L0
config.graph_options.rewrite_options.disable_meta_optimizer = True
record = v1.RunMetadata()
with v1.Session(server.target, config=config) as session:
    options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE, timeout_in_ms=DEADLINE)
    result = session.run(d, options=options, run_metadata=record)

print(result)
ran = {}
for device in record.step_stats.dev_stats:
    for node in device.node_stats:
        # TensorFlow also lists operations on a GPU under devices without a task, such as "/device:GPU:0/stream:all".
        if node.node_name in ("c", "ab", "log", "d") and device.device.startswith("/job:"):
            ran[node.node_name] = device.device
for name, device in sorted(ran.items()):
    print(f"{name} ran on {device}")

folder = Path(os.environ.get("TF_RUN_DIR", "."))
(folder / "result.json").write_text(json.dumps({"matrix": result.tolist()}), encoding="utf-8")
(folder / "placement.json").write_text(json.dumps(ran, indent=1), encoding="utf-8")
