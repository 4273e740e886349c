"""Keras `fit` with MultiWorkerMirroredStrategy: every worker runs this program and computes its part of each batch.

    ansible-playbook playbooks/train.yml -e program=examples/fit_workers.py -e program_data=output/digits.npz -e program_keras=2

The callbacks keep the best model, write curves for TensorBoard, stop when the accuracy no longer improves, and continue after a
restart; to try this, add -e train_restarts=1 -e 'program_args="--fail-after 3"'. With --alone, the program trains in one process.
Output:

    14/14 - 1s - loss: 0.4950 - accuracy: 0.9121 - val_loss: 0.3893 - val_accuracy: 0.9496 - 804ms/epoch - 57ms/step
    accuracy 0.950 after 4 epochs
"""

import argparse
import os
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_cluster

BATCH = 100  # digits of one step, of all workers together

parser = argparse.ArgumentParser()
parser.add_argument("--alone", action="store_true")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--fail-after", type=int, help="the epoch after which the last worker fails, the first time")
options = parser.parse_args()
results, kept = Path(os.environ["TF_RUN_DIR"]), Path(os.environ["TF_CHECKPOINT_DIR"])

strategy = tf.distribute.get_strategy() if options.alone else tf.distribute.MultiWorkerMirroredStrategy()
tf.keras.utils.set_random_seed(1)
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((64,)), tf.keras.layers.Dense(64, activation="relu"), tf.keras.layers.Dense(10)])
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.optimizer.learning_rate = 0.3


def batches(kind):
    """Return digits in batches; the strategy gives each worker its part of every batch."""
    with np.load("digits.npz") as digits:
        dataset = tf.data.Dataset.from_tensor_slices((digits[f"{kind}_x"], digits[f"{kind}_y"])).batch(BATCH)
    sharding = tf.data.Options()
    sharding.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(sharding)


class FailOnce(tf.keras.callbacks.Callback):
    """Let the last worker fail, the first time."""

    def on_epoch_end(self, epoch, logs=None):
        """Exit after this epoch."""
        mark = kept / "failed"
        if epoch + 1 == options.fail_after and tf_cluster.task()[1] == len(tf_cluster.tasks("worker")) - 1 and not mark.exists():
            mark.touch()
            os._exit(1)


# The first worker alone writes the backup. Without a shared folder the others cannot read it, so all begin again.
backup = kept / "backup"
readable = (backup / "chief").exists()
if not options.alone and not strategy.gather(strategy.run(lambda: tf.constant([int(readable)])), axis=0).numpy().all():
    shutil.rmtree(backup, ignore_errors=True)
history = model.fit(
    batches("train"),
    validation_data=batches("test"),
    epochs=options.epochs,
    verbose=2,
    callbacks=[
        tf.keras.callbacks.BackupAndRestore(f"{backup}"),
        tf.keras.callbacks.ModelCheckpoint(f"{results}/best.keras", monitor="val_accuracy", save_best_only=True),
        tf.keras.callbacks.TensorBoard(f"{results}/tensorboard"),
        tf.keras.callbacks.EarlyStopping("val_accuracy", min_delta=0.02, patience=1),
        FailOnce(),
    ],
)

np.savez(results / "weights.npz", *model.get_weights())
accuracy = history.history["val_accuracy"]
print(f"accuracy {accuracy[-1]:.3f} after {history.epoch[-1] + 1} epochs")
found = {"accuracy": accuracy[-1], "best": max(accuracy), "replicas": strategy.num_replicas_in_sync}
tf_cluster.save_result({**found, "first_epoch": history.epoch[0] + 1, "epochs": history.epoch[-1] + 1})
