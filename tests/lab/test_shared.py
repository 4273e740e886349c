"""A folder that all machines share: preflight, servers, runs; and trainings that continue after a machine was lost."""

import contextlib
import json
import re
import time

import pytest
from conftest import folder_of, said, verdict
from test_examples import EXAMPLES, data  # noqa: F401 (fixture)
from test_train import running, train  # noqa: F401 (fixtures)

SHARED = "/mnt/cluster"
DROP = "{ type filter hook %s priority -500; policy drop; }"
WORKERS = ["shared-0", "shared-1", "shared-2"]


@pytest.fixture
def over(cluster):
    """Return a function that mounts another file system over the shared folder of a machine until the test ends."""
    mounted = []

    def over(machine, options, script=""):
        cluster.inside(machine, f"mount -t tmpfs -o {options} none {SHARED}\n{script}")
        mounted.append(machine)

    yield over
    for machine in mounted:
        cluster.inside(machine, f"umount {SHARED}")


def left_over(cluster):
    """Return the files of checks that are left in the shared folder."""
    return cluster.shell("shared-0", f"find {SHARED} -name '.tf-cluster-check-*'")["shared-0"]


def test_repeating_site_changes_nothing_and_leaves_no_check_files(cluster):
    done = cluster.playbook("site.yml")
    assert done.returncode == 0, said(done)
    assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}, said(done)
    assert left_over(cluster) == ""


def test_servers_can_access_the_shared_folder(cluster):
    shown = cluster.shell("lab", "systemctl show tf-server@* --property=Environment,ReadWritePaths")
    for text in shown.values():
        assert f"TF_SHARED_DIR={SHARED}" in text
        assert SHARED in text.partition("ReadWritePaths=")[2]


