"""A helper for programs on the cluster: sessions that end, tasks by name, results and steps. A program without it works too.

    import tf_cluster

    with tf.device(tf_cluster.on("worker", 1)):
        total = tf.reduce_sum(tf.random.normal([1000]))
    with tf_cluster.session(deadline=60) as session:
        tf_cluster.save_result({"total": session.run(total)})

The cluster is what TF_CONFIG says, else the file that TF_CLUSTER_CONFIG names, else ./config.json. Standard library only until
a session or a connection is asked for, then TensorFlow as well. docs/tf_cluster.md has an example of everything.
"""

from .api import ClusterError, cluster, connect, on, retrying, save_result, session, step, task, tasks

__all__ = ["ClusterError", "cluster", "connect", "on", "retrying", "save_result", "session", "step", "task", "tasks"]
