"""The folders of a run in the file system that all machines share.

    python -m tf_cluster.run.shared RUN     creates them; called by the unit of a run before its program

They are below ``tf-cluster/`` in the shared path, which site.yml creates: ``<run id>/checkpoints`` (``TF_CHECKPOINT_DIR``), and
``<run id>/coordinators``, in which the tasks of a training agree on their coordinator (coordination.py). All tasks of a training
use those of the training. If the file system is not mounted, ``tf-cluster/`` is missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..preflight.shared import FOLDER
from . import runs


def folder_of(noted: dict[str, Any]) -> Path | None:
    """Return the folder of a run; None if the machines share none. ``noted`` is the content of run.json."""
    if not noted.get("shared"):
        return None
    return Path(noted["shared"], FOLDER, (noted.get("training") or {}).get("id") or noted["run_id"])


def checkpoints(noted: dict[str, Any]) -> Path | None:
    """Return the folder of a run's checkpoints; None if they are not shared."""
    folder = folder_of(noted)
    return folder and folder / "checkpoints"


def create(noted: dict[str, Any]) -> str:
    """Create the folders; return a sentence without full stop if that is not possible, else an empty string."""
    folder = folder_of(noted)
    if not folder:
        return ""
    machine = os.uname().nodename
    if not folder.parent.is_dir():
        return f"{folder.parent} is missing on {machine}: mount {noted['shared']} (tf_shared), or run 'ansible-playbook site.yml'"
    try:
        for name in ("checkpoints", "coordinators"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{error.filename} on {machine} could not be created: {error.strerror} (tf_shared)"
    return ""


def main() -> None:
    """Create the folders, or exit with a sentence in the run's output and in part.json."""
    run = runs.Run(sys.argv[1])
    from . import training  # which imports this module

    noted = run.read()
    problem = create(noted)
    if problem:
        (run.folder / "part.json").write_text(json.dumps({"shared": problem}), encoding="utf-8")
        if noted["training"] and noted["task"] != noted["training"]["chief"]:
            with contextlib.suppress(OSError):
                training.refuse(noted["training"], noted["task"], problem)
        sys.exit(problem)


if __name__ == "__main__":
    main()
