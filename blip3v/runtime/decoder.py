"""The decoder graph with its caches: prefill of prompts, and one step for all rows of a batch.

Not here: embeddings (the caller hands them in), the choice of tokens (``sampling.py``), the loop (``generate.py``).
Letters: B rows, t new tokens, D width, V logits.

Limits of GroupQueryAttention on a CPU that shape this file: more than one new token after earlier ones works for one
row only, so long prompts go in row by row and in chunks; short prompts with nothing before them go in together,
padded on the right, each with its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import past_key, past_value, present_key, present_value
from blip3v.config import TextConfig
from blip3v.runtime.kv_cache import CachePool, KVCache, cache_bytes
from blip3v.runtime.ort import Graph, ort_errors

__all__ = ["Decoder"]

FloatArray = NDArray[np.float16] | NDArray[np.float32]
# Bounds the memory of activations in prefill: the widest is chunk x 2 x intermediate_size.
PREFILL_CHUNK = 256
# Free caches that are kept, in units of one whole context.
_KEPT_CONTEXTS = 2


class Decoder:
    """Phi-3 over embeddings. Several threads may use it at once, each with a cache of its own.

    Args:
        graph: the opened decoder graph.
        text: its geometry.
        chunk: tokens of a prompt that go in at once.
    """

    def __init__(self, graph: Graph, text: TextConfig, *, chunk: int = PREFILL_CHUNK) -> None:
        self._graph = graph
        self._text = text
        self._chunk = chunk
        whole = cache_bytes(text, graph.compute, 1, text.max_context)
        self._pool = CachePool(text, graph.compute, _KEPT_CONTEXTS * whole)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of embeddings and cache: float32 or float16."""
        return self._graph.compute

    def take_cache(self, rows: int, tokens: int) -> KVCache:
        """An empty cache of ``rows`` sequences with room for ``tokens`` each; hand it back with ``give_back``."""
        return self._pool.take(rows, tokens)

    def give_back(self, cache: KVCache) -> None:
        """Takes ``cache`` back for later requests."""
        self._pool.give_back(cache)

    def close(self) -> None:
        """Lets the kept caches go."""
        self._pool.clear()

    def prefill(
        self, cache: KVCache, rows: Sequence[FloatArray], between: Callable[[], None] = lambda: None
    ) -> NDArray[np.float32]:
        """Appends prompts and gives the logits after their last tokens.

        Args:
            cache: as many rows as prompts; one row may hold earlier tokens, several must be empty.
            rows: for each row the embeddings (t,D) of at least one token.
            between: called before each run of the graph; what it raises ends the prefill.

        Returns:
            (B,V) float32.
        """
        assert len(rows) == cache.rows
        assert all(len(row) for row in rows)
        cache.reserve(max(length + len(row) for length, row in zip(cache.lengths, rows, strict=True)))
        if len(rows) > 1 and max(map(len, rows)) <= self._chunk:
            between()
            return self._prefill_padded(cache, rows)
        return np.concatenate([self._prefill_row(cache, i, row, between) for i, row in enumerate(rows)])

    def step(self, cache: KVCache, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """Appends one token to each row and gives the logits (B,V) after it, float32."""
        cache.reserve(max(cache.lengths) + 1)
        lengths = [length + 1 for length in cache.lengths]
        logits_BV = self._run(cache, 0, cache.rows, embeds_BD[:, None], [0] * cache.rows, lengths)
        cache.lengths = lengths
        return logits_BV

    def _prefill_padded(self, cache: KVCache, rows: Sequence[FloatArray]) -> NDArray[np.float32]:
        assert not any(cache.lengths)
        lengths = [len(row) for row in rows]
        embeds_BtD = np.zeros((len(rows), max(lengths), self._text.hidden_size), self.dtype)
        for index, row in enumerate(rows):
            embeds_BtD[index, : len(row)] = row
        logits_BV = self._run(cache, 0, len(rows), embeds_BtD, [length - 1 for length in lengths], lengths)
        cache.lengths = lengths
        return logits_BV

    def _prefill_row(
        self, cache: KVCache, row: int, embeds_tD: FloatArray, between: Callable[[], None]
    ) -> NDArray[np.float32]:
        """One row, chunk by chunk; the others stay as they are. Gives (1,V)."""
        for start in range(0, len(embeds_tD), self._chunk):
            between()
            part_tD = embeds_tD[start : start + self._chunk]
            length = cache.lengths[row] + len(part_tD)
            logits_1V = self._run(cache, row, row + 1, part_tD[None], [len(part_tD) - 1], [length])
            cache.lengths[row] = length
        return logits_1V

    def _run(
        self,
        cache: KVCache,
        first: int,
        last: int,
        embeds_BtD: FloatArray,
        logits_index: list[int],
        lengths: list[int],
    ) -> NDArray[np.float32]:
        """Runs the graph on rows ``first`` to ``last`` (not included); ``lengths`` count the new tokens in."""
        graph = self._graph
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds_BtD, self.dtype),
            "logits_index": np.array(logits_index, np.int64),
            "seqlens_k": np.array(lengths, np.int32) - np.int32(1),
            "total_sequence_length": np.array(max(lengths), np.int32),
        }
        logits_BV = np.empty((last - first, self._text.num_logits), np.float32)
        binding = graph.onnxruntime.IOBinding(graph.session)
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, graph.value(array))
        binding.bind_ortvalue_output("logits", graph.value(logits_BV))
        self._bind_cache(binding, cache, first, last)
        with ort_errors("running the decoder"):
            graph.session.run_with_iobinding(binding)
        return logits_BV

    def _bind_cache(self, binding: Any, cache: KVCache, first: int, last: int) -> None:
        # The same OrtValue as past and as present: this is what makes the attention write in place.
        for layer in range(self._text.num_layers):
            keys_BHSK, values_BHSK = cache.layer(layer, first, last)
            key, value = self._graph.value(keys_BHSK), self._graph.value(values_BHSK)
            binding.bind_ortvalue_input(past_key(layer), key)
            binding.bind_ortvalue_input(past_value(layer), value)
            binding.bind_ortvalue_output(present_key(layer), key)
            binding.bind_ortvalue_output(present_value(layer), value)
