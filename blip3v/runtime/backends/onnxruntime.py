"""ONNX Runtime on the CPU: what its weights take in memory, and the KV cache in host memory that it writes in place.

``onnxruntime:cpu-int8`` opens a decoder with the int8 weights that were made from its blocks (``prompt_weights.py``).
They are faster than the blocks with prompts and slower with single tokens: it is meant to be the first of a pair.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from blip3v.bundle.graph_io import past_key, past_value, present_key, present_value
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import DEFAULT_TARGET, TARGETS, Target
from blip3v.bundle.tuning import Setting
from blip3v.config import TextConfig
from blip3v.errors import ProviderError, UsageError
from blip3v.runtime.backends import PREFILL_CHUNK, Backend, Execution, Footprint, GraphFile, GraphName, product_dtype
from blip3v.runtime.checks import shown
from blip3v.runtime.host_cache import KVCache, cache_bytes
from blip3v.runtime.onnxruntime_graph import (
    PACKAGES,
    OpenGraph,
    cache_dtype,
    load_onnxruntime,
    package_version,
    session_options,
)
from blip3v.runtime.onnxruntime_sessions import OnnxRuntimeDecoder, OnnxRuntimeVideoEncoder
from blip3v.runtime.packed_graphs import find_packed
from blip3v.runtime.prompt_weights import has_blocks, require_prompt_weights

__all__ = ["BACKEND", "on_device", "resident_bytes", "use_mmap"]

_CPU_INT8 = "cpu-int8"

# Tokens by which the capacity of a cache grows.
_CACHE_STEP = 64
# Widening fp16 weights on one core of a server, or packing others for the products on two; mapped ones are read later.
_WIDEN_S_PER_GIB = 5.2
_PACK_S_PER_GIB = 2.2
_MAP_PACKED_S_PER_GIB = 1.1

_WIDENED = {"float16": 2}  # format of weights that are widened -> size of the copy, in units of the stored bytes
_MAPPABLE = frozenset({"float32"})  # formats of weights that can be used as they lie in their file
_MAPPED_ABOVE_BYTES = 2**30


class OnnxRuntimeBackend:
    """See ``Backend``. On x86 it has no fp16 matrix product: graphs stored in fp16 are computed in fp32.

    It runs the graphs of every target, so that one exported for TensorRT can be checked where TensorRT is not. On
    Python 3.10 it runs the oldest form alone: the last ONNX Runtime for that, 1.23, does not know ONNX 24.

    Weights in blocks are multiplied by inputs that its kernel rounds to int8, with a scale for each row and block.

    Args:
        spinning: whether threads wait for the next operator by spinning, which takes the cores from others.
    """

    name = "onnxruntime"
    devices: tuple[str, ...] = ("cpu", _CPU_INT8)
    targets: tuple[Target, ...] = TARGETS if sys.version_info >= (3, 11) else ("tensorrt-legacy",)
    rank: Mapping[GraphName, int] = {"video_encoder": 1, "decoder": 2}

    def __init__(self, *, spinning: bool = True) -> None:
        self._spinning = spinning

    def is_installed(self) -> bool:
        """See ``Backend``."""
        return any(package_version(name) is not None for name in PACKAGES)

    def check_installed(self) -> None:
        """See ``Backend``."""
        load_onnxruntime()

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``."""
        return None

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``."""
        versions = [version for version in map(package_version, PACKAGES) if version is not None]
        version = versions[0] if versions else None
        dtype = product_dtype(precision.weights)
        return Execution(backend=self.name, engine="ONNX Runtime", version=version, device="CPU", dtype=dtype)

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``."""
        return product_dtype(weights)

    def footprint(self, graph: GraphFile) -> Footprint:
        """See ``Backend``."""
        if find_packed(graph) is not None:
            return Footprint(weights_bytes=0)  # mapped
        return Footprint(weights_bytes=resident_bytes(graph.weights_bytes, graph.precision))

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        if use_mmap(graph.weights_bytes, graph.precision):
            return 0.0
        if find_packed(graph) is not None:
            return _MAP_PACKED_S_PER_GIB * graph.weights_bytes / 2**30
        per_gib = _WIDEN_S_PER_GIB if graph.precision.weights in _WIDENED else _PACK_S_PER_GIB
        return per_gib * graph.weights_bytes / 2**30

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """See ``Backend``."""
        return cache_bytes(text, cache_dtype(graph), 1, 1)

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> OnnxRuntimeVideoEncoder:
        """See ``Backend``."""
        graph, options = _prepared(graph, threads, spinning=self._spinning)
        # Threads that wait for the next clip by spinning take the cores from the decoder, which runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return OnnxRuntimeVideoEncoder(OpenGraph(graph, options), self.execution(graph.precision))

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> OnnxRuntimeDecoder:
        """See ``Backend``."""
        opened = OpenGraph(*_prepared(graph, threads, spinning=self._spinning))
        return OnnxRuntimeDecoder(opened, self.execution(graph.precision), text, chunk, _HostCache)


