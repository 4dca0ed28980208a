"""What every decoder session is, whatever runs the graph: an engine and the cache of its rows, until it is closed."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from blip3v.runtime.backends import still_open

__all__ = ["CachedSession", "RowCache"]


class RowCache(Protocol):
    """Keys and values of the rows of a session, wherever they lie."""

    lengths: list[int]  # tokens that each row holds; what lies behind them is old and never read

    @property
    def rows(self) -> int:
        """Sequences that are in use."""
        ...

    def drop_row(self, row: int) -> None:
        """Removes a finished sequence: the last row moves into its place."""
        ...


_Engine = TypeVar("_Engine")
_Cache = TypeVar("_Cache", bound=RowCache)


class CachedSession(Generic[_Engine, _Cache]):
    """Part of a ``DecoderSession``: its rows, and its end.

    Args:
        engine: what the session runs, which it keeps until it is closed.
        cache: of its rows.
    """

    def __init__(self, engine: _Engine, cache: _Cache) -> None:
        self._open_engine: _Engine | None = engine
        self._open_cache: _Cache | None = cache

    @property
    def engine(self) -> _Engine:
        """What it runs."""
        return still_open(self._open_engine, "decoder session")

    @property
    def cache(self) -> _Cache:
        """The memory behind it."""
        return still_open(self._open_cache, "decoder session")

    @property
    def lengths(self) -> tuple[int, ...]:
        """See ``DecoderSession``."""
        return tuple(self.cache.lengths)

    def use_cache(self, cache: _Cache) -> None:
        """Takes the cache of another session, whose rows both then hold, in place of its own."""
        self._open_cache = cache

    def truncate(self, num_tokens: int) -> None:
        """See ``DecoderSession``."""
        assert self.cache.rows == 1
        assert num_tokens <= self.cache.lengths[0]
        self.cache.lengths = [num_tokens]

    def drop_row(self, row: int) -> None:
        """See ``DecoderSession``."""
        self.cache.drop_row(row)

    def close(self) -> None:
        """See ``DecoderSession``."""
        self._open_engine = self._open_cache = None
