"""Placement: each operation runs on the task that tf.device names.

The computation is the seed's: c = a b on one worker, d = a b + log(100 + c) on another.

    ansible-playbook playbooks/run.yml -e program=examples/placement.py

Output:

    [[26.80402  32.85203 ]
     [54.003944 69.09987 ]]
    c was computed on /job:worker/replica:0/task:0/device:CPU:0
    d was computed on /job:worker/replica:0/task:1/device:CPU:0
"""

import tensorflow as tf
import tf_cluster

tf_cluster.connect()
with tf.device(tf_cluster.on("worker", 0)):
    a = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[2, 3])
    b = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], shape=[3, 2])
    c = tf.matmul(a, b)
with tf.device(tf_cluster.on("worker", 1)):
    d = tf.matmul(a, b) + tf.math.log(100 + c)

print(d.numpy())
for name, tensor in {"c": c, "d": d}.items():
    print(f"{name} was computed on {tensor.device}")
tf_cluster.save_result({"matrix": d, "devices": [c.device, d.device]})
