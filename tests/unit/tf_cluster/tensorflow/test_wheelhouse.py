"""tensorflow/wheelhouse.py: which of the locked packages a machine gets."""

import os
import zipfile
from types import SimpleNamespace

import pytest
from packaging.version import Version
from project import ROOT, call, load

make_wheelhouse = load("tf_cluster.tensorflow.wheelhouse")
TENSORFLOW = {"x86_64": "tensorflow-cpu", "aarch64": "tensorflow"}
LOCK = ROOT / "roles/tensorflow/files/cpu.txt"
GPU_LOCK = ROOT / "roles/tensorflow/files/gpu.txt"
MADE_UP = """\
# This comment belongs to nobody.
one==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via two
old==1.0 ; python_full_version < '3.11' \\
    --hash=sha256:ba
arm==2.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:ca
win==2.0 ; sys_platform == 'win32' \\
    --hash=sha256:da
three[extra]==3.0 ; python_version >= "3.10" and platform_machine != "s390x" \\
    --hash=sha256:ea
"""


def versions(python, machine="x86_64", text=None):
    """Return name -> version of the packages that a machine gets."""
    entries = make_wheelhouse.lock_for(LOCK.read_text(encoding="utf-8") if text is None else text, python, machine)
    named = [entry.split(" ", 1)[0].split("==") for entry in entries]
    assert len(dict(named)) == len(named), "a package is there twice"
    return dict(named)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_kind_of_machine_gets_each_package_once(python, machine):
    found = versions(python, machine)
    assert {TENSORFLOW[machine], "numpy", "keras", "uv", "protobuf"} <= found.keys()
    assert found.keys() - {TENSORFLOW[machine]} == versions("3.11").keys() - {TENSORFLOW["x86_64"]}


def test_the_python_version_determines_the_package_versions():
    found = [Version(versions(python)["numpy"]) for python in ("3.10", "3.11", "3.12", "3.13")]
    assert found[0] < found[1] < found[2] == found[3]
    assert Version(versions("3.10")["keras"]) < Version(versions("3.11")["keras"]) == Version(versions("3.13")["keras"])


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_keras_2_and_tensorboard_have_the_version_of_the_locked_tensorflow(python, machine):
    found = versions(python, machine)
    names = (TENSORFLOW[machine], "tf-keras", "tensorboard")
    assert len({Version(found[name]).release[:2] for name in names}) == 1


def test_every_kind_of_machine_gets_the_same_tensorflow():
    found = {
        versions(python, machine)[name] for python in ("3.10", "3.11", "3.12", "3.13") for machine, name in TENSORFLOW.items()
    }
    assert len(found) == 1


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_gpu_lock_agrees_with_the_cpu_lock(python, machine):
    cpu, gpu = versions(python, machine), versions(python, machine, GPU_LOCK.read_text(encoding="utf-8"))
    cpu["tensorflow"] = cpu.pop(TENSORFLOW[machine])
    assert cpu == {name: gpu.get(name) for name in cpu}


@pytest.mark.parametrize(
    ("python", "machine", "names"),
    [
        ("3.10", "x86_64", "one old three[extra]"),
        ("3.13", "x86_64", "one three[extra]"),
        ("3.11", "aarch64", "one arm three[extra]"),
    ],
)
def test_markers_are_evaluated_for_the_machine(python, machine, names):
    assert list(versions(python, machine, MADE_UP)) == names.split()


def test_an_entry_keeps_its_hashes_and_loses_its_marker():
    entries = make_wheelhouse.lock_for(MADE_UP, "3.10", "x86_64")
    assert entries[0] == "one==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\n    # via two\n"
    assert entries[1] == "old==1.0 \\\n    --hash=sha256:ba\n"


def test_every_locked_package_has_hashes():
    for entry in make_wheelhouse.lock_for(LOCK.read_text(encoding="utf-8"), "3.11", "x86_64"):
        assert "--hash=sha256:" in entry
        assert ";" not in entry


def test_machines_without_a_gpu_get_the_same_packages_without_cuda():
    """Otherwise operations of one machine's TensorFlow could differ from the other's."""
    gpu, kernels = (
        make_wheelhouse.lock_for((LOCK.parent / name).read_text(encoding="utf-8"), "3.11", "x86_64")
        for name in ("gpu.txt", "gpu_kernels.txt")
    )
    assert kernels == [entry for entry in gpu if not entry.startswith("nvidia-")]
    assert any(entry.startswith("tensorflow==") for entry in kernels)