class _WithPromptWeights(OnnxRuntimeBackend):
    """See ``Backend``: ``onnxruntime:cpu-int8``. Runs decoders with weights in blocks, once they have been built."""

    name = f"onnxruntime:{_CPU_INT8}"
    targets: tuple[Target, ...] = (DEFAULT_TARGET,)

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``."""
        if has_blocks(precision):
            return None
        why = "which onnxruntime multiplies as int8 already" if precision.weights == "int8" else "without blocks"
        graph = "video encoders" if precision.cache is None else "decoders"
        return (
            f"{self.name} computes weights in blocks as int8, and the decoder alone, as in "
            f"decoder={self.name}+onnxruntime; it does not run {graph} in {precision.name}, {why}; "
            "choose the back end onnxruntime, or export with the precision int4"
        )

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``."""
        return dataclasses.replace(super().execution(precision), dtype=product_dtype("int8"))

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``."""
        return product_dtype("int8" if weights == precision.weights else weights)

    def footprint(self, graph: GraphFile) -> Footprint:
        """See ``Backend``. What is packed is mapped.

        Raises:
            ArtifactMissingError: the int8 weights have not been built.
        """
        require_prompt_weights(graph)
        return Footprint(weights_bytes=0)

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        return _MAP_PACKED_S_PER_GIB * 2 * graph.weights_bytes / 2**30

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> OnnxRuntimeVideoEncoder:
        """See ``Backend``; refused."""
        raise ProviderError(str(self.refusal(graph.precision)))

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> OnnxRuntimeDecoder:
        """See ``Backend``. The engine of the steps runs next: threads do not wait by spinning after a prompt."""
        refusal = self.refusal(graph.precision)
        if refusal is not None:
            raise ProviderError(refusal)
        packed = dataclasses.replace(graph, path=require_prompt_weights(graph))
        options = _packed_options(session_options(threads))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return OnnxRuntimeDecoder(OpenGraph(packed, options), self.execution(graph.precision), text, chunk, _HostCache)


BACKEND = OnnxRuntimeBackend()


def on_device(device: str) -> OnnxRuntimeBackend:
    """See ``Backend``."""
    assert device == _CPU_INT8, "BACKEND runs on the only other device"
    return _WithPromptWeights()


def settings_to_try(backend: Backend, graph: GraphName, precision: GraphPrecision) -> tuple[dict[str, Setting], ...]:
    """See ``backend_choice.settings_to_try``."""
    return () if backend.name == _WithPromptWeights.name else ({"spinning": False},)


def with_settings(backend: Backend, settings: Mapping[str, Setting]) -> OnnxRuntimeBackend:
    """See ``backend_choice.with_settings``."""
    if backend.name == _WithPromptWeights.name:
        raise UsageError(f"{backend.name} has no settings; {', '.join(settings)} cannot be set")
    for name, value in settings.items():
        if name != "spinning" or not isinstance(value, bool):
            raise UsageError(f"onnxruntime has no setting {name}={shown(value)}; allowed: spinning, true or false")
    return OnnxRuntimeBackend(spinning=bool(settings.get("spinning", True)))


class _HostCache(KVCache):
    """See ``BoundCache``."""

    def __init__(self, graph: OpenGraph, text: TextConfig, rows: int) -> None:
        super().__init__(text, graph.cache_dtype, rows, step=_CACHE_STEP)
        self._graph = graph

    def bind(self, binding: Any, first: int, last: int) -> None:
        """See ``BoundCache``."""
        for layer in range(self._text.num_layers):
            keys_BHSK, values_BHSK = self.layer(layer, first, last)
            key, value = self._graph.value(keys_BHSK), self._graph.value(values_BHSK)
            binding.bind_ortvalue_input(past_key(layer), key)
            binding.bind_ortvalue_input(past_value(layer), value)
            binding.bind_ortvalue_output(present_key(layer), key)
            binding.bind_ortvalue_output(present_value(layer), value)


def use_mmap(weights_bytes: int, precision: GraphPrecision) -> bool:
    """Whether a graph is opened so that its weights stay in their mapped file, at the price of a slower prefill.

    The system can drop mapped pages from memory when it needs room.
    """
    return precision.weights in _MAPPABLE and weights_bytes > _MAPPED_ABOVE_BYTES


def resident_bytes(weights_bytes: int, precision: GraphPrecision) -> int:
    """Memory that the weights of an opened graph take, mapped files not included."""
    return 0 if use_mmap(weights_bytes, precision) else weights_bytes * _WIDENED.get(precision.weights, 1)


def _prepared(graph: GraphFile, threads: int | None, *, spinning: bool) -> tuple[GraphFile, Any]:
    """The graph to open, which is the packed one if there is one, and the options of its session."""
    options = session_options(threads)
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    packed = find_packed(graph)
    if packed is not None:
        return dataclasses.replace(graph, path=packed), _packed_options(options)
    if use_mmap(graph.weights_bytes, graph.precision):
        options.add_session_config_entry("session.disable_prepacking", "1")
    else:
        _pack_in_parallel(options)
    return graph, options


def _packed_options(options: Any) -> Any:
    """``options`` for a packed graph."""
    # It is optimised already, and again it would no longer name the weights that are packed.
    options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    _pack_in_parallel(options)
    return options


def _pack_in_parallel(options: Any) -> None:
    """All threads pack weights: most of opening a large graph. What they read stays mapped until the last is packed."""
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
