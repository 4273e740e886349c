"""tf.data service: all workers prepare one data set together, and each digit is used by exactly one of them.

    ansible-playbook playbooks/train.yml -e program=examples/data_service.py -e program_data=output/digits.npz

The first worker runs the dispatcher, and each worker a server that prepares its share. A worker that is faster gets more digits.
Output:

    worker:0 got 718 of 1400 digits
"""

import numpy as np
import tensorflow as tf
import tf_cluster

BATCH, PORT = 10, 5050

strategy = tf.distribute.MultiWorkerMirroredStrategy()
_job, index = tf_cluster.task()
addresses = [entry.rpartition(":")[0] for entry in tf_cluster.cluster()["worker"]]
service = tf.data.experimental.service
dispatcher_address = f"{addresses[0]}:{PORT}"
if index == 0:
    dispatcher = service.DispatchServer(service.DispatcherConfig(port=PORT))
port = PORT + 1 + index  # several workers can be on one machine
server = service.WorkerServer(service.WorkerConfig(dispatcher_address, f"{addresses[index]}:{port}", port=port))


@tf.function
def exchange(values):
    """Return the values of all workers."""
    return strategy.gather(strategy.run(tf.identity, args=(values,)), axis=0)


with tf.device("CPU"):  # a GPU has no copy operation for the compressed batches of the servers
    with np.load("digits.npz") as digits:
        total = len(digits["train_x"])
        dataset = tf.data.Dataset.from_tensor_slices((np.arange(total), digits["train_x"]))
    # What comes before `distribute` runs on the servers.
    dataset = dataset.map(lambda number, x: (number, tf.reverse(tf.reshape(x, [8, 8]), [1]))).batch(BATCH)
    dataset = dataset.apply(
        service.distribute(service.ShardingPolicy.DYNAMIC, f"grpc://{dispatcher_address}", "digits", max_outstanding_requests=1)
    )
    exchange(tf.constant([index]))  # all begin at the same time
    numbers = [number for batch, _x in dataset for number in batch.numpy()]
print(f"worker:{index} got {len(numbers)} of {total} digits", flush=True)
# The exchange also keeps the dispatcher running until all workers have finished.
everyones, counts = exchange(tf.constant(numbers, tf.int64)), exchange(tf.constant([len(numbers)]))
tf_cluster.save_result({"counts": counts, "different": len(set(everyones.numpy()))})
