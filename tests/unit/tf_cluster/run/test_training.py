"""training.py: all start together, end together, start again together, and none waits for ever."""

import asyncio
import contextlib
import errno
import functools
import os
import re
import socket
import subprocess
import sys
import time

import pytest
from project import ROOT, free_port, load

train_task, coordination = load("tf_cluster.run.training"), load("tf_cluster.run.coordination")


def in_a_loop(test):
    """Run a test that is a coroutine; none takes longer than two minutes."""

    @functools.wraps(test)
    def run(*words, **more):
        return asyncio.run(asyncio.wait_for(test(*words, **more), 120))

    return run


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Make the limits short."""
    for name, seconds in {
        "HEARTBEAT_SECONDS": 0.2,
        "HEARTBEAT_TIMEOUT_SECONDS": 2.0,
        "TERM_SECONDS": 0.5,
        "STOP_SECONDS": 2.0,
        "POLL_SECONDS": 0.02,
        "WAITING_SECONDS": 0.3,
        "CONNECT_SECONDS": 0.2,
    }.items():
        monkeypatch.setattr(train_task, name, seconds)
    monkeypatch.setattr(train_task, "end_all", lambda _number: False)  # here all members are one process


ALONE = """
import asyncio, pathlib, sys
from tf_cluster.run import training as train_task
train_task.adopt_orphans()
noted = {"training": {"entries": {"worker:0": "127.0.0.1:1"}, "machines": {"worker:0": "a"}}, "task": "worker:0", "timeout": 9}
noted["command"] = [sys.executable, sys.argv[1]]
async def main():
    member = train_task.Member(noted, pathlib.Path("none"))
    await member.start(1)
    await asyncio.sleep(float(sys.argv[2]))
    await member.end()
asyncio.run(main())
"""
LEAVES = """
import os, signal, subprocess, sys
text = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
inner = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {text!r}], start_new_session=True).pid)"
here = sys.argv[0].removesuffix("program.py")
for name, words in (("first", ["-c", text]), ("second", ["-c", f"{inner}"])):
    with open(here + name, "w") as file:
        child = subprocess.Popen([sys.executable, *words], start_new_session=True, stdout=file)
        if name == "first":
            file.write(str(child.pid))
        else:
            child.wait()  # its own child has no parent any more
"""


@pytest.mark.parametrize("more", ["", "signal.pause()"])
def test_child_processes_in_other_sessions_are_killed_with_the_program(tmp_path, more):
    (tmp_path / "program.py").write_text(LEAVES + more, encoding="utf-8")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "program.py"), "2"]
    subprocess.run(command, check=True, timeout=30, env={**os.environ, "PYTHONPATH": str(ROOT / "files")})
    pids = [(tmp_path / name).read_text(encoding="utf-8").strip() for name in ("first", "second")]
    assert all(pids)
    states = subprocess.run(["ps", "-o", "stat=", "-p", ",".join(pids)], capture_output=True, text=True, check=False).stdout
    assert [state for state in states.split() if not state.startswith("Z")] == []  # whose parent is gone may stay a moment as Z


class Training:
    """A training of this process's coroutines, a program each."""

    def __init__(self, folder, *programs, restarts=0, join=5.0, ports=None, limit=600):
        ports = ports or [free_port() for _each in programs]
        self.plan = {
            "id": "r1", "chief": "worker:0", "control": f"127.0.0.1:{free_port()}", "restarts": restarts,
            "join": join, "queue_timeout": 0,
            "cluster": {"worker": [f"127.0.0.1:{port}" for port in ports]},
            "entries": {f"worker:{index}": f"127.0.0.1:{port}" for index, port in enumerate(ports)},
            "machines": {f"worker:{index}": "abc"[index] for index in range(len(programs))},
        }  # fmt: skip
        self.members = []
        for index, text in enumerate(programs):
            path = folder / f"{index}.py"
            path.write_text(
                f"import os, pathlib, signal, sys, time\nhere = pathlib.Path({str(folder)!r})\n{text}", encoding="utf-8"
            )
            noted = {"training": self.plan, "task": f"worker:{index}", "command": [sys.executable, str(path)], "timeout": limit}
            self.members.append(train_task.Member(noted, folder / f"{index}.log"))

    @property
    def address(self):
        """Return address and port of the coordinator."""
        return train_task.cluster_config.split_address(self.plan["control"])

    async def coordinate(self):
        """Start the coordinator."""
        await self.members[0].coordinate()
        self.coordinating = self.members[0].coordinating

    async def run(self, *others):
        """Go through the training without the members named in ``others``; return what each says of its end."""
        await self.coordinate()
        found = await asyncio.gather(*(member.run() for member in self.members if member.task not in others))
        await asyncio.wait_for(self.coordinating, 5)
        return found

    async def hello(self, **message):
        """Connect to the coordinator, say something, and return the channel."""
        channel = train_task.Channel(*await asyncio.open_connection(*self.address))
        await channel.send(**message)
        return channel


