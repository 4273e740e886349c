"""playbooks/status.yml: the table of a complete cluster. Other files test incomplete ones."""

import json

from conftest import said


def test_the_status_of_a_complete_cluster_lists_every_task(cluster, expected):
    """status.json lists every task, and the exit status is 0."""
    done = cluster.playbook("playbooks/status.yml")
    assert done.returncode == 0, said(done)
    status = json.loads((cluster.output / "status.json").read_text(encoding="utf-8"))
    assert status["ok"] is True
    assert {f"{task['task']} {task['address']}" for task in status["tasks"]} == {
        f"{job}:{index} {entry}" for job, tasks in json.loads(expected).items() for index, entry in enumerate(tasks)
    }
    standing = [task for task in status["tasks"] if not task["task"].startswith("host:")]
    assert all(task["unit"] == "active" and task["memory_mb"] > 50 and task["version"] == "2.21.0" for task in standing)
