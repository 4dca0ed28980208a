"""The one owner of an opened model: who works with the model leases it, and nobody else keeps it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from blip3v.errors import UsageError
from blip3v.runtime import memory
from blip3v.runtime.request import Model

__all__ = ["CacheHolder", "ModelOwner"]


class CacheHolder(Protocol):
    """Keeps a decoder session between two pieces of work."""

    def release_if_closed(self) -> None:
        """Lets go of the session if its model was closed, unless work is running on it."""
        ...


class ModelOwner:
    """Holds an opened model until it is closed and the last lease has ended. Safe for several threads."""

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model
        self._closed = False
        # Reentrant, and sets whose changes are atomic: the garbage collector may end a lease at any moment.
        self._lock = threading.RLock()
        self._leases: set[object] = set()
        self._holders: set[weakref.ref[CacheHolder]] = set()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called; work may still be running."""
        return self._closed

    def check_open(self) -> None:
        """Raises if the model was closed.

        Raises:
            UsageError: it was.
        """
        if self._closed:
            raise UsageError("the VideoLM is closed; open the bundle again with VideoLM.open")

    @contextmanager
    def lease(self) -> Iterator[Model]:
        """The model, which stays open while the block runs. Keep no reference to it beyond.

        Raises:
            UsageError: it was closed.
        """
        lease = object()
        with self._lock:
            self.check_open()
            model = self._model
            assert model is not None
            self._leases.add(lease)
        try:
            yield model
        finally:
            self._leases.discard(lease)
            self._free_if_unused()

    def watch(self, holder: CacheHolder) -> None:
        """Tells ``holder``, which is referred to weakly, when the model is closed."""
        self._holders.add(weakref.ref(holder, self._holders.discard))

    def close(self) -> None:
        """Refuses new leases; the model is freed with the last one that runs, at once if none does."""
        with self._lock:
            self._closed = True
        for reference in self._holders.copy():
            holder = reference()
            if holder is not None:
                holder.release_if_closed()
        self._free_if_unused()

    def _free_if_unused(self) -> None:
        with self._lock:
            if not self._closed or self._leases:
                return
            model, self._model = self._model, None
        if model is not None:
            model.spare_decoder.close()
            model.decoder.close()
            model.video_encoder.close()
            del model
            memory.return_freed()
