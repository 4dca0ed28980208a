"""A fake of ``cuda.bindings.runtime`` for machines without a GPU: names and parameters are the real ones.

Device memory is host memory that no array shows: every copy is checked against what was allocated, and is done no
sooner than the stream is waited for, so that reading a result too early shows. New memory is full of NaN. A captured
graph runs what was captured.
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import cuda_names
import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.engines import Library

NAMES: dict[str, Any] = json.loads(cuda_names.FILE.read_text("utf-8"))
VERSIONS: dict[Library, str] = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}
_Work = Callable[[], None]


class FakeDevice:
    """The memory and the streams of the fake GPU, and which TensorRT there is on its machine.

    Attributes:
        memory_bytes: what there is of device memory.
        activation_bytes: what an engine says that a context takes of it; the fake takes none.
        num_rtx_graphs: contexts that TensorRT-RTX was told to capture the runs of.
        num_compiled: kernels that TensorRT-RTX had to compile because its runtime cache did not have them.
        fails: the name of a function -> the name of the error that its next call ends with.
        num_calls: of each function so far.
        copied_bytes: by single copies so far, from and to which memory: "pinned to device".
    """

    def __init__(self, library: Library = "tensorrt_rtx") -> None:
        self.library: Library = library
        self.version = VERSIONS[library]
        self.capability = (8, 6)
        self.num_devices = 1
        self.memory_bytes = 2**33
        self.activation_bytes = 4096
        self.num_rtx_graphs = 0
        self.num_compiled = 0
        self.fails: dict[str, str] = {}
        self.num_calls: dict[str, int] = {}
        self.copied_bytes: Counter[str] = Counter()
        self._memory: dict[int, tuple[Any, int, str]] = {}
        self._queues: dict[int, list[_Work]] = {}
        self._captured: dict[int, list[_Work]] = {}

    def in_use_bytes(self, kind: str = "device") -> int:
        """Memory that is allocated and not freed; ``kind``: device or pinned."""
        return sum(size for _, size, of in self._memory.values() if of == kind)

    def free_bytes(self) -> int:
        """Device memory that is not allocated."""
        return self.memory_bytes - self.in_use_bytes()

    def allocate(self, size: int, kind: str) -> int:
        assert size > 0
        alignment = 256
        buffer = (ctypes.c_uint8 * (size + alignment))()
        ctypes.memset(buffer, 0xFF, size + alignment)  # NaN in every float
        address = -(-ctypes.addressof(buffer) // alignment) * alignment
        self._memory[address] = (buffer, size, kind)
        return address

    def free(self, address: int, kind: str) -> None:
        for stream in self._queues:
            self.run(stream)
        assert self._memory[address][2] == kind, f"{address:x} is not {kind} memory"
        del self._memory[address]

    def view(self, address: int, size: int, kind: str) -> NDArray[np.uint8]:
        """The bytes at an address, which must be inside one allocation of that kind."""
        for start, (_, length, of) in self._memory.items():
            if start <= address and address + size <= start + length:
                assert of == kind, f"{of} memory is used as {kind} memory"
                return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        raise AssertionError(f"{size} bytes at {address:x} are not inside an allocation")

    def new_stream(self) -> int:
        handle = 1000 + len(self._queues)
        self._queues[handle] = []
        return handle

    def enqueue(self, stream: int, work: _Work) -> None:
        """Puts work into a stream, or into the graph that is being captured from it."""
        (self._captured if stream in self._captured else self._queues)[stream].append(work)

    def is_capturing(self, stream: int) -> bool:
        return stream in self._captured

    def begin_capture(self, stream: int) -> None:
        assert stream not in self._captured
        self._captured[stream] = []

    def end_capture(self, stream: int) -> list[_Work]:
        return self._captured.pop(stream)

    def discard(self, stream: int) -> None:
        """Forgets what is in a stream: none of it was done."""
        self._queues[stream] = []

    def run(self, stream: int) -> None:
        """Does everything that is in a stream."""
        assert not self.is_capturing(stream), "a stream that is being captured is waited for"
        queue, self._queues[stream] = self._queues[stream], []
        for work in queue:
            work()


class ArrayOnGpu:
    """An array of another library in the memory of the fake GPU, as DLPack shows it.

    Args:
        gpu: whose memory.
        values: that it holds.
        device: kind and number, as DLPack numbers them.
        copies: whether the library makes copies in host memory.

    Attributes:
        streams: that it was made ready for, one for each time that it was read.
        num_host_copies: that were made.
    """

    def __init__(
        self, gpu: FakeDevice, values: np.ndarray, device: tuple[int, int] = (2, 0), *, copies: bool = True
    ) -> None:
        address = gpu.allocate(values.nbytes, "device")
        self.values = gpu.view(address, values.nbytes, "device").view(values.dtype).reshape(values.shape)
        self.values[...] = values
        self.streams: list[int] = []
        self.num_host_copies = 0
        self._gpu = gpu  # whose memory lives as long
        self._device = device
        self._copies = copies

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> object:
        if "dl_device" in options:
            if not self._copies:
                raise BufferError("no copies")
            self.num_host_copies += 1
            return self.values.copy().__dlpack__(max_version=options["max_version"])
        assert stream is not None
        self.streams.append(stream)
        return self.values.__dlpack__()

    def __array__(self, *_: object) -> np.ndarray:
        raise AssertionError("an array on the GPU is copied to the host")


class _Functions:
    """What the functions do; results without the status."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device

    def cudaGetDeviceCount(self) -> int:  # noqa: N802
        return self._device.num_devices

    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        assert device < self._device.num_devices
        return SimpleNamespace(**dict.fromkeys(NAMES["properties"]["cudaDeviceProp"], b"Fake GPU"))

    def cudaDeviceGetAttribute(self, attr: IntEnum, device: int) -> int:  # noqa: N802
        assert device < self._device.num_devices
        return self._device.capability["Minor" in attr.name]

    def cudaGetErrorString(self, error: IntEnum) -> bytes:  # noqa: N802
        return error.name.encode()

    def cudaMalloc(self, size: int) -> int:  # noqa: N802
        return self._device.allocate(size, "device")

    def cudaFree(self, devPtr: int) -> None:  # noqa: N802
        self._device.free(devPtr, "device")

    def cudaMallocHost(self, size: int) -> int:  # noqa: N802
        return self._device.allocate(size, "pinned")

    def cudaFreeHost(self, ptr: int) -> None:  # noqa: N802
        self._device.free(ptr, "pinned")

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: IntEnum, stream: int) -> None:  # noqa: N802
        source, target = _kinds(kind)
        self._device.copied_bytes[f"{source} to {target}"] += count

        def copy() -> None:
            self._device.view(dst, count, target)[...] = self._device.view(src, count, source)

        self._device.enqueue(stream, copy)

    def cudaMemcpy2DAsync(  # noqa: N802
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: IntEnum, stream: int
    ) -> None:
        source, target = _kinds(kind)
        assert width <= min(dpitch, spitch)

        def copy() -> None:
            for row in range(height):
                into = self._device.view(dst + row * dpitch, width, target)
                into[...] = self._device.view(src + row * spitch, width, source)

        self._device.enqueue(stream, copy)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> None:  # noqa: N802
        self._device.enqueue(stream, lambda: self._device.view(devPtr, count, "device").fill(value))

    def cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        assert flags == NAMES["constants"]["cudaStreamNonBlocking"]
        return self._device.new_stream()

    def cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        self._device.run(stream)

    def cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        self._device.run(stream)

    def cudaStreamBeginCapture(self, stream: int, mode: IntEnum) -> None:  # noqa: N802
        self._device.begin_capture(stream)

    def cudaStreamEndCapture(self, stream: int) -> list[_Work]:  # noqa: N802
        return self._device.end_capture(stream)

    def cudaGraphInstantiate(self, graph: list[_Work], flags: int) -> tuple[_Work, ...]:  # noqa: N802
        assert flags == 0
        return tuple(graph)

    def cudaGraphLaunch(self, graphExec: tuple[_Work, ...], stream: int) -> None:  # noqa: N802
        for work in graphExec:
            self._device.enqueue(stream, work)

    def cudaGraphExecDestroy(self, graphExec: tuple[_Work, ...]) -> None:  # noqa: N802
        pass

    def cudaGraphDestroy(self, graph: list[_Work]) -> None:  # noqa: N802
        pass