def later(seconds, call):
    """Call something later."""
    asyncio.get_running_loop().call_later(seconds, call)


@in_a_loop
async def test_a_training_succeeds_if_all_programs_succeed(tmp_path):
    found = await Training(tmp_path, "", "time.sleep(0.5)").run()
    history = [{"attempt": 1, "tasks": ["worker:0", "worker:1"], "first_step": 0, "ended": "done"}]
    done = {"failure": "", "outcome": "done", "attempts": 1, "final": True}
    assert found == [{**done, "history": history}, {**done, "history": []}]


@in_a_loop
async def test_no_program_starts_before_all_tasks_have_joined(tmp_path):
    training = Training(tmp_path, "(here / 'started').touch()", "")
    await training.coordinate()
    first = asyncio.create_task(training.members[0].run())
    await asyncio.sleep(0.5)
    assert not (tmp_path / "started").exists()
    assert (await training.members[1].run())["failure"] == ""
    assert (await first)["failure"] == ""


@pytest.mark.parametrize(
    ("text", "outcome"),
    [("sys.exit(3)", "exited with status 3"), ("os.kill(os.getpid(), 9)", "was killed by SIGKILL")],
)
@in_a_loop
async def test_a_failed_program_stops_all_programs_within_seconds(tmp_path, text, outcome):
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    begun = time.monotonic()
    found = await Training(tmp_path, stubborn, f"time.sleep(0.3)\n{text}", "").run()
    assert time.monotonic() - begun < 5
    [failure] = {each["failure"] for each in found}
    assert re.sub(r"\d+ s before", "N s before", failure) == (
        f"the program of worker:1 on machine b {outcome}; the program of worker:2 on machine c (N s before) had already finished"
    )
    assert [each["outcome"] for each in found] == ["was stopped with the others", outcome, "done"]


@in_a_loop
async def test_all_programs_are_restarted_after_a_failure(tmp_path):
    first = "(here / f'ran-{time.time_ns()}').touch()\ntime.sleep(0.5)"
    second = (
        "while not list(here.glob('ran-*')): time.sleep(0.02)\n(here / 'died').exists() or ((here / 'died').touch(), sys.exit(1))"
    )
    found = await Training(tmp_path, first, second, restarts=1).run()
    assert [(each["failure"], each["outcome"], each["attempts"]) for each in found] == [("", "done", 2)] * 2
    first, second = found[0]["history"]
    assert "the program of worker:1 on machine b exited with status 1" in first["ended"]
    assert (second["attempt"], second["ended"]) == (2, "done")
    assert len(list(tmp_path.glob("ran-*"))) == 2


@in_a_loop
async def test_the_number_of_restarts_is_limited(tmp_path):
    found = await Training(tmp_path, "time.sleep(60)", "sys.exit(1)", restarts=2).run()
    assert [each["attempts"] for each in found] == [3, 3]
    assert "exited with status 1" in found[0]["failure"]


@in_a_loop
async def test_a_task_that_does_not_join_in_time_is_named(tmp_path, capfd):
    training = Training(tmp_path, "", "", join=0.5)
    training.plan["queue_timeout"] = 2
    [found] = await training.run("worker:1")
    assert found["failure"].startswith("worker:1 on machine b did not join the training within 2.5 s")
    assert found["outcome"] == "was not started"
    assert capfd.readouterr().out.count("[training] waiting for worker:1 on machine b to join\n") == 1


@in_a_loop
async def test_a_chief_that_cannot_be_reached_is_reported(tmp_path):
    found = await Training(tmp_path, "", "", join=0.5).members[1].run()
    assert found["failure"].startswith("worker:1 could not reach the chief at 127.0.0.1:")


