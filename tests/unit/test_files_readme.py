"""files/README.md: every program is in its tables, with a test that exists and with what restarts when it changes."""

import re

import pytest
import yaml
from project import ROOT

TABLES = (ROOT / "files/README.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells
    for line in TABLES.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}
PROGRAMS = sorted(
    path.relative_to(ROOT / "files").as_posix()
    for path in (ROOT / "files").rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
)


def test_the_tables_list_exactly_the_existing_programs():
    assert sorted(ROWS) == PROGRAMS


def imports(text, program):
    """Return whether a text names a program's module or file, or imports it."""
    package, _dot, name = program.removesuffix(".py").replace("/", ".").rpartition(".")
    own = rf"(?m)^from (?:\.*|\.*[\w.]*\b{package.rpartition('.')[2]}) import .*\b{name}\b|^from \.+[\w.]*\b{name} import"
    full = rf"\b{re.escape(f'{package}.{name}'.strip('.'))}\b|(?<![\w.]){re.escape(program.rpartition('/')[2])}\b"
    return bool(re.search(f"{own}|{full}", text))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_listed_test_of_a_program_exists_and_loads_the_program(program):
    """A test may also load a program that imports this one. The name of the package is not enough."""
    test = ROWS[program][-1]
    path = re.match(r"`([^`]+\.py)`, \d+ s$", test)
    if not path:
        target = re.match(r"`make ([a-z-]+)", test)[1]
        assert re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"))
        return
    text = (ROOT / "tests/unit" / path[1]).read_text(encoding="utf-8")
    loaded = [other for other in PROGRAMS if other != program and imports(text, other)]
    users = [other for other in loaded if imports((ROOT / "files" / other).read_text(encoding="utf-8"), program)]
    assert imports(text, program) or users, f"{path[1]} does not load {program}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_listed_restarts_match_the_input_paths_of_the_role_server(program):
    variables = yaml.safe_load((ROOT / "roles/server/vars/main.yml").read_text(encoding="utf-8"))
    inputs = re.search(variables["__server_input_paths"], f"/opt/tf-cluster/lib/{program}")
    assert (ROWS[program][4] == "all servers") == bool(inputs)
