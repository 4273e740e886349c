"""Functions that all command-line programs of the package use. Standard library only."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

PROXY_VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


def program_name() -> str:
    """Return the name of this program: "create_server.py", or "tf_cluster.run" for that module."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"tf_cluster.{path.parent.name}"
    return path.name


def remove_proxy_variables() -> None:
    """Remove the proxy variables from this process, so that gRPC sends no cluster traffic to a proxy."""
    for name in PROXY_VARIABLES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


def fail(sentence: str, status: int) -> NoReturn:
    """Print a sentence on standard error and exit with ``status``."""
    print(f"{program_name()}: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)
