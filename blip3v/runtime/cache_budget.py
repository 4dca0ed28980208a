"""A bound on the KV caches of all unfinished answers together, whichever call or engine they belong to.

Not here: whether the machine or its device has the memory at this moment (``memory.py``, ``nvidia.py``).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from types import TracebackType

from blip3v.errors import OutOfMemoryError
from blip3v.units import format_bytes

__all__ = ["CacheBudget", "CacheShare", "default_limit"]

# Of the free memory. The rest is for activations, videos, and whatever else the process does.
_SHARE_OF_FREE = 3
# Where the system does not tell what is free.
_ASSUMED_FREE_BYTES = 6 * 2**30


def default_limit(free_bytes: int | None, context_bytes: int) -> int:
    """A third of the free memory, but at least one cache of a whole context, so that no single answer is refused.

    Args:
        free_bytes: once the weights are loaded; None, where the system does not tell: 6 GiB are assumed.
        context_bytes: a cache of one row as long as the context.
    """
    return max(context_bytes, (_ASSUMED_FREE_BYTES if free_bytes is None else free_bytes) // _SHARE_OF_FREE)


class CacheBudget:
    """What the caches of all unfinished answers may take together. Safe for several threads.

    Args:
        limit_bytes: at least 1.
        token_bytes: keys and values of one token in all layers.
        row_tokens: that each row of a cache has room for, however few it holds.
    """

    def __init__(self, limit_bytes: int, token_bytes: int, row_tokens: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self.token_bytes = token_bytes
        self.row_tokens = row_tokens
        self._held: dict[int, int] = {}  # bytes of each share; one that nobody holds removes itself, from any thread
        self._keys = itertools.count()
        # Reentrant: the garbage collector may end another answer of this thread while it is held.
        self._lock = threading.RLock()

    @property
    def in_use_bytes(self) -> int:
        """What all shares hold now."""
        return sum(self._held.copy().values())

    def take(self, rows: int, tokens: int) -> CacheShare:
        """A share for a cache of ``rows`` x ``tokens``.

        Raises:
            OutOfMemoryError: it does not fit beside what is in use.
        """
        share = CacheShare(self, next(self._keys))
        share.resize(rows, tokens)
        return share


class CacheShare:
    """What one cache holds of a budget: until ``close``, the end of its ``with`` block, or nobody refers to it."""

    def __init__(self, budget: CacheBudget, key: int) -> None:
        self._budget = budget
        self._key = key
        self._is_closed = False

    def resize(self, rows: int, tokens: int) -> None:
        """Holds as much as a cache of ``rows`` x ``tokens`` takes, which may be less than before; nothing once closed.

        Raises:
            OutOfMemoryError: it would have to grow and does not fit; it stays as it was.
        """
        budget = self._budget
        tokens = max(tokens, budget.row_tokens)
        wanted = rows * tokens * budget.token_bytes
        with budget._lock:
            if self._is_closed:  # by the garbage collector, which may finalise the answer that it belongs to later
                return
            own = budget._held.get(self._key, 0)
            others = budget.in_use_bytes - own
            if wanted > own and others + wanted > budget.limit_bytes:
                raise OutOfMemoryError(
                    f"a cache of {rows} x {tokens} tokens takes {format_bytes(wanted)}, {format_bytes(others)} are in "
                    f"use by other unfinished answers, and all together may take {format_bytes(budget.limit_bytes)}",
                    remedy="finish or close streams and conversations, ask for fewer new tokens with "
                    "`max_new_tokens=N`, or open the bundle with a larger max_cache_bytes",
                )
            budget._held[self._key] = wanted

    def resize_to_rows(self, tokens: Sequence[int], free_bytes: int | None) -> int:
        """Holds as much as a cache of the first of several rows takes, of as many as fit, and returns how many.

        It holds enough for any single row too, so that the rest, taken later, is not refused.

        Args:
            tokens: of each row, at least one; all rows of a cache are as long as its longest.
            free_bytes: memory that is free now; None: unknown.

        Raises:
            OutOfMemoryError: the longest does not fit alone; the share stays as it was.
        """
        budget = self._budget
        with budget._lock:
            others = budget.in_use_bytes - budget._held.get(self._key, 0)
            left_bytes = budget.limit_bytes - others
            fitting = min(left_bytes, left_bytes if free_bytes is None else free_bytes) // budget.token_bytes
            longest = [max(each, budget.row_tokens) for each in itertools.accumulate(tokens, max)]
            rows = max(1, sum(row * length <= fitting for row, length in enumerate(longest, 1)))
            self.resize(1, max(rows * longest[rows - 1], longest[-1]))
            return rows

    def close(self) -> None:
        """Returns all of it. May be called more than once."""
        self._is_closed = True
        self._budget._held.pop(self._key, None)

    __del__ = close

    def __enter__(self) -> CacheShare:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
