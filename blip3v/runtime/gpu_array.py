"""Arrays of other libraries through DLPack: those in host memory become numpy's, those on an NVIDIA GPU stay there.

The structures are those of DLPack 0.x, which every producer hands out unless a later version is asked for.
"""

from __future__ import annotations

import copy
import ctypes
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import RequestError

__all__ = ["DlpackArray", "GpuArray", "GpuMemory", "as_array"]

_HOST = (1, 3)  # kDLCPU; kDLCUDAHost, which is pinned host memory
_CUDA = 2  # kDLCUDA
_LEGACY_STREAM = 1  # CUDA's legacy default stream, by DLPack's number
_ALIGNMENT_BYTES = 256  # of every address that TensorRT is given, and of what CUDA itself allocates
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}  # by DLPack's code of a dtype
_UNREADABLE = (AssertionError, AttributeError, BufferError, RuntimeError, TypeError, ValueError)  # of producers


class DlpackArray(Protocol):
    """An array of any library that speaks DLPack: numpy, torch, cupy."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("num_axes", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Memory on the GPU without gaps, valid while this object lives."""

    address: int
    shape: tuple[int, ...]
    dtype: str  # "float32", and so on
    owner: object  # keeps the memory

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> GpuMemory:
        """A part along the first axis, without a step."""
        first, last, _ = rows.indices(len(self))
        return replace(self, address=self.address + first * self.row_bytes, shape=(last - first, *self.shape[1:]))

    def as_batch(self) -> GpuMemory:
        """The same memory as a batch of one: with an axis of size 1 in front."""
        return replace(self, shape=(1, *self.shape))

    @property
    def row_bytes(self) -> int:
        """Size of one item of the first axis."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize


class GpuArray:
    """An array of another library on the first CUDA GPU, left where it is. Its owner must not change it meanwhile.

    Attributes:
        shape: of the array.
        dtype: of its values, "float32" and so on.

    Raises:
        RequestError: it is on another device, has gaps, or cannot be read.
    """

    def __init__(self, array: DlpackArray) -> None:
        kind, device = (int(part) for part in array.__dlpack_device__())
        if (kind, device) != (_CUDA, 0):
            raise RequestError(
                f"the array is on DLPack's device ({kind}, {device}); host memory or the first CUDA device, "
                f"({_CUDA}, 0), is expected"
            )
        self._array = array
        memory = _read(array, _LEGACY_STREAM)
        self.shape, self.dtype = memory.shape, memory.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def memory(self, stream: int = _LEGACY_STREAM) -> GpuMemory:
        """Its memory, to be read by the work that is put into a stream after this call.

        Args:
            stream: handle of that stream, which the producer makes wait for its own work. The default is for readers
                that wait for the whole device first.

        Raises:
            RequestError: as for the class.
        """
        return replace(_read(self._array, stream), shape=self.shape)

    def as_batch(self) -> GpuArray:
        """The same array as a batch of one: with an axis of size 1 in front."""
        batch = copy.copy(self)
        batch.shape = (1, *self.shape)
        return batch

    def on_host(self) -> NDArray[Any]:
        """A copy in host memory, which the producer makes.

        Raises:
            RequestError: the producer, or numpy before 2.1, makes none.
        """
        try:
            return np.from_dlpack(self._array, device="cpu", copy=True)
        except _UNREADABLE as error:
            raise RequestError(
                f"the array on the GPU cannot be copied to the host through DLPack ({error}); pass a copy that is there"
            ) from error

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, Any]:
        return self._array.__dlpack_device__()


def as_array(name: str, array: object, expected: str) -> NDArray[Any] | GpuArray:
    """An array as a caller gave it.

    Args:
        name: of the argument, for messages.
        array: of numpy, or of any library that speaks DLPack.
        expected: what it should be, for messages.

    Returns:
        The array itself, or a view of its memory, if it is in host memory.

    Raises:
        RequestError: anything else, or an array on another device.
    """
    if isinstance(array, np.ndarray | GpuArray):
        return array
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise RequestError(f"{name} has type {type(array).__name__}; {expected}")
    try:
        is_on_host = int(array.__dlpack_device__()[0]) in _HOST
        return np.from_dlpack(array) if is_on_host else GpuArray(array)
    except _UNREADABLE as error:
        raise RequestError(f"{name} cannot be read through DLPack ({error}); {expected}") from error


def _read(array: DlpackArray, stream: int) -> GpuMemory:
    try:
        capsule = array.__dlpack__(stream=stream)
        tensor = _DLTensor.from_address(_pointer(capsule))
    except _UNREADABLE as error:
        raise RequestError(f"the array on the GPU cannot be read through DLPack: {error}") from error
    shape = tuple(tensor.shape[: tensor.num_axes])
    if tensor.strides and not _is_dense(shape, tuple(tensor.strides[: tensor.num_axes])):
        raise RequestError("the array on the GPU has gaps or another order of axes; pass a contiguous copy")
    address = (tensor.data or 0) + tensor.byte_offset
    if address % _ALIGNMENT_BYTES:
        raise RequestError(
            f"the array on the GPU begins at an address that is not a multiple of {_ALIGNMENT_BYTES} bytes, as the "
            "first item of an allocation does; pass a copy"
        )
    # The capsule, which nobody consumes, frees what it holds when it goes.
    return GpuMemory(address=address, shape=shape, dtype=_dtype(tensor), owner=capsule)


def _dtype(tensor: _DLTensor) -> str:
    lanes = "" if tensor.lanes == 1 else f"x{tensor.lanes}"
    return f"{_KINDS.get(tensor.code, 'unknown')}{tensor.bits}{lanes}"


def _pointer(capsule: object) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(get(capsule, b"dltensor"))


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
