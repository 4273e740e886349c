"""The filters on programs: an invalid program is reported before it is sent."""

import os

import pytest
from project import load

program = load("plugins/filter/program.py")
problems = program.program_problems


def test_a_file_is_accepted_as_a_program(tmp_path):
    (tmp_path / "a.py").write_text("print(1)", encoding="utf-8")
    assert problems(str(tmp_path / "a.py")) == []
    assert program.program_entry(str(tmp_path / "a.py")) == "a.py"


@pytest.mark.parametrize("entry", ["main.py", "__main__.py"])
def test_a_folder_with_an_entry_file_is_accepted_as_a_program(tmp_path, entry):
    (tmp_path / entry).write_text("import lib", encoding="utf-8")
    (tmp_path / "lib.py").write_text("", encoding="utf-8")
    assert problems(str(tmp_path)) == []
    assert program.program_entry(str(tmp_path)) == entry


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ["program is not set", "-e program="]),
        (None, ["program is not set"]),
        (5, ["program is 5", "Set the path"]),
        (["x"], ["program is ['x']", "Set the path"]),
        ("한" * 300, ["does not exist"]),
        ("nothing.py", ["nothing.py", "does not exist"]),
        ("folder", ["folder without main.py"]),
        ("broken.py", ["broken.py, line 2", "is not Python"]),
        ("binary.py", ["binary.py", "is not Python"]),
    ],
)
def test_an_invalid_program_is_reported(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.py").write_text("x = 1\nprint(x\n", encoding="utf-8")
    (tmp_path / "binary.py").write_bytes(b"\x7fELF\0\xff")
    [sentence] = problems(given)
    assert [word for word in words if word not in sentence] == []


def test_a_syntax_error_in_a_module_of_the_program_folder_is_reported(tmp_path):
    (tmp_path / "main.py").write_text("", encoding="utf-8")
    (tmp_path / "lib.py").write_text("def", encoding="utf-8")
    [sentence] = problems(str(tmp_path))
    assert "lib.py, line 1 is not Python" in sentence


def test_hidden_folders_caches_and_broken_links_are_not_checked(tmp_path):
    for name in (".venv/lib/a.py", ".git/b.py", "lib/__pycache__/c.py", "main.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if name == "main.py" else "def", encoding="utf-8")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "link.py").symlink_to("nowhere")
    assert problems(str(tmp_path)) == []


@pytest.mark.parametrize("text", ["-" * 100_000 + "1", "+".join(["1"] * 100_000), "(" * 100_000])
def test_code_nested_too_deeply_is_reported(tmp_path, text):
    (tmp_path / "a.py").write_text(f"x = {text}\n", encoding="utf-8")
    [sentence] = problems(str(tmp_path / "a.py"))
    assert "a.py" in sentence


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("host:0", None),
        ("worker:0", "a standing server"),
        ("chief:0", "not a task of the cluster"),
        ("x", "not a task of the cluster"),
    ],
)
def test_run_task_must_be_a_task_of_the_cluster_without_a_standing_server(task, words):
    own = [{"job": "worker", "index": 0, "standing": True}, {"job": "host", "index": 0, "standing": False}]
    found = program.task_problems(task, {"tasks": {"worker:0": "a", "host:0": "a"}, "machines": {"a": own}})
    assert bool(found) == bool(words)
    assert all(words in sentence for sentence in found)


def test_missing_program_data_is_reported(tmp_path):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    assert problems(str(tmp_path / "a.py"), {"program_data": str(tmp_path)}) == []
    [sentence] = problems(str(tmp_path / "a.py"), {"program_data": [str(tmp_path), "no-such-folder"]})
    assert "program_data contains no-such-folder" in sentence


def test_an_empty_program_data_path_does_not_mean_the_current_folder(tmp_path):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    [sentence] = problems(str(tmp_path / "a.py"), {"program_data": ""})
    assert "program_data contains '', which does not exist" in sentence


def test_program_and_data_files_with_the_same_name_are_reported(tmp_path):
    for name in ("p/main.py", "p/hello.py", "d/hello.py", "e/hello.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    for program, data in (("p", ["d/hello.py"]), ("p/hello.py", ["d/hello.py"]), ("p/main.py", ["d/hello.py", "e/hello.py"])):
        [sentence] = problems(str(tmp_path / program), {"program_data": [str(tmp_path / name) for name in data]})
        assert "would contain another hello.py" in sentence
    assert problems(str(tmp_path / "p/main.py"), {"program_data": str(tmp_path / "d/hello.py")}) == []


def test_a_program_that_is_neither_a_file_nor_a_folder_is_reported(tmp_path):
    os.mkfifo(tmp_path / "x.py")
    for path in (tmp_path / "x.py", "/dev/null"):
        [sentence] = problems(str(path))
        assert "neither a file nor a folder" in sentence


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--steps 5", ["--steps", "5"]),
        ("--a 'b c'", ["--a", "b c"]),
        (["$HOME", "--", 5, ""], ["$HOME", "--", "5", ""]),
        ("", []),
    ],
)
def test_arguments_are_split_as_in_a_shell(given, words):
    assert program.program_arguments(given) == words


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("program_args", 5, "neither a string nor a list"),
        ("program_args", {"steps": 5}, "neither a string nor a list"),
        ("program_args", [["a"]], "neither a string nor a list"),
        ("program_args", "'a", "no closing quotation"),
        ("program_requirements", "nothing.txt", "is not a file on the controller"),
        ("program_requirements", "한" * 300, "is not a file on the controller"),
        ("program_requirements", ["a"], "the path of one requirements file"),
        ("program_requirements", 5, "the path of one requirements file"),
        *(("program_data", given, "a list of paths") for given in (5, None, {"a": 1}, [5], [["a"]])),
        *(("run_abort_after_silence", given, "a number of seconds from 0") for given in (-1, "inf", "nan", "soon", 10**400)),
        *(("run_output_mb", given, "a number of megabytes from 0") for given in (-1, "inf", "nan", "much")),
        *((name, given, "Set true or false") for name in program.SWITCHES for given in ("maybe", "", 2, None, [True])),
        *(("program_keras", given, "Set 2 or 3") for given in (1, 4, "2.0", "three", "", True, None, [2])),
        *(("run_timeout", given, "seconds from 1") for given in (-1, 0, "inf", "nan", "soon", True, None)),
        *(("run_queue_timeout", given, "seconds from 0") for given in (-1, "inf", "nan", "soon")),
    ],
)
def test_invalid_options_of_a_run_are_reported(tmp_path, name, given, words):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    [sentence] = problems(str(tmp_path / "a.py"), {name: given})
    assert f"{name} is {given!r}" in sentence.replace(f" {given},", f" {given!r},")
    assert words in sentence


