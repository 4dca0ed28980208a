"""What the TensorRT back end may call of cuda-bindings: functions with their parameters, as the real package has them.

``cuda_names.json`` is committed because the package is not installed where there is no GPU. Regenerate it where it is
(no GPU is needed): ``python tests/runtime/cuda_names.py``.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).with_suffix(".json")
FUNCTIONS = (
    *("cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaDeviceGetAttribute", "cudaGetErrorString"),
    *("cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost"),
    *("cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaMemsetAsync"),
    *("cudaStreamCreateWithFlags", "cudaStreamSynchronize", "cudaStreamDestroy"),
    *("cudaStreamBeginCapture", "cudaStreamEndCapture"),
    *("cudaGraphInstantiate", "cudaGraphLaunch", "cudaGraphExecDestroy", "cudaGraphDestroy"),
)
ENUMS = {
    "cudaError_t": ("cudaSuccess", "cudaErrorMemoryAllocation", "cudaErrorInsufficientDriver", "cudaErrorUnknown"),
    "cudaMemcpyKind": ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost", "cudaMemcpyDeviceToDevice"),
    "cudaDeviceAttr": ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor"),
    "cudaStreamCaptureMode": ("cudaStreamCaptureModeRelaxed",),
}
CONSTANTS = ("cudaStreamNonBlocking",)
PROPERTIES = {"cudaDeviceProp": ("name",)}


def read_names(runtime: ModuleType) -> dict[str, Any]:
    """Functions with the names of their parameters, and values of enumerations and constants, of the real module."""
    return {
        "functions": {name: _parameters(getattr(runtime, name).__doc__) for name in FUNCTIONS},
        "enums": {
            name: {member: int(getattr(getattr(runtime, name), member)) for member in members}
            for name, members in ENUMS.items()
        },
        "constants": {name: int(getattr(runtime, name)) for name in CONSTANTS},
        "properties": {
            name: [member for member in members if hasattr(getattr(runtime, name), member)]
            for name, members in PROPERTIES.items()
        },
    }


def _parameters(docstring: str) -> list[str]:
    """Names from a first line such as ``cudaMalloc(size_t size)``."""
    found = re.match(r"\w+\((.*)\)", docstring.strip())
    assert found is not None, docstring
    return [part.split(":")[0].split()[-1] for part in found[1].split(",") if part.strip()]


if __name__ == "__main__":
    from cuda.bindings import runtime

    version = importlib.metadata.version("cuda-bindings")
    names = {"package": f"cuda-bindings {version}", **read_names(runtime)}
    FILE.write_text(json.dumps(names, indent=1) + "\n", "utf-8")
