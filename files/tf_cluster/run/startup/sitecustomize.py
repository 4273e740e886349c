"""Python loads this when a run's program starts: TensorFlow is imported without garbage collection.

``import tensorflow`` makes a million objects that live until the program ends. The collector walks over them while they
are made, each time it runs later, and again at the end. So it pauses during the import, and leaves alone for good what
was there after it (``gc.freeze``); what the program makes itself is collected as ever. A program that imports TensorFlow
and ends takes 1.1 s instead of 1.9 s; a program need not know of it.

After TensorFlow, trace.py is loaded in a run that was asked for a trace, and missing.py in one that goes on without some
tasks. ``PYTHONPATH`` in the unit of a run names their folder, see site(1) of Python's documentation; nothing else is in it.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys

TYPE_CHECKING = False  # as in typing, which takes a while to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PACKAGES = {"tensorflow", "keras"}


class _Finder:
    """Finds the packages as Python does, and wraps their loading."""

    def __init__(self) -> None:
        self.left = set(PACKAGES)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a package (importlib.abc.MetaPathFinder), once for each."""
        if name not in self.left:
            return None
        self.left.remove(name)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader and hasattr(spec.loader, "exec_module"):
            # The loader is this package's alone.
            spec.loader.exec_module = _without_collection(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec


def _without_collection(load: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        paused = gc.isenabled()
        gc.disable()
        try:
            load(module)
        finally:
            if paused:
                gc.freeze()
                gc.enable()
        if module.__name__ == "tensorflow":
            if os.environ.get("TF_CLUSTER_MISSING"):
                from tf_cluster.run import missing

                missing.install()
            if os.environ.get("TF_CLUSTER_TRACE"):
                _trace()

    return exec_module


def _trace() -> None:
    try:
        from tf_cluster.run import trace

        trace.install()
    except Exception as error:  # without a trace the program is still what was asked for
        print(f"[trace] there will be no trace: {error!r}", file=sys.stderr)


sys.meta_path.insert(0, _Finder())
