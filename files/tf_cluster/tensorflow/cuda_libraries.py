"""Make TensorFlow find the CUDA libraries of its environment. Needs neither a GPU nor a driver.

    cuda_libraries.py /opt/tf-cluster/venv/lib/python3.11/site-packages

``libtensorflow_framework.so.2`` finds the CUDA libraries through its RUNPATH, which lacks a folder in some wheels (in 2.21.0 that
of cuSOLVER). TensorFlow then uses no GPU. So this program links missing libraries into a folder that TensorFlow searches. Unlike
``LD_LIBRARY_PATH``, a link works for every process that uses the environment.

Prints one JSON object: ``libraries`` (number of installed ones), ``linked`` (names) and ``failures`` (one sentence each). Does
nothing in an environment without CUDA. Exit status 0, or 1 if there are failures.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# All wheels with GPU support search this folder.
SEARCHED = "nvidia/cuda_runtime/lib"
# Opens all libraries that TensorFlow needs for GPUs; the public API has no such function.
OPEN_ALL = "_ZN3tsl8internal9DsoLoader26MaybeTryDlopenGPULibrariesEv"
OPEN_FAILED = re.compile(r"Could not load dynamic library '[^']+'; dlerror: (.+)")
# The driver is not part of the environment.
NEEDS_DRIVER = "libcuda.so.1: cannot open"
# XLA needs it to compile.
COMPILER = "nvidia/cuda_nvcc"


def main() -> None:
    """Check one environment and report, or open one library (``--open``) or all that are needed (``--open-all``)."""
    site = Path(sys.argv[1])
    if sys.argv[2:3] == ["--open"]:
        sys.exit(open_library(site, sys.argv[3]))
    if sys.argv[2:3] == ["--open-all"]:
        sys.exit(open_all(site))
    report = link_and_check(site)
    print(json.dumps(report))
    sys.exit(1 if report["failures"] else 0)


def link_and_check(site: Path) -> dict[str, Any]:
    """Link the libraries that TensorFlow does not find, then check that it opens all of them."""
    installed = {path.name: path for path in sorted(site.glob("nvidia/*/lib/*.so*")) if not path.is_symlink()}
    linked: list[str] = []
    if not installed:
        return {"libraries": 0, "linked": linked, "failures": []}
    for name, path in installed.items():
        if f"{name}: cannot open" in reason_not_open(site, "--open", name):
            link = site / SEARCHED / name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
            linked.append(name)
    reasons = [reason_not_open(site, "--open", name) for name in installed] + [reason_not_open(site, "--open-all")]
    failures = [f"TensorFlow cannot open a CUDA library: {reason}" for reason in dict.fromkeys(reasons) if reason]
    return {"libraries": len(installed), "linked": linked, "failures": failures + compiler_failures(site / COMPILER)}


def reason_not_open(site: Path, *words: str) -> str:
    """Return why TensorFlow cannot open one library or all; empty if it can or if only the driver is missing.

    Each attempt needs a separate process: within one process, loaded libraries are found without the RUNPATH.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_MAX_VLOG_LEVEL": "1"}
    environment.pop("LD_LIBRARY_PATH", None)
    done = subprocess.run(
        [sys.executable, __file__, str(site), *words], env=environment, check=False,
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    lines = OPEN_FAILED.findall(done.stderr) or done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return "" if all(NEEDS_DRIVER in line for line in lines) else "; ".join(dict.fromkeys(lines))


def framework(site: Path) -> ctypes.CDLL:
    """Return TensorFlow's library that opens the CUDA libraries."""
    return ctypes.CDLL(str(site / "tensorflow/libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)


def open_library(site: Path, name: str) -> int:
    """Open a library by its name through TensorFlow; return the exit status."""
    library = framework(site)
    library.TF_NewStatus.restype = ctypes.c_void_p
    library.TF_LoadSharedLibrary.restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    status = ctypes.c_void_p(library.TF_NewStatus())
    library.TF_LoadSharedLibrary(name.encode(), status)
    if library.TF_GetCode(status):
        print(library.TF_Message(status).decode(errors="replace"), file=sys.stderr)
        return 1
    return 0


def open_all(site: Path) -> int:
    """Open all libraries that TensorFlow needs for GPUs; return the exit status. TensorFlow logs failures."""
    function = getattr(framework(site), OPEN_ALL, None)
    if function is None:
        return 0  # other TensorFlow versions: the checks of single libraries must suffice
    answer = ctypes.create_string_buffer(32)  # an absl::Status, whose first 8 bytes are 1 for OK
    function(answer)
    return 0 if int.from_bytes(answer.raw[:8], "little") == 1 else 1


def compiler_failures(folder: Path) -> list[str]:
    """Return a sentence for each missing or broken part that XLA needs to compile for a GPU."""
    failures = []
    if not (folder / "nvvm/libdevice/libdevice.10.bc").is_file():
        failures.append("XLA cannot compile for a GPU: nvvm/libdevice/libdevice.10.bc is missing")
    try:
        subprocess.run([str(folder / "bin/ptxas"), "--version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        failures.append(f"XLA cannot compile for a GPU: bin/ptxas does not run ({error})")
    return [f"{failure} in {folder}" for failure in failures]


if __name__ == "__main__":
    main()
