"""The documentation: its links resolve, it is complete, and its defaults and states are those of the code."""

import ast
import functools
import json
import re
import sys

import pytest
import yaml
from project import ROOT, load

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/*.md"),
        ROOT / "files/README.md",
        *ROOT.glob("roles/*/README.md"),
    ]
)
README, INDEX, REFERENCE = ROOT / "README.md", ROOT / "docs/README.md", ROOT / "docs/reference.md"
PLAYBOOKS = sorted([*ROOT.glob("playbooks/*.yml"), ROOT / "site.yml", ROOT / "run_demo.yml"])
DEFAULTS = [
    (name, value)
    for path in sorted(ROOT.glob("roles/*/defaults/main.yml"))
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items()
]
EXAMPLES = sorted({*ROOT.glob("examples/*.py")} - {ROOT / "examples/digits.py"})  # which writes the data
SPEC = load("plugins/filter/cluster_spec.py")
VARIABLES = load("plugins/plugin_utils/variables.py")
MOST_README_LINES = 120
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def relative(path):
    """Return a path as a person writes it."""
    return str(path.relative_to(ROOT))


@functools.cache
def text_of(path):
    """Return a page without its blocks of code, which hold no links and no headings."""
    return re.sub(r"(?ms)^ *```.*?^ *```$|^ {4,}\S.*?$", "", path.read_text(encoding="utf-8"))


@functools.cache
def anchors(path):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", text_of(path))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(name):
    """Return the rows of the reference's tables for a variable, each a list of its cells."""
    lines = [line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shown(value):
    """Return a default as the reference shows it."""
    if isinstance(value, str):
        return value if value and isinstance(yaml.safe_load(value), str) else f'"{value}"'
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()


def commands(path):
    """Return the commands in a page's blocks of code."""
    lines = re.findall(r"(?m)^ {4,}((?:make|ansible-playbook) .*?)(?: +#.*)?$", path.read_text(encoding="utf-8"))
    return list(dict.fromkeys(lines))


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_link_has_an_existing_target(page):
    wrong = []
    for target in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _hash, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_table_has_a_header(page):
    """A blank line inside a table ends the table, and the rows below are shown as text."""
    parts = re.findall(r"(?:^\|.*\n?)+", text_of(page), flags=re.MULTILINE)
    assert [part.splitlines()[0] for part in parts if not re.match(r"\|.*\n\|[-:| ]+\|(?:\n|$)", part)] == []


def test_the_index_links_every_page():
    linked = {(INDEX.parent / target).resolve() for target in LINK.findall(text_of(INDEX))}
    assert [relative(page) for page in ROOT.glob("docs/*.md") if page not in linked | {INDEX}] == []


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=relative)
def test_every_playbook_is_documented(playbook):
    pages = "".join(page.read_text(encoding="utf-8") for page in ROOT.glob("docs/*.md"))
    assert f"`{relative(playbook)}`" in pages


@pytest.mark.parametrize(("name", "value"), DEFAULTS, ids=[name for name, _value in DEFAULTS])
def test_every_variable_of_a_role_is_in_the_reference_with_its_default(name, value):
    found = rows(name)
    assert found, f"{name} is missing in docs/reference.md"
    if isinstance(value, str) and "{{" in value:
        assert all(cells[1] for cells in found)
    else:
        assert any(f"`{shown(value)}`" in cells for cells in found), f"docs/reference.md: {found}, default: {shown(value)}"


@pytest.mark.parametrize("name", VARIABLES.MACHINE_VARIABLES)
def test_every_variable_of_a_machine_is_in_the_reference(name):
    assert len(rows(name)) == 1


@pytest.mark.parametrize("name", SPEC.OPTIONS)
def test_every_option_of_a_task_is_in_the_reference_with_its_default(name):
    ((_name, _meaning, default),) = rows(name)
    assert default == f"`{shown(SPEC.OPTIONS[name][1])}`"


def test_misspellings_of_every_option_in_the_reference_are_found():
    text = REFERENCE.read_text(encoding="utf-8")
    parts = [
        re.split(r"\n## ", text.partition(f"\n## {head}\n")[2])[0]
        for head in ("Options of a run", "Options of a training", "Other variables")
    ]
    names = [name for part in parts for name in re.findall(r"(?m)^\| `(\w+)` \|", part)]
    assert {"program", "train_jobs", "run"} <= set(names)
    assert [name for name in names if not VARIABLES.option_problems([f"{name[:-1]}{name[-1] * 2}"]) and len(name) > 3] == []
    assert VARIABLES.option_problems(names) == []


