"""What comes from outside, at random: a clear error or a right answer, never a traceback, never a file outside its folder.

The same examples each time (derandomize): what fails here fails everywhere.
"""

import base64
import io
import ipaddress
import json
import os
import pwd
import re
import socket
import sys
import tarfile
import tempfile
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from unittest import mock

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import archive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project import call, load

cluster_config = load("tf_cluster.spec.cluster_config")
cluster_spec = load("plugins/filter/cluster_spec.py")
cluster_peers, training = load("plugins/filter/cluster_peers.py"), load("plugins/filter/training.py")
program = load("plugins/filter/program.py")
new_run = load("plugins/filter/new_run.py")
report = load("tf_cluster.report.report")
runs, run_program, collect_run = load("tf_cluster.run.runs"), load("tf_cluster.run.program"), load("tf_cluster.collect.results")
unit = load("tf_cluster.run.unit")
tf_program = load("plugins/action/tf_program.py")
settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=150)
settings.load_profile("fixed")

# Any text, with what is troublesome in paths, shells, JSON and logs more often than by chance.
TROUBLE = [
    "",
    " ",
    "..",
    "../",
    "../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "a\0b",
    "'",
    '"',
    "$(id)",
    "; id",
    "-rf",
    "~",
    "%s",
    "{{ 7 }}",
]
TROUBLE += [
    "-c.py",
    "$HOME",
    "a b.py",
    "logs",
    "verdict.json",
    "program-logs",
    "\udcff",
    "안녕하세요",
    "x" * 300,
    "한" * 300,
    "\u202e",
    "\ud800",
    "<script>",
    "\x1b[31m",
]
texts = st.one_of(st.sampled_from(TROUBLE), st.text(max_size=20), st.text(alphabet="a./-_ \n'\"가", max_size=12))
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)), max_leaves=8
)
ports = st.one_of(st.integers(-1, 70000), st.sampled_from([0, 1, 2222, 65535, 65536]))
addresses = st.one_of(texts, st.sampled_from(["10.0.0.5", "10.0.0.6", "gpu-1", "[::1]", "fd00::7", "[fd00::7]", "localhost"]))
entries = st.one_of(st.builds("{}:{}".format, addresses, ports), values)
names = st.one_of(st.sampled_from(["worker", "host", "ps", "chief"]), texts)
near_specs = st.dictionaries(names, st.lists(st.builds("{}:{}".format, addresses, st.integers(1, 65535)), min_size=1, max_size=3))
specs = st.one_of(near_specs, st.dictionaries(names, st.one_of(st.lists(entries, max_size=3), values), max_size=3))
# What may stand in a file that is to hold JSON: JSON of any kind, with its end cut off, or no JSON at all.
documents = st.one_of(
    st.one_of(specs, values).map(lambda value: json.dumps(value).encode()),
    st.one_of(specs, values).map(lambda value: json.dumps(value).encode()[:-1]),
    st.binary(max_size=40),
    st.sampled_from([b"", b"[" * 100_000, b'{"a":' * 100_000, b"1e999", b"NaN", b"1" * 5000, b"\xef\xbb\xbf{}", b'"\\ud800"']),
)


def a_sentence(text):
    """Return whether this is a message for users: one line without text from Python."""
    return bool(text.strip()) and "\n" not in text.strip() and "Traceback" not in text


def outcome(error, function, *words):
    """Return what a function returns, or the sentence of its own error; any other comes through."""
    try:
        return function(*words), ""
    except error as said:
        return None, str(said)


