"""A KV cache in main memory as one numpy block, and a pool of them, for back ends whose engine works on such memory.

The parts of a block are bound to the graph both as ``past`` and as ``present``: GroupQueryAttention then writes new
tokens in place and copies nothing. Letters: L layers, B rows, H KV heads, S capacity, K head width.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.config import TextConfig
from blip3v.runtime import memory

__all__ = ["CachePool", "KVCache", "cache_bytes", "pad_prompts", "require_cache_memory", "round_capacity"]

_SMALLEST = 64


def round_capacity(tokens: int, max_context: int) -> int:
    """Capacity for ``tokens``: the next power of two from 64 on, at most the model's context."""
    capacity = _SMALLEST
    while capacity < tokens:
        capacity *= 2
    return min(capacity, max_context)


def cache_bytes(text: TextConfig, dtype: np.dtype[Any], rows: int, capacity: int) -> int:
    """Size of a cache."""
    return 2 * text.num_layers * rows * text.num_kv_heads * capacity * text.head_dim * dtype.itemsize


def require_cache_memory(num_bytes: int, rows: int, tokens: int) -> None:
    """Raises unless ``num_bytes`` more are free for a cache of ``rows`` x ``tokens``.

    Raises:
        OutOfMemoryError: they are not.
    """
    memory.require(
        num_bytes,
        f"a cache of {rows} x {tokens} tokens",
        "ask fewer questions at once, a shorter one, or for fewer new tokens",
    )


def pad_prompts(rows: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Embeddings (t,D) of several prompts as one array (B,t,D), padded on the right with zeros."""
    embeds_BtD = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), dtype)
    for index, row in enumerate(rows):
        embeds_BtD[index, : len(row)] = row
    return embeds_BtD


class KVCache:
    """Keys and values of ``rows`` sequences. Not safe for use by two threads at once.

    Raises:
        OutOfMemoryError: making it, or ``reserve``, needs more memory than is free.

    Attributes:
        lengths: tokens that each row holds; what lies behind them is old and never read.
    """

    def __init__(
        self, text: TextConfig, dtype: np.dtype[Any], rows: int, capacity: int, *, round_to: int | None = None
    ) -> None:
        self._text = text
        self._round_to = round_to
        self._dtype = dtype
        self._block_L2BHSK = self._allocate(rows, capacity)
        self.lengths = [0] * rows

    @property
    def rows(self) -> int:
        """Sequences that are in use; ``drop_row`` makes them fewer."""
        return len(self.lengths)

    @property
    def max_rows(self) -> int:
        """Sequences that there is memory for."""
        return int(self._block_L2BHSK.shape[2])

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return int(self._block_L2BHSK.shape[4])

    @property
    def num_bytes(self) -> int:
        """Size of the memory."""
        return self._block_L2BHSK.nbytes

    def layer(self, layer: int, first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values (B,H,S,K) of rows ``first`` to ``last`` (exclusive): views of the memory itself."""
        return self._block_L2BHSK[layer, 0, first:last], self._block_L2BHSK[layer, 1, first:last]

    def reset(self, rows: int) -> None:
        """Forgets everything; the cache then has ``rows`` empty sequences."""
        assert 0 < rows <= self.max_rows
        self.lengths = [0] * rows

    def reserve(self, tokens: int) -> None:
        """Makes room for ``tokens`` in each row and keeps what is there; does nothing if there is room."""
        if tokens <= self.capacity:
            return
        old, self._block_L2BHSK = (
            self._block_L2BHSK,
            self._allocate(self.max_rows, self._rounded(tokens)),
        )
        held = max(self.lengths)
        self._block_L2BHSK[..., :held, :] = old[..., :held, :]

    def drop_row(self, row: int) -> None:
        """Removes a finished sequence: the last row moves into its place."""
        last = self.rows - 1
        if row != last:
            held = self.lengths[last]
            self._block_L2BHSK[:, :, row, :, :held] = self._block_L2BHSK[:, :, last, :, :held]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _rounded(self, tokens: int) -> int:
        if self._round_to is None:
            return round_capacity(tokens, self._text.max_context)
        return -(-tokens // self._round_to) * self._round_to

    def _allocate(self, rows: int, capacity: int) -> NDArray[Any]:
        text = self._text
        require_cache_memory(cache_bytes(text, self._dtype, rows, capacity), rows, capacity)
        # The system hands out zeroed pages when they are first written: unused capacity costs nothing.
        return np.zeros((text.num_layers, 2, rows, text.num_kv_heads, capacity, text.head_dim), self._dtype)


class CachePool:
    """Caches for reuse by later requests, so that memory does not grow with their number. Safe for several threads.

    Args:
        text: geometry of the caches.
        dtype: of keys and values.
        keep_bytes: free caches together stay within this size.
    """

    def __init__(self, text: TextConfig, dtype: np.dtype[Any], keep_bytes: int) -> None:
        self._text = text
        self._dtype = dtype
        self._keep_bytes = keep_bytes
        self._free: list[KVCache] = []
        self._lock = threading.Lock()

    def acquire(self, rows: int, tokens: int) -> KVCache:
        """A cache of ``rows`` empty sequences with room for ``tokens`` each."""
        capacity = round_capacity(tokens, self._text.max_context)
        with self._lock:
            fitting = [cache for cache in self._free if cache.max_rows >= rows and cache.capacity >= capacity]
            if fitting:
                cache = min(fitting, key=lambda cache: cache.num_bytes)
                self._free.remove(cache)
                cache.reset(rows)
                return cache
        return KVCache(self._text, self._dtype, rows, capacity)

    def release(self, cache: KVCache) -> None:
        """Keeps ``cache`` for a later request; beyond the limit the largest are freed."""
        with self._lock:
            self._free.append(cache)
            self._free.sort(key=lambda kept: kept.num_bytes)
            while sum(kept.num_bytes for kept in self._free) > self._keep_bytes:
                self._free.pop()

    @property
    def num_bytes(self) -> int:
        """Size of the free caches."""
        with self._lock:
            return sum(kept.num_bytes for kept in self._free)

    def clear(self) -> None:
        """Frees all spare caches."""
        with self._lock:
            self._free.clear()