@pytest.mark.parametrize("playbook", ["run", "train", "benchmark"])
def test_every_option_in_the_header_of_a_playbook_is_in_the_reference(playbook):
    text = (ROOT / f"playbooks/{playbook}.yml").read_text(encoding="utf-8").partition("\n- ")[0]
    names = re.findall(r"(?m)^# {5}([a-z_]+) {1,}\S", text)
    assert names
    assert [name for name in names if not rows(name)] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=relative)
def test_every_example_documents_its_command_and_has_a_test(path):
    head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    playbook, program = re.search(r"(?m)^ +ansible-playbook playbooks/(\S+) -e program=(\S+)", head).groups()
    assert program == relative(path)
    assert re.search(r"(?m)^.*(Output|Output of .*):\n\n +\S", head)
    [row] = re.findall(rf"(?m)^\| \[{path.name}\].*", (ROOT / "examples/README.md").read_text(encoding="utf-8"))
    assert f"| `{playbook}` |" in row
    assert ("`program_keras=2`" in row) == ("program_keras=2" in head)
    assert f'("{path.stem}"' in (ROOT / "tests/lab/test_examples.py").read_text(encoding="utf-8")


def test_every_state_of_a_task_is_on_the_troubleshooting_page():
    text = (ROOT / "files/tf_cluster/ready/gate.py").read_text(encoding="utf-8")
    states = re.findall(r'self\.answer\(\s*"([^"]+)"', text) + re.findall(r'"state": "([^"]+)"', text)
    table = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert len(set(states)) > 5
    assert [state for state in set(states) if f"| `{state}` |" not in table] == []


def test_every_message_on_the_troubleshooting_page_exists_in_the_code():
    """Compare quoted text except names and numbers (...). The section about TensorFlow is skipped."""
    places = [*ROOT.glob("files/**/*.py"), *ROOT.glob("plugins/**/*.py"), *ROOT.glob("roles/**/*.py")]
    places += [*ROOT.glob("roles/**/*.yml"), *ROOT.glob("playbooks/*.yml")]
    texts = [re.sub(r'"\s+f?"', "", path.read_text(encoding="utf-8")) for path in places]
    said = " ".join(" ".join(texts).split())
    page = re.sub(r"(?ms)^## TensorFlow$.*?(?=^## )", "", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"))
    quoted = [words for line in re.findall(r"(?m)^\|([^|]+)\|", page) for words in re.findall(r'"([^"]+)"', line)]
    parts = [part.strip() for words in quoted for part in words.split("...") if part.strip()]
    assert len(parts) > 20
    assert [part for part in parts if part not in said] == []


def called_playbooks(path):
    """Return the playbooks that a file of tests calls: the words of its calls of ``playbook``."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    words = [word for call in calls if getattr(call.func, "attr", "") == "playbook" for word in call.args]
    return {word.value for word in words if isinstance(word, ast.Constant)}


def test_tests_call_every_command_of_the_readme():
    called = {word for path in ROOT.glob("tests/lab/*.py") for word in called_playbooks(path)}
    called |= set(re.findall(r"(?m)^make .+$", (ROOT / ".ci/run").read_text(encoding="utf-8")))
    wanted = {
        word
        for command in commands(README)
        for word in ([command] if command.startswith("make ") else re.findall(r"\S+\.yml", command))
    }
    assert {"site.yml", "playbooks/run.yml", "make demo"} <= wanted
    assert sorted(wanted - called) == []


def test_every_scenario_is_in_the_guide_for_contributors():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    scenarios = [path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")]
    assert scenarios
    assert [name for name in scenarios if f"| `{name}` |" not in table] == []


def test_every_scenario_has_a_make_target_or_runs_with_the_others():
    script = (ROOT / "tests/molecule").read_text(encoding="utf-8")
    found = re.search(r"set -- ([a-z_ ]+)\n", script)
    assert found
    targets = {"browser", "cuda", "gpu_servers", "faults", "shared", "tunnel"}  # of the Makefile
    assert {*found[1].split()} | targets == {path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")}


def test_the_benchmark_page_matches_its_figures(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "tests/bench")])
    report = json.loads((ROOT / "docs/benchmark.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/benchmark.md").read_text(encoding="utf-8") == load("tests/bench/page.py").page(report)