@pytest.fixture(scope="module")
def folder():
    """Return a folder for the examples of a test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@given(content=documents)
def test_a_random_config_json_is_loaded_or_gives_a_message(folder, content):
    (folder / "config.json").write_bytes(content)
    spec, sentence = outcome(cluster_config.ConfigError, cluster_config.load, folder / "config.json")
    if sentence:
        assert a_sentence(sentence)
        assert "config.json" in sentence
    else:
        places = [cluster_config.split_address(entry) for tasks in spec.values() for entry in tasks]
        assert places
        assert all(1 <= port <= 65535 and re.fullmatch(r"[!-~]+", address) for address, port in places)
        assert all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", job) for job in spec)
        assert len(cluster_config.digest(spec)) == 12


@settings(max_examples=25)
@given(content=documents, job=names, task=st.integers(-2, 3))
def test_create_server_gives_a_message_for_a_random_config_json(folder, content, job, task):
    """Run as a process, on a Python without TensorFlow."""
    (folder / "config.json").write_bytes(content)
    words = ["--config", folder / "config.json", f"--task={task}", "--job=" + job.replace("\0", "").replace("\ud800", "")]
    done = call("files/create_server.py", *words, python=(sys.executable, "-S"), env={"PATH": os.environ["PATH"]})
    assert done.returncode in (1, 2)
    assert a_sentence(done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


tunnels = st.sampled_from(["fd74:6663:6c75::/64", "10.9.0.0/24", "10.9.0.0/31", "10.9.0.1/24", "fd74:6663:6c75::1", "10.9.0.7"])
machine_variables = st.fixed_dictionaries(
    {},
    optional={
        "tf_address": st.one_of(addresses, values),
        "ansible_host": st.one_of(addresses, values),
        "tf_jobs": st.one_of(st.lists(names, max_size=4), values),
        "tf_tasks": st.one_of(
            values,
            st.dictionaries(
                names,
                st.one_of(
                    st.integers(-1, 5),
                    st.just("per_gpu"),
                    st.lists(st.dictionaries(st.one_of(texts, st.sampled_from(["index", "port", "gpus"])), values, max_size=3)),
                ),
                max_size=3,
            ),
        ),
        "tf_task_options": st.one_of(values, st.dictionaries(st.sampled_from([*cluster_spec.OPTIONS, "other"]), values)),
        "tf_encryption": st.one_of(st.booleans(), values),
        "tf_tunnel_network": st.one_of(tunnels, values),
        "tf_tunnel_address": st.one_of(addresses, tunnels, values),
        "spec_gpus": st.sampled_from(
            [{}, *({"answer": found} for found in ({"gpus": [], "pci": []}, {"gpus": [{}], "pci": [{}, {}]}))]
        ),
    },
)


sane_variables = st.fixed_dictionaries(
    {},
    optional={
        "tf_address": addresses,
        "tf_tasks": st.dictionaries(
            st.sampled_from(["worker", "host"]),
            st.one_of(st.integers(1, 4), st.lists(st.fixed_dictionaries({"port": ports}), min_size=1, max_size=2)),
        ),
        "tf_task_options": st.fixed_dictionaries({}, optional={"gpu_memory_fraction": st.floats(), "gpus": leaves}),
        "tf_encryption": st.just(True),
        "tf_tunnel_network": tunnels,
        "tf_tunnel_address": tunnels,
    },
)
machine_names = st.one_of(st.sampled_from(["m1", "m2", "m3"]), texts)


@settings(max_examples=400)
@given(
    machines=st.dictionaries(machine_names, st.one_of(machine_variables, sane_variables), min_size=1, max_size=3),
    groups=st.dictionaries(names, st.lists(st.integers(0, 2), max_size=3, unique=True), max_size=3),
    provisional=st.booleans(),
)
def test_a_random_inventory_gives_a_valid_cluster_or_problems(machines, groups, provisional):
    order = list(machines)
    groups = {"worker": [0, 1], "host": [len(order) - 1], **groups}
    members = {group: [order[place] for place in places if place < len(order)] for group, places in groups.items()}
    found = cluster_spec.cluster_spec({"all": order, **members}, machines, provisional)
    if found["problems"]:
        assert all(sentence.strip() for sentence in found["problems"])
        assert list(found) == ["problems"]
    else:
        cluster_config.check(found["spec"], "config.json")
        assert sorted(found["tasks"]) == sorted(f"{job}:{i}" for job, tasks in found["spec"].items() for i in range(len(tasks)))
        assert set(found["machines"]) == set(found["tasks"].values())


@given(
    given_addresses=st.lists(addresses, min_size=1, max_size=3),
    more=st.one_of(st.lists(addresses, max_size=3), values),
    offset=st.one_of(ports, values),
)
def test_random_addresses_and_ports_give_firewall_peers_or_a_message(given_addresses, more, offset):
    tasks = [[{"address": address, "port": 2222, "job": "worker"}] for address in given_addresses]

    def resolver(text, *_more, **_words):
        text.encode("idna")  # as Python's own does first
        raise socket.gaierror(-2, "Name or service not known")

    with mock.patch("socket.getaddrinfo", resolver):
        found, sentence = outcome(ValueError, cluster_peers.cluster_peers, {"machines": dict(enumerate(tasks))}, more)
    if sentence:
        assert sentence.startswith(("The controller ", "firewall_extra_peers "))
        assert a_sentence(sentence)
    else:
        assert {ipaddress.ip_address(address).version for address in found["ipv4"]} <= {4}
        assert {ipaddress.ip_address(address).version for address in found["ipv6"]} <= {6}
    groups = {"all": ["m"], "worker": ["m"], "host": ["m"]}
    hostvars = {"m": {"ansible_host": "10.0.0.1", "train_port_offset": offset}}
    cluster = cluster_spec.cluster_spec(groups, hostvars, firewall=True)
    if cluster["problems"]:
        assert all("train_port_offset" in sentence and a_sentence(sentence) for sentence in cluster["problems"])
    else:
        found = training.cluster_ports(cluster, "m")
        assert all(1 <= port <= 65535 for port in found)
        assert 2222 in found


@given(path=st.one_of(texts, values), name=st.one_of(values, texts))
def test_a_random_run_name_gives_a_folder_below_the_output_folder(folder, path, name):
    found = new_run.run_name(path, folder, name)
    assert Path(found["folder"]).parent == folder.resolve()
    assert runs.Run(found["id"]).folder.parent == runs.RUNS


asked_for = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("program_data", "program_keras", "program_requirements"), st.one_of(st.lists(texts, max_size=2), texts, values)
        ),
        "program_args": st.one_of(texts, values),
        **dict.fromkeys((*program.LIMITS, *program.SWITCHES), st.one_of(st.floats(), texts, values)),
    },
)


@given(asked=asked_for)
def test_random_options_of_a_run_give_messages_that_name_the_option(folder, asked):
    (folder / "a.py").write_text("", encoding="utf-8")
    assert all(sentence.startswith(tuple(asked)) for sentence in program.program_problems(str(folder / "a.py"), asked))


@given(path=st.one_of(texts, values))
def test_a_random_program_path_gives_a_message(path):
    for sentence in program.program_problems(path):
        assert sentence.startswith("program ") or "is not Python" in sentence


@contextmanager
def files_below(folder, *contents):
    """Make a fresh folder with files of such names, and give it; names that no file can have are left out."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for number, paths in enumerate(contents):
            (Path(name) / str(number)).mkdir()
            for place, path in enumerate(paths):
                if ".." in path:
                    continue
                # The name of a file has no slash in it; a path has names between them.
                with suppress(OSError, ValueError):
                    file = Path(name, str(number), *(part.replace("/", "|") for part in path))
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(f"# {place}", encoding="utf-8")
        yield Path(name)


