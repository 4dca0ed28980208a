"""A KV cache in main memory, for back ends whose engine works on such memory.

The parts of a layer's block are bound to the graph both as ``past`` and as ``present``: GroupQueryAttention then writes
new tokens in place and copies nothing. Letters: B rows, H KV heads, S capacity, K head width.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.config import TextConfig
from blip3v.errors import OutOfMemoryError
from blip3v.runtime import memory
from blip3v.units import format_bytes

__all__ = ["KVCache", "cache_bytes", "pad_prompts"]

# Tokens of several prompts that go through a decoder at once, padding included: bounds the memory of activations.
_PADDED_TOKENS = 2048


def cache_bytes(text: TextConfig, dtype: np.dtype[Any], rows: int, tokens: int) -> int:
    """Size of the keys and values of ``rows`` x ``tokens``."""
    return 2 * text.num_layers * rows * text.num_kv_heads * tokens * text.head_dim * dtype.itemsize


def pad_prompts(rows: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[tuple[int, NDArray[Any], list[int]]]:
    """Puts prompts together, as many as an engine should run at once.

    Args:
        rows: embeddings (t,D) of each prompt, at least one token.
        dtype: of the result.

    Yields:
        The number of the first row, embeddings (B,t,D) padded on the right with zeros, and the B lengths.
    """
    num_rows = max(1, _PADDED_TOKENS // max(map(len, rows)))
    for first in range(0, len(rows), num_rows):
        part = rows[first : first + num_rows]
        lengths = [len(row) for row in part]
        embeds_BtD = np.zeros((len(part), max(lengths), part[0].shape[1]), dtype)
        for row_tD, padded_tD in zip(part, embeds_BtD, strict=True):
            padded_tD[: len(row_tD)] = row_tD
        yield first, embeds_BtD, lengths


class KVCache:
    """Keys and values of ``rows`` sequences, at first without room. Not safe for use by two threads at once.

    Args:
        text: geometry.
        dtype: of keys and values.
        rows: at least 1.
        step: tokens by which the capacity grows.

    Attributes:
        lengths: tokens that each row holds; what lies behind them is old and never read.
    """

    def __init__(self, text: TextConfig, dtype: np.dtype[Any], rows: int, *, step: int) -> None:
        self._text = text
        self._dtype = dtype
        self._step = step
        self._layers_2BHSK = self._blocks(rows, 0)
        self.lengths = [0] * rows

    @property
    def rows(self) -> int:
        """Sequences that are in use; ``drop_row`` makes them fewer."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return max(int(block.shape[3]) for block in self._layers_2BHSK)

    def layer(self, layer: int, first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values (B,H,S,K) of rows ``first`` to ``last`` (exclusive): views of the memory itself."""
        block_2BHSK = self._layers_2BHSK[layer]
        return block_2BHSK[0, first:last], block_2BHSK[1, first:last]

    def check_memory(self, tokens: int) -> None:
        """Raises unless the memory is free that ``tokens`` in each row take in addition to those that are there.

        Raises:
            OutOfMemoryError: it is not.
        """
        held = max(self.lengths)
        memory.require(
            cache_bytes(self._text, self._dtype, self.rows, max(0, tokens - held)),
            f"a cache of {self.rows} x {tokens} tokens",
            "ask fewer questions at once, a shorter one, or for fewer new tokens",
        )

    def reserve(self, tokens: int) -> None:
        """Makes room for ``tokens`` in each row and keeps what is there; does nothing if there is room.

        Layer by layer, so that the cache does not exist twice while it grows. If that is interrupted, the next call
        goes on with it.

        Raises:
            OutOfMemoryError: it does not fit into memory.
        """
        if all(block.shape[3] >= tokens for block in self._layers_2BHSK):
            return
        self.check_memory(tokens)
        held = max(self.lengths)
        grown = self._blocks(self.rows, -(-tokens // self._step) * self._step)
        for layer, block_2BHSK in enumerate(grown):
            block_2BHSK[..., :held, :] = self._layers_2BHSK[layer][:, : self.rows, :, :held]
            self._layers_2BHSK[layer] = block_2BHSK

    def drop_row(self, row: int) -> None:
        """Removes a finished sequence: the last row moves into its place."""
        last = self.rows - 1
        if row != last:
            held = self.lengths[last]
            for block_2BHSK in self._layers_2BHSK:
                block_2BHSK[:, row, :, :held] = block_2BHSK[:, last, :, :held]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _blocks(self, rows: int, capacity: int) -> list[NDArray[Any]]:
        shape = (2, rows, self._text.num_kv_heads, capacity, self._text.head_dim)
        return [_pages(shape, self._dtype) for _ in range(self._text.num_layers)]


def _pages(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros in pages of their own: one that is never written costs nothing, and all go back to the system when freed.

    ``np.zeros`` promises neither: it asks for huge pages, so that a part that is written costs the parts beside it, and
    what it frees may stay with the process.

    Raises:
        OutOfMemoryError: the system refuses.
    """
    count = math.prod(shape)
    num_bytes = max(1, count * dtype.itemsize)
    try:
        if sys.platform == "win32":
            pages = mmap.mmap(-1, num_bytes)
        else:
            pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise OutOfMemoryError(
            f"the system refuses {format_bytes(num_bytes)} of memory for a cache ({error.strerror}); "
            "ask fewer questions at once, a shorter one, or for fewer new tokens"
        ) from error
    return np.frombuffer(pages, dtype, count).reshape(shape)
