"""Public API for programs on the cluster: sessions with a deadline, task names, results and steps. Its use is optional.

    import tf_cluster

    with tf.device(tf_cluster.on("worker", 1)):
        total = tf.reduce_sum(tf.random.normal([1000]))
    with tf_cluster.session(deadline=60) as session:
        tf_cluster.save_result({"total": session.run(total)})

The cluster spec comes from TF_CONFIG, else from the file that TF_CLUSTER_CONFIG names, else from ./config.json. Only sessions and
connections import TensorFlow; the rest needs the standard library only. docs/tf_cluster.md has examples.
"""

from .api import ClusterError, cluster, connect, on, retrying, save_result, session, step, task, tasks

__all__ = ["ClusterError", "cluster", "connect", "on", "retrying", "save_result", "session", "step", "task", "tasks"]