def content_of(folder):
    """Return the text of each file below a folder: path -> text."""
    return {os.path.relpath(path, folder): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=80)
@given(name=texts, data=st.lists(texts, max_size=2), around=st.sampled_from(["", "/x/..", "/."]))
def test_a_random_program_is_unpacked_and_started_in_the_run_folder(folder, name, data, around):
    with files_below(folder, [[name]], [[each] for each in data]) as place:
        (place / "1/x").mkdir(exist_ok=True)
        paths = [str(path) for path in (place / "0").iterdir()]
        beside = [f"{place}/1{around}/{path.name}" for path in (place / "1").iterdir() if path.is_file()]
        if not paths or program.program_problems(paths[0], {"program_data": beside}):
            return
        tar, commands = io.BytesIO(), []
        whole = [Path(path) for path in (paths[0], *beside)]
        archive.pack(whole, tar, whole[0])
        with (
            mock.patch.object(run_program.runs, "RUNS", place / "runs"),
            mock.patch.object(run_program, "USER", pwd.getpwuid(os.getuid()).pw_name),
            mock.patch.object(unit, "CONFIG", place / "config.json"),
            mock.patch.object(sys, "stdin", mock.Mock(buffer=io.BytesIO(tar.getvalue()))),
            mock.patch.object(run_program.subprocess, "run", lambda command, **_more: commands.append(command)),
        ):
            unit.CONFIG.write_text('{"host": ["10.0.0.1:2223"]}', encoding="utf-8")
            before = set(os.listdir(place))
            run = run_program.Run("r1")
            run_program.unpack(run)
            noted = run.note(program=program.program_entry(paths[0]), arguments=[], task="host:0", training={}, timeout=1,
                             unit="u", output_mb=1, abort_after_silence=0, own="", reserved=[], missing=[])  # fmt: skip
            unit.start_unit(run, noted)
        word = commands[0][-1].replace("$$", "$")
        assert not word.startswith("-")
        assert (run.folder / "program" / word).read_text(encoding="utf-8") == Path(paths[0]).read_text(encoding="utf-8")
        assert [os.path.basename(path) for path in beside if not (run.folder / "program" / os.path.basename(path)).exists()] == []
        assert set(os.listdir(place)) - before == {"runs"}
        assert os.listdir(place / "runs") == ["r1"]


