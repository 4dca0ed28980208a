"""Arrays of other libraries that are already on the GPU, read where they are through DLPack.

The structures are those of DLPack 0.x, which every producer still hands out unless a later version is asked for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3v.errors import RequestError

__all__ = ["DeviceArray", "as_device_array"]

_CUDA = 2  # kDLCUDA
_CODES = {(0, 32): "int32", (0, 64): "int64", (2, 16): "float16", (2, 32): "float32"}  # (code, bits) -> numpy's name


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
class DeviceArray:
    """Memory on the GPU without gaps, valid while this object lives."""

    address: int
    shape: tuple[int, ...]
    dtype: str  # as numpy names it
    owner: object  # keeps the memory


def as_device_array(array: Any, stream: int) -> DeviceArray | None:
    """The memory of an array that is on the GPU.

    Args:
        array: of any library.
        stream: handle of the stream that will read it, for which the producer makes it ready.

    Returns:
        None for an array in host memory.

    Raises:
        RequestError: it is on another device, has gaps, or a dtype that no graph takes.
    """
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return None
    kind, device = (int(part) for part in array.__dlpack_device__())
    if kind == 1:  # kDLCPU
        return None
    if (kind, device) != (_CUDA, 0):
        raise RequestError(f"the array is on DLPack's device ({kind}, {device}); the first CUDA device is expected")
    capsule = array.__dlpack__(stream=stream)
    tensor = _DLTensor.from_address(_pointer(capsule))
    shape = tuple(tensor.shape[: tensor.num_axes])
    if tensor.strides and not _is_dense(shape, tuple(tensor.strides[: tensor.num_axes])):
        raise RequestError("the array on the GPU has gaps or another order of axes; pass a contiguous copy")
    dtype = _CODES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise RequestError(
            f"the array on the GPU has DLPack's dtype ({tensor.code}, {tensor.bits}, {tensor.lanes}); "
            "float16 or float32 is expected"
        )
    # The capsule, which nobody consumes, frees what it holds when it goes.
    return DeviceArray(address=tensor.data + tensor.byte_offset, shape=shape, dtype=dtype, owner=capsule)


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
