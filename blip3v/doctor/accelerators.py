"""GPUs, NPUs and the libraries of their makers; and which back end of the runtime can work with them here.

Everything that loads such a library is a function that returns JSON values and runs in a process of its own: a library
that does not suit the machine can end the process that loads it. A query that dies or hangs is a note in the report.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blip3v.errors import ProviderError
from blip3v.runtime.backends import backend_names, get_backend
from blip3v.runtime.nvidia import Driver, Gpu, free_bytes, query

__all__ = ["Accelerators", "Library", "examine_accelerators", "query_backend", "query_nvidia", "query_openvino"]

_TIMEOUT_S = 60
_MAX_CHARS = 300


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library of NVIDIA's, installed with pip or with the system."""

    name: str
    packages: tuple[str, ...]  # of pip, each with its version: "nvidia-cudnn-cu13 9.27.0.42"
    system: str | None  # the version that the loader finds without pip; None: it finds none


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """What could compute a graph besides this machine's CPU, and what does."""

    driver: Driver
    libraries: tuple[Library, ...]
    openvino: Mapping[str, str]  # its devices -> their full names
    openvino_note: str  # why there are none; empty if there are
    backends: Mapping[str, str]  # back end, with its device -> why it cannot run here; empty: it can


# Library -> what its packages' names begin with, the names of its files, newest first, and what gives its version.
_LIBRARIES = {
    "CUDA": ("nvidia-cuda-runtime", ("libcudart.so.13", "libcudart.so.12"), "cudaRuntimeGetVersion"),
    "cuDNN": ("nvidia-cudnn", ("libcudnn.so.9",), "cudnnGetVersion"),
    "TensorRT": ("tensorrt", ("libnvinfer.so.11", "libnvinfer.so.10"), "getInferLibVersion"),
    "TensorRT-RTX": ("tensorrt-rtx", ("libtensorrt_rtx.so.1",), "getInferLibVersion"),
}


def examine_accelerators(run: Callable[..., Any] | None = None) -> Accelerators:
    """Asks the driver, the libraries and every back end, each in a process of its own.

    Args:
        run: calls one of the queries of this module by its name; None: in another process.
    """
    ask = run or run_apart
    with ThreadPoolExecutor() as pool:
        nvidia, openvino = pool.submit(ask, "query_nvidia"), pool.submit(ask, "query_openvino")
        backends = [pool.submit(ask, "query_backend", name) for name in backend_names()]
        answers = [future.result() for future in backends]
    of_nvidia = nvidia.result()
    devices = openvino.result()
    return Accelerators(
        driver=_driver(of_nvidia),
        libraries=_libraries(of_nvidia if isinstance(of_nvidia, dict) else {}),
        openvino=devices if isinstance(devices, dict) else {},
        openvino_note=devices if isinstance(devices, str) else "",
        backends=_backends(answers),
    )


def query_nvidia() -> dict[str, Any]:
    """The driver, what is free on the GPU that back ends use, and the versions of libraries that the loader finds."""
    system = {name: _loaded(files, function) for name, (_, files, function) in _LIBRARIES.items()}
    driver = query()
    if driver.gpus and not driver.gpus[0].is_integrated:
        first = dataclasses.replace(driver.gpus[0], free_bytes=free_bytes())
        driver = dataclasses.replace(driver, gpus=(first, *driver.gpus[1:]))
    return {"driver": dataclasses.asdict(driver), "system": system}


def query_openvino() -> dict[str, str] | str:
    """OpenVINO's devices with their full names; a str: why there are none."""
    # Takes a second, and need not be installed.
    try:
        import openvino
    except ImportError as error:
        return f"OpenVINO cannot be imported ({error})"
    core = openvino.Core()
    return {device: str(core.get_property(device, "FULL_DEVICE_NAME")).strip() for device in core.available_devices}


def query_backend(name: str) -> dict[str, str]:
    """Why a back end cannot run here, on each of its devices; empty: it can."""
    found = {}
    for device in get_backend(name).devices:
        backend = get_backend(f"{name}:{device}")
        try:
            backend.check_installed()
            found[backend.name] = ""
        except ProviderError as error:
            found[backend.name] = str(error)
    return found


def run_apart(function: str, *arguments: str) -> Any:
    """Calls a query in another process; a str, if it comes to no end: why."""
    code = f"import json, sys; from {__name__} import {function} as f; print(json.dumps(f(*sys.argv[1:])))"
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return f"the query ended with code {error.returncode}: {said[-1][:_MAX_CHARS] if said else 'no message'}"
    except (IndexError, ValueError) as error:  # it printed nothing, or something else behind its answer
        return f"the query gave no answer that can be read: {error}"
    except subprocess.TimeoutExpired:
        return f"the query did not end within {_TIMEOUT_S} s"


def _loaded(files: tuple[str, ...], function: str) -> str | None:
    """Version of the first library of these that the loader finds; None: it finds none."""
    for file in files:
        try:
            library = ctypes.CDLL(file)
        except OSError:
            continue  # another version of it may be there
        return _readable(function, _number(library, function))
    return None


def _number(library: Any, function: str) -> int:
    if not function.startswith("cuda"):
        call = getattr(library, function)
        call.restype = ctypes.c_size_t if function.startswith("cudnn") else ctypes.c_int
        return int(call())
    version = ctypes.c_int(0)  # CUDA's writes it where a pointer shows
    getattr(library, function)(ctypes.byref(version))
    return version.value


def _readable(function: str, number: int) -> str:
    """CUDA 13.0 is 13000, cuDNN 9.1.0 is 90100, TensorRT 10.3.0 is 100300 and 8.6.1 is 8601."""
    if function.startswith("cuda"):
        return f"{number // 1000}.{number % 1000 // 10}"
    thousands = 1000 if number < 10000 else 10000
    return f"{number // thousands}.{number % thousands // 100}.{number % 100}"


def _driver(answer: Any) -> Driver:
    if isinstance(answer, str):
        return Driver(version=None, cuda=None, gpus=(), problem=answer)
    values = answer["driver"]
    return Driver(**{**values, "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"])})


def _libraries(answer: Mapping[str, Any]) -> tuple[Library, ...]:
    installed = _installed()
    return tuple(
        Library(
            name=name,
            packages=tuple(f"{each} {version}" for each, version in installed if _belongs(each, prefix)),
            system=answer.get("system", {}).get(name),
        )
        for name, (prefix, _, _) in _LIBRARIES.items()
    )


def _installed() -> list[tuple[str, str]]:
    """Name, as pip normalises it, and version of every installed distribution, by name."""
    found = {
        re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(): distribution.version
        for distribution in importlib.metadata.distributions()
        if distribution.metadata["Name"]
    }
    return sorted(found.items())


def _belongs(package: str, prefix: str) -> bool:
    """Whether it is a library's package: ``tensorrt-cu13-libs`` is one of TensorRT's, ``tensorrt-llm`` is not."""
    return re.fullmatch(rf"{prefix}(?:-cu\d+)?(?:-(?:bindings|libs))?", package) is not None


def _backends(answers: list[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, answer in zip(backend_names(), answers, strict=True):
        found |= {name: answer} if isinstance(answer, str) else answer
    return found
