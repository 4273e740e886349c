"""JupyterLab on the cluster. Its notebooks are in the run's results, so they are collected like those of any run.

    main.py [OPTIONS OF JUPYTERLAB]

Prints a URL with a token. 'File > Shut Down' in JupyterLab ends the run.
"""

import os
import shutil
import sys
from pathlib import Path

import jupyterlab

NOTEBOOK = "first_steps.ipynb"


def main():
    """Become JupyterLab."""
    results, layer = Path(os.environ["TF_RUN_DIR"]), Path(jupyterlab.__file__).parents[1]
    shutil.copyfile(Path(__file__).with_name(NOTEBOOK), results / NOTEBOOK)
    # The packages of a run are in a folder of their own, not where Python is installed.
    os.environ["JUPYTERLAB_DIR"] = str(layer / "share/jupyter/lab")
    os.environ["JUPYTER_PATH"] = str(layer / "share/jupyter")
    os.environ["JUPYTER_CONFIG_PATH"] = str(layer / "etc/jupyter")
    words = [
        "-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={results}", f"--LabApp.default_url=/lab/tree/{NOTEBOOK}",
        # Only the machine itself reaches it, and only with the token.
        "--ServerApp.ip=127.0.0.1", "--ServerApp.port=8888", "--ServerApp.port_retries=0",
        # The kernels' sockets are files in the run's own /tmp.
        "--KernelManager.transport=ipc",
        # Nothing is requested from other machines.
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    os.execv(sys.executable, [sys.executable, *words, *sys.argv[1:]])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
