"""A server as a person starts it who follows TensorFlow's documentation: ``by_hand.py config.json 0``."""

import json
import sys

import tensorflow as tf

with open(sys.argv[1], encoding="utf-8") as file:
    cluster = tf.train.ClusterSpec(json.load(file))
server = tf.distribute.Server(cluster, job_name="worker", task_index=int(sys.argv[2]))
server.join()