def test_uv_is_extracted_from_its_wheel(tmp_path):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/uv-1.0-py3-none-linux_x86_64.whl", "w") as wheel:
        wheel.writestr("uv/__init__.py", "")
        wheel.writestr("uv-1.0.data/scripts/uvx", "other")
        wheel.writestr("uv-1.0.data/scripts/uv", "program")
    program = make_wheelhouse.extract_uv(tmp_path)
    assert program.read_text(encoding="utf-8") == "program"
    assert os.access(program, os.X_OK)


def test_an_index_that_does_not_answer_is_reported_and_leaves_no_file(tmp_path):
    words = ["--lock", LOCK, "--python", "3.11", "--machine", "x86_64", "--out", tmp_path / "out/wheelhouse.tar", "--only", "uv"]
    nowhere = {
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": "/dev/null",
    }  # fmt: skip
    done = call("tf_cluster.tensorflow.wheelhouse", *words, env={**os.environ, **nowhere})
    assert done.returncode == 1
    assert "the packages for Python 3.11 on x86_64 could not be fetched: ERROR:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_packages_of_a_program_that_cannot_be_fetched_are_reported_and_leave_no_file(tmp_path):
    (tmp_path / "wanted.txt").write_text("no-such-package==1.0\n", encoding="utf-8")
    words = ["--lock", LOCK, "--python", "3.11", "--machine", "x86_64", "--out", tmp_path / "out/layer.tar"]
    nowhere = {"UV_DEFAULT_INDEX": "http://127.0.0.1:1/simple", "UV_HTTP_RETRIES": "0", "UV_NO_CACHE": "1"}
    done = call("tf_cluster.tensorflow.wheelhouse", *words, "--extra", tmp_path / "wanted.txt", env={**os.environ, **nowhere})
    assert done.returncode == 1
    assert f"the packages of {tmp_path}/wanted.txt could not be fetched: error:" in done.stderr
    assert done.stderr.endswith("(set index, proxy and certificates in pip's configuration)\n")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return a function that adds a package to an index of the test's own."""
    monkeypatch.setenv("UV_DEFAULT_INDEX", (tmp_path / "index").as_uri())
    monkeypatch.setenv("UV_NO_CACHE", "1")

    def add(name, version, *needs):
        folder = tmp_path / "index" / name.replace("_", "-")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            wheel.writestr(f"{name}-{version}.dist-info/METADATA", head + "".join(f"Requires-Dist: {need}\n" for need in needs))
            wheel.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")
        links = [f'<a href="{path.name}">{path.name}</a>' for path in folder.glob("*.whl")]
        (folder / "index.html").write_text("\n".join(links), encoding="utf-8")

    return add


@pytest.mark.parametrize("locked", ["tensorflow-cpu==2.0", "tensorflow[and-cuda]==2.0"])
@pytest.mark.parametrize(("wanted", "versions_of"), [("hub", {"hub": "1.0"}), ("tensorflow_cpu\nhub", {"hub": "1.0"})])
def test_tensorflow_is_not_added_a_second_time(index, tmp_path, locked, wanted, versions_of):
    index("hub", "1.0", "tensorflow>=1")
    for version in ("2.0", "3.0"):
        index("tensorflow", version)
        index("tensorflow_cpu", version)
    (tmp_path / "wanted.txt").write_text(wanted, encoding="utf-8")
    options = SimpleNamespace(extra=tmp_path / "wanted.txt", python="3.11", machine="x86_64")
    entries = make_wheelhouse.added([f"{locked} \\\n    --hash=sha256:aa\n"], options, tmp_path)
    assert {make_wheelhouse.name_of(entry): entry.split("==")[1].split()[0] for entry in entries} == versions_of


def test_another_tensorflow_than_the_locked_one_is_an_error(index, tmp_path):
    for version in ("2.0", "3.0"):
        index("tensorflow", version)
    (tmp_path / "wanted.txt").write_text("tensorflow==3.0", encoding="utf-8")
    options = SimpleNamespace(extra=tmp_path / "wanted.txt", python="3.11", machine="x86_64")
    with pytest.raises(SystemExit, match="conflicts with the locked packages"):
        make_wheelhouse.added(["tensorflow-cpu==2.0 \\\n    --hash=sha256:aa\n"], options, tmp_path)
