"""playbooks/benchmark.yml: every link and every task is measured, slow and missing ones are named, and it ends in time."""

import json
import time

import pytest
from conftest import folder_of, said, verdict

PLAYBOOK = "playbooks/benchmark.yml"
# 100 Mbit/s for all that leaves the machine.
SLOW = "tc qdisc add dev eth0 root tbf rate 100mbit burst 64kb latency 100ms && echo slowed || echo cannot"
FAST = "tc qdisc del dev eth0 root || true"


def benchmark(cluster, *words):
    """Run the benchmark and return the command and what it measured."""
    done = cluster.playbook(PLAYBOOK, *words)
    folder = folder_of(done)
    assert folder, said(done)
    return done, json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def standing(cluster):
    """Return the tasks that are servers: name -> the machine's address."""
    spec = json.loads((cluster.scenario / "config.json").read_text(encoding="utf-8"))
    return {
        f"{job}:{index}": entry.rpartition(":")[0]
        for job in spec if job != "host"
        for index, entry in enumerate(spec[job])
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(cluster):
    """Return a benchmark of the cluster as it is; it installs iperf3, too."""
    return benchmark(cluster)


def test_every_link_and_every_task_is_measured(whole, standing):
    done, found = whole
    assert done.returncode == 0, said(done)
    assert {row["task"] for row in found["computed"]} == set(standing)
    assert all(row["gigaflops"] > 0.1 for row in found["computed"])
    pairs = {(begin, end) for begin in standing for end in standing if begin != end}
    assert {(row["from"], row["to"]) for row in found["links"]} == pairs, found["findings"]
    for row in found["links"]:
        assert row["gigabytes_per_second"] > 0.001, row
        assert row["small_gigabytes_per_second"] > 0.001, row
        assert 0.1 < row["step_milliseconds"] < 1000, row


def test_each_link_between_machines_has_the_iperf3_rate_in_its_row(whole, standing):
    for row in whole[1]["links"]:
        between = standing[row["from"]] != standing[row["to"]]
        assert (row["network_gigabytes_per_second"] or 0) > 0.001 if between else row["network_gigabytes_per_second"] is None


def test_a_benchmark_is_a_run_with_a_table_a_verdict_and_heat_maps(whole):
    done, found = whole
    folder = folder_of(done)
    assert verdict(folder)["result"] == {"benchmark": found}
    assert "The slowest link: " in said(done)
    assert "The slowest task: " in said(done)
    assert "GB/s by iperf3" in done.stdout
    assert '"type":"heatmap"' in (folder / "report.html").read_text(encoding="utf-8")


def test_iperf3_does_not_keep_running_after_a_benchmark(cluster, whole):
    assert set(cluster.shell("lab", "pgrep -x iperf3 || echo none").values()) == {"none"}


def test_a_benchmark_names_a_slow_link_within_a_minute(cluster, whole, standing):
    machine = next(name for name, text in cluster.shell("lab", "hostname -I").items() if standing["worker:0"] in text.split())
    if "slowed" not in cluster.inside(machine, SLOW):
        pytest.skip("tc cannot slow a link here")
    try:
        begun = time.monotonic()
        done, found = benchmark(cluster)
        took = time.monotonic() - begun
    finally:
        cluster.inside(machine, FAST)
    assert done.returncode == 0, said(done)
    slowest = min(found["links"], key=lambda row: row.get("gigabytes_per_second", 0))
    assert slowest["from_machine"] == machine != slowest["to_machine"]
    assert slowest["gigabytes_per_second"] < 0.013
    assert slowest["network_gigabytes_per_second"] < 0.013
    assert f"The slowest link: {slowest['from']} ({machine}) -> " in said(done)
    assert took < 60


def test_a_task_that_hangs_during_a_benchmark_is_named_and_the_others_are_measured(cluster, whole):
    process = cluster.begin("ansible-playbook", PLAYBOOK, "--extra-vars=benchmark_iperf=false")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "links: " in line:
            cluster.shell("lab", "systemctl kill --signal=STOP tf-server@worker-0 2>/dev/null; echo done")
            break
    try:
        rest, errors = process.communicate(timeout=200)
    finally:
        cluster.shell("lab", "systemctl kill --signal=CONT tf-server@worker-0 2>/dev/null; echo done")
    text = "".join(lines) + rest
    assert process.returncode != 0, text
    assert "worker:0 FAILED: it does not answer" in text, text + errors
    assert "iperf3 is switched off (benchmark_iperf)." in text
    assert "worker:1 FAILED" not in text
    assert "The slowest link: " in text


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("benchmark_seconds", "soon", "a number from 10 to 86400"), ("benchmark_iperf", "perhaps", "true or false")],
)
def test_invalid_variables_are_reported_before_a_run_starts(cluster, name, value, wanted):
    done = cluster.playbook(PLAYBOOK, f"--extra-vars={name}={value}")
    assert done.returncode != 0
    assert f"{name} is '{value}'. Set {wanted}." in said(done)
    assert "the run " not in said(done)


def test_a_short_benchmark_reports_that_only_some_links_were_measured(cluster, whole):
    done, found = benchmark(cluster, "--extra-vars=benchmark_seconds=10", "--extra-vars=benchmark_iperf=false")
    assert done.returncode == 0, said(done)
    assert found["seconds"] < 25
    if len(found["links"]) < len(whole[1]["links"]):
        assert "NOT ALL: more do not fit into the time (benchmark_seconds)" in said(done)
        senders = [row["from"] for row in found["links"]]
        assert {senders.count(task) for task in found["tasks"]} == {len(senders) // len(found["tasks"])}
