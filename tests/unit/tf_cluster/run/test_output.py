"""run/output.py: what is kept of a program's output, and that it ends as the program ends."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from project import ROOT, call, load

keep_output = load("tf_cluster.run.output")
SOURCE = ROOT / "files/tf_cluster/run/output.py"
LIMIT = 10_000


def keep(text, most=LIMIT):
    """Run a small program under it."""
    return call("tf_cluster.run.output", f"--most={most}", sys.executable, "-c", text)


@pytest.mark.parametrize("length", [0, 1, LIMIT - 1, LIMIT])
def test_output_within_the_limit_is_passed_on_unchanged(length):
    assert keep(f"print('x' * {length}, end='')").stdout == "x" * length


def test_standard_error_and_standard_output_are_merged_in_order():
    assert keep("import os; os.write(1, b'a'); os.write(2, b'b'); os.write(1, b'c')").stdout == "abc"


@pytest.mark.parametrize("lines", [101, 200, 1000, 50_000])
def test_longer_output_keeps_its_start_and_its_end_and_the_rest_is_counted(lines):
    out = keep(f"for n in range({lines}): print(f'{{n:<98}}x')").stdout
    begin, said, end = out[:LIMIT], out[LIMIT:].partition(" left out here (run_output_mb) ...\n")[0], out[-100:]
    assert begin.splitlines()[-1].split()[0] == "99"
    assert "longer than 0.01 MB" in said
    assert end == f"{lines - 1:<98}x\n"
    left_out = int(said.splitlines()[-1].split()[1])
    assert left_out == max(0, lines * 100 - LIMIT - keep_output.TAIL_BYTES)
    assert len(out) < LIMIT + keep_output.TAIL_BYTES + 300


def test_huge_output_needs_little_time_and_memory():
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (200_000_000,) * 2); "
    begun = time.monotonic()
    done = keep(limited + "import os\nfor _ in range(300): os.write(1, b'x' * 1_000_000)")
    assert len(done.stdout) < 100_000
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_exit_status_is_that_of_the_program(status):
    assert keep(f"raise SystemExit({status})").returncode == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT, signal.SIGUSR1])
def test_the_process_is_killed_by_the_same_signal_as_the_program(number):
    assert keep(f"import os; os.kill(os.getpid(), {number:d})").returncode == -number


def test_child_processes_that_outlive_the_program_are_not_waited_for():
    begun = time.monotonic()
    done = keep("import os, time\nif os.fork() == 0:\n  while True: os.write(1, b'x' * 99)\ntime.sleep(0.2)\nos._exit(0)")
    assert done.returncode == 0
    assert time.monotonic() - begun < 10


def test_a_program_can_close_its_output_and_continue():
    assert keep("import os, time; print('a', flush=True); os.close(1); os.close(2); time.sleep(0.3); os._exit(5)").returncode == 5


def test_a_missing_program_is_an_error():
    assert call("tf_cluster.run.output", "--most=10", "/no/such/program").returncode != 0


def test_withheld_output_is_passed_on_after_sigterm():
    text = "import signal, time; signal.signal(15, signal.SIG_IGN); print('x' * 99_999, 'last words', flush=True); time.sleep(60)"
    command = [sys.executable, SOURCE, f"--most={LIMIT}", sys.executable, "-c", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        out = process.stdout.read(LIMIT + 10)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        while b"last words" not in out:
            piece = process.stdout.read1()
            assert piece
            out += piece
        subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=True)


def test_a_successful_program_with_lost_output_has_the_status_output_lost():
    with open("/dev/full", "wb") as full:
        for status, ended in ((0, keep_output.OUTPUT_LOST), (3, 3)):
            text = f"print('a' * 99); raise SystemExit({status})"
            words = ("tf_cluster.run.output", "--most=10", sys.executable, "-c", text)
            assert call(*words, capture_output=False, stdout=full).returncode == ended


class Disk:
    """Stands for a disk with so much room: takes the place of os.write."""

    def __init__(self, room):
        self.room, self.written, self.error = room, b"", errno.ENOSPC

    def write(self, _descriptor, data):
        """Write what there is room for."""
        if data and not self.room:
            raise OSError(self.error, os.strerror(self.error))
        now = data[: self.room]
        self.written, self.room = self.written + now, self.room - len(now)
        return len(now)


@pytest.fixture
def disk(monkeypatch):
    """Return a full disk."""
    disk = Disk(0)
    monkeypatch.setattr(keep_output.os, "write", disk.write)
    return disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_output_waits_for_room_on_a_full_disk(disk, number):
    disk.error, output = number, keep_output.Output(LIMIT)
    output.take(b"first\n")
    disk.room = 3
    output.take(b"second\n")
    disk.room = 100
    output.flush()
    assert (disk.written, output.waiting, output.finish()) == (b"first\nsecond\n", b"", True)


def test_output_that_is_lost_on_a_full_disk_is_counted_in_its_place(disk, monkeypatch):
    monkeypatch.setattr(keep_output, "GIVE_UP_SECONDS", 0.0)
    disk.room, output = 6, keep_output.Output(LIMIT)
    output.take(b"first\n")
    output.hurry()
    output.take(b"second\n")
    output.take(b"third\n")
    disk.room = 1000
    output.take(b"fourth\n")
    assert disk.written == b"first\n\n... 13 bytes of output are lost: the disk was full ...\nfourth\n"
    assert output.finish()


def test_another_disk_error_is_reported_with_its_message(disk):
    disk.error, output = errno.EIO, keep_output.Output(LIMIT)
    output.take(b"first\n")
    disk.room = 1000
    output.take(b"second\n")
    assert disk.written == b"\n... 6 bytes of output are lost: Input/output error ...\nsecond\n"


def full_for(seconds, text, *ending):
    """Run a program whose disk is full for so long, and send signals, a second apart; return its status and what is written."""
    source = SOURCE.read_text(encoding="utf-8")
    full = f"""