@in_a_loop
async def test_a_port_in_use_is_reported_by_all_tasks(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        found = await Training(tmp_path, "", "", ports=[free_port(), port], restarts=3).run()
    assert {each["failure"] for each in found} == {found[0]["failure"]}
    assert f"worker:1 on machine b could not start: its port {port} is in use by" in found[0]["failure"]
    assert found[0]["attempts"] == 1


@in_a_loop
async def test_a_task_that_is_stopped_from_outside_stops_the_training_without_a_restart(tmp_path):
    training = Training(tmp_path, "time.sleep(60)", "time.sleep(60)", restarts=3)
    later(2, training.members[1].leaving.set)
    found = await training.run()
    assert found[0]["failure"] == "the process of worker:1 on machine b was stopped from outside"
    assert [each["outcome"] for each in found] == ["was stopped with the others", "was stopped from outside"]


@in_a_loop
async def test_a_training_that_exceeds_its_timeout_reports_the_timeout(tmp_path):
    training = Training(tmp_path, "time.sleep(60)", "time.sleep(60)")
    training.members[1].limit = 0.5
    found = await training.run()
    assert found[0]["failure"] == "the training was stopped after 0.5 s (run_timeout); still running: worker:0, worker:1"


@in_a_loop
async def test_the_timeout_begins_when_all_tasks_have_joined(tmp_path):
    training = Training(tmp_path, "time.sleep(1)", "time.sleep(1)")
    for member in training.members:
        member.limit = 4
    await training.coordinate()
    chief = asyncio.create_task(training.members[0].run())
    await asyncio.sleep(4.5)
    found = [await training.members[1].run(), await chief]
    assert [each["outcome"] for each in found] == ["done", "done"]


@in_a_loop
async def test_the_reason_of_a_failure_is_that_of_the_last_attempt(tmp_path, capfd):
    training = Training(tmp_path, "sys.exit(1)", "time.sleep(60)", restarts=1)
    (tmp_path / "0.log").write_text(
        "Traceback (most recent call last):\n  File\nZeroDivisionError: division by zero\n[training] attempt 2\n",
        encoding="utf-8",
    )
    found = await training.run()
    assert found[0]["failure"] == "the program of worker:0 on machine a exited with status 1"
    assert "[training] attempt 2\n" in capfd.readouterr().out


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "signal 40")])
def test_a_program_that_was_killed_is_reported_with_the_signal(tmp_path, number, name):
    assert train_task.exit_description(-number, tmp_path, "worker:0", ["worker:0"]) == f"was killed by {name}"


@in_a_loop
async def test_a_failure_names_the_tasks_that_had_already_finished(tmp_path, capsys):
    """The other tasks fail in their next step, because a task is missing."""
    (tmp_path / "0.log").write_text("Traceback (most recent call last):\n  File\nValueError: no more\n", encoding="utf-8")
    found = await Training(tmp_path, "time.sleep(2); sys.exit(1)", "").run()
    assert re.sub(r"\d+ s before", "N s before", found[0]["failure"]) == (
        "the program of worker:0 on machine a exited with status 1: ValueError: no more; "
        "the program of worker:1 on machine b (N s before) had already finished"
    )
    assert "[training] worker:1 finished; waiting for worker:0" in capsys.readouterr().out


@in_a_loop
async def test_a_training_can_be_set_to_end_with_its_chief(tmp_path):
    training = Training(tmp_path, "", "time.sleep(60)")
    training.plan["ends_with"] = "chief"
    found = await training.run()
    assert [each["failure"] for each in found] == ["", ""]
    assert found[0]["outcome"] == "done"


@pytest.mark.parametrize(("status", "failure"), [(0, ""), (4, "the program of worker:1 on machine b exited with status 3")])
@in_a_loop
async def test_a_task_that_fails_while_the_chief_exits_does_not_decide_a_training_that_ends_with_it(tmp_path, status, failure):
    training = Training(tmp_path, f"time.sleep(1); sys.exit({status})", "sys.exit(3)")
    training.plan["ends_with"] = "chief"
    found = await training.run()
    assert found[0]["failure"].partition("; ")[0] == failure


