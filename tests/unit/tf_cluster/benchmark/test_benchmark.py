"""A benchmark's choice of links, its tables and its findings, without TensorFlow; what it is asked for; the heat maps."""

import json
import time
from collections import Counter

import pytest
from project import load

benchmark = load("tf_cluster.benchmark.benchmark")
asked = load("plugins/filter/benchmark.py")
figure = load("tf_cluster.report.benchmark_figure")
network = load("tf_cluster.benchmark.network")


def tasks(*machines):
    """Return a worker task on each of the machines."""
    spec = {"worker": [f"10.0.0.{place}:2222" for place in range(len(machines))], "host": ["10.0.0.9:2223"]}
    known = {entry: [f"worker:{place}", machines[place], 0] for place, entry in enumerate(spec["worker"])}
    return benchmark.standing(spec, known, ("host", "chief"))


def cluster(count):
    """Return a cluster of so many machines with a task each."""
    machines = {
        f"m{place}": [{"job": "worker", "index": place, "address": f"[fd00::{place}]", "port": 2222, "options": {"gpus": []}}]
        for place in range(count)
    }
    return {"machines": machines, "train_port_offset": 1000}


def test_the_task_that_runs_the_benchmark_is_not_measured():
    assert [(task.name, task.device, task.machine) for task in tasks("a", "b")] == [
        ("worker:0", "/job:worker/task:0", "a"),
        ("worker:1", "/job:worker/task:1", "b"),
    ]


