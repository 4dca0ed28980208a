"""The border to ONNX Runtime: packages, providers, session options and its exceptions.

Nothing else in blip3v imports ONNX Runtime for inference. It is imported when a session is opened, never before, so
that importing ``blip3v.runtime`` stays light and works where ONNX Runtime is not installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import SYMBOLIC_DTYPES, GraphIO, TensorSpec
from blip3v.errors import ArtifactError, BackendError, OutOfMemoryError, ProviderError, UsageError

__all__ = ["DEVICES", "Graph", "check_device", "load_onnxruntime", "open_graph", "ort_errors"]

DEVICES = ("auto", "cpu")

_PROVIDER = "CPUExecutionProvider"
_CPU_LINE = 'pip install "blip3v[cpu]"'
_CUDA_LINE = 'pip install "blip3v[cuda]"'
_MEMORY_WORDS = ("failed to allocate", "bad_alloc", "out of memory", "bfcarena", "allocatorimpl")
_NUMPY_OF: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
}


@dataclass(frozen=True)
class Graph:
    """One opened ONNX graph. ``run`` of the session may be called from several threads at once."""

    session: Any  # onnxruntime.InferenceSession
    onnxruntime: ModuleType
    compute: np.dtype[Any]  # float32 or float16: the dtype of the ports that say "compute" or "cache"

    def value(self, array: NDArray[Any]) -> Any:
        """``array``, which must be contiguous, as an OrtValue that shares its memory and must not outlive it."""
        assert array.flags.c_contiguous
        return self.onnxruntime.OrtValue.ortvalue_from_numpy(array)


def load_onnxruntime() -> ModuleType:
    """ONNX Runtime.

    Raises:
        ProviderError: no package of it is installed, or two that own the same folder.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if _is_installed(name)]
    if len(installed) == 2:
        raise ProviderError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one: "
            f"`pip uninstall -y onnxruntime onnxruntime-gpu` and then `{_CPU_LINE}` or `{_CUDA_LINE}`"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}); install one build of it: `{_CPU_LINE}` for a CPU, "
            f"`{_CUDA_LINE}` for an NVIDIA GPU"
        ) from error


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_device(device: str) -> None:
    """Lets go on where this version runs on ``device``; "auto" is the CPU, on every machine.

    Raises:
        UsageError: an unknown name.
        ProviderError: a device that the engine knows and this version does not run on.
    """
    if device == "cuda":
        raise ProviderError(
            "device 'cuda' was asked for; this version keeps its caches in main memory and runs on the CPU only: "
            "use device cpu"
        )
    if device not in DEVICES:
        raise UsageError(f"device {device!r} is unknown; allowed: {', '.join(DEVICES)}")


def open_graph(path: Path, io: GraphIO, *, threads: int | None, mapped: bool) -> Graph:
    """Opens one graph and checks its inputs and outputs against ``io``.

    Args:
        path: the .onnx file.
        io: the names, dtypes and axes that the runtime relies on.
        threads: threads inside an operator; None: one for each physical core.
        mapped: whether fp32 weights stay in their file, instead of being packed into memory for speed.

    Raises:
        ArtifactError: the graph's inputs or outputs are not those of ``io``.
        ProviderError: no ONNX Runtime, or one that would run the graph elsewhere than on the CPU.
        BackendError: ONNX Runtime refuses the graph; OutOfMemoryError where memory is the reason.
    """
    onnxruntime = load_onnxruntime()
    with ort_errors(f"opening {path.name}"):
        session = onnxruntime.InferenceSession(
            str(path), _session_options(onnxruntime, threads, mapped=mapped), providers=[_PROVIDER]
        )
    if session.get_providers() != [_PROVIDER]:
        raise ProviderError(
            f"{path.name} was to run on {_PROVIDER} and ONNX Runtime took {', '.join(session.get_providers())}; "
            f"install the plain build of it: `{_CPU_LINE}`"
        )
    return Graph(session, onnxruntime, _check_ports(session, io, path))


def _session_options(onnxruntime: ModuleType, threads: int | None, *, mapped: bool) -> Any:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: they reach the caller as exceptions, warnings would go to stderr
    # A memory pattern is kept for every shape of input ever seen, and each prompt length is a new shape.
    options.enable_mem_pattern = False
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _check_ports(session: Any, io: GraphIO, path: Path) -> np.dtype[Any]:
    """Compares the graph with the table and gives its compute dtype."""
    computes: set[np.dtype[Any]] = set()
    for kind, ports, nodes in (
        ("input", io.inputs, session.get_inputs()),
        ("output", io.outputs, session.get_outputs()),
    ):
        found = {node.name: node for node in nodes}
        if set(found) != {port.name for port in ports}:
            odd = sorted(set(found) ^ {port.name for port in ports})
            raise ArtifactError(
                f"{path} has other {kind}s than this blip3v expects (differing: {', '.join(odd[:6])}); export it again"
            )
        for port in ports:
            computes |= _check_port(port, found[port.name], path)
    if len(computes) != 1:
        raise ArtifactError(f"{path} mixes the dtypes {', '.join(sorted(map(str, computes)))}; export it again")
    return computes.pop()


def _check_port(port: TensorSpec, node: Any, path: Path) -> set[np.dtype[Any]]:
    dtype = _NUMPY_OF.get(node.type)
    allowed = ("float32", "float16") if port.dtype in SYMBOLIC_DTYPES else (port.dtype,)
    if dtype is None or dtype.name not in allowed:
        raise ArtifactError(f"{path}: {port.name} is {node.type}; expected {' or '.join(allowed)}; export it again")
    fixed = [(want, got) for want, got in zip(port.axes, node.shape, strict=False) if isinstance(want, int)]
    if len(node.shape) != len(port.axes) or any(isinstance(got, int) and got != want for want, got in fixed):
        raise ArtifactError(f"{path}: {port.name} has shape {node.shape}; expected {list(port.axes)}; export it again")
    return {dtype} if port.dtype in SYMBOLIC_DTYPES else set()


@contextlib.contextmanager
def ort_errors(doing: str) -> Iterator[None]:
    """Turns what ONNX Runtime raises inside the block into our errors; ``doing`` begins the message.

    Raises:
        OutOfMemoryError: memory could not be had.
        BackendError: anything else from ONNX Runtime.
    """
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"{doing}: not enough memory; use a smaller precision or a shorter prompt") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] != "onnxruntime" and not isinstance(error, RuntimeError):
            raise
        text = " ".join(str(error).split())[:500]
        if any(word in text.lower() for word in _MEMORY_WORDS):
            raise OutOfMemoryError(f"{doing}: ONNX Runtime ran out of memory: {text}") from error
        raise BackendError(f"{doing}: ONNX Runtime failed: {text}") from error
