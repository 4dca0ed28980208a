"""A KV cache in a device's memory, for sessions of ONNX Runtime.

Keys and values of a layer are an OrtValue each, allocated as the session begins and bound both as ``past`` and as
``present``: GroupQueryAttention then writes new tokens in place, and nothing of the cache leaves the device. Rows are
its outermost axis, so some of them are an address inside it.

ONNX Runtime's Python offers no copy of a part of an OrtValue. So growing, and removing a row that is not the last, take
the cache through host memory: a session should be opened with room for all its tokens. Letters: B rows, H KV heads, S
capacity, K head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import past_key, past_value, present_key, present_value
from blip3v.config import TextConfig
from blip3v.runtime.onnxruntime_graph import OpenGraph, onnxruntime_errors

__all__ = ["DeviceCache"]

# Tokens by which the capacity of a cache grows.
_STEP = 64
_NAMES = ((past_key, present_key), (past_value, present_value))


class DeviceCache:
    """See ``BoundCache``; at first without room.

    Args:
        graph: the opened decoder.
        text: its geometry.
        rows: at least 1.
        device: whose memory, as ONNX Runtime names it: "cuda", or "cpu".
    """

    def __init__(self, graph: OpenGraph, text: TextConfig, rows: int, *, device: str) -> None:
        self._graph = graph
        self._text = text
        self._device = device
        self._layers: list[list[Any]] = [[None, None] for _ in range(text.num_layers)]  # OrtValues (B,H,S,K)
        self.lengths = [0] * rows

    @property
    def rows(self) -> int:
        """Sequences that are in use."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return min(_capacity(value) for pair in self._layers for value in pair)

    def reserve(self, tokens: int) -> None:
        """See ``BoundCache``.

        Layer by layer, so that the cache does not exist twice while it grows. If that is interrupted, the next call
        goes on with it.
        """
        if self.capacity >= tokens:
            return
        capacity = -(-tokens // _STEP) * _STEP
        for pair in self._layers:
            for part, value in enumerate(pair):
                if _capacity(value) < capacity:
                    pair[part] = self._grown(value, capacity)

    def drop_row(self, row: int) -> None:
        """See ``BoundCache``."""
        last = self.rows - 1
        if row != last:
            with onnxruntime_errors("removing a row of the KV cache"):
                for pair in self._layers:
                    for value in pair:
                        array_BHSK = value.numpy()
                        array_BHSK[row] = array_BHSK[last]
                        value.update_inplace(array_BHSK)
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def bind(self, binding: Any, first: int, last: int) -> None:
        """See ``BoundCache``."""
        for layer, pair in enumerate(self._layers):
            for names, value in zip(_NAMES, pair, strict=True):
                rows, *rest = value.shape()
                address = value.data_ptr() + first * (value.tensor_size_in_bytes() // rows)
                where = (self._device, 0, self._graph.cache_dtype.type, [last - first, *rest], address)
                past, present = (name(layer) for name in names)
                binding.bind_input(past, *where)
                binding.bind_output(present, *where)

    def layer(self, layer: int, first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """See ``BoundCache``; copies."""
        keys_BHSK, values_BHSK = (np.array(value.numpy()[first:last]) for value in self._layers[layer])
        return keys_BHSK, values_BHSK

    def _grown(self, value: Any, capacity: int) -> Any:
        """An OrtValue of more room that begins like ``value``; zeros behind that, since kernels may read there."""
        shape = (self.rows, self._text.num_kv_heads, capacity, self._text.head_dim)
        array_BHSK = np.zeros(shape, self._graph.cache_dtype)
        held = max(self.lengths)
        with onnxruntime_errors("making room for the KV cache"):
            if held:
                array_BHSK[:, :, :held] = value.numpy()[: self.rows, :, :held]
            return self._graph.onnxruntime.OrtValue.ortvalue_from_numpy(array_BHSK, self._device)


def _capacity(value: Any) -> int:
    return 0 if value is None else int(value.shape()[2])
