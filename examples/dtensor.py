"""DTensor: one program on all workers, whose tensors are split over them.

    ansible-playbook playbooks/train.yml -e program=examples/dtensor.py

The columns of x and the rows of w are split. Each worker multiplies its parts, and DTensor adds up the products. Output:

    worker:0 holds [8, 8] of x, [8, 16]
    largest error of x w: 9.5e-07
"""

import os

import numpy as np
import tensorflow as tf
import tf_cluster

job, index = tf_cluster.task()
addresses = tf_cluster.cluster()[job]
os.environ |= {"DTENSOR_JOBS": ",".join(addresses), "DTENSOR_CLIENT_ID": str(index), "DTENSOR_JOB_NAME": job}
dtensor = tf.experimental.dtensor
dtensor.initialize_accelerator_system("CPU", num_logical_cpu_devices=1)
mesh = dtensor.create_distributed_mesh([("workers", len(addresses))], device_type="CPU")
whole = dtensor.Layout([dtensor.UNSHARDED, dtensor.UNSHARDED], mesh)
rows, columns = dtensor.Layout(["workers", dtensor.UNSHARDED], mesh), dtensor.Layout([dtensor.UNSHARDED, "workers"], mesh)

numbers = np.random.default_rng(1)
x, w = numbers.normal(size=(8, 16)).astype("float32"), numbers.normal(size=(16, 8)).astype("float32")


def split(array, layout):
    """Return an array as a tensor of which each worker holds its part."""
    return dtensor.relayout(dtensor.copy_to_mesh(array, whole), layout)


product = tf.matmul(split(x, columns), split(w, rows))
parts = [part.shape.as_list() for part in dtensor.unpack(split(x, columns))]
print(f"{job}:{index} holds {parts[0]} of x, {list(x.shape)}")
result = dtensor.unpack(dtensor.relayout(product, whole))[0].numpy()
error = float(np.abs(result - x @ w).max())
print(f"largest error of x w: {error:.1e}")
tf_cluster.save_result({"part": parts[0], "error": error})
