"""The tasks of a standing cluster: their journals and devices."""

import json

from conftest import said


def test_logs_shows_the_journals_of_all_tasks(cluster):
    done = cluster.playbook("playbooks/logs.yml", "--extra-vars=seconds=3600")
    assert done.returncode == 0, said(done)
    spec = json.loads((cluster.scenario / "config.json").read_text(encoding="utf-8"))
    for index, entry in enumerate(spec["worker"]):
        assert f"worker:{index} listens on {entry}" in said(done)


def test_show_spec_prints_the_spec(cluster, expected):
    """The playbook prints the spec without connecting to a machine."""
    done = cluster.playbook("playbooks/show_spec.yml")
    assert done.returncode == 0
    for tasks in json.loads(expected).values():
        for entry in tasks:
            assert entry in done.stdout


# Holds the processor of worker:0 against itself, then against a GPU that it does not have.
PROOF = """
import json, sys, time
from tf_cluster.ready import gpu_check
from tf_cluster.tensorflow import capi
library = capi.Library()
target = "grpc://" + json.load(open("/etc/tf-cluster/config.json"))["worker"][0]
task = "/job:worker/replica:0/task:0/device:"
print(json.dumps([gpu_check.problem(library, target, [task + name], time.monotonic() + 20) for name in ("CPU:0", "GPU:0")]))
"""


def test_the_gpu_check_passes_for_a_device_that_computes_and_fails_for_a_missing_one(cluster):
    """The lab has no GPU, so the check uses the CPU instead."""
    host = cluster.host
    good, bad = cluster.python(host, PROOF)
    assert good == ""
    assert bad.startswith("a GPU does not compute: ")


def test_the_gate_reports_missing_devices_that_a_program_needs(cluster):
    for needs, words in [
        ("/job:worker/task:0/device:CPU:0", ""),
        ("/job:worker/task:0/device:GPU:0", "the program needs /job:worker/task:0/device:GPU:0; the task has"),
        ("/job:worker/task:99/device:CPU:0", "needs /job:worker/task:99/device:CPU:0, but the cluster has no such task"),
    ]:
        done = cluster.playbook("playbooks/status.yml", f"--extra-vars=ready_needs={needs}")
        assert (done.returncode == 0) is (words == ""), said(done)
        assert words in said(done), said(done)
