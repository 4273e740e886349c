"""Programs that behave badly: each ends within its limit, says why, and leaves the cluster ready for the next run."""

import json
import re
import time

import pytest
from conftest import said, verdict

GOOD = "import json, os; json.dump({'good': True}, open(os.environ['TF_RUN_DIR'] + '/result.json', 'w'))"


@pytest.fixture
def bad(cluster, tmp_path):
    """Return a function that runs a bad program and returns command, folder and seconds; then a good one has to work."""

    def run(text, **variables):
        (tmp_path / "bad.py").write_text(text, encoding="utf-8")
        begun = time.monotonic()
        done, folder = cluster.run(tmp_path / "bad.py", f"--extra-vars={json.dumps(variables)}")
        return done, folder, time.monotonic() - begun

    yield run
    (tmp_path / "good.py").write_text(GOOD, encoding="utf-8")
    done, folder = cluster.run(tmp_path / "good.py", "--extra-vars=run_queue_timeout=0")
    assert done.returncode == 0, said(done)
    assert verdict(folder)["result"] == {"good": True}


def test_output_beyond_run_output_mb_is_left_out(bad):
    text = "import os\nprint('first words', flush=True)\nfor _ in range(1000): os.write(1, b'x' * 999_999 + b'\\n')\n"
    text += "print('last words')"
    done, folder, seconds = bad(text, run_output_mb=5)
    assert done.returncode == 0, said(done)[-2000:]
    assert seconds < 60
    assert len(done.stdout) < 1_000_000
    output = (folder / "stdout.log").read_bytes()
    own = [
        line for line in output.splitlines() if not line.startswith(b"[cluster] ")
    ]  # an earlier test may leave a frozen server
    assert own[0] == b"first words"
    assert output.endswith(b"last words\n")
    assert 5_000_000 < len(output) < 5_100_000
    assert b"the output is longer than 5 MB: only its end follows (run_output_mb)" in output
    left_out = int(re.search(rb"(\d+) bytes of output are left out here", output)[1])
    assert left_out == 1_000_000_000 + len("first words\n" + "last words\n") - 5_000_000 - 64 * 1024


@pytest.mark.parametrize(
    "path", ["/etc/tf-cluster/config.json", "/opt/tf-cluster/lib/x", "/var/lib/tf-cluster/x", "../stdout.log"]
)
def test_a_program_that_writes_outside_its_folder_fails(cluster, bad, path):
    before = cluster.shell("host", "cat /etc/tf-cluster/config.json")
    done, folder, _seconds = bad(f"open({path!r}, 'a').write('mine')")
    assert done.returncode != 0
    [failure] = verdict(folder)["failures"]
    assert re.fullmatch(r"The program exited with status 1: (OSError|PermissionError): \[Errno \d+\] .*", failure)
    assert re.search(r"Read-only file system|Permission denied", (folder / "stdout.log").read_text(encoding="utf-8"))
    assert cluster.shell("host", "cat /etc/tf-cluster/config.json") == before


def test_a_program_that_ignores_sigterm_is_killed_after_the_time_limit(bad):
    text = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    done, folder, _seconds = bad(text, run_timeout=3)
    assert done.returncode != 0
    found = verdict(folder)
    assert "still running after 3" in found["failures"][0]
    assert 3 <= found["seconds"] < 3 + 10 + 3
    assert "deaf" in (folder / "stdout.log").read_text(encoding="utf-8")


def test_child_processes_of_a_program_are_killed_after_it_exits(cluster, bad):
    text = """
import os, subprocess, sys, time
deaf = "import signal, time; signal.signal(15, 1); open('ready', 'w'); time.sleep(4321)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
while not os.path.exists("ready"): time.sleep(0.01)
"""
    done, folder, _seconds = bad(text)
    assert done.returncode == 0, said(done)
    assert verdict(folder)["seconds"] < 10 + 10 + 5  # twice: where cgroups are of version 1, systemd is not told of their end
    assert set(cluster.shell("host", "pgrep -f 'sleep[(]4321' | grep -vw $$ || echo none").values()) == {"none"}


@pytest.mark.parametrize(("text", "ok"), [("print('no result')", False), (GOOD, True)])
def test_run_needs_result_fails_a_run_without_a_result(bad, text, ok):
    done, folder, _seconds = bad(text, run_needs_result=True)
    assert (done.returncode == 0) is ok
    assert verdict(folder)["ok"] is ok
    assert ok or "left no result.json" in verdict(folder)["failures"][0]


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ("/job:worker/task:99/device:CPU:0", "the cluster has no such task"),
        ("/job:trainer/task:0/device:CPU:0", "the cluster has no such task"),
        ("/job:worker/task:0/device:GPU:7", "no device"),
    ],
)
def test_a_program_that_needs_a_missing_task_or_device_does_not_start(bad, needs, words):
    done, folder, seconds = bad("raise SystemExit('never')", ready_needs=[needs])
    assert done.returncode != 0
    assert folder is None
    assert words in said(done), said(done)
    assert seconds < 60


def test_progress_is_shown_for_a_program_that_prints_nothing(bad):
    text = "import time, tf_cluster\nfor n in (1, 2): tf_cluster.step(n, of=9, every=0)\ntime.sleep(22)"
    done, _folder, _seconds = bad(text)
    assert done.returncode == 0, said(done)
    lines = re.findall(r"(?m)^  \.\.\. \d+ s, step 2 of 9, nothing printed for \d+ s$", done.stdout)
    assert len(lines) == 2, done.stdout
    assert "\x1b" not in done.stdout