TAKEN = ["logs", "program-logs", "verdict.json", "program-verdict.json", "program-program-verdict.json"]


def fetched(place, data):
    """Let the action unpack a tar file into the folder "output/r1"."""
    object.__new__(tf_program.ActionModule).fetch({"data": base64.b64encode(data).decode()}, place / "output/r1")


@settings(max_examples=80)
@given(left=st.lists(st.lists(st.one_of(st.sampled_from(TAKEN), texts), min_size=1, max_size=3), max_size=4))
def test_random_results_of_a_run_are_collected_completely(folder, left):
    with files_below(folder, left) as place:
        (place / "runs/r1/program").mkdir(parents=True)
        (place / "0").rename(place / "runs/r1/results")
        (place / "runs/r1/stdout.log").write_text("", encoding="utf-8")
        with mock.patch.object(run_program.runs, "RUNS", place / "runs"):
            run_program.Run("r1").note(run_id="r1", task="host:0")
            packed = collect_run.collect(mock.Mock(run="r1", results="true", seconds=0, until=0, tasks=[], note="false", end=""))
        fetched(place, base64.b64decode(packed["fetch"]["data"]))
        home, there = content_of(place / "output/r1"), content_of(place / "runs/r1/results")
        assert "stdout.log" in home
        own = {name: text for name, text in home.items() if text.startswith("# ")}
        assert sorted(own.values()) == sorted(there.values())
        assert {name.partition("/")[0] for name in own} & collect_run.RESERVED == set()
        assert sorted(os.listdir(place)) == ["output", "runs"]


OUTSIDE = ["../evil", "a/../../evil", "../../evil", "..", "/tmp/../evil"]
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])


@given(members=st.lists(st.tuples(st.one_of(st.sampled_from([*OUTSIDE, ".", "a/b", "a", "./a"]), texts), kinds), max_size=3))
def test_a_random_tar_file_writes_nothing_outside_the_output_folder(folder, members):
    with files_below(folder, [["kept"]]) as place:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, kind in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, str(place / "0/kept")
                with suppress(UnicodeEncodeError):
                    tar.addfile(member)
        _done, sentence = outcome(AnsibleActionFail, fetched, place, buffer.getvalue())
        assert not sentence or "does not belong" in sentence or "could not be written" in sentence
        assert (place / "0/kept").read_text(encoding="utf-8") == "# 0"
        assert set(os.listdir(place)) <= {"0", "output"}
        assert {name for name in os.listdir(place / "output") if not name.startswith(".r1.")} == {"r1"}
        assert not any(path.is_symlink() for path in place.rglob("*"))


@given(task=values)
def test_a_random_run_task_is_rejected_unless_it_is_a_task_of_the_cluster(task):
    cluster = {"tasks": {"host:0": "m"}, "machines": {"m": [{"job": "host", "index": 0, "standing": False}]}}
    assert (program.task_problems(task, cluster) == []) is (task == "host:0")


@given(run_id=texts)
def test_a_random_run_id_gives_a_folder_below_the_runs_folder_or_a_message(run_id):
    said = io.StringIO()
    with redirect_stderr(said):
        run, status = outcome(SystemExit, runs.Run, run_id)
    if status:
        assert status == "2"
        assert a_sentence(said.getvalue())
    else:
        assert run.folder.parent == runs.RUNS


OUTCOME = {"run_id": "r", "program": "p.py", "started": 0, "seconds": 1.0, "failure": "", "task": "host:0", "machine": "m"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(result=documents, placement=documents)
def test_a_random_result_gives_a_valid_verdict(folder, result, placement):
    output = folder / "output" / "r"
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_bytes(result)
    (output / "placement.json").write_bytes(placement)
    answer = report.write(output, {"outcome": OUTCOME, "tasks": [], "required": True})
    verdict = json.loads((output / "verdict.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert verdict == answer["verdict"]
    assert verdict["ok"] is (answer["failure"] == "")
    assert all(a_sentence(sentence) for sentence in verdict["failures"])
    assert sorted(os.listdir(output)) == ["placement.json", "report.html", "result.json", "summary.txt", "verdict.json"]
    assert sorted(os.listdir(output.parent)) == ["latest", "r"]
