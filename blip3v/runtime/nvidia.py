"""The NVIDIA driver and its GPUs, asked through the driver's own library; no CUDA, no package of its is needed.

The first GPU is the one that every back end runs on; ``CUDA_VISIBLE_DEVICES`` decides which that is, here too.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v.runtime.memory import HOST, Memory

__all__ = ["Driver", "Gpu", "free_bytes", "gpu_memory", "query"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Of enum CUdevice_attribute.
_INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 18, 75, 76
_OUT_OF_MEMORY = 2  # of enum CUresult


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    name: str
    memory_bytes: int
    compute_capability: str  # such as "8.6"
    is_integrated: bool = False  # has no memory but the machine's, as on a Jetson
    free_bytes: int | None = None  # of its memory; None: not asked, not known, or the machine's


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver says."""

    version: str | None  # such as "580.65.06"; None: the system does not tell
    cuda: str | None  # newest CUDA that it runs, such as "13.0"; None: there is no driver
    gpus: tuple[Gpu, ...]
    problem: str  # why there is no GPU; empty if there is one


def query(root: Path = Path("/")) -> Driver:
    """Asks the driver. Loads its library into this process and creates nothing on a GPU.

    Args:
        root: folder that contains ``sys``.
    """
    version = _version(root / "sys/module/nvidia/version")
    try:
        library = _load()
    except OSError as error:
        return Driver(version=version, cuda=None, gpus=(), problem=f"there is no NVIDIA driver ({error})")
    cuda = _number(library, "cuDriverGetVersion")
    name = f"{cuda // 1000}.{cuda % 1000 // 10}"
    code = library.cuInit(0)
    if code:
        return Driver(version=version, cuda=name, gpus=(), problem=f"the NVIDIA driver says: {_said(library, code)}")
    gpus = tuple(_gpu(library, index) for index in range(_number(library, "cuDeviceGetCount")))
    return Driver(version=version, cuda=name, gpus=gpus, problem="" if gpus else "the NVIDIA driver has no GPU")


def gpu_memory() -> Memory:
    """Where what the first GPU works with lies: its own memory, or the machine's if it shares that.

    For a GPU that shares it, the driver counts as used what the system would give back: the machine knows better.
    """
    gpus = query().gpus
    return HOST if gpus and gpus[0].is_integrated else _GPU


def free_bytes() -> int | None:
    """What is free of the first GPU's memory, in a CUDA context; None: the driver does not tell.

    Uses the context that this process has on the GPU. Without one, it makes one and destroys it, which takes part of a
    second: what is free then is what such a process can really take.
    """
    try:
        library = _load()
    except OSError:
        return None
    if library.cuInit(0) or not _number(library, "cuDeviceGetCount"):
        return None
    device = _number(library, "cuDeviceGet", 0)
    context = ctypes.c_void_p()
    code = library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    if code:
        return 0 if code == _OUT_OF_MEMORY else None
    try:
        return _free_in(library, context)
    finally:
        library.cuDevicePrimaryCtxRelease_v2(device)


_GPU = Memory("the GPU", free_bytes)


def _free_in(library: Any, context: ctypes.c_void_p) -> int | None:
    free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
    if library.cuCtxPushCurrent_v2(context):
        return None
    try:
        code = library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    finally:
        library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    return None if code else free.value


def _load() -> Any:
    """The driver's library. A function of its own, since tests have no driver."""
    return ctypes.CDLL(_LIBRARY)


def _version(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return None  # not Linux, or a driver that is not a module, as on a Jetson


def _number(library: Any, function: str, *arguments: int) -> int:
    value = ctypes.c_int(0)
    getattr(library, function)(ctypes.byref(value), *arguments)
    return value.value


def _gpu(library: Any, index: int) -> Gpu:
    device = _number(library, "cuDeviceGet", index)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGetName(name, len(name), device)
    memory_bytes = ctypes.c_size_t(0)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory_bytes), device)
    major, minor = (
        _number(library, "cuDeviceGetAttribute", attribute, device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(
        name=name.value.decode(errors="replace"),
        memory_bytes=memory_bytes.value,
        compute_capability=f"{major}.{minor}",
        is_integrated=bool(_number(library, "cuDeviceGetAttribute", _INTEGRATED, device)),
    )


def _said(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return text.value.decode(errors="replace") if text.value else f"error {code}"