@pytest.mark.parametrize("silent", [True, False])
@in_a_loop
async def test_a_lost_task_stops_the_training(tmp_path, silent):
    training = Training(tmp_path, "time.sleep(60)", "")
    await training.coordinate()
    channel = await training.hello(run="r1", task="worker:1")
    if silent:
        channel.heartbeats.cancel()
    else:
        later(0.5, channel.writer.close)
    found = await training.members[0].run()
    assert "the process of worker:1 on machine b was lost" in found["failure"]
    channel.close()


@in_a_loop
async def test_a_lost_chief_stops_the_program(tmp_path):
    training = Training(tmp_path, "", "time.sleep(60)")
    connected = asyncio.Queue()

    async def chief(reader, writer):
        connected.put_nowait(train_task.Channel(reader, writer))

    async with await asyncio.start_server(chief, *training.address):
        ending = asyncio.create_task(training.members[1].run())
        channel = await connected.get()
        await channel.send(start=1)
        await asyncio.sleep(0.3)
        channel.close()
        assert (await ending)["failure"] == "the connection to the chief, worker:0, was lost"
    assert training.members[1].process is None


@in_a_loop
async def test_connections_from_outside_the_training_do_not_disturb_it(tmp_path):
    training = Training(tmp_path, "time.sleep(0.5)", "")
    await training.coordinate()
    for word in (b"GET / HTTP/1.1\r\n\r\n", b"\n", b"[]\n", b"[" * 200_000, b"{}\n", b'{"run": "r1", "task": ["x"]}\n'):
        _reader, writer = await asyncio.open_connection(*training.address)
        writer.write(word)
        writer.close()
    other = await training.hello(run="r2", task="worker:1")
    assert "in use by another training, r1" in (await other.receive())["over"]
    other.close()
    assert [each["failure"] for each in await asyncio.gather(*(member.run() for member in training.members))] == ["", ""]


@in_a_loop
async def test_a_connection_that_sends_nothing_is_closed(tmp_path):
    training = Training(tmp_path, "", "")
    await training.coordinate()
    reader, writer = await asyncio.open_connection(*training.address)
    assert set((await asyncio.wait_for(reader.read(), 5)).splitlines()) <= {b'{"alive": true}'}  # and then its end
    writer.close()
    assert [each["failure"] for each in await asyncio.gather(*(member.run() for member in training.members))] == ["", ""]


def test_the_chief_reports_a_task_that_cannot_start(tmp_path):
    training = Training(tmp_path, "", "")

    async def refused():
        await training.coordinate()
        chief = asyncio.create_task(training.members[0].run())
        await asyncio.to_thread(train_task.refuse, training.plan, "worker:1", "its task is in use")
        return await chief

    found = asyncio.run(asyncio.wait_for(refused(), 30))
    assert found["failure"] == "worker:1 on machine b could not start: its task is in use"


class Surviving(Training):
    """A training that continues after a machine was lost: its tasks share a folder."""

    def __init__(self, folder, *programs, least=1, restarts=3, join=4, **more):
        super().__init__(folder, *programs, restarts=restarts, join=join, **more)
        self.plan |= {"min_tasks": least, "survives": True}
        self.plan["controls"] = {task: f"127.0.0.1:{free_port()}" for task in self.plan["machines"]}
        self.folder = folder / "coordinators"
        self.folder.mkdir()
        self.members = [self.member(task) for task in self.plan["machines"]]

    def member(self, task, **more):
        """Return a new process of a task."""
        index = int(task[-1])
        path = self.folder.parent / f"{index}.py"
        noted = {"training": self.plan, "task": task, "command": [sys.executable, str(path)], "timeout": 600, **more}
        return train_task.Member(noted, self.folder.parent / f"{index}.log", coordination.Terms(self.folder))

    def begin(self):
        """Start all members; return their asyncio tasks by name."""
        return {member.task: asyncio.create_task(member.run()) for member in self.members}

    async def lose(self, task, process):
        """Let the process of a task disappear without a word, as does a machine that fails."""
        member = next(member for member in self.members if member.task == task)
        if member.coordinator:
            coordinating, coordinator = member.coordinating, member.coordinator
            coordinator.server.close()
            for channel in coordinator.members.values():
                channel.writer.transport.abort()
            coordinating.cancel()
        process.cancel()
        await asyncio.gather(process, return_exceptions=True)
        if member.process:
            member.process.kill()


ROUND = """
import json
task, spec = (json.loads(os.environ["TF_CONFIG"])[name] for name in ("task", "cluster"))
(here / f"ran-{len(spec['worker'])}-{task['index']}-{time.time_ns()}").touch()
end = time.monotonic() + 100
while not (here / "enough").exists() and time.monotonic() < end: time.sleep(0.02)
"""


