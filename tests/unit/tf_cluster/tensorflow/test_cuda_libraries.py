"""cuda_libraries.py, on small libraries that are compiled here: what TensorFlow does not find is linked, or named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(not COMPILER, reason="no C compiler (Debian's package gcc)")
PROGRAM = ROOT / "files/tf_cluster/tensorflow/cuda_libraries.py"
NEEDED = ["libcudart.so.12", "libcublas.so.12", "libcusolver.so.11"]
# The functions of TensorFlow's library that are called, with its messages.
FRAMEWORK = """
#include <dlfcn.h>
#include <stdio.h>
static char message[512];
static int code;
void *TF_NewStatus(void) { return &code; }
int TF_GetCode(void *status) { return code; }
const char *TF_Message(void *status) { return message; }
void *TF_LoadSharedLibrary(const char *name, void *status) {
  void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  code = library ? 0 : 5;
  snprintf(message, sizeof message, "%s", library ? "" : dlerror());
  return library;
}
void _ZN3tsl8internal9DsoLoader26MaybeTryDlopenGPULibrariesEv(long *answer) {
  const char *names[] = {NAMES};
  answer[0] = 1;
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
    if (dlopen(names[i], RTLD_NOW | RTLD_LOCAL)) continue;
    answer[0] = 0;
    fprintf(stderr, "I0000 dso_loader.cc:59] Could not load dynamic library '%s'; dlerror: %s\\n", names[i], dlerror());
  }
}
"""


def interpreters():
    """Return Pythons of the versions that machines have, as far as they are installed here, and this one."""
    found = {f"{sys.version_info[0]}.{sys.version_info[1]}": sys.executable}
    for version in ("3.11", "3.13"):
        places = [Path("/usr/bin", f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")]
        found.update((version, str(path)) for path in places if path.exists())
    return found


PYTHONS = interpreters()


def compile_library(path, source="", *words):
    """Compile a shared library with a source and more words for the compiler."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [COMPILER, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", path, f"-Wl,-soname,{path.name}", "-x", "none", *words]
    subprocess.run([*map(str, command)], input=source, text=True, check=True)
    return path


@pytest.fixture
def site(tmp_path):
    """Return the folder of installed packages in which TensorFlow looks for all libraries but one."""
    folders = {"libcudart.so.12": "cuda_runtime", "libcublas.so.12": "cublas", "libcusolver.so.11": "cusolver"}
    for name, package in folders.items():
        compile_library(tmp_path / f"nvidia/{package}/lib" / name)
    searched = ":".join(f"$ORIGIN/../nvidia/{package}/lib" for package in ("cuda_runtime", "cublas"))
    source = FRAMEWORK.replace("NAMES", ", ".join(f'"{name}"' for name in NEEDED))
    compile_library(tmp_path / "tensorflow/libtensorflow_framework.so.2", source, f"-Wl,--enable-new-dtags,-rpath,{searched}")
    compiler = tmp_path / "nvidia/cuda_nvcc"
    (compiler / "bin").mkdir(parents=True)
    (compiler / "bin/ptxas").write_text("#!/bin/sh\n", encoding="utf-8")
    (compiler / "bin/ptxas").chmod(0o755)
    (compiler / "nvvm/libdevice").mkdir(parents=True)
    (compiler / "nvvm/libdevice/libdevice.10.bc").touch()
    return tmp_path


def check(site, python=sys.executable):
    """Run the program; return its exit status and its answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-I", "-S", PROGRAM, site], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_a_library_that_tensorflow_does_not_find_is_linked(site, version):
    if version not in PYTHONS:
        pytest.skip(f"no Python {version}")
    assert check(site, PYTHONS[version]) == (0, {"libraries": 3, "linked": ["libcusolver.so.11"], "failures": []})
    link = site / "nvidia/cuda_runtime/lib/libcusolver.so.11"
    assert os.readlink(link) == "../../cusolver/lib/libcusolver.so.11"
    assert check(site, PYTHONS[version]) == (0, {"libraries": 3, "linked": [], "failures": []})


def test_the_environment_can_be_moved(site, tmp_path_factory):
    """environment.py creates the environment in another folder and then moves it."""
    check(site)
    moved = site.rename(tmp_path_factory.mktemp("moved") / "site")
    assert check(moved) == (0, {"libraries": 3, "linked": [], "failures": []})


def test_a_library_that_is_not_installed_is_named(site):
    (site / "nvidia/cublas/lib/libcublas.so.12").unlink()
    status, answer = check(site)
    (failure,) = answer["failures"]
    assert status == 1
    assert failure.startswith("TensorFlow cannot open a CUDA library: libcublas.so.12: cannot open shared object file")


def test_a_missing_library_that_another_library_needs_is_named(site):
    """The missing library is not part of the wheels."""
    path = site / "nvidia/cusolver/lib/libcusolver.so.11"
    compile_library(path, "", "-Wl,--no-as-needed", compile_library(site / "other/libother.so.5"))
    shutil.rmtree(site / "other")
    status, answer = check(site)
    assert status == 1
    assert any("libother.so.5: cannot open shared object file" in failure for failure in answer["failures"]), answer


def test_a_damaged_library_is_named(site):
    (site / "nvidia/cublas/lib/libcublas.so.12").write_bytes(b"\x7fELF")
    status, answer = check(site)
    assert status == 1
    assert "cublas/lib/libcublas.so.12: " in answer["failures"][0]


def test_a_library_that_lacks_only_the_driver_is_not_a_failure(site):
    """The machine that installs it may have no driver yet."""
    path = site / "nvidia/cusolver/lib/libcusolver.so.11"
    compile_library(path, "", "-Wl,--no-as-needed", compile_library(site / "other/libcuda.so.1"))
    shutil.rmtree(site / "other")
    assert check(site)[1]["failures"] == []


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("bin/ptxas", "XLA cannot compile for a GPU: bin/ptxas does not run"),
        ("nvvm/libdevice/libdevice.10.bc", "XLA cannot compile for a GPU: nvvm/libdevice/libdevice.10.bc is missing"),
    ],
)
def test_a_missing_part_of_the_compiler_is_named(site, path, sentence):
    (site / "nvidia/cuda_nvcc" / path).unlink()
    status, answer = check(site)
    assert status == 1
    assert answer["failures"][0].startswith(sentence)


def test_an_environment_without_cuda_is_not_changed(tmp_path):
    assert check(tmp_path) == (0, {"libraries": 0, "linked": [], "failures": []})
