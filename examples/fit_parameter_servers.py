r"""Keras `fit` with ParameterServerStrategy: the weights are on the tasks of ps, the steps run on the workers.

    ansible-playbook playbooks/run.yml -e program=examples/fit_parameter_servers.py -e program_data=output/digits.npz \
      -e run_task=chief:0 -e program_keras=2

This program is chief:0. It distributes the steps; each worker computes at its own pace. With --alone, the program trains in one
process. Output:

    50/50 - 1s - loss: 0.1714 - accuracy: 0.9556 - 717ms/epoch - 14ms/step
    accuracy 0.965 on 397 test digits
"""

import argparse
import os
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_cluster

parser = argparse.ArgumentParser()
parser.add_argument("--alone", action="store_true")
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--steps", type=int, default=50, help="per epoch")
parser.add_argument("--batch", type=int, default=50, help="digits of one step")
options = parser.parse_args()
results = Path(os.environ["TF_RUN_DIR"])

if options.alone:
    strategy = tf.distribute.get_strategy()
else:
    strategy = tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
tf.keras.utils.set_random_seed(1)
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((64,)), tf.keras.layers.Dense(64, activation="relu"), tf.keras.layers.Dense(10)])
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.optimizer.learning_rate = 0.2
with np.load("digits.npz") as digits:
    train, test = (digits["train_x"], digits["train_y"]), (digits["test_x"], digits["test_y"])
# Without an end, because it is not known how many steps each worker computes.
batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1]), seed=1).repeat().batch(options.batch)
# Otherwise each task of ps would write its part of a checkpoint to its own disk.
here = tf.train.CheckpointOptions(experimental_io_device=None if options.alone else "/job:chief/task:0/device:CPU:0")
history = model.fit(
    batches,
    epochs=options.epochs,
    steps_per_epoch=options.steps,
    verbose=2,
    callbacks=[
        tf.keras.callbacks.ModelCheckpoint(
            f"{results}/best", monitor="accuracy", save_best_only=True, save_weights_only=True, options=here
        ),
        tf.keras.callbacks.TensorBoard(f"{results}/tensorboard"),
        tf.keras.callbacks.EarlyStopping("loss", patience=5),
    ],
)

np.savez(results / "weights.npz", *model.get_weights())
accuracy = float(np.mean(np.argmax(model(test[0]), axis=1) == test[1]))
print(f"accuracy {accuracy:.3f} on {len(test[1])} test digits")
devices = sorted({weight.device for weight in model.trainable_variables})
tf_cluster.save_result({"accuracy": accuracy, "devices": devices, "epochs": len(history.epoch)})