async def until(condition, seconds=60):
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def ran(folder, count):
    """Return how many programs have started with a number of workers, by their index."""
    return sorted(int(path.name.split("-")[2]) for path in folder.glob(f"ran-{count}-*"))


@in_a_loop
async def test_a_task_that_is_lost_before_the_first_start_may_return(tmp_path):
    training = Surviving(tmp_path, "", "")
    chief = asyncio.create_task(training.members[0].run())
    channel = None
    while not channel:
        with contextlib.suppress(OSError):
            channel = await training.hello(run="r1", task="worker:1")
        await asyncio.sleep(0.1)
    channel.close()
    await asyncio.sleep(0.5)
    found = [await training.members[1].run(), await chief]
    assert [each["failure"] for each in found] == ["", ""]


@in_a_loop
async def test_a_shared_folder_that_does_not_answer_for_a_moment_does_not_end_a_training(tmp_path):
    training = Surviving(tmp_path, "", "")
    terms, begun = training.members[1].terms, time.monotonic()
    read = terms.read

    async def fail_first():
        if time.monotonic() < begun + 1.5:
            raise OSError(errno.ESTALE, "Stale file handle")
        return await read()

    terms.read = fail_first
    found = await asyncio.gather(*training.begin().values())
    assert [each["failure"] for each in found] == ["", ""]


@pytest.mark.parametrize("lost", ["worker:0", "worker:1", "worker:2"])
@in_a_loop
async def test_the_others_continue_without_a_lost_task(tmp_path, lost):
    training = Surviving(tmp_path, ROUND, ROUND, ROUND, least=2)
    running = training.begin()
    await until(lambda: ran(tmp_path, 3) == [0, 1, 2])
    await training.lose(lost, running.pop(lost))
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    (tmp_path / "enough").touch()
    found = await asyncio.gather(*running.values())
    assert [(each["failure"], each["outcome"], each["attempts"]) for each in found] == [("", "done", 2)] * 2
    left = [task for task in training.plan["machines"] if task != lost]
    for each in found:
        first, second = each["history"]
        assert first["ended"] == (
            f"the process of {lost} on machine {'abc'[int(lost[-1])]} was lost: its machine, network or systemd stopped it"
        )
        assert (second["tasks"], second["ended"]) == (left, "done")


@pytest.mark.parametrize("lost", ["worker:0", "worker:1"])
@in_a_loop
async def test_a_task_that_returns_in_time_takes_part_again(tmp_path, lost):
    training = Surviving(tmp_path, ROUND, ROUND, least=2, join=10)
    running = training.begin()
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    await training.lose(lost, running.pop(lost))
    running[lost] = asyncio.create_task(training.member(lost, resumed=True).run())
    await until(lambda: ran(tmp_path, 2) == [0, 0, 1, 1])
    (tmp_path / "enough").touch()
    found = await asyncio.gather(*running.values())
    assert [(each["failure"], each["outcome"], each["attempts"]) for each in found] == [("", "done", 2)] * 2


@in_a_loop
async def test_a_task_that_returns_late_takes_part_after_the_next_restart(tmp_path, capsys):
    failing = f"{ROUND}\nif len(spec['worker']) == 1 and not (here / 'failed').exists(): (here / 'failed').touch(); sys.exit(5)"
    training = Surviving(tmp_path, failing, ROUND)
    running = training.begin()
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    await training.lose("worker:1", running.pop("worker:1"))
    await until(lambda: ran(tmp_path, 1) == [0])
    running["worker:1"] = asyncio.create_task(training.member("worker:1", resumed=True).run())
    await asyncio.sleep(1)
    assert "worker:1 on machine b has joined and takes part after the next restart" in capsys.readouterr().out
    (tmp_path / "enough").touch()
    found = await asyncio.gather(*running.values())
    assert [(each["failure"], each["attempts"]) for each in found] == [("", 3)] * 2
    assert [each["tasks"] for each in found[0]["history"]] == [["worker:0", "worker:1"], ["worker:0"], ["worker:0", "worker:1"]]
    assert "exited with status 5" in found[0]["history"][1]["ended"]