def test_a_run_writes_checkpoints_to_the_shared_folder(cluster, tmp_path):
    """Every machine can read what the run wrote."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib\n"
        "shared, kept = pathlib.Path(os.environ['TF_SHARED_DIR']), pathlib.Path(os.environ['TF_CHECKPOINT_DIR'])\n"
        "assert kept == shared / 'tf-cluster' / os.environ['TF_RUN_ID'] / 'checkpoints', kept\n"
        "(kept / 'ckpt').write_text('kept')\n",
        encoding="utf-8",
    )
    done, folder = cluster.run(program)
    assert done.returncode == 0, said(done)
    path = f"{SHARED}/tf-cluster/{folder.name}/checkpoints/ckpt"
    assert set(cluster.shell("lab", f"cat {path}; stat -c %U {path}").values()) == {"kepttensorflow"}
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "script", "words"),
    [
        (
            "size=1m",
            "",
            "shared-1: /mnt/cluster (tf_shared) is not the folder that shared-0 and shared-2 have: here none (tmpfs)",
        ),
        ("size=1m,ro", "", "shared-1: /mnt/cluster (tf_shared) is read-only. It is on none (tmpfs)."),
        ("size=32k", f"head -c 32768 /dev/zero > {SHARED}/full", "shared-1: /mnt/cluster (tf_shared) is full."),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_machine_whose_shared_folder_is_different_read_only_or_full_is_named(cluster, over, options, script, words, check):
    over("shared-1", options, script)
    done = cluster.playbook("site.yml", "--tags=preflight", *["--check"] * check)
    if check and "is not the folder" in words:
        assert done.returncode == 0, said(done)  # nothing is written, so nothing can be compared
    else:
        assert done.returncode == 2
        assert words in said(done), said(done)
        assert "shared-0: /mnt" not in said(done)
    assert left_over(cluster) == ""


def test_a_missing_shared_folder_is_reported_for_each_machine(cluster):
    done = cluster.playbook("site.yml", "--tags=preflight", "--extra-vars=tf_shared=/mnt/none")
    assert done.returncode == 2
    for machine in WORKERS:
        assert f"{machine}: /mnt/none (tf_shared) is missing." in said(done)


def test_the_check_of_the_shared_folder_works_with_limit(cluster):
    done = cluster.playbook("site.yml", "--tags=preflight", "--limit=shared-0,shared-2")
    assert done.returncode == 0, said(done)
    assert left_over(cluster) == ""


def test_a_run_on_a_machine_without_the_shared_folder_fails_with_the_reason(cluster, over, tmp_path):
    over(cluster.host, "size=1m")
    (tmp_path / "program.py").write_text("pass", encoding="utf-8")
    done, folder = cluster.run(tmp_path / "program.py")
    assert done.returncode != 0
    [failure] = verdict(folder)["failures"]
    assert failure.startswith(f"The program was not started: {SHARED}/tf-cluster is missing on "), failure


@contextlib.contextmanager
def losing(cluster, how, machine):
    """Lose a machine, and bring it back at the end."""
    if how == "stopped":
        cluster.podman("kill", machine)
    elif how == "rebooted":
        cluster.podman("restart", machine)
    else:
        for hook in ("input", "output"):
            rule = f"nft 'add rule inet lost {hook} meta {'iif' if hook == 'input' else 'oif'} lo accept'"
            cluster.inside(machine, f"nft add table inet lost; nft 'add chain inet lost {hook} {DROP % hook}'; {rule}")
    try:
        yield
    finally:
        if how == "stopped":
            cluster.podman("start", machine)
        elif how == "disconnected":
            cluster.inside(machine, "nft delete table inet lost")
        cluster.wait_for(machine)


def followed(process, words, seconds=120):
    """Return the output of a command up to a line with these words."""
    lines, deadline = [], time.monotonic() + seconds
    while time.monotonic() < deadline:
        lines.append(process.stdout.readline())
        if re.search(words, lines[-1]):
            return lines
        assert lines[-1], "".join(lines)
    raise AssertionError("".join(lines))


def begin(cluster, data, **values):  # noqa: F811
    """Start a training that takes long enough to lose a machine."""
    words = {
        "program": str(EXAMPLES / "custom_loop.py"), "program_data": str(data),
        "program_args": "--steps 120 --pause 0.2 --save-every 10",
        "train_restarts": 3, "train_join": 15, "run_timeout": 400, **values,
    }  # fmt: skip
    return cluster.begin("ansible-playbook", "playbooks/train.yml", f"--extra-vars={json.dumps(words)}")


def verdict_in(text):
    """Return the verdict of the run whose command printed a text."""
    return verdict(folder_of(type("Done", (), {"stdout": text})))


def survived(cluster, process, figures, how, machine):
    """Lose a machine during a training, and return the verdict after its end."""
    before = "".join(followed(process, "step 40 of 120"))
    lost = time.monotonic()
    with losing(cluster, how, machine):
        after = "".join(followed(process, "continues from step", 200))
        seconds = time.monotonic() - lost
        out, err = process.communicate(timeout=300)
    text = before + after + out + err
    assert process.returncode == 0, text
    figures.append({"machine": f"{machine}, {how}", "seconds until the next step": round(seconds, 1)})
    return verdict_in(text)


@pytest.mark.parametrize("machine", ["shared-0", "shared-1"])
@pytest.mark.parametrize("how", ["stopped", "disconnected"])
def test_a_training_continues_without_a_lost_machine(cluster, data, figures, how, machine):  # noqa: F811
    found = survived(cluster, begin(cluster, data, train_min_tasks=2), figures, how, machine)
    task = f"worker:{machine[-1]}"
    left = [name for name in ("worker:0", "worker:1", "worker:2") if name != task]
    first, second = found["training"]["history"]
    assert first["tasks"] == ["worker:0", "worker:1", "worker:2"]
    assert (second["tasks"], second["ended"]) == (left, "done")
    assert f"the process of {task} on machine {machine} was lost" in first["ended"]
    assert not re.search(rf"process of ({'|'.join(left)})|\(({'|'.join(left)})\)", first["ended"])
    assert 40 <= second["first_step"] == found["result"]["began_at"] < 120
    assert found["result"]["accuracy"] > 0.8
    assert found["result"]["replicas"] == 2
    assert any(f"machine {machine} was lost" in note for note in found["notes"])
    deadline = time.monotonic() + 20  # the part of the lost machine starts with it, asks the others, and ends
    while running(cluster) and time.monotonic() < deadline:
        time.sleep(1)
    assert running(cluster) == []
    # What the lost machine has written is collected when it is back.
    run = found["run_id"]
    done = cluster.playbook("playbooks/collect.yml", f"--extra-vars=run={run}")
    assert done.returncode == 0, said(done)
    log = cluster.output / run / f"tasks/worker-{machine[-1]}/stdout.log"
    assert "step 40 of 120" in log.read_text(encoding="utf-8")
    tasks = verdict(cluster.output / run)["training"]["tasks"]
    assert [tasks[name]["outcome"] for name in left] == ["done", "done"]
    assert tasks[task]["outcome"] == "was lost and did not take part in the last attempt"


def test_a_training_continues_if_only_the_unit_of_its_chief_is_killed(cluster, data):  # noqa: F811
    process = begin(cluster, data, train_min_tasks=2)
    before = "".join(followed(process, "step 40 of 120"))
    cluster.shell("shared-0", "systemctl kill --signal=KILL 'tf-run-worker-0-*'; echo done")
    out, err = process.communicate(timeout=300)
    text = before + out + err
    assert process.returncode == 0, text
    assert "the training continues, and this is the output on shared-1" in text
    found = verdict_in(text)
    assert [attempt["tasks"][0] for attempt in found["training"]["history"]] == ["worker:0", "worker:1"]
    assert found["result"]["accuracy"] > 0.8


def test_fit_with_workers_continues_from_its_backup_in_the_shared_folder(cluster, data):  # noqa: F811
    process = begin(
        cluster, data, program=str(EXAMPLES / "fit_workers.py"), program_args="--fail-after 2 --epochs 4", program_keras=2
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "A lost machine ends this training" not in out
    found = verdict_in(out)
    assert found["training"]["attempts"] == 2
    assert (found["result"]["first_epoch"], found["result"]["epochs"]) == (3, 4)


@pytest.mark.parametrize("machine", ["shared-0", "shared-1"])
def test_a_training_waits_for_a_machine_that_is_rebooted(cluster, data, figures, machine):  # noqa: F811
    found = survived(cluster, begin(cluster, data, train_join=90), figures, "rebooted", machine)
    first, second = found["training"]["history"]
    assert first["tasks"] == second["tasks"] == ["worker:0", "worker:1", "worker:2"]
    assert 40 <= second["first_step"] == found["result"]["began_at"] < 120
    assert [task["outcome"] for task in found["training"]["tasks"].values()] == ["done"] * 3


def test_a_training_with_too_few_tasks_fails(cluster, data):  # noqa: F811
    process = begin(cluster, data, train_join=5)
    before = "".join(followed(process, "step 40 of 120"))
    with losing(cluster, "stopped", "shared-1"):
        out, err = process.communicate(timeout=200)
    text = before + out + err
    assert process.returncode != 0
    assert "did not return within 5 s (train_join)" in re.sub(r"\s+", " ", text)


def test_invalid_train_min_tasks_is_reported_before_a_training_starts(cluster, tmp_path):
    (tmp_path / "program.py").write_text("pass", encoding="utf-8")
    for values, words in (
        ({"train_min_tasks": 4, "train_restarts": 1}, "train_min_tasks is 4. Set a number from 1 to 3"),
        ({"train_min_tasks": 2}, "train_min_tasks is 2, but a lost machine ends a training without"),
    ):
        given = json.dumps({"program": str(tmp_path / "program.py"), **values})
        done = cluster.playbook("playbooks/train.yml", f"--extra-vars={given}")
        assert done.returncode != 0
        assert words in said(done), said(done)
        assert folder_of(done) is None
