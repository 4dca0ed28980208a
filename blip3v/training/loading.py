"""Items that are made ahead, in order, by worker processes of torch's ``DataLoader``.

An item depends on its key alone, so that it is the same whatever process makes it, and a run that resumes at a step
asks for the keys from there on. The workers live as long as the block. They are started by a fork server that has
neither CUDA nor threads (spawned where there is none), each computes with one thread, and each ends when its parent
does, however that ends. As with every such process in Python, a script of one's own that starts them has to guard what
it does with ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from blip3v.errors import Blip3vError, UsageError

__all__ = ["Items", "default_workers", "loaded_ahead"]

_PREFETCHED = 2  # items that each worker makes ahead
_MOST_WORKERS = 8

_Key = TypeVar("_Key", contravariant=True)
_Item = TypeVar("_Item")
_Out = TypeVar("_Out", covariant=True)


class Items(Protocol[_Key, _Out]):
    """What makes an item from its key. With workers it is pickled once for each of them, and so are keys and items."""

    def __getitem__(self, key: _Key, /) -> _Out: ...


def default_workers() -> int:
    """Workers that keep this process's share of the CPUs busy: one for each, up to eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun and accelerate start one for each device
    return max(1, min(_MOST_WORKERS, usable // processes))


@contextmanager
def loaded_ahead(
    items: Items[_Key, _Item], keys: Sequence[_Key], *, workers: int, pin: bool = False
) -> Iterator[Iterator[_Item]]:
    """Yields an iterator over the items of ``keys``, in order.

    Args:
        items: makes them.
        keys: of the items.
        workers: processes that make them; 0: this one, when an item is asked for.
        pin: whether their tensors are copied into pinned memory, by a thread; an item has a method for it.

    Raises:
        Blip3vError: from the iterator, as raised by ``items``.
        UsageError: from the iterator: a worker process ended.
    """
    loader: DataLoader[_Item | _Failed] = DataLoader(
        _Dataset(items),
        batch_size=None,
        sampler=cast(Sequence[int], keys),  # torch passes on whatever the sampler yields
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin,
        prefetch_factor=_PREFETCHED if workers else None,
        worker_init_fn=_begin if workers else None,
        multiprocessing_context=_context() if workers else None,
        generator=torch.Generator(),  # so that none of the run's random numbers goes to the workers
    )
    made = iter(loader)
    try:
        yield _checked(made)
    finally:
        if workers:
            # What the iterator does when it is collected, which may be later.
            made._shutdown_workers()  # type: ignore[attr-defined]


class _Failed:
    """An error on its way out of a worker. torch would put the worker's traceback in place of its message."""

    def __init__(self, error: Blip3vError) -> None:
        self.error = error


class _Dataset(Dataset["_Item | _Failed"], Generic[_Item]):
    def __init__(self, items: Items[_Key, _Item]) -> None:
        self._items = items

    def __getitem__(self, key: object) -> _Item | _Failed:
        try:
            return self._items[key]  # type: ignore[index]
        except Blip3vError as error:
            return _Failed(error)


def _unchanged(item: _Item) -> _Item:
    return item


def _checked(made: Iterator[_Item | _Failed]) -> Iterator[_Item]:
    while True:
        try:
            item = next(made)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UsageError(
                f"a process that loads clips ended, as when memory or shared memory (/dev/shm) runs out: {error}",
                remedy="use fewer `workers`, or `workers=0`",
            ) from error
        if isinstance(item, _Failed):
            raise item.error
        yield item


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, for all workers
    return context


def _begin(worker: int) -> None:
    """Prepares a worker process."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process with the run; torch has it watch the fork server, which outlives a run that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