@in_a_loop
async def test_a_training_fails_if_too_few_tasks_are_left(tmp_path):
    training = Surviving(tmp_path, ROUND, ROUND, least=2)
    running = training.begin()
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    await training.lose("worker:1", running.pop("worker:1"))
    found = await running["worker:0"]
    assert "worker:1 on machine b did not return within 4 s (train_join)" in found["failure"]
    assert "only 1 of 2 tasks are left (train_min_tasks: 2)" in found["failure"]
    late = await training.member("worker:1", resumed=True).run()  # it returns when all is over
    assert (late["failure"], late["outcome"]) == (found["failure"], train_task.LEFT_OUT)


@in_a_loop
async def test_the_others_continue_if_the_machine_of_the_coordinator_shuts_down(tmp_path):
    training = Surviving(tmp_path, ROUND, ROUND)
    running = training.begin()
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    training.members[0].leaving.set()
    left = await running["worker:0"]
    assert (left["failure"], left["final"]) == ("the process of worker:0 was stopped from outside", False)
    await until(lambda: ran(tmp_path, 1) == [0])
    (tmp_path / "enough").touch()
    assert (await running["worker:1"])["failure"] == ""


@in_a_loop
async def test_a_canceled_task_stops_the_training(tmp_path):
    training = Surviving(tmp_path, ROUND, ROUND)
    running = training.begin()
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    (tmp_path / "run.json").write_text('{"cancelled": "by somebody"}', encoding="utf-8")
    training.members[1].leaving.set()
    assert {each["failure"] for each in await asyncio.gather(*running.values())} == {
        "the process of worker:1 on machine b was stopped from outside"
    }


@pytest.mark.parametrize("reason", ["run_timeout", "canceled"])
@in_a_loop
async def test_a_training_that_waits_for_a_lost_task_can_be_stopped(tmp_path, reason, capsys):
    training = Surviving(tmp_path, ROUND, ROUND, ROUND, least=2, join=600)
    running = training.begin()
    await until(lambda: ran(tmp_path, 3) == [0, 1, 2])
    await training.lose("worker:2", running.pop("worker:2"))
    printed = []
    await until(lambda: printed.append(capsys.readouterr().out) or "waiting for worker:2 on machine c" in "".join(printed))
    if reason == "run_timeout":
        training.members[1].expire()
    else:
        (tmp_path / "run.json").write_text('{"cancelled": "by somebody"}', encoding="utf-8")
        training.members[1].leaving.set()
    found = await asyncio.wait_for(asyncio.gather(*running.values()), 30)
    outside = "the process of worker:1 on machine b was stopped from outside"
    cause = "the training was stopped after 600 s (run_timeout)" if reason == "run_timeout" else outside
    assert [each["failure"].split("; ")[-1] for each in found] == [cause] * 2
    assert ran(tmp_path, 2) == []


@in_a_loop
async def test_attempts_are_counted_although_only_the_last_ones_are_kept(tmp_path):
    training = Surviving(tmp_path, ROUND, ROUND)
    kept = [{"attempt": number, "tasks": ["worker:0"], "first_step": 0, "ended": "lost"} for number in (48, 147)]
    coordinator = train_task.Coordinator({**training.plan, "restarts": 146}, tmp_path, "worker:1", training.members[1].terms)
    assert await coordinator.claim(training.members[1].terms, coordination.Term(1, {"task": "worker:0", "attempts": kept}))
    assert (coordinator.attempt, (await coordinator.take_over())[0]) == (147, [])


UNHEALTHY = "exited with status 1: UnavailableError: unhealthy tasks: (worker:1). See there; or here"


