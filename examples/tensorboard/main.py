"""TensorBoard for the results of runs on this machine, finished ones and those that are running.

    main.py [RUN ...] [OPTIONS OF TENSORBOARD]

Shows the runs with these IDs, by default all, also while they write. Each task of a training writes on its own machine: let it
write to a folder in TF_SHARED_DIR, and name that folder (/mnt/cluster/curves) instead of an ID.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main():
    """Become TensorBoard."""
    parser = argparse.ArgumentParser(description="TensorBoard for the results of runs.", allow_abbrev=False)
    parser.add_argument("run", nargs="*", help="ID of a run, or a folder that all machines share; default: all runs")
    parser.add_argument("--port", type=int, default=6006)
    options, others = parser.parse_known_args()
    runs = Path(os.environ["TF_RUN_DIR"]).parents[1]
    folder = runs
    if options.run:
        folder = Path(tempfile.mkdtemp())
        for run in options.run:
            results = runs / run / "results" if not run.startswith("/") else Path(run)
            if not results.is_dir():
                sys.exit(f"{results} is not on this machine. 'ansible-playbook playbooks/runs.yml' lists the runs.")
            (folder / run.strip("/").replace("/", "-")).symlink_to(results)
    # TensorBoard has no password, so it must not listen on an address that other machines reach.
    words = ["-m", "tensorboard.main", f"--logdir={folder}", "--host=127.0.0.1", f"--port={options.port}", "--reload_interval=5"]
    os.execv(sys.executable, [sys.executable, *words, *others])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
