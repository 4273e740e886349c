"""The filter run_name: a run's name is safe, telling and its own."""

import re
import time
from pathlib import Path

import pytest
from project import load

run_name = load("plugins/filter/run_name.py").run_name
Run = load("files/run_program.py").Run


@pytest.mark.parametrize(
    ("program", "stem"),
    [
        ("demo.py", "demo"),
        ("/somewhere/else/my_model-2.py", "my_model-2"),
        ("a b; rm -rf.py", "a-b-rm--rf"),
        ("모델.py", "program"),
        ("../..", "program"),
        ("", "program"),
        ("train.v2.py", "train-v2"),
        ("a\nb.py", "a-b"),
        (f"{'x' * 300}.py", "x" * 40),
    ],
)
def test_a_name_has_the_time_the_program_and_something_of_its_own(program, stem, tmp_path):
    run_id = run_name(program, tmp_path)["id"]
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{re.escape(stem)}-[0-9a-f]{{4}}", run_id)
    assert Run(run_id).id == run_id


def test_names_sort_by_time(tmp_path, monkeypatch):
    moments = iter([time.gmtime(second) for second in (1_000_000_000, 1_000_000_001, 1_999_999_999)])
    monkeypatch.setattr(time, "gmtime", lambda: next(moments))
    names = [run_name("demo.py", tmp_path)["id"] for _each in range(3)]
    assert names == sorted(names)
    assert names[0].startswith("20010909-014640-demo-")


def test_two_runs_of_one_moment_have_two_names(tmp_path):
    assert len({run_name("demo.py", tmp_path)["id"] for _each in range(5)}) > 1


def test_the_folder_is_an_absolute_path_below_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = run_name("demo.py", "output")
    assert Path(name["folder"]) == tmp_path / "output" / name["id"]


def test_since_is_just_before_now(tmp_path):
    assert time.time() - 3 < run_name("demo.py", tmp_path)["since"] < time.time()