def fake_cuda(device: FakeDevice) -> ModuleType:
    """The module. It has what ``cuda_names.json`` lists and nothing else; functions return (status, result)."""
    module = ModuleType("cuda.bindings.runtime")
    for name, members in NAMES["enums"].items():
        setattr(module, name, IntEnum(name, members))
    for name, value in NAMES["constants"].items():
        setattr(module, name, value)
    functions = _Functions(device)
    for name, parameters in NAMES["functions"].items():
        setattr(module, name, _checked(module, device, getattr(functions, name), parameters))
    return module


def _checked(module: ModuleType, device: FakeDevice, function: Callable[..., Any], parameters: list[str]) -> Any:
    code = function.__code__
    assert list(code.co_varnames[1 : code.co_argcount]) == parameters, function.__name__

    def call(*arguments: Any) -> tuple[Any, ...]:
        device.num_calls[function.__name__] = device.num_calls.get(function.__name__, 0) + 1
        error = device.fails.pop(function.__name__, "cudaSuccess")
        status = module.cudaError_t[error]
        if error != "cudaSuccess":
            assert len(arguments) == len(parameters)
            if function.__name__ == "cudaStreamSynchronize":
                device.discard(*arguments)
            return status, None
        result = function(*arguments)
        return (status,) if result is None else (status, result)

    return call


def _kinds(kind: IntEnum) -> tuple[str, str]:
    """Of the source and the target."""
    source, _, target = kind.name.removeprefix("cudaMemcpy").partition("To")
    names = {"Host": "pinned", "Device": "device"}
    return names[source], names[target]
