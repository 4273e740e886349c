"""The benchmark's pure parts: what the unit says of a server, ratios, the comparison with the run before, the page."""

import copy
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from project import ROOT

sys.path.append(str(ROOT / "tests/bench"))

import contestants
import deployed
import figures
import page
import processes

UNIT = """
# Environment=COMMENT=1
Environment=A=1 "B=two words"
Environment=C=3 \\
  D=4
EnvironmentFile=/etc/tf-cluster/tasks/%i.env
EnvironmentFile=-/etc/absent.env
UnsetEnvironment=D http_proxy
ExecStart=/opt/tf-cluster/venv/bin/python /bin/server --task=${TF_TASK_INDEX}
"""
TASK = {"name": "worker-1"}
FILES = {"/etc/tf-cluster/tasks/worker-1.env": '# Written by Ansible.\nTF_TASK_INDEX=1\nA="from the file"\n'}
ROUNDS = [
    {"by hand": {"64 MB": 1.0, "start": 6.0}, "deployed": {"64 MB": 2.0, "start": 0.3}, "iperf3": {"64 MB": 3.0}},
    {"by hand": {"64 MB": 2.0, "start": 4.0}, "deployed": {"64 MB": 3.0, "start": 0.4}},
    {"by hand": {"64 MB": 1.0, "start": 5.0}, "deployed": {"64 MB": 1.9, "start": 0.5}},
]
MACHINE = {"processor": "a <fast> one", "cores": 2, "memory_gb": 24, "kernel": "6.1", "date": "2026-01-02"}


@pytest.fixture
def report():
    """Return a report of three rounds, in which Dask is missing."""
    about = {name: {"about": f"{name} itself", "version": "1.0"} for name in ("by hand", "deployed", "iperf3", "Dask")}
    return figures.report(ROUNDS, "by hand", about, {"Dask": "not installed: no way to an index"}, MACHINE)


def test_a_server_has_the_environment_of_its_unit():
    server = deployed.server(UNIT, TASK, FILES, {"/opt/tf-cluster/venv": "/here"})
    assert server["command"] == ["/here/bin/python", "/bin/server", "--task=1"]
    own = {name: value for name, value in server["environment"].items() if name not in deployed.PLAIN}
    assert own == {"A": "from the file", "B": "two words", "C": "3", "TF_TASK_INDEX": "1"}


def test_an_empty_directive_resets_earlier_ones():
    assert deployed.directives("Environment=A=1\nEnvironment=\nEnvironment=B=2\n", "Environment") == ["B=2"]


def test_a_missing_library_is_reported(tmp_path):
    unit = UNIT + "Environment=LD_PRELOAD=/opt/tf-cluster/venv/lib/allocator.so\n"
    with pytest.raises(deployed.UnitError, match=r"allocator\.so, which is not here"):
        deployed.server(unit, TASK, FILES, {"/opt/tf-cluster/venv": tmp_path})
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/allocator.so").touch()
    server = deployed.server(unit, TASK, FILES, {"/opt/tf-cluster/venv": tmp_path})
    assert server["environment"]["LD_PRELOAD"] == f"{tmp_path}/lib/allocator.so"


def test_an_unknown_environment_file_is_an_error():
    with pytest.raises(deployed.UnitError, match=r"worker-1\.env is not among"):
        deployed.server(UNIT, TASK, {}, {})


def test_the_unit_of_the_project_can_be_parsed():
    servers, spec = deployed.servers([2301, 2302], "/venv", "/config.json")
    assert spec == {"worker": ["127.0.0.1:2301", "127.0.0.1:2302"]}
    assert servers[1]["command"] == [
        "/venv/bin/python", f"{ROOT}/files/create_server.py", "--config=/config.json", "--job=worker", "--task=1",
    ]  # fmt: skip
    assert servers[1]["environment"]["GRPC_FAIL_FAST"] == "use_caller"
    assert servers[1]["environment"]["TF_TASK_GPU_MEMORY_FRACTION"] == "0.2"
    assert not [name for name in servers[1]["environment"] if name.lower().endswith("_proxy")]


def test_the_benchmark_finds_the_filters_without_pytest():
    """Pytest adds the collection to its path, but bench.py runs without pytest."""
    program = "import deployed; print(deployed.load_filter('cluster_spec').__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "tests/bench", capture_output=True, text=True, check=True)
    assert done.stdout == "cluster_spec\n"


def test_a_ratio_is_the_median_of_the_rounds_and_higher_is_better(report):
    assert report["ratios"]["deployed"] == {"64 MB": 1.9, "start": 10.0}  # 2, 1.5, 1.9; 20, 10, 10
    assert report["ratios"]["iperf3"] == {"64 MB": 3.0}
    assert "by hand" not in report["ratios"]
    assert report["figures"]["deployed"]["64 MB"] == {"median": 2.0, "low": 1.9, "high": 3.0}


def test_a_worse_ratio_is_reported(report):
    before = copy.deepcopy(report["ratios"])
    assert figures.worse(before, report["ratios"]) == []
    before["deployed"] |= {"64 MB": 2.37, "start": 12.6}
    before["Ray"] = {"64 MB": 1.5}
    assert figures.worse(before, report["ratios"]) == [
        "deployed, start: 10.00 times by hand, 12.60 before (-21 %)",
        "Ray, 64 MB: 1.50 times by hand before, not measured now",
    ]


def test_the_page_has_figures_ratios_and_the_reasons_for_missing_values(report):
    text = page.page(report)
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| deployed")]
    assert ["", "deployed", "-", "-", "2.00 (1.90-3.00), 1.90x", "-", "-", ""] in rows
    assert "`-` of Dask: not installed: no way to an index." in text
    assert "![Bandwidth, worker to worker (GB/s)](benchmark-bandwidth.svg)" in text


def test_the_plots_are_svg_with_a_bar_for_each_figure(report):
    plots = page.plots(report)
    for text in plots.values():
        assert ElementTree.fromstring(text).tag.endswith("svg")
    bars = [line for line in plots["benchmark-bandwidth.svg"].splitlines() if line.startswith('<rect x="150" y=')]
    assert len([line for line in bars if 'height="13"' in line]) == 3


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234"), (0, "0")])
def test_numbers_have_three_significant_digits(value, text):
    assert page.number(value) == text


def test_every_peer_has_a_locked_requirements_file_without_an_index():
    for contestant in contestants.CONTESTANTS:
        if contestant.packages:
            text = contestant.packages.read_text(encoding="utf-8")
            assert "--hash=sha256:" in text
            assert "index-url" not in text


def test_free_ports_are_distinct():
    assert len(set(processes.free_ports(8))) == 8
