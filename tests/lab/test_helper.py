"""The helper for programs, by the examples of its documentation, on a cluster whose tasks are restarted and stopped."""

import json
import re
import time

import pytest
from conftest import ROOT, folder_of, said, verdict

TEXT = (ROOT / "docs/tf_cluster.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", TEXT, re.DOTALL))
RESULTS = {
    "Sessions": lambda found: found["total"] > 0,
    "Eager operations": lambda found: found == {"sum": 2000.0, "parts": [1000.0] * 2, "unknown": None},
    "Retry after a task restarts": lambda found: found["weights"] == [20.0, 40.0, 60.0],
    "Use outside a run": lambda found: found is None,
}


def test_every_example_of_the_documentation_has_a_test():
    assert set(EXAMPLES) == set(RESULTS)
    assert TEXT.count("```python") == len(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_each_example_of_the_documentation_returns_its_result(cluster, tmp_path, name):
    (tmp_path / "example.py").write_text(EXAMPLES[name], encoding="utf-8")
    done, folder = cluster.run(tmp_path / "example.py")
    assert done.returncode == 0, said(done)
    assert RESULTS[name](verdict(folder).get("result")), verdict(folder)


def test_a_program_continues_after_a_worker_is_killed_between_two_steps(cluster, tmp_path):
    slowly = EXAMPLES["Retry after a task restarts"].replace("import os\n", "import os\nimport time\n", 1)
    slowly = slowly.replace(
        "        values = session.run(train)\n", "        values = session.run(train)\n        time.sleep(0.5)\n"
    )
    (tmp_path / "slowly.py").write_text(slowly, encoding="utf-8")
    started, _folder = cluster.run(tmp_path / "slowly.py", "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) continues", said(started))[1]
    log = f"/var/lib/tf-cluster/runs/{run}/stdout.log"
    cluster.shell("host", f"timeout 60 sh -c 'until grep -q ^step {log}; do sleep 0.1; done'; echo there")
    killed = time.time()
    cluster.shell("worker", "systemctl kill --kill-who=all --signal=KILL tf-server@worker-1 2>/dev/null; echo done")
    done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    folder = folder_of(done)
    output = (folder / "stdout.log").read_text(encoding="utf-8")
    assert verdict(folder)["result"] == {"weights": [20.0, 40.0, 60.0]}
    assert re.search(r"tf_cluster: \w+Error: .*; opens session 2 of at most 6 when all tasks answer", output), output
    steps = [int(number) for number in re.findall(r"(?m)^step (\d+) of 20", output)]
    assert steps == sorted(steps), output
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["ended"] - killed < 60


def test_python_can_import_the_helper_outside_a_run(cluster):
    found = cluster.shell("lab", "cd / && /opt/tf-cluster/venv/bin/python -c 'import tf_cluster; print(tf_cluster.__file__)'")
    assert set(found.values()) == {"/opt/tf-cluster/lib/tf_cluster/__init__.py"}


def test_a_program_fails_within_its_time_limit_if_a_worker_hangs(cluster, tmp_path):
    text = EXAMPLES["Retry after a task restarts"].replace("STEPS = 20", "STEPS = 1_000_000")
    (tmp_path / "frozen.py").write_text(text.replace("deadline=20, seconds=120", "deadline=3, seconds=6"), encoding="utf-8")
    started, _folder = cluster.run(tmp_path / "frozen.py", "--extra-vars=detach=true")
    run = re.search(r"The run (\S+) continues", said(started))[1]
    log = f"/var/lib/tf-cluster/runs/{run}/stdout.log"
    cluster.shell("host", f"timeout 60 sh -c 'until grep -q ^step {log}; do sleep 0.1; done'; echo there")
    signal = "systemctl kill --signal={} tf-server@worker-1 2>/dev/null; echo done"
    cluster.shell("worker", signal.format("STOP"))
    try:
        done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={run}", "--extra-vars=ready_timeout=3")
    finally:
        cluster.shell("worker", signal.format("CONT"))
    assert done.returncode != 0
    found = verdict(folder_of(done))
    assert found["failures"][0].startswith("The program exited with status 1: ClusterError: no answer after")
    assert found["seconds"] < 60
