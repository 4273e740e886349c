"""What each inventory must give: running tasks, the same config.json everywhere, the demo's result."""

import json

import pytest
from conftest import folder_of, said, verdict


def test_config_json_is_identical_on_every_machine(cluster, expected):
    """Every machine has the seed's form of the cluster spec."""
    found = cluster.shell("lab", "cat /etc/tf-cluster/config.json")
    assert len(found) == len({entry.rpartition(":")[0] for tasks in json.loads(expected).values() for entry in tasks})
    for machine, text in found.items():
        assert text == expected.strip(), machine


def test_every_standing_task_runs_under_systemd(cluster, expected):
    """Each task except the host's has an active, enabled unit, and no unit has failed."""
    wanted = {
        f"tf-server@{job}-{index}.service"
        for job, tasks in json.loads(expected).items() if job != "host"
        for index in range(len(tasks))
    }  # fmt: skip
    running = cluster.shell("lab", "systemctl list-units --plain --no-legend --state=active 'tf-server@*' | cut -d' ' -f1")
    assert {unit for text in running.values() for unit in text.split()} == wanted
    assert not any(cluster.shell("lab", "systemctl list-units --plain --no-legend --failed").values())
    users = cluster.shell("worker", "ps -o user= -p \"$(systemctl show -P MainPID 'tf-server@*' | xargs)\"")
    assert {user for text in users.values() for user in text.split()} == {"tensorflow"}


def test_the_demo_computes_the_expected_matrix_on_the_expected_tasks(cluster, expected):
    """The matrix equals the seed's, and TensorFlow reports that each operation ran on its task."""
    done = cluster.playbook("run_demo.yml")
    assert done.returncode == 0, said(done)
    folder = folder_of(done)
    found = verdict(folder)
    assert found["ok"] is True
    assert found["failures"] == []
    matrix = found["result"]["matrix"]
    assert matrix[0] == pytest.approx([26.80402, 32.85203], abs=1e-4)
    assert matrix[1] == pytest.approx([54.003944, 69.09987], abs=1e-4)
    ran = json.loads((folder / "placement.json").read_text(encoding="utf-8"))
    assert "/job:worker/replica:0/task:0/" in ran["c"]
    assert all("/job:worker/replica:0/task:1/" in ran[name] for name in ("ab", "log", "d"))
    standing = {f"{job}:{i}" for job, tasks in json.loads(expected).items() if job != "host" for i in range(len(tasks))}
    assert set(found["tasks"]) == standing
    assert {task["version"] for task in found["tasks"].values()} == {"2.21.0"}
    assert {path.stem for path in (folder / "logs").iterdir()} == {task.replace(":", "-") for task in standing}
    assert "26.80402" in (folder / "stdout.log").read_text(encoding="utf-8")
    assert (folder.parent / "latest").resolve() == folder
    assert "26.80402" in (folder / "report.html").read_text(encoding="utf-8")
