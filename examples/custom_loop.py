"""A loop of your own with MultiWorkerMirroredStrategy: every worker runs this program and computes its part of each batch.

    ansible-playbook playbooks/train.yml -e program=examples/custom_loop.py -e program_data=output/digits.npz

Each task keeps its own checkpoints. After a restart, all continue from the last one that every task has. In a shared folder
(tf_shared), the chief keeps them for all. To try this, add -e train_restarts=1 -e 'program_args="--fail-at 50"'. With --alone,
the program trains in one process. Output:

    step 300 of 300, loss 0.1315
    accuracy 0.975 on 397 test digits
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

BATCH, EARLY = 100, 5  # digits of one step, of all tasks together; the step whose weights are kept for comparison

parser = argparse.ArgumentParser()
parser.add_argument("--alone", action="store_true")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--save-every", type=int, default=20)
parser.add_argument("--fail-at", type=int, default=0, help="the step at which the second worker fails, the first time")
parser.add_argument("--pause", type=float, default=0, help="seconds after each step")
options = parser.parse_args()
config = json.loads(os.environ["TF_CONFIG"])
task = config["task"]
is_chief = task["type"] == "chief" or (task["index"] == 0 and "chief" not in config.get("cluster", {}))
results, kept = Path(os.environ["TF_RUN_DIR"]), Path(os.environ["TF_CHECKPOINT_DIR"])

strategy = tf.distribute.get_strategy() if options.alone else tf.distribute.MultiWorkerMirroredStrategy()
keras.utils.set_random_seed(1)
with strategy.scope():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(model.trainable_variables)

with np.load("digits.npz") as digits:
    train, test = (digits["train_x"], digits["train_y"]), (digits["test_x"], digits["test_y"])


def batches(start):
    """Return the batches from a step on; the strategy gives each task its part of every batch."""
    dataset = tf.data.Dataset.from_tensor_slices(train).batch(BATCH, drop_remainder=True).repeat().skip(start)
    sharding = tf.data.Options()
    sharding.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return iter(strategy.experimental_distribute_dataset(dataset.with_options(sharding)))


@tf.function
def step(iterator):
    """Do one step on all tasks and return the loss."""

    def on_one_task(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(on_one_task, args=next(iterator)), axis=None)


def save_weights(name):
    """Leave the weights as numpy arrays."""
    np.savez(results / name, *model.get_weights())


checkpoint = tf.train.Checkpoint(model=model)
manager = tf.train.CheckpointManager(checkpoint, kept, max_to_keep=3)
own = [int(path.rpartition("-")[2]) for path in manager.checkpoints]
everyones = [max(own, default=0)]
if not options.alone:
    everyones = strategy.gather(strategy.run(lambda: tf.constant([max(own, default=0)])), axis=0).numpy().tolist()
begin = min(everyones)
shared = "TF_SHARED_DIR" in os.environ
if begin:
    checkpoint.restore(str(kept / f"ckpt-{begin}")).assert_existing_objects_matched()
    print(f"{task['type']}:{task['index']} continues from step {begin}", flush=True)

iterator = batches(begin)
for number in range(begin + 1, options.steps + 1):
    loss = step(iterator)
    time.sleep(options.pause)
    if number == EARLY:
        save_weights("early.npz")
    if number % options.save_every == 0:
        if not shared or is_chief:
            manager.save(checkpoint_number=number)
        print(f"step {number} of {options.steps}, loss {float(loss):.4f}", flush=True)
    if number == options.fail_at and task["index"] == 1 and not (kept / "failed").exists():
        (kept / "failed").touch()
        os.kill(os.getpid(), signal.SIGKILL)

save_weights("weights.npz")
accuracy = float(np.mean(np.argmax(model(test[0]), axis=1) == test[1]))
print(f"accuracy {accuracy:.3f} on {len(test[1])} test digits")
found = {"accuracy": accuracy, "replicas": strategy.num_replicas_in_sync, "began_at": begin}
(results / "result.json").write_text(json.dumps(found), encoding="utf-8")
