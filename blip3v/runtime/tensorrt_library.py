"""The TensorRT package that this environment has: which one a target needs, its module and version, or what to install.

``tensorrt`` and ``tensorrt_rtx`` have one Python interface under two names. TensorRT-RTX comes from package registries
without its meta package, as ``tensorrt_rtx_bindings`` and ``tensorrt_rtx_libs``; likewise for ``tensorrt``. Also here:
the GPU that engines are built for. Not here: building engines (``export/engines.py``) and running them.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from blip3v.bundle.engines import LIBRARY_NAMES, Library
from blip3v.bundle.targets import Target
from blip3v.errors import BackendError, ProviderError, UsageError
from blip3v.extras import pip_line

__all__ = [
    "EXTRA_OF",
    "TensorRT",
    "compute_capability",
    "context_bytes",
    "host_platform",
    "is_installed",
    "library_of",
    "load_tensorrt",
]

# The meta package, then the bindings alone.
_MODULES: dict[Library, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
# The extra that installs each.
EXTRA_OF: dict[Library, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
_LIBRARIES: dict[Target, Library] = {
    "tensorrt": "tensorrt",
    "tensorrt-legacy": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
# CUdevice_attribute of the driver's interface.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class TensorRT:
    """An imported TensorRT package."""

    library: Library
    module: Any  # its classes and functions; the packages have no types
    version: str  # "1.7.1.116"

    @property
    def name(self) -> str:
        """Name and version for people."""
        return f"{LIBRARY_NAMES[self.library]} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether its engines are finished on the machine that runs them, and so need no GPU to be built."""
        return self.library == "tensorrt_rtx"


def library_of(target: Target) -> Library:
    """The library that builds and runs engines of a bundle's graphs.

    Raises:
        UsageError: graphs of this target are not for TensorRT.
    """
    if target not in _LIBRARIES:
        raise UsageError(f"graphs of target {target!r} are not for TensorRT; allowed: {', '.join(_LIBRARIES)}")
    return _LIBRARIES[target]


def is_installed(library: Library) -> bool:
    """Whether the package is there, working or not. Nothing is imported."""
    return any(find_spec(module) is not None for module in _MODULES[library])


def load_tensorrt(library: Library) -> TensorRT:
    """Imports a TensorRT package.

    Raises:
        ProviderError: it is not installed, or it is and cannot be imported. The message says what to install.
    """
    name, extra = LIBRARY_NAMES[library], EXTRA_OF[library]
    for module in _MODULES[library]:
        if find_spec(module) is None:
            continue
        try:
            package = importlib.import_module(module)
            return TensorRT(library, package, str(package.__version__))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise ProviderError(
                f"{name} is installed and cannot be used ({' '.join(str(error).split())}); run: {pip_line(extra)}"
            ) from error
    raise ProviderError(f"{name} is not installed; run: {pip_line(extra)}")


def context_bytes(engine: Any) -> int:
    """Memory that an engine says the contexts that run it take on the GPU, one for each of its profiles."""
    profiles = range(engine.num_optimization_profiles)
    return sum(int(engine.get_device_memory_size_for_profile_v2(profile)) for profile in profiles)


def host_platform() -> str:
    """Operating system and processor, as ``EngineRecord.platform`` has them: "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def compute_capability() -> str | None:
    """Compute capability of the first GPU, such as "8.6", from the CUDA driver.

    Returns:
        None on a machine without a CUDA driver or without a GPU.

    Raises:
        BackendError: the driver does not answer.
    """
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0:
        return None
    device = ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    parts = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        status = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        if status != 0:
            raise BackendError(f"the CUDA driver does not tell the compute capability (error {status}); restart it")
        parts.append(str(value.value))
    return ".".join(parts)


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
