"""TensorFlow's public C API through ctypes, from the installed wheel.

``import tensorflow`` takes seconds; loading its library takes 0.25 s. The declarations follow
``include/tensorflow/c/c_api.h`` of the wheel (TensorFlow 2.21).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any


class TensorFlowError(Exception):
    """A TensorFlow call failed. ``code`` is TensorFlow's error code (4: deadline exceeded, 14: unavailable)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def package_folder() -> Path:
    """Return the folder of the installed ``tensorflow`` package without importing it."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise TensorFlowError(0, f"TensorFlow is not installed for {sys.executable}")
    return Path(next(iter(spec.submodule_search_locations)))


def message(module: str, name: str) -> Any:
    """Return one of TensorFlow's protobuf classes, such as ``message("config_pb2", "ConfigProto")``.

    A bare module with the package's path replaces it, so that its slow ``__init__`` does not run.
    """
    if "tensorflow" not in sys.modules:
        bare = types.ModuleType("tensorflow")
        bare.__path__ = [str(package_folder())]
        sys.modules["tensorflow"] = bare
    for package in ("tensorflow.core.protobuf", "tensorflow.core.framework"):
        if importlib.util.find_spec(f"{package}.{module}"):
            return getattr(importlib.import_module(f"{package}.{module}"), name)
    raise TensorFlowError(0, f"TensorFlow has no message module {module}")


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


_POINTERS = (
    "TF_NewStatus", "TF_NewServer", "TF_NewSessionOptions", "TF_NewGraph", "TF_NewSession", "TF_SessionListDevices",
    "TF_NewImportGraphDefOptions", "TF_GraphOperationByName", "TF_TensorData", "TF_NewBufferFromString",
)  # fmt: skip
_TEXTS = ["TF_Message", "TF_Version", "TF_DeviceListName"]
_NUMBERS = {
    "TF_GetCode": ctypes.c_int, "TF_DeviceListCount": ctypes.c_int, "TF_TensorByteSize": ctypes.c_size_t,
    "TF_DeviceListIncarnation": ctypes.c_uint64,
}  # fmt: skip


class Library:
    """The loaded library. It is thread-safe; calls release the GIL."""

    def __init__(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        folder = package_folder()
        try:
            ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
            self.tf = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise TensorFlowError(0, f"TensorFlow in {folder} is damaged: {error}") from None
        for name in _POINTERS:
            getattr(self.tf, name).restype = ctypes.c_void_p
        for name in _TEXTS:
            getattr(self.tf, name).restype = ctypes.c_char_p
        for name, kind in _NUMBERS.items():
            getattr(self.tf, name).restype = kind
        self.version = self.tf.TF_Version().decode()

    def call(self, name: str, *arguments: object) -> Any:
        """Call a function whose last argument is a status; raise TensorFlowError if it is not OK."""
        status = ctypes.c_void_p(self.tf.TF_NewStatus())
        try:
            result = getattr(self.tf, name)(*arguments, status)
            code = self.tf.TF_GetCode(status)
            if code:
                raise TensorFlowError(code, self.tf.TF_Message(status).decode(errors="replace"))
        finally:
            self.tf.TF_DeleteStatus(status)
        return ctypes.c_void_p(result) if name in _POINTERS else result

    def start_server(self, server_def: bytes) -> None:
        """Start a server from a serialised ``ServerDef``; it listens when this returns, until the process exits."""
        server = self.call("TF_NewServer", server_def, ctypes.c_size_t(len(server_def)))
        self.call("TF_ServerStart", server)

    def session(self, target: str, config: bytes, graph_def: bytes = b"") -> Session:
        """Open a session on the server ``target`` ("grpc://address:port") with a ``ConfigProto``."""
        return Session(self, target, config, graph_def)


class Session:
    """A session on one server with one imported ``GraphDef``. The ``ConfigProto`` sets deadlines."""

    def __init__(self, library: Library, target: str, config: bytes, graph_def: bytes) -> None:
        self.library, tf = library, library.tf
        options = ctypes.c_void_p(tf.TF_NewSessionOptions())
        tf.TF_SetTarget(options, target.encode())
        library.call("TF_SetConfig", options, config, ctypes.c_size_t(len(config)))
        self.graph = ctypes.c_void_p(tf.TF_NewGraph())
        if graph_def:
            text = ctypes.c_void_p(tf.TF_NewBufferFromString(graph_def, ctypes.c_size_t(len(graph_def))))
            imports = ctypes.c_void_p(tf.TF_NewImportGraphDefOptions())
            library.call("TF_GraphImportGraphDef", self.graph, text, imports)
            tf.TF_DeleteImportGraphDefOptions(imports)
            tf.TF_DeleteBuffer(text)
        self.handle = library.call("TF_NewSession", self.graph, options)
        tf.TF_DeleteSessionOptions(options)

    def devices(self) -> dict[str, str]:
        """Return the session's devices: full name -> incarnation, which changes each time the server starts."""
        found = self.library.call("TF_SessionListDevices", self.handle)
        devices = {}
        for index in range(self.library.tf.TF_DeviceListCount(found)):
            name = self.library.call("TF_DeviceListName", found, ctypes.c_int(index)).decode()
            devices[name] = f"{self.library.call('TF_DeviceListIncarnation', found, ctypes.c_int(index)):016x}"
        self.library.tf.TF_DeleteDeviceList(found)
        return devices

    def close(self) -> None:
        """Close the session, also on its server, which otherwise keeps it for minutes. Ignores errors of a stopped server."""
        for call in ("TF_CloseSession", "TF_DeleteSession"):
            with contextlib.suppress(TensorFlowError):
                self.library.call(call, self.handle)
        self.library.tf.TF_DeleteGraph(self.graph)

    def run(self, operation: str) -> None:
        """Run ``operation`` and fetch nothing."""
        target = (ctypes.c_void_p * 1)(self.library.tf.TF_GraphOperationByName(self.graph, operation.encode()))
        self.library.call("TF_SessionRun", self.handle, None, None, None, 0, None, None, 0, target, 1, None)

    def fetch_bytes(self, operation: str) -> bytes:
        """Run ``operation`` and return the raw bytes of its first output."""
        tf = self.library.tf
        output = _Output(tf.TF_GraphOperationByName(self.graph, operation.encode()), 0)
        tensor = ctypes.c_void_p()
        self.library.call(
            "TF_SessionRun", self.handle, None, None, None, 0, ctypes.byref(output), ctypes.byref(tensor), 1,
            None, 0, None,
        )  # fmt: skip
        data = ctypes.string_at(tf.TF_TensorData(tensor), tf.TF_TensorByteSize(tensor))
        tf.TF_DeleteTensor(tensor)
        return data