@pytest.mark.parametrize(
    ("noted", "named"),
    [
        ([], []),
        (["lost worker:2", f"failed worker:0 {UNHEALTHY}"], ["lost worker:2", f"failed worker:0 {UNHEALTHY}"]),
        (["lost worker:1", "lost worker:2", f"failed worker:0 {UNHEALTHY}"], ["lost worker:2"]),
        (["lost worker:1", "failed worker:1 was killed by SIGKILL"], ["failed worker:1 was killed by SIGKILL"]),
    ],
)
@in_a_loop
async def test_what_only_a_disconnected_coordinator_saw_is_not_noted(tmp_path, capsys, noted, named):
    """Other tasks were lost for it, which are there, and its program failed without them."""
    training = Surviving(tmp_path, ROUND, ROUND, ROUND)
    coordinator = train_task.Coordinator(training.plan, tmp_path, "worker:1", training.members[1].terms)

    def sentence(short):
        kind, task, *how = short.split(" ", 2)
        return coordinator.sentence(task, {"lost": True} if kind == "lost" else {"ended": how[0]})

    kept = {"attempt": 1, "tasks": [*training.plan["machines"]], "first_step": 0, "ended": "; ".join(map(sentence, noted))}
    assert await coordinator.claim(training.members[1].terms, coordination.Term(1, {"task": "worker:0", "attempts": [kept]}))
    coordinator.members = {"worker:1": None}
    coordinator.heard = dict.fromkeys(training.plan["machines"], -1000.0)
    assert (await coordinator.take_over())[0] == ["worker:1"]
    ended = "; ".join([sentence("lost worker:0"), *map(sentence, named)])
    assert coordinator.attempts[-1]["ended"] == ended
    assert f"{ended}; restarting without worker:0" in capsys.readouterr().out


@in_a_loop
async def test_a_replaced_coordinator_takes_part_under_the_new_coordinator(tmp_path):
    """It was disconnected from the others, but not from the shared folder."""
    training = Surviving(tmp_path, ROUND, ROUND)
    running = training.begin()
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    assert await training.members[1].coordinate(await coordination.Terms(training.folder).read())
    await until(lambda: ran(tmp_path, 2) == [0, 0, 1, 1])
    (tmp_path / "enough").touch()
    assert {each["failure"] for each in await asyncio.gather(*running.values())} == {""}


@in_a_loop
async def test_a_coordinator_that_loses_all_connections_leaves_and_takes_part_again(tmp_path):
    """It may be the one whose machine is disconnected. It takes part again when it reaches them."""
    training = Surviving(tmp_path, ROUND, ROUND, ROUND, least=2, join=20)
    running = training.begin()
    await until(lambda: ran(tmp_path, 3) == [0, 1, 2])
    coordinator = training.members[0].coordinator
    coordinator.server.close()  # they cannot connect again
    for task in ("worker:1", "worker:2"):
        coordinator.members[task].writer.transport.abort()
    await until(lambda: ran(tmp_path, 3) == [0, 0, 1, 1, 2, 2])
    assert coordinator.left.is_set()
    (tmp_path / "enough").touch()
    assert [(each["failure"], each["attempts"]) for each in await asyncio.gather(*running.values())] == [("", 2)] * 3


@in_a_loop
async def test_a_new_coordinator_waits_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(train_task, "HEARTBEAT_TIMEOUT_SECONDS", 1.0)
    training = Surviving(tmp_path, ROUND, ROUND, ROUND, least=2)
    running = training.begin()
    await until(lambda: ran(tmp_path, 3) == [0, 1, 2])
    await training.lose("worker:0", running.pop("worker:0"))
    await until(lambda: ran(tmp_path, 2) == [0, 1])
    term = await coordination.Terms(training.folder).read()
    assert (term.number, term.content["task"]) == (2, "worker:1")  # nobody else had to
    (tmp_path / "enough").touch()
    assert [each["failure"] for each in await asyncio.gather(*running.values())] == ["", ""]


@in_a_loop
async def test_only_one_task_can_claim_a_term(tmp_path):
    terms = [coordination.Terms(tmp_path) for _each in range(20)]
    won = await asyncio.gather(*(each.claim(1, {"task": str(number)}) for number, each in enumerate(terms)))
    assert won.count(True) == 1
    assert (await terms[0].read()).content == {"task": str(won.index(True))}
    assert [path.name for path in tmp_path.iterdir()] == ["1.json"]


@in_a_loop
async def test_a_shared_folder_that_does_not_answer_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(coordination, "IO_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="does not answer"):
        await coordination.in_thread(lambda: time.sleep(2))
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (None, 0),
        ('model_checkpoint_path: "ckpt-40"\nall_model_checkpoint_paths: "ckpt-20"\n', 40),
        ('model_checkpoint_path: "/a/b-3/model-7"\n', 7),
        ('model_checkpoint_path: "best"\n', None),
    ],
)
@in_a_loop
async def test_the_first_step_is_the_number_of_the_newest_checkpoint(tmp_path, text, step):
    if text:
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner/checkpoint").write_text(text, encoding="utf-8")
    assert await train_task.first_step(tmp_path) == step
