"""OpenVINO: on the CPU, in fp32 and int8, where weights stored in fp16 stay fp16 in memory; on Intel's GPUs and NPUs.

The decoder is rewritten when it opens (``graph.py``); ``sessions.py`` runs both graphs. Neither is imported before a
graph is opened.

Only the CPU has been shown to work. Of the others is checked, by ``devices.py``, that OpenVINO has them; no graph has
run on one. What to expect there: the KV cache lies in host memory, and all of it goes to the device with every token;
both graphs have free axes, which an NPU's plugin may refuse to compile; a cancelled run ends when the plugin lets it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import Target
from blip3v.bundle.tuning import Setting
from blip3v.config import TextConfig
from blip3v.errors import ProviderError, UsageError
from blip3v.extras import pip_line
from blip3v.runtime.backends import PREFILL_CHUNK, Backend, Execution, Footprint, GraphFile, GraphName, product_dtype
from blip3v.runtime.checks import is_whole, shown
from blip3v.runtime.host_cache import cache_bytes
from blip3v.runtime.memory import HOST, Memory

if TYPE_CHECKING:
    from blip3v.runtime.backends.openvino.sessions import OpenVinoDecoder, OpenVinoVideoEncoder

__all__ = ["BACKEND", "cache_dtype", "computes_in_fp16", "on_device"]

_OPEN_S_PER_GIB = 5.0
# Format of weights -> memory at the peak, in units of the stored bytes: seen at full size, without mapped pages.
_RESIDENT = {"float16": 1.75, "float32": 1.05}
_RESIDENT_OF_OTHERS = 2.0
# Inputs that share a scale, as llama.cpp has them; a divisor of every group of weights.
_SMALL_GROUP = 32


class OpenVinoBackend:
    """See ``Backend``.

    Args:
        device: "cpu", or "gpu" or "npu" with the number of the device behind a dot if there are several: "gpu.1".
        inference_precision: what a CPU computes in where nothing is quantised: "f32", or "bf16".
        rounding_group: inputs of weights in blocks that are rounded to int8 with one scale; None: as many as weights.
    """

    devices: tuple[str, ...] = ("cpu", "gpu", "npu")
    targets: tuple[Target, ...] = ("onnxruntime",)
    rank: Mapping[GraphName, int] = {"video_encoder": 2, "decoder": 1}

    def __init__(
        self, device: str = "cpu", *, inference_precision: str = "f32", rounding_group: int | None = None
    ) -> None:
        self.name = "openvino" if device == "cpu" else f"openvino:{device}"
        self._device = device.upper()  # as OpenVINO names it
        self._inference_precision = inference_precision
        self._rounding_group = rounding_group

    def is_installed(self) -> bool:
        """See ``Backend``."""
        return _version() is not None

    def check_installed(self) -> None:
        """See ``Backend``."""
        try:
            importlib.import_module("openvino")
        except ImportError as error:
            raise ProviderError(
                f"OpenVINO cannot be imported ({error}); install it: `{pip_line('openvino')}`"
            ) from error
        if self._device != "CPU":
            # Needs OpenVINO, which may not be installed.
            from blip3v.runtime.backends.openvino.devices import check_device

            check_device(self._device)

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``."""
        return None

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``."""
        dtype = self._dtype(precision, precision.weights)
        return Execution(backend=self.name, engine="OpenVINO", version=_version(), device=self._device, dtype=dtype)

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``.

        Inputs are rounded in blocks of ``precision.group_size`` (``open_core``), and only where the layer's groups hold
        whole blocks and no padding. Weights of other groups are widened to fp32.
        """
        block = self._rounding_group or precision.group_size
        if group_size is not None and (block is None or group_size % block or num_inputs % group_size):
            return self._dtype(precision, "float32")
        return self._dtype(precision, weights)

    def _dtype(self, precision: GraphPrecision, weights: str) -> str:
        dtype = product_dtype(weights)
        if dtype != "fp32":
            return dtype
        if computes_in_fp16(self._device, precision):
            return "fp16"
        return "bf16" if self._device == "CPU" and self._inference_precision == "bf16" else dtype

    def footprint(self, graph: GraphFile) -> Footprint:
        """See ``Backend``. Weights stay in their format, but are held twice while they are packed; seen on a CPU.

        A GPU with memory of its own is assumed to get them from a host that packs them so.
        """
        packed = int(graph.weights_bytes * _RESIDENT.get(graph.precision.weights, _RESIDENT_OF_OTHERS))
        memory = self._memory()
        if memory is HOST:
            return Footprint(weights_bytes=packed)
        return Footprint(weights_bytes=graph.weights_bytes, memory=memory, host_bytes=packed)

    def _memory(self) -> Memory:
        """Where weights lie. The KV cache lies in host memory with every device."""
        if not self._device.startswith("GPU"):
            return HOST  # an NPU is a part of the processor
        # Needs OpenVINO, which may not be installed.
        from blip3v.runtime.backends.openvino.devices import gpu_memory

        return gpu_memory(self._device)

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        return _OPEN_S_PER_GIB * graph.weights_bytes / 2**30

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """See ``Backend``."""
        return cache_bytes(text, cache_dtype(graph), 1, 1)

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> OpenVinoVideoEncoder:
        """See ``Backend``."""
        self.check_installed()
        # Needs OpenVINO, which may not be installed.
        from blip3v.runtime.backends.openvino.sessions import OpenVinoVideoEncoder

        return OpenVinoVideoEncoder(graph, self.execution(graph.precision), threads, self._properties())

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> OpenVinoDecoder:
        """See ``Backend``."""
        self.check_installed()
        from blip3v.runtime.backends.openvino.sessions import OpenVinoDecoder

        return OpenVinoDecoder(graph, self.execution(graph.precision), text, threads, chunk, self._properties())

    def _properties(self) -> dict[str, Any]:
        """What is set otherwise than ``open_core`` sets it, in OpenVINO's words."""
        properties: dict[str, Any] = {}
        if self._device == "CPU" and self._inference_precision != "f32":
            properties["INFERENCE_PRECISION_HINT"] = self._inference_precision
        if self._rounding_group is not None:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = self._rounding_group
        return properties


