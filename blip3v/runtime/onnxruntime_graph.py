"""Graphs opened with ONNX Runtime, whatever provider computes them: package, options, exceptions.

Nothing else in blip3v runs graphs with ONNX Runtime. It is imported when a graph is opened, never before, so that
importing ``blip3v.runtime`` stays light and works where ONNX Runtime is not installed. Not here: what the graphs are
run with (``onnxruntime_sessions.py``), and what differs between providers (the back ends).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import takes_one_position
from blip3v.errors import ProviderError
from blip3v.extras import pip_command, pip_line
from blip3v.runtime.backends import FoundTensor, GraphFile, check_io
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.engine_errors import engine_errors, path_for_engine
from blip3v.runtime.gpu_array import GpuMemory

__all__ = [
    "CPU_PROVIDER",
    "GPU_PACKAGE",
    "PACKAGES",
    "OpenGraph",
    "cache_dtype",
    "load_onnxruntime",
    "onnxruntime_errors",
    "package_version",
    "session_options",
]

GPU_PACKAGE = "onnxruntime-gpu"
PACKAGES = ("onnxruntime", GPU_PACKAGE)
CPU_PROVIDER = "CPUExecutionProvider"
onnxruntime_errors = functools.partial(engine_errors, "ONNX Runtime", "onnxruntime")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
}


class OpenGraph:
    """One opened ONNX graph. Several threads may run it at once.

    Args:
        graph: the file.
        options: of its session, from ``session_options``.
        provider: that is to compute it.
        settings: of the provider.

    Raises:
        ProviderError: ONNX Runtime took other providers.
        ArtifactError: the graph's inputs or outputs are not those of ``graph.io``.
        BackendError: ONNX Runtime cannot open it.
    """

    def __init__(
        self, graph: GraphFile, options: Any, provider: str = CPU_PROVIDER, settings: Mapping[str, str] | None = None
    ) -> None:
        self.onnxruntime = load_onnxruntime()
        path = path_for_engine(graph.path)
        with onnxruntime_errors(f"opening {path}"):
            # Without its fallback, which prints to stdout and opens the graph a second time.
            session = self.onnxruntime.InferenceSession(
                path, options, providers=[(provider, dict(settings or {}))], enable_fallback=False
            )
            inputs, outputs = _found(session.get_inputs()), _found(session.get_outputs())
        # ONNX Runtime adds its CPU provider to any other, for what the other leaves to it.
        wanted = list(dict.fromkeys((provider, CPU_PROVIDER)))
        if session.get_providers() != wanted:
            raise ProviderError(
                f"{graph.path.name} was to run on {provider} and ONNX Runtime took "
                f"{', '.join(session.get_providers())}; install the build for it: `{pip_line('cpu')}` for a CPU, "
                f"`{pip_line('cuda')}` for an NVIDIA GPU"
            )
        self.session: Any = session
        self.outputs = [output.name for output in outputs]
        check_io(inputs, outputs, graph)
        self.takes_one_position = takes_one_position(graph.io.inputs)
        self.takes_write_indices = any(spec.name == "write_indices" for spec in graph.io.inputs)
        self.dtype = np.dtype(graph.precision.io)
        self.cache_dtype = cache_dtype(graph)

    def value(self, array: NDArray[Any]) -> Any:
        """``array``, which must be contiguous, as an OrtValue that shares its memory and must not outlive it."""
        assert array.flags.c_contiguous
        return self.onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def bind_gpu_input(self, binding: Any, name: str, device: str | None, memory: GpuMemory) -> None:
        """Binds memory on the GPU as an input, which must live until the run has ended.

        ``synchronize_inputs`` waits for the whole device, so for what its producer has yet to do.
        """
        assert device is not None
        binding.bind_input(name, device, 0, np.dtype(memory.dtype).type, list(memory.shape), memory.address)

    @contextlib.contextmanager
    def running(self, doing: str, deadline: Deadline | None) -> Iterator[Any]:
        """Run options for one run, which ``deadline`` interrupts; exceptions become ours."""
        options = self.onnxruntime.RunOptions()

        def terminate() -> None:
            options.terminate = True

        guard = contextlib.nullcontext() if deadline is None else deadline.interrupting(terminate)
        with guard, onnxruntime_errors(doing):
            yield options


def load_onnxruntime() -> ModuleType:
    """ONNX Runtime.

    Raises:
        ProviderError: no package of it is installed, or two that own the same folder.
    """
    if all(package_version(name) is not None for name in PACKAGES):
        raise ProviderError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one: "
            f"`{pip_command('uninstall', '-y', *PACKAGES)}` and then `{pip_line('cpu')}` or `{pip_line('cuda')}`"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}); install one build of it: `{pip_line('cpu')}` for a CPU, "
            f"`{pip_line('cuda')}` for an NVIDIA GPU"
        ) from error


def package_version(distribution: str) -> str | None:
    """Version of an installed package of ONNX Runtime; None: it is not installed."""
    try:
        return importlib.metadata.distribution(distribution).version
    except importlib.metadata.PackageNotFoundError:
        return None


def cache_dtype(graph: GraphFile) -> np.dtype[Any]:
    """Dtype of keys and values."""
    return np.dtype(graph.precision.cache or graph.precision.io)


def session_options(threads: int | None) -> Any:
    """Options that every graph is opened with.

    Args:
        threads: inside an operator; None: one for each physical core.
    """
    options = load_onnxruntime().SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: they reach the caller as exceptions, warnings would go to stderr
    # A memory pattern is kept for every shape of input ever seen, and each prompt length is a new shape.
    options.enable_mem_pattern = False
    return options


def _found(nodes: Sequence[Any]) -> list[FoundTensor]:
    """Inputs or outputs of a session; a dtype that the runtime does not know keeps ONNX Runtime's name."""
    return [FoundTensor(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]
