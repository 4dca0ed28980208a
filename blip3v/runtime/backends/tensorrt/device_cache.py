"""The KV cache of a session in the GPU's memory, as large as the engine's fixed capacity.

TensorRT writes the new tokens of a layer in place where the engine aliases ``present`` with ``past``. An engine that
does not has a second copy: it reads one and writes the other, and they change places. Letters: B rows, H KV heads,
S capacity, K head width.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from blip3v.bundle.graph_io import past_key, past_value, present_key, present_value
from blip3v.config import TextConfig
from blip3v.runtime.backends.tensorrt.cuda import Cuda, DeviceMemory, Stream
from blip3v.runtime.host_cache import cache_bytes

__all__ = ["DeviceCache"]

_ids = itertools.count()


class DeviceCache:
    """Keys and values (L,2,B,H,S,K) of ``rows`` sequences, zero at first. One thread at a time.

    Args:
        cuda: the runtime.
        stream: orders every copy with the runs of the engine.
        text: geometry.
        dtype: of keys and values.
        rows: at least 1.
        capacity: tokens that a row can hold.
        is_aliased: whether the engine writes in place.

    Attributes:
        id: different for each cache of this process, other than addresses, which are used again.
        turn: which of two copies is read, 0 or 1.
        lengths: tokens that each row holds; what lies behind them is never read.

    Raises:
        OutOfMemoryError: the GPU has not that much memory.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        text: TextConfig,
        dtype: np.dtype[Any],
        *,
        rows: int,
        capacity: int,
        is_aliased: bool,
    ) -> None:
        self.id = next(_ids)
        self.turn = 0
        self.lengths = [0] * rows
        self.capacity = capacity
        self._num_layers = text.num_layers
        self._stream = stream
        num_bytes = cache_bytes(text, dtype, rows, capacity)
        self._block_bytes = num_bytes // (2 * text.num_layers)  # keys, or values, of one layer
        self._row_bytes = self._block_bytes // rows
        what = f"a cache of {rows} x {capacity} tokens"
        self._copies = [DeviceMemory(cuda, num_bytes, what) for _ in range(1 if is_aliased else 2)]
        for memory in self._copies:
            # What a mask hides is multiplied by zero, which is not zero for what memory may hold at first: NaN.
            stream.zero(memory.address, num_bytes)

    @property
    def rows(self) -> int:
        """Sequences that are in use; ``drop_row`` makes them fewer."""
        return len(self.lengths)

    @property
    def is_aliased(self) -> bool:
        """Whether new tokens are written in place."""
        return len(self._copies) == 1

    def addresses(self, row: int) -> dict[str, int]:
        """Where past and present of every layer begin at a row, by the names of the graph."""
        past, present = self._copies[0].address, self._copies[-1].address
        offset = row * self._row_bytes
        found: dict[str, int] = {}
        for layer in range(self._num_layers):
            key, value = offset + 2 * layer * self._block_bytes, offset + (2 * layer + 1) * self._block_bytes
            found |= {past_key(layer): past + key, past_value(layer): past + value}
            found |= {present_key(layer): present + key, present_value(layer): present + value}
        return found

    def written(self, first: int, last: int) -> None:
        """Is called after a run on rows ``first`` to ``last`` (exclusive): what it wrote is what the next one reads."""
        if self.is_aliased:
            return
        if (first, last) == (0, self.rows):
            self._copies.reverse()
            self.turn = 1 - self.turn
        else:
            self._copy_rows(self._copies[0].address, first, self._copies[1].address, first, last - first)

    def drop_row(self, row: int) -> None:
        """Removes a finished sequence: the last row moves into its place."""
        last = self.rows - 1
        if row != last:
            address = self._copies[0].address
            self._copy_rows(address, row, address, last, 1)
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def _copy_rows(self, target: int, target_row: int, source: int, source_row: int, num_rows: int) -> None:
        self._stream.copy_blocks(
            target + target_row * self._row_bytes,
            source + source_row * self._row_bytes,
            num_rows * self._row_bytes,
            self._block_bytes,
            2 * self._num_layers,
        )