BACKEND = OpenVinoBackend()


def on_device(device: str) -> OpenVinoBackend:
    """The back end on another device than the CPU; see ``OpenVinoBackend``."""
    return OpenVinoBackend(device)


def settings_to_try(backend: Backend, graph: GraphName, precision: GraphPrecision) -> tuple[dict[str, Setting], ...]:
    """See ``backend_choice.settings_to_try``: bf16 where the CPU has it, and smaller groups of rounded inputs."""
    if not isinstance(backend, OpenVinoBackend) or backend.name != "openvino":
        return ()
    # Needs OpenVINO, which may not be installed.
    from blip3v.runtime.backends.openvino.devices import cpu_has_bf16

    found: list[dict[str, Setting]] = []
    if cpu_has_bf16():
        found.append({"inference_precision": "bf16"})
    if precision.group_size is not None and precision.group_size > _SMALL_GROUP:
        found.append({"rounding_group": _SMALL_GROUP})
    return tuple(found)


def with_settings(backend: Backend, settings: Mapping[str, Setting]) -> OpenVinoBackend:
    """See ``backend_choice.with_settings``."""
    hint, group = settings.get("inference_precision", "f32"), settings.get("rounding_group")
    for name, value in settings.items():
        if name not in ("inference_precision", "rounding_group"):
            raise UsageError(f"openvino has no setting {name}; allowed: inference_precision, rounding_group")
        if name == "inference_precision" and value not in ("f32", "bf16"):
            raise UsageError(f"openvino: inference_precision is {shown(value)}; allowed: f32, bf16")
        if name == "rounding_group" and not is_whole(value, 1):
            raise UsageError(f"openvino: rounding_group is {shown(value)}; a whole number of at least 1 is expected")
    device = backend.name.partition(":")[2] or "cpu"
    assert isinstance(hint, str)
    return OpenVinoBackend(device, inference_precision=hint, rounding_group=None if group is None else int(group))


def computes_in_fp16(device: str, precision: GraphPrecision) -> bool:
    """Whether what is not quantised is computed in fp16: never on a CPU, always on an NPU, as stored on a GPU.

    Args:
        device: as OpenVINO names it.
        precision: of the graph.
    """
    return device.startswith("NPU") or (device.startswith("GPU") and precision.io == "float16")


def cache_dtype(graph: GraphFile) -> np.dtype[Any]:
    """int8 if the graph's cache is; any other is fp32."""
    return np.dtype(np.int8 if graph.precision.cache == "int8" else np.float32)


def _version() -> str | None:
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None
