"""config.json read and checked, and ports asked about."""

import json
import os
import re
import socket

import pytest
from project import load

cli = load("tf_cluster.cli")
cluster_config = load("tf_cluster.spec.cluster_config")
ports = load("tf_cluster.server.ports")
SPEC = {"worker": ["10.10.100.87:2222", "10.10.102.74:2222"], "host": ["10.10.100.87:2223"]}


@pytest.fixture
def config(tmp_path):
    """Return the path of a config.json that is not there yet."""
    return tmp_path / "config.json"


@pytest.fixture
def taken():
    """Return a port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def sentence_of(path):
    """Return the sentence with which a file is refused; it names the file."""
    with pytest.raises(cluster_config.ConfigError) as caught:
        cluster_config.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_cluster_spec_is_read_unchanged(config):
    config.write_text(json.dumps(SPEC, indent=4), encoding="utf-8")
    assert cluster_config.load(config) == cluster_config.load(str(config)) == SPEC


def test_a_missing_file_is_reported_with_the_option_for_another_file(config):
    assert "does not exist; give the cluster spec with --config" in sentence_of(config)


def test_a_folder_cannot_be_read(tmp_path):
    assert "cannot be read" in sentence_of(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_an_error(config):
    config.write_text(json.dumps(SPEC), encoding="utf-8")
    config.chmod(0)
    assert "cannot be read" in sentence_of(config)


def test_a_file_below_a_file_cannot_be_read(config):
    config.write_text("", encoding="utf-8")
    assert "cannot be read" in sentence_of(config / "config.json")


def test_an_invalid_file_name_cannot_be_read(tmp_path):
    with pytest.raises(cluster_config.ConfigError, match="cannot be read"):
        cluster_config.load(f"{tmp_path}/a\0b")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00\x01", b"\x7fELF\x02\x01\x01\x00\x80", json.dumps(SPEC).encode("utf-16")])
def test_binary_data_cannot_be_read(config, data):
    config.write_bytes(data)
    assert "cannot be read" in sentence_of(config)


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "worker: [a:1]", "{'worker': ['a:1']}", '{"worker": ["10.0.0.1:2222"', '{"worker"', "\0", "[" * 100_000,
        '{"a":' * 100_000, "9" * 10_000, '\ufeff{"worker": ["a:1"]}',
    ],
    ids=["empty", "blank", "YAML", "Python", "truncated", "cut", "zero", "deep list", "deep object", "long number", "BOM"],
)  # fmt: skip
def test_text_that_is_not_json_is_reported(config, text):
    config.write_text(text, encoding="utf-8")
    assert "is not JSON" in sentence_of(config)


@pytest.mark.parametrize(
    "spec",
    [
        {}, [], None, 5, "worker", True, ["10.0.0.1:2222"], {"worker": []}, {"worker": {}}, {"worker": None}, {"worker": "a:1"},
        {"worker": 2}, {"worker": {"0": "a:1"}}, {"worker": [None]}, {"worker": [2222]}, {"worker": [["a:1"]]},
        {"worker": ["a:1"], "host": []}, {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}},
    ],
    ids=str,
)  # fmt: skip
def test_json_that_is_not_a_spec_is_reported_with_an_example(config, spec):
    config.write_text(json.dumps(spec), encoding="utf-8")
    assert 'looks like {"worker": ["10.0.0.5:2222"]' in sentence_of(config)


@pytest.mark.parametrize("entry", ["", "a", "a:", ":2222", "a:0", "a:65536", "a:x", "10.0.0.1:2222 ", "grpc://a"])
def test_an_invalid_address_is_named_with_its_task(config, entry):
    config.write_text(json.dumps({"worker": ["a:1", entry]}), encoding="utf-8")
    sentence = sentence_of(config)
    assert "task 1 of job 'worker'" in sentence
    assert repr(entry) in sentence


@pytest.mark.parametrize("spec", [{"worker": ["a:1", "a:1"]}, {"worker": ["b:1", "a:1"], "host": ["a:1"]}], ids=str)
def test_an_address_that_is_used_twice_is_named_with_both_tasks(config, spec):
    config.write_text(json.dumps(spec), encoding="utf-8")
    assert re.search(r"a:1 is used twice, by worker:\d and (worker|host):\d", sentence_of(config))


@pytest.mark.parametrize(
    ("entry", "parts"),
    [
        ("10.0.0.5:2222", ("10.0.0.5", 2222)),
        ("node-1.example.org:1", ("node-1.example.org", 1)),
        ("a:65535", ("a", 65535)),
        ("[::1]:2222", ("::1", 2222)),
        ("[fd00::1]:2222", ("fd00::1", 2222)),
    ],
)
def test_an_address_and_its_port_are_separated(entry, parts):
    assert cluster_config.split_address(entry) == parts


@pytest.mark.parametrize(
    "entry",
    [
        "", ":", "a", "a:", ":1", "a:0", "a:-1", "a:+1", "a:65536", "a:99999999999", "a:1.0", "a: 1", "a:1 ", "a:1\n",
        "a:0x10", "a:1_0", "a:٢٢٢٢", "a:\N{FULLWIDTH DIGIT TWO}", "a:²", "[::1]", "[]:1", "[a:1", "a]:1", "a:0000199999",
    ],
)  # fmt: skip
def test_an_entry_without_a_valid_address_and_port_is_refused(entry):
    with pytest.raises(cluster_config.ConfigError):
        cluster_config.split_address(entry)


@pytest.mark.parametrize("entry", ["::1:2222", "fd00::1:2222", "[::1:2222", "::1]:2222"])
def test_an_ipv6_address_requires_brackets(entry):
    with pytest.raises(cluster_config.ConfigError, match="brackets"):
        cluster_config.split_address(entry)


def test_the_entry_of_a_task_is_its_address():
    assert cluster_config.task_entry(SPEC, "worker", 1, "config.json") == "10.10.102.74:2222"


def test_an_unknown_job_is_reported_with_the_existing_jobs():
    with pytest.raises(cluster_config.ConfigError, match=r"config\.json has no job 'ps'; it has host, worker"):
        cluster_config.task_entry(SPEC, "ps", 0, "config.json")


@pytest.mark.parametrize("index", [2, -1, 10**9])
def test_an_unknown_task_is_reported_with_the_existing_indices(index):
    with pytest.raises(cluster_config.ConfigError, match=f"no task {index} of job 'worker'; its indices are 0 to 1"):
        cluster_config.task_entry(SPEC, "worker", index, "config.json")


def test_the_digest_is_the_same_for_the_same_content():
    assert cluster_config.digest(SPEC) == cluster_config.digest(dict(reversed(SPEC.items()))) == "2663cef04c34"


def test_the_digest_depends_on_the_order_of_tasks():
    assert cluster_config.digest(SPEC) != cluster_config.digest({**SPEC, "worker": SPEC["worker"][::-1]})


def test_a_port_with_a_listener_is_not_free(taken):
    assert not ports.port_is_free(taken)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_a_port_with_a_listener_on_ipv6_only_is_not_free():
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        port = server.getsockname()[1]
        assert not ports.port_is_free(port)
        assert f"process {os.getpid()}" in ports.port_holder(port)


def test_a_port_is_free_after_its_listener_has_exited():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
    assert ports.port_is_free(port)


def test_the_holder_of_a_port_is_named(taken):
    assert re.fullmatch(rf".+ \(process {os.getpid()}, user \S+\)", ports.port_holder(taken))


def test_listeners_are_found_by_their_ports(taken):
    [found] = ports.listeners([taken, 1])
    assert (found["port"], found["pid"]) == (taken, os.getpid())
    assert ports.listeners([1]) == ports.listeners([]) == []
    assert found in ports.listeners()


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_has_the_address_that_it_listens_on(family, address):
    try:
        server = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        [found] = ports.listeners([server.getsockname()[1]])
    assert found["address"] == address


def test_a_port_without_a_listener_has_no_holder():
    assert ports.port_holder(0) == "a process that this user cannot see"


def test_proxy_variables_are_removed_and_exceptions_are_kept(monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv("no_grpc_proxy", "10.0.0.1")
    cli.remove_proxy_variables()
    left = {name: text for name, text in os.environ.items() if name.lower().endswith("_proxy") and "no_proxy" not in name.lower()}
    assert left == {"no_grpc_proxy": "10.0.0.1"}
