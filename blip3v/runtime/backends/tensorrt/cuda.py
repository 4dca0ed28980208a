"""CUDA through cuda-python: memory on the device and pinned on the host, one stream, captured graphs.

Every status is checked here and becomes one of our errors. Memory is freed when nobody refers to it.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import math
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError, OutOfMemoryError, ProviderError
from blip3v.extras import pip_command
from blip3v.units import format_bytes

__all__ = ["Cuda", "CudaGraph", "DeviceMemory", "PinnedArray", "Stream", "has_cuda_python"]

_MODULE = "cuda.bindings.runtime"
_PACKAGE = "cuda-bindings"  # the same for every extra that needs it; JetPack brings TensorRT itself
_DEVICE = 0  # CUDA_VISIBLE_DEVICES chooses another


def has_cuda_python() -> bool:
    """Whether the package is there, working or not. Imports nothing of it but its empty parents."""
    try:
        return importlib.util.find_spec(_MODULE) is not None
    except ModuleNotFoundError:  # the parent package
        return False


class Cuda:
    """The CUDA runtime.

    Raises:
        ProviderError: cuda-bindings cannot be imported.
    """

    def __init__(self) -> None:
        try:
            self._runtime: ModuleType = importlib.import_module(_MODULE)
        except (ImportError, OSError) as error:
            raise ProviderError(
                f"cuda-bindings cannot be imported ({error}), which TensorRT's engines need; "
                f"install it: `{pip_command('install', _PACKAGE)}`"
            ) from error

    def __getattr__(self, name: str) -> Any:
        """Enumerations and types of the package."""
        return getattr(self._runtime, name)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the runtime and returns its result: None, one value or a tuple.

        Raises:
            OutOfMemoryError: the device's or pinned memory is full.
            BackendError: any other status.
        """
        status, *results = getattr(self._runtime, name)(*arguments)
        errors = self._runtime.cudaError_t
        if status == errors.cudaSuccess:
            return results[0] if len(results) == 1 else tuple(results) or None
        kind = OutOfMemoryError if status == errors.cudaErrorMemoryAllocation else BackendError
        text = self._runtime.cudaGetErrorString(status)[1]
        text = text.decode() if isinstance(text, bytes) else str(text)
        raise kind(f"{name}: CUDA failed: {text} (error {int(status)})")

    def require_device(self) -> None:
        """Raises unless there is a GPU that this process can use.

        Raises:
            ProviderError: there is none, or no driver.
        """
        try:
            count = int(self.call("cudaGetDeviceCount"))
        except BackendError as error:
            raise ProviderError(
                f"no GPU that CUDA can use ({error.message}); `nvidia-smi` shows whether the driver works",
                remedy="on another machine choose `device='cpu'`",
            ) from error
        if not count:
            raise ProviderError("CUDA finds no GPU; `nvidia-smi` lists them and CUDA_VISIBLE_DEVICES hides some")

    def device_name(self) -> str:
        """The GPU's name: "Orin"."""
        name = self.call("cudaGetDeviceProperties", _DEVICE).name
        return name.decode() if isinstance(name, bytes) else str(name)

    def compute_capability(self) -> str:
        """The GPU's: "8.7"."""
        attributes = self._runtime.cudaDeviceAttr
        major = self.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, _DEVICE)
        minor = self.call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, _DEVICE)
        return f"{major}.{minor}"


class DeviceMemory:
    """Memory on the device, freed with this object.

    Args:
        cuda: the runtime.
        num_bytes: at least 1.
        what: it is for, for the message.

    Raises:
        OutOfMemoryError: the device has not that much.
    """

    def __init__(self, cuda: Cuda, num_bytes: int, what: str) -> None:
        self.num_bytes = num_bytes
        try:
            self.address = int(cuda.call("cudaMalloc", num_bytes))
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"the GPU has no {format_bytes(num_bytes)} free for {what}; ask fewer questions at once, close other "
                "sessions, or build the engines with a smaller max_seq_len"
            ) from error
        self._free = weakref.finalize(self, cuda.call, "cudaFree", self.address)
        self._free.atexit = False  # the driver frees everything, and may be gone by then


class PinnedArray:
    """An array in host memory that the GPU copies from and to by itself, freed with this object.

    Args:
        cuda: the runtime.
        shape: the largest that is needed.
        dtype: of its values.

    Raises:
        OutOfMemoryError: the host has not that much that can be pinned.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        num_bytes = max(1, math.prod(shape)) * dtype.itemsize
        try:
            self.address = int(cuda.call("cudaMallocHost", num_bytes))
        except OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"{format_bytes(num_bytes)} of host memory cannot be pinned for copies to the GPU; free some, or build "
                "the engines with a smaller max_batch_size"
            ) from error
        self._free = weakref.finalize(self, cuda.call, "cudaFreeHost", self.address)
        self._free.atexit = False
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(self.address))
        self._dtype = dtype

    def view(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """The beginning of the memory as an array of this shape; it must not outlive this object."""
        num_bytes = math.prod(shape) * self._dtype.itemsize
        return self._bytes[:num_bytes].view(self._dtype).reshape(shape)


class Stream:
    """One stream of work on the device, in order.

    Args:
        cuda: the runtime.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        self.handle = int(self._stream)
        self._destroy = weakref.finalize(self, cuda.call, "cudaStreamDestroy", self._stream)
        self._destroy.atexit = False

    def to_device(self, target: int, source: int, num_bytes: int) -> None:
        """Copies pinned memory to the device once the stream gets there."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.call("cudaMemcpyAsync", target, source, num_bytes, kind, self._stream)

    def to_host(self, target: int, source: int, num_bytes: int) -> None:
        """Copies device memory to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", target, source, num_bytes, kind, self._stream)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Copies within the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.call("cudaMemcpyAsync", target, source, num_bytes, kind, self._stream)

    def copy_blocks(self, target: int, source: int, block_bytes: int, pitch_bytes: int, count: int) -> None:
        """Copies ``count`` blocks within the device that begin ``pitch_bytes`` apart, on both sides."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.call(
            "cudaMemcpy2DAsync", target, pitch_bytes, source, pitch_bytes, block_bytes, count, kind, self._stream
        )

    def zero(self, target: int, num_bytes: int) -> None:
        """Fills device memory with zeros."""
        self._cuda.call("cudaMemsetAsync", target, 0, num_bytes, self._stream)

    def synchronize(self) -> None:
        """Waits until everything is done."""
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Records what ``enqueue`` puts into the stream instead of running it."""
        # Relaxed: memory of other sessions may be allocated, and freed by the garbage collector, meanwhile.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            # Ends the capture with an error status of its own; the first error is the one to tell.
            self._cuda.cudaStreamEndCapture(self._stream)
            raise
        graph = self._cuda.call("cudaStreamEndCapture", self._stream)
        try:
            return CudaGraph(self._cuda, self._cuda.call("cudaGraphInstantiate", graph, 0))
        finally:
            self._cuda.call("cudaGraphDestroy", graph)

    def launch(self, graph: CudaGraph) -> None:
        """Runs a captured graph."""
        self._cuda.call("cudaGraphLaunch", graph.handle, self._stream)


class CudaGraph:
    """A captured graph, destroyed with this object."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.handle = handle
        self._destroy = weakref.finalize(self, cuda.call, "cudaGraphExecDestroy", handle)
        self._destroy.atexit = False
