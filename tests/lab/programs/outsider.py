"""A TensorFlow client, and the server of another cluster that names our workers as its own; it belongs to neither.

    outsider.py OWN_ADDRESS WORKER...

Prints what came of each attempt, as JSON: "in", or the name of the error.
"""

import concurrent.futures
import json
import os
import sys

import tensorflow as tf

own, *workers = sys.argv[1:]
config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=6000)
# A server that waits for none of its own cluster.
alone = tf.compat.v1.ConfigProto(operation_timeout_in_ms=6000, device_filters=["/job:nobody"])
spec = tf.train.ClusterSpec({"worker": [*workers, f"{own}:2299"]})
server = tf.distribute.Server(spec, job_name="worker", task_index=len(workers), config=config)


def attempt(target, settings, device, operation, *words):
    """Let a server do something; return what came of it."""
    with tf.Graph().as_default(), tf.device(device):
        try:
            tf.compat.v1.Session(target, config=settings).run(operation(*words))
        except tf.errors.OpError as error:
            return type(error).__name__
    return "in"


read, write = (tf.io.read_file, "/etc/passwd"), (tf.io.write_file, "/tmp/outsider", "x")
tries = {}
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    for index, worker in enumerate(workers):
        tries[f"reads through {worker}"] = pool.submit(attempt, f"grpc://{worker}", alone, None, *read)
        tries[f"writes through {worker}"] = pool.submit(attempt, f"grpc://{worker}", alone, None, *write)
        tries[f"has {worker} in a cluster of its own"] = pool.submit(
            attempt, server.target, config, f"/job:worker/task:{index}", *read
        )
    done, waiting = concurrent.futures.wait(tries.values(), timeout=10)
    print(json.dumps({name: found.result() if found in done else "waits" for name, found in tries.items()}), flush=True)
    os._exit(0)  # threads that wait in a session