import errno, os, time
write, until = os.write, time.monotonic() + {seconds}
def os_write(descriptor, data):
    if descriptor == 1 and time.monotonic() < until:
        raise OSError(errno.ENOSPC, "full")
    return write(descriptor, data)
"""
    source = source.replace("\n\n# Isolated", full + "\n# Isolated", 1).replace("os.write(1, ", "os_write(1, ")
    command = [sys.executable, "-c", source, f"--most={10**6}", sys.executable, "-c", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for number in ending:
            time.sleep(1)
            process.send_signal(number)
        out = process.communicate(timeout=60)[0]
    return process.returncode, out


def test_output_is_complete_after_the_disk_was_full_for_a_short_time():
    status, out = full_for(2, "for n in range(3000): print(f'{n:<98}x')")
    assert status == 0
    assert out == "".join(f"{n:<98}x\n" for n in range(3000))


def test_output_is_given_up_if_the_program_is_stopped_on_a_full_disk():
    begun = time.monotonic()
    text = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('x' * 9, flush=True)\ntime.sleep(6); print('end')"
    status, out = full_for(5, text, signal.SIGTERM)
    assert (status, out) == (0, "\n... 10 bytes of output are lost: the disk was full ...\nend\n")
    assert time.monotonic() - begun < 30


def test_new_output_is_synced_to_the_disk_regularly(monkeypatch):
    sizes, synced = [5, 5, 9], []

    def fstat(_descriptor):
        if not sizes:
            raise OSError
        return SimpleNamespace(st_size=sizes.pop(0))

    with monkeypatch.context() as patch:  # pytest itself asks, too
        patch.setattr(keep_output.time, "sleep", lambda _seconds: None)
        patch.setattr(keep_output.os, "fstat", fstat)
        patch.setattr(keep_output.os, "fdatasync", synced.append)
        keep_output.sync_regularly()
    assert synced == [1, 1]


WATCHER = """
import sys, time
assert sys.argv[1:] == ["--config=config.json", "--part=part.json", "--abort-after-silence=7.0"], sys.argv
print("[cluster] worker:1 does not answer", flush=True)
{then}
"""


@pytest.fixture
def watched(tmp_path):
    """Return a function that runs a small program under it, with a small watcher, and returns what was passed on."""

    def watched(text, then="time.sleep(60)", most=LIMIT):
        source = SOURCE.read_text(encoding="utf-8").replace("WATCH_DELAY_SECONDS = 4.0", "WATCH_DELAY_SECONDS = 0.2")
        watcher = f"WATCHER = (sys.executable, {str(tmp_path / 'watch.py')!r})"
        source = source.replace('WATCHER = (sys.executable, "-I", "-m", "tf_cluster.run.watch")', watcher)
        (tmp_path / "keep_output.py").write_text(source, encoding="utf-8")
        (tmp_path / "watch.py").write_text(WATCHER.format(then=then), encoding="utf-8")
        command = [sys.executable, tmp_path / "keep_output.py", f"--most={most}", "--watch=7", sys.executable, "-c", text]
        environment = {name: value for name, value in os.environ.items() if name != "TF_CLUSTER_CONFIG"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    return watched


def test_messages_of_the_watch_are_separate_lines(watched):
    begun = time.monotonic()
    done = watched("import time; print('half', end='', flush=True); time.sleep(1); print(' and half', end='')")
    assert done.stdout == "half\n[cluster] worker:1 does not answer\n and half"
    assert done.returncode == 0
    assert time.monotonic() - begun < 20  # the watch ends with the program


def test_a_short_run_is_not_watched(watched):
    assert watched("print('a')").stdout == "a\n"


def test_messages_of_the_watch_do_not_count_towards_the_output_limit(watched):
    done = watched("import time; print('x' * 20, flush=True); time.sleep(1); print('end')", most=10)
    assert "\n[cluster] worker:1 does not answer\n" in done.stdout
    assert done.stdout.startswith("x" * 10)
    assert done.stdout.endswith("end\n")


def test_a_lost_task_stops_the_program(watched):
    done = watched("import time; time.sleep(60)", then="sys.exit(99)")
    assert done.stdout.endswith("[cluster] stopping the program (run_abort_after_silence)\n")
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("then", "how"), [("sys.exit(3)", "exit status 3"), ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL")]
)
def test_a_failed_watch_is_reported_and_the_program_continues(watched, then, how):
    done = watched("import time; time.sleep(1)", then=then)
    assert f"the tasks are no longer checked ({how}); run_abort_after_silence is off" in done.stdout
    assert done.returncode == 0


def test_a_watch_that_is_stopped_by_sigterm_is_not_reported(watched):
    assert "no longer" not in watched("import time; time.sleep(1)", then="import os; os.kill(os.getpid(), 15)").stdout