def test_a_task_keeps_its_name_in_the_cluster_if_another_task_is_missing():
    found = benchmark.standing({"worker": ["10.0.0.2:2222"]}, {"10.0.0.2:2222": ["worker:1", "b", 2]}, ("host",))
    assert found == [("worker:1", "/job:worker/task:0", "10.0.0.2:2222", "b", 2)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_rounds_have_each_ordered_pair_once_and_each_task_equally_often(count):
    members = tasks(*"abcdefgh"[:count])
    found = benchmark.rounds(members)
    pairs = [pair for pairs in found for pair in pairs]
    assert len(pairs) == len(set(pairs)) == count * (count - 1)
    assert all(sender != receiver for sender, receiver in pairs)
    for one in found:
        assert Counter(sender for sender, _receiver in one) == Counter(receiver for _sender, receiver in one) == Counter(members)


def test_links_between_machines_come_first():
    found = benchmark.rounds(tasks("a", "a", "b", "b"))
    inside = [sum(sender.machine == receiver.machine for sender, receiver in pairs) for pairs in found]
    assert inside == sorted(inside)
    assert inside[0] == 0


def test_a_machine_takes_part_in_one_measurement_at_a_time():
    pairs = benchmark.rounds(tasks(*"aabbccdd"))[0]
    found = benchmark.batches(pairs, lambda pair: [pair[0].machine, pair[1].machine], 2)
    assert sorted(pair for group in found for pair in group) == sorted(pairs)
    for group in found:
        machines = [machine for pair in group for machine in {pair[0].machine, pair[1].machine}]
        assert len(machines) == len(set(machines))
        assert len(group) <= 2


@pytest.mark.parametrize(("count", "most"), [(5, 1), (8, 1), (300, 9)])
def test_few_links_are_measured_one_by_one_and_many_at_once(count, most):
    assert benchmark.concurrency(count, 0.6, 22) == most


@pytest.mark.parametrize(
    ("small", "empty", "size"),
    [(0.003, 0.002, 64_000_000), (0.002, 0.003, 64_000_000), (0.0820, 0.0020, 3_125_000), (2.0, 0.002, 1_000_000)],
)
def test_a_slow_link_is_measured_with_fewer_bytes(small, empty, size):
    assert benchmark.large_size(small, empty) == pytest.approx(size, rel=0.01)


def test_each_attempt_gives_a_result_an_error_or_a_timeout():
    begun = time.monotonic()
    found = benchmark.attempt(lambda seconds: time.sleep(seconds) or 1 / (1 - seconds), [0, 1, 30], 3)
    assert time.monotonic() - begun < 10
    assert found[0] == 1
    assert isinstance(found[1], ZeroDivisionError)
    assert isinstance(found[2], TimeoutError)


def test_a_measurement_is_repeated_as_often_as_its_time_and_limits_allow():
    assert len(benchmark.timed(lambda: None, 0, 3, 9)) == 3
    assert len(benchmark.timed(lambda: None, 100, 3, 9)) == 9
    assert benchmark.timed(lambda: None, -1, 0, 9) == []


def link(sender, receiver, rate=1.0, **more):
    """Return a link as it was measured."""
    about = {"from": f"worker:{sender}", "to": f"worker:{receiver}", "from_machine": f"m{sender}", "to_machine": f"m{receiver}"}
    measured = {"step_milliseconds": 1.5, "bytes": 64_000_000, "gigabytes_per_second": rate, "small_gigabytes_per_second": 0.4}
    return {**about, **(more if "failure" in more else {**measured, **more})}


def result(links, **more):
    """Return a result with these links."""
    names = sorted({name for row in links for name in (row["from"], row["to"])})
    computed = [
        {"task": name, "machine": "m", "device": "CPU:0", "size": 2048, "gigaflops": 50.0 + place}
        for place, name in enumerate(names)
    ]
    about = {"format": benchmark.FORMAT, "tasks": names, "failed": {}, "computed": computed, "links_at_once": 1, "notes": []}
    return {**about, "links": benchmark.with_network(links, more.pop("network", [])), **more}


ALL = [(sender, receiver) for sender in range(3) for receiver in range(3) if sender != receiver]


def test_the_slowest_link_and_task_are_named():
    found = benchmark.findings(result([link(*pair, rate=0.012 if pair == (2, 1) else 1.2) for pair in ALL]))
    assert "The slowest link: worker:2 (m2) -> worker:1 (m1), 0.012 GB/s, 1% of the median: FAR BELOW the others" in found
    assert "The slowest task: worker:0 (m) on CPU:0, 50 GFLOP/s, 98% of the median" in found
    assert found[-1] == "Measured 6 of 6 links between 3 tasks."


def test_gpus_are_compared_with_gpus():
    more = [{"task": f"worker:{place}", "machine": "m", "device": "GPU:0", "gigaflops": 9000.0 - place} for place in range(3)]
    given = result([link(*pair) for pair in ALL])
    found = benchmark.findings({**given, "computed": given["computed"] + more})
    assert "The slowest task by GPU: worker:2 (m) on GPU:0, 8998 GFLOP/s, 100% of the median" in found


def test_missing_measurements_are_reported():
    found = benchmark.findings(result([link(0, 1), link(1, 2), link(2, 0)], links_at_once=2))
    assert found[-1].startswith("Measured 3 of 6 links between 3 tasks, 2 at once. NOT ALL: ")


def test_failures_are_reported_and_the_others_are_compared():
    links = [link(*pair, **({"failure": "worker:2 does not answer"} if 2 in pair else {})) for pair in ALL]
    found = benchmark.findings(result(links, failed={"worker:2": "does not answer"}))
    assert found[0] == "worker:2 FAILED: it does not answer"
    assert "Measured 2 of 6 links between 3 tasks." in found
    assert not any("The link" in line for line in found)
    links = [link(*pair, **({"failure": "timed out after 12 s"} if pair == (0, 1) else {})) for pair in ALL]
    assert benchmark.findings(result(links))[0] == "The link worker:0 -> worker:1 FAILED: timed out after 12 s"


def test_a_benchmark_without_measurements_has_findings_and_tables():
    given = {**result([link(0, 1, failure="x"), link(1, 0, failure="x")]), "computed": []}
    assert benchmark.findings(given)[-1] == "Measured 0 of 2 links between 2 tasks."
    assert benchmark.tables(given)


def test_the_tables_have_each_task_and_each_link():
    rates = [{"from": "m0", "to": "m1", "gigabytes_per_second": 1.25}]
    lines = benchmark.tables(result([link(*pair) for pair in ALL], network=rates))
    assert lines[0].split() == ["task", "machine", "device", "GFLOP/s"]
    assert lines[1].split() == ["worker:0", "m", "CPU:0", "50"]
    rows = [line.split() for line in lines[6:]]
    assert rows[0] == ["worker:0", "worker:1", "m0", "->", "m1", "1", "64", "0.4", "1.5", "1.25"]
    assert [row[-1] for row in rows[1:]] == ["-"] * 5


def test_the_table_shows_the_slowest_of_many_links():
    links = [link(sender, receiver, rate=1 + sender) for sender in range(12) for receiver in range(12) if sender != receiver]
    lines = benchmark.tables(result(links))
    assert f"The slowest 60 of {len(links)} links; benchmark.json has all:" in lines
    assert len(lines) < 80


@pytest.mark.parametrize(
    ("seconds", "count"),
    [*((given, 0) for given in (40, "40", 10.5)), *((given, 1) for given in ("soon", 9, "nan", True, [1], "inf", None))],
)
def test_an_invalid_time_is_reported(seconds, count):
    found = asked.benchmark_problems(seconds)
    assert [f"benchmark_seconds is {seconds!r}." in sentence for sentence in found] == [True] * count


def test_iperf3_measures_only_as_many_links_as_fit_into_the_time():
    assert asked.network_links(cluster(1), 10) == []
    whole = asked.network_links(cluster(3), 10)
    assert len(whole) == len({(row["from"], row["to"]) for row in whole}) == 6
    assert whole[0] == {"from": "m0", "to": "m1", "address": "fd00::1", "port": 3222}
    some = asked.network_links(cluster(7), 10)
    assert len(some) == 7
    assert {row["from"] for row in some} == {row["to"] for row in some} == set(cluster(7)["machines"])


def about_of(count=2, iperf=True, found=(), problems=None):
    """Return the program's argument for a cluster of so many machines."""
    given = cluster(count)
    return asked.benchmark_about(given, 30.0, iperf, asked.network_links(given, 10), list(found), problems or {})


def test_the_program_receives_the_tasks_and_the_network_measurements():
    rate = {"from": "m0", "to": "m1", "gigabytes_per_second": 1.5}
    about = about_of(found=[rate, {"from": "m1", "to": "m0", "failure": "refused"}])
    assert about["tasks"] == {"[fd00::0]:2222": ["worker:0", "m0", 0], "[fd00::1]:2222": ["worker:1", "m1", 0]}
    assert about["network"] == [rate]
    assert about["seconds"] == 27.4
    assert about["notes"] == [
        "iperf3 measured 1 of 2 links between 2 machines.",
        "iperf3 did not work on m1 -> m0: refused",
    ]


def test_missing_iperf3_measurements_are_explained():
    assert about_of(iperf=False)["seconds"] == 30
    assert about_of(iperf=False)["notes"] == ["iperf3 is switched off (benchmark_iperf)."]
    assert about_of(count=1)["notes"] == ["iperf3 had nothing to measure: all tasks are on one machine."]
    notes = about_of(found=[{"from": "m0", "to": "m1", "failure": "refused"}], problems={"m1": "no package\niperf3"})["notes"]
    assert notes[1:] == ["iperf3 did not work on m1: no package iperf3"]
    assert about_of(count=7)["notes"][0].endswith("NOT ALL: more do not fit into the time (benchmark_seconds).")


def test_the_heat_maps_have_a_cell_for_each_link():
    given = result([link(*pair, rate=1 + pair[0]) for pair in ALL if pair != (2, 0)] + [link(2, 0, failure="x")])
    assert figure.FORMAT == benchmark.FORMAT
    assert figure.read({"benchmark": given}) is given
    assert figure.grid(given, "gigabytes_per_second") == [[None, 1, 1], [2, None, 2], [None, 3, None]]
    drawn = json.loads(figure.figure(given))
    assert [trace["type"] for trace in drawn["data"]] == ["heatmap", "heatmap"]


@pytest.mark.parametrize("other", [None, [], {}, {"benchmark": 3}, {"benchmark": {"format": "mine"}}])
def test_the_result_of_another_program_is_not_a_benchmark(other):
    assert figure.read(other) is None


@pytest.fixture
def iperf3(tmp_path, monkeypatch):
    """Return a function that puts an iperf3 in place that prints something."""

    def place(text):
        (tmp_path / "iperf3").write_text(f"#!/bin/sh\necho '{text}'\n", encoding="utf-8")
        (tmp_path / "iperf3").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setattr(network, "USER", None)

    return place


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"end": {"sum_received": {"bits_per_second": 8e9}}}', {"gigabytes_per_second": 1.0}),
        ('{"error": "unable to connect"}', {"failure": "unable to connect"}),
    ],
)
def test_the_output_of_iperf3_is_parsed(iperf3, text, found):
    iperf3(text)
    answer = network.measure(json.dumps([{"from": "a", "to": "b", "address": "10.0.0.1", "port": 3222}]))
    assert answer["links"] == [{"from": "a", "to": "b", **found}]
    assert answer["lines"][0].startswith("a -> b: ")


def test_iperf3_output_that_is_not_json_is_a_failure(iperf3):
    iperf3("usage")
    assert "printed no JSON" in network.rate("10.0.0.1", 3222)["failure"]


def test_a_machine_without_iperf3_reports_it_as_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert network.serve("3222", "60") == {"state": "missing"}
