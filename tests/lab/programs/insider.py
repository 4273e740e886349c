"""An insider's program: it sends the workers graphs that read and write what is not theirs, and tries the same itself.

The result lists what was let through (``let``), what failed for another reason than that it was refused (``odd``), and what is
open as docs/security.md says (``known``).
"""

import errno
import json
import os
import pathlib

import tensorflow as tf

READ = ["/etc/shadow", "/root/.ssh/authorized_keys", "/etc/ssh/lab/ssh_host_ed25519_key", "/home/alice/diary", "/var/log/btmp"]
NEW = [
    "/etc", "/etc/tf-cluster", "/etc/systemd/system", "/opt/tf-cluster/lib", "/opt/tf-cluster/venv", "/usr/local/bin", "/root",
    "/var/lib/tf-cluster", "/var/lib/tf-cluster/runs", "/home/alice", "/var/spool", "/sys/kernel", "/dev",
    "/run", "/run/lock", "/run/anybodys", "/opt/anybodys", "/var/lib/anybodys",  # but for /run, open to every user
]  # fmt: skip
# Files that are there and that every user of the machine may write; settings of the kernel; the card that the gate believes.
THERE = ["/opt/anybodys/file", "/var/lib/anybodys/file", "/run/lock/file", "/run/anybodys/file"]
KERNEL = ["/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/cgroup.procs"]
CARD = ["/proc/self/fd/1000"]
WRITE = [f"{folder}/insider" for folder in NEW] + THERE + KERNEL
KNOWN = ["/dev/shm/insider"]  # the machine's, as docs/security.md says
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)

tf.compat.v1.disable_eager_execution()
spec = json.loads(pathlib.Path(os.environ["TF_CLUSTER_CONFIG"]).read_text(encoding="utf-8"))
server = tf.distribute.Server(tf.train.ClusterSpec(spec), job_name="host", task_index=0)
found = {"let": [], "odd": [], "known": [], "refused": 0}


def run(operation):
    """Let the cluster do something."""
    return tf.compat.v1.Session(server.target, config=tf.compat.v1.ConfigProto(operation_timeout_in_ms=20000)).run(operation)


def note(name, action, refusals=(tf.errors.PermissionDeniedError,)):
    """Try something and note what came of it."""
    try:
        said = action()
    except (tf.errors.OpError, OSError) as error:
        if isinstance(error, refusals) or getattr(error, "errno", None) in REFUSED:
            found["refused"] += 1
        else:
            found["odd"].append(f"{name}: {type(error).__name__} {error}"[:200])
    else:
        found["known" if name.endswith(tuple(KNOWN)) else "let"].append(f"{name}: {str(said)[:40]}")


for worker in range(len(spec["worker"])):
    with tf.device(f"/job:worker/task:{worker}"):
        # What is allowed, so that a refusal means something. What is in /var/tmp for others is not what a task sees there.
        assert b"root:" in run(tf.io.read_file("/etc/passwd"))
        run([tf.io.write_file(f"{folder}/file", "x") for folder in ("/tmp", "/var/tmp")])
        for path in READ:
            note(f"worker:{worker} reads {path}", lambda path=path: run(tf.io.read_file(path)))
        for path in WRITE + CARD + KNOWN:
            note(f"worker:{worker} writes {path}", lambda path=path: run(tf.io.write_file(path, "x")))
        python = tf.compat.v1.py_func(lambda: b"x", [], tf.string)
        note(f"worker:{worker} runs Python", lambda python=python: run(python), (tf.errors.OpError,))
for path in READ:
    note(f"the run reads {path}", pathlib.Path(path).read_bytes)
for path in WRITE + KNOWN:
    note(f"the run writes {path}", lambda path=path: pathlib.Path(path).write_text("x", encoding="utf-8"))
# XLA works within all this.
with tf.Graph().as_default():
    compiled = tf.function(lambda x: tf.reduce_sum(tf.sin(x) @ x), jit_compile=True)(tf.ones((64, 64)))
    found["xla"] = float(tf.compat.v1.Session().run(compiled))
pathlib.Path(os.environ["TF_RUN_DIR"], "result.json").write_text(json.dumps(found), encoding="utf-8")