@pytest.mark.parametrize(("keep", "tasks", "count"), [("yes", 0, 1), (True, ["worker:0"], 1), (True, "", 0), (False, 2, 0)])
def test_state_cannot_be_kept_for_a_run_of_a_part_of_the_tasks(tmp_path, keep, tasks, count):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    found = problems(str(tmp_path / "a.py"), {"run_keep_state": keep, "run_tasks": tasks})
    assert found == ["run_keep_state is set, but a run with run_tasks keeps no state. Remove one of them."] * count


def test_valid_options_of_a_run_are_accepted(tmp_path):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    given = {"program_args": ["a"], "program_requirements": str(tmp_path / "a.py"), "run_timeout": "3600", "run_queue_timeout": 0}
    given |= {"run_abort_after_silence": "60", "run_output_mb": 0.5, "program_keras": "2", "trace": "yes", "detach": 1}
    assert problems(str(tmp_path / "a.py"), given) == []


@pytest.mark.parametrize(("url", "count"), [("", 0), ("https://a.example/x", 0), ("ftp://a.example/hidden", 1), (5, 1)])
def test_an_invalid_run_notify_is_reported_without_the_url(url, count, tmp_path):
    (tmp_path / "a.py").write_text("", encoding="utf-8")
    found = problems(str(tmp_path / "a.py"), {"run_notify": url})
    assert len(found) == count
    assert "hidden" not in "".join(found)
