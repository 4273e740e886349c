"""Python loads this when a run's program starts. It imports TensorFlow without garbage collection.

``import tensorflow`` makes a million objects that live until the program exits, and the collector scans them during the
import, in each later run and at exit. So it pauses during the import and then ignores these objects (``gc.freeze``). A program
that only imports TensorFlow takes 1.1 s instead of 1.9 s. Programs need no change.

A program exits without removing its TensorFlow functions from the tasks, because the removal can wait forever.

After TensorFlow, it loads trace.py and profile.py in a run with a trace, and partial.py in a run without some tasks.
``PYTHONPATH`` in the unit of a run names this folder, which has no other file; see the module site in Python's documentation.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import sys

TYPE_CHECKING = False  # not from typing, whose import takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

PACKAGES = {"tensorflow", "keras"}


class _Finder:
    """Finds the packages with Python's own finders and wraps their loaders."""

    def __init__(self) -> None:
        self.left = set(PACKAGES)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of a package once (importlib.abc.MetaPathFinder)."""
        if name not in self.left:
            return None
        self.left.remove(name)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader and hasattr(spec.loader, "exec_module"):
            # Each package has its own loader object.
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
            atexit.register(_leave_functions)
            if os.environ.get("TF_CLUSTER_PARTIAL"):
                from tf_cluster.run import partial

                partial.install()
            if os.environ.get("TF_CLUSTER_TRACE"):
                _trace()

    return exec_module


def _leave_functions() -> None:
    """Let the program exit without removing its functions from the tasks; the end of the run clears the tasks.

    TensorFlow 2.21 waits for the removal with Python's lock. If a task then waits for a Python generator of the program
    (``tf.data.Dataset.from_generator``), both wait forever.
    """
    context = sys.modules.get("tensorflow.python.eager.context")
    if context:
        context.Context.remove_function = lambda *_given: None


def _trace() -> None:
    try:
        from tf_cluster.run import profile, trace

        trace.install(begin=profile.install().give_way)
    except Exception as error:  # the program must run even without a trace
        print(f"[trace] cannot record a trace: {error!r}", file=sys.stderr)


sys.meta_path.insert(0, _Finder())
