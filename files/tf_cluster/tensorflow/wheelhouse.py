"""Pack the locked packages for a machine into one tar file: wheels, uv and the requirements.

    wheelhouse.py --lock cpu.txt --python 3.11 --machine x86_64 --out wheelhouse.tar

Runs on the controller, with pip's configuration (index, proxy, certificates). ``--only uv`` packs no other
wheels, for machines that download them from a package index. ``--extra requirements.txt`` packs only the packages that these
requirements add to the locked ones. Does nothing if the file exists. Prints a JSON object; exit status 0, or 1 with a
sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging.markers import Marker

# Newest first; a wheel for an older C library runs on a newer one.
PLATFORMS = (*(f"manylinux_2_{minor}" for minor in range(28, 4, -1)), "manylinux2014", "manylinux2010", "manylinux1", "linux")
PIP, UV = (sys.executable, "-m", "pip"), (sys.executable, "-m", "uv")
INDEX_HINT = "(set index, proxy and certificates in pip's configuration)"
# All of them are TensorFlow and install the same files.
TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tensorflow-intel")


def main() -> None:
    """Create the file --out atomically."""
    parser = argparse.ArgumentParser(description="Pack the locked wheels for one kind of machine.")
    parser.add_argument("--lock", type=Path, required=True, help="requirements with hashes, for all platforms")
    parser.add_argument("--python", required=True, help="the machine's Python version, such as 3.11")
    parser.add_argument("--machine", required=True, help="the machine's architecture, such as x86_64")
    parser.add_argument("--out", type=Path, required=True, help="the tar file to create")
    parser.add_argument("--only", help="name of the only package to fetch")
    parser.add_argument("--extra", type=Path, help="requirements of a program; only packages that are not locked are packed")
    options = parser.parse_args()
    if options.out.exists():
        print("{}")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    locked = lock_for(options.lock.read_text(encoding="utf-8"), options.python, options.machine)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        folder = Path(name)
        (folder / "wheels").mkdir()
        if options.extra:
            locked = added(locked, options, folder)
        (folder / "requirements.txt").write_text("".join(locked), encoding="utf-8")
        wanted = [entry for entry in locked if not options.only or entry.startswith(f"{options.only}==")]
        download(wanted, options, folder)
        packed = folder / "packed.tar"
        with tarfile.open(packed, "w") as tar:
            tar.add(folder / "requirements.txt", "requirements.txt")
            if not options.extra:
                tar.add(extract_uv(folder), "uv")
                tar.add(Path(__file__).with_name("cuda_libraries.py"), "cuda_libraries.py")
            tar.add(folder / "wheels", "wheels")
        packed.replace(options.out)
    print(json.dumps({"made": str(options.out)}))


def lock_for(text: str, python: str, machine: str) -> list[str]:
    """Return the entries of a lock file that apply to one kind of machine, without their markers.

    pip would evaluate the markers for the controller's Python.
    """
    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "platform_machine": machine,
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    entries = []
    for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]:
        head, rest = entry.split("\\\n", 1)
        requirement, _semicolon, marker = head.partition(";")
        if not marker.strip() or Marker(marker.strip()).evaluate(environment):
            entries.append(f"{requirement.strip()} \\\n{rest}")
    return entries


def fail(sentence: str) -> None:
    """Exit with a sentence."""
    sys.exit(f"{Path(sys.argv[0]).name}: {' '.join(sentence.split())}")


def added(locked: list[str], options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the entries that a program's requirements add to the locked ones; locked versions are fixed.

    A package may require TensorFlow by another of its names; the locked version must satisfy it.
    """
    versions = {name_of(entry): entry.split("==", 1)[1].split()[0] for entry in locked}
    version = next((versions[name] for name in TENSORFLOWS if name in versions), None)
    if version:
        versions |= dict.fromkeys(TENSORFLOWS, version)
    (folder / "locked.txt").write_text("".join(f"{name}=={text}\n" for name, text in versions.items()), encoding="utf-8")
    command = [*UV, "pip", "compile", "--quiet", str(options.extra), "--constraints", str(folder / "locked.txt")]
    command += ["--python-version", options.python, "--python-platform", f"{options.machine}-manylinux_2_28"]
    command += ["--generate-hashes", "--only-binary=:all:", "--no-header", "--no-annotate", "--no-emit-index-url"]
    index = subprocess.run(
        [*PIP, "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    ).stdout.strip()
    environment = {"UV_SYSTEM_CERTS": "true", **({"UV_DEFAULT_INDEX": index} if index else {}), **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if "Failed to fetch" in done.stderr:
        fail(f"the packages of {options.extra} could not be fetched: {done.stderr.strip()} {INDEX_HINT}")
    if done.returncode:
        fail(f"{options.extra} conflicts with the locked packages, or cannot be resolved: {done.stderr.strip()}")
    return [entry for entry in lock_for(done.stdout, options.python, options.machine) if name_of(entry) not in versions]


def name_of(entry: str) -> str:
    """Return the name of an entry's package."""
    return re.match(r"[A-Za-z0-9._-]+", entry)[0]  # type: ignore[index]  # every entry begins with a name


def download(entries: list[str], options: argparse.Namespace, folder: Path) -> None:
    """Download the wheels of the entries to ``folder/wheels`` and check their hashes."""
    (folder / "wanted.txt").write_text("".join(entries), encoding="utf-8")
    if not entries:
        return
    command = [*PIP, "download", "--quiet", "--require-hashes", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", options.python, "--dest", str(folder / "wheels")]
    command += [word for platform in PLATFORMS for word in ("--platform", f"{platform}_{options.machine}")]
    done = subprocess.run([*command, "-r", str(folder / "wanted.txt")], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr[-500:]]
        fail(
            f"the packages for Python {options.python} on {options.machine} could not be fetched: {' '.join(errors)} {INDEX_HINT}"
        )


def extract_uv(folder: Path) -> Path:
    """Extract the program uv from its wheel, for machines without pip."""
    wheel = next((folder / "wheels").glob("uv-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if re.search(r"\.data/scripts/uv$", name))
        program = Path(archive.extract(member, folder))
    os.chmod(program, 0o755)
    return program


if __name__ == "__main__":
    main()
