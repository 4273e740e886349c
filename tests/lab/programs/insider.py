"""An insider's program: it sends the workers graphs that read and write what is not theirs, and tries the same itself.

The result lists what was let through.
"""

import json
import os
import pathlib

import tensorflow as tf

READ = ["/etc/shadow", "/root/.ssh/authorized_keys", "/etc/ssh/lab/ssh_host_ed25519_key", "/home/alice/diary", "/var/log/btmp"]
FOLDERS = ["/etc", "/etc/tf-cluster", "/etc/systemd/system", "/opt/tf-cluster/bin", "/opt/tf-cluster/venv", "/usr/local/bin"]
FOLDERS += [
    "/var/lib/tf-cluster",
    "/var/lib/tf-cluster/runs",
    "/home/alice",
    "/root",
    "/var/spool",
    "/run",
    "/sys/kernel",
    "/proc/sys/kernel",
]

tf.compat.v1.disable_eager_execution()
spec = json.loads(pathlib.Path(os.environ["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8"))
server = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name="host", task_index=0)
let, tried, kept = [], 0, []


def attempt(name, operation):
    """Count one attempt; note it where it was not refused."""
    global tried
    tried += 1
    try:
        config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=20000)
        found = tf.compat.v1.Session(server.target, config=config).run(operation)
    except tf.errors.OpError as error:
        kept.append(type(error).__name__)
    else:
        let.append(f"{name}: {str(found)[:40]}")


for worker in range(len(spec["worker"])):
    with tf.device(f"/job:worker/task:{worker}"):
        for path in READ:
            attempt(f"worker:{worker} reads {path}", tf.io.read_file(path))
        for folder in FOLDERS:
            attempt(f"worker:{worker} writes to {folder}", tf.io.write_file(f"{folder}/insider", "x"))
        attempt(f"worker:{worker} runs Python", tf.compat.v1.py_func(lambda: b"x", [], tf.string))
        # What is allowed, so that a refusal means something.
        config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=20000)
        assert b"root:" in tf.compat.v1.Session(server.target, config=config).run(tf.io.read_file("/etc/passwd"))
for path in READ:
    tried += 1
    try:
        let.append(f"the run reads {path}: {pathlib.Path(path).read_bytes()[:20]!r}")
    except OSError as error:
        kept.append(type(error).__name__)
for folder in FOLDERS:
    tried += 1
    try:
        pathlib.Path(folder, "insider").write_text("x", encoding="utf-8")
        let.append(f"the run writes to {folder}")
    except OSError as error:
        kept.append(type(error).__name__)
# XLA works within all this.
with tf.Graph().as_default():
    compiled = tf.function(lambda x: tf.reduce_sum(tf.sin(x) @ x), jit_compile=True)(tf.ones((64, 64)))
    total = float(tf.compat.v1.Session().run(compiled))
result = {"let": let, "tried": tried, "refused": len(kept), "xla": total}
pathlib.Path(os.environ["TF_RUN_DIR"], "result.json").write_text(json.dumps(result), encoding="utf-8")
