"""Makefile: targets that could destroy files refuse to."""

import shutil
import subprocess

from project import ROOT


def test_the_environment_is_not_created_through_a_link(tmp_path):
    clone, linked = tmp_path / "clone", tmp_path / "linked"
    clone.mkdir()
    linked.mkdir()
    (linked / "keep").touch()
    (clone / ".venv").symlink_to(linked)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, clone)
    done = subprocess.run(
        ["make", "environment", "PYTHON=false"], cwd=clone, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert f".venv is a link to {linked}, whose files would be removed." in done.stdout
    assert [path.name for path in linked.iterdir()] == ["keep"]
