"""How fast this machine reads memory, as a product of a matrix and a vector does: every byte once, by all threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError
from blip3v.runtime import memory
from blip3v.units import format_bytes

__all__ = ["last_level_cache_bytes", "read_bandwidth"]

_WIDTH = 4096  # of the matrix, fp32
_ROUNDS = 3
_LEAST_BYTES, _MOST_BYTES = 2**28, 2**32
_TIMES_CACHE, _LEAST_TIMES_CACHE = 3, 2
_USUAL_CACHE_BYTES = 2**26  # where the system does not tell

# Kernels that read an array once. Which is the fastest depends on numpy's build; the fastest counts.
_KERNELS: tuple[Callable[[NDArray[np.float32]], object], ...] = (
    lambda block: block.reshape(-1, _WIDTH) @ np.ones(_WIDTH, np.float32),
    lambda block: np.dot(block, block),
    lambda block: block.sum(),
)


def read_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read together, the best of a few passes over memory.

    numpy's own threads must be one (``OPENBLAS_NUM_THREADS=1``), set before it is imported.

    Raises:
        BackendError: what is free in memory fits into the processor's caches.
    """
    num_floats = _size_bytes() // 4 // (threads * _WIDTH) * threads * _WIDTH
    blocks = np.split(np.empty(num_floats, np.float32), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_fill, blocks))
        for kernel in _KERNELS * _ROUNDS:
            start_s = time.perf_counter()
            list(pool.map(kernel, blocks))
            best = max(best, 4 * num_floats / (time.perf_counter() - start_s))
    return best


def last_level_cache_bytes(root: Path = Path("/")) -> int | None:
    """Size of the largest cache of the first processor; None where the system does not tell.

    Args:
        root: where ``sys`` is.
    """
    sizes = [_cache_bytes(path) for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size")]
    return max(sizes, default=0) or None


def _size_bytes() -> int:
    cache_bytes = last_level_cache_bytes() or _USUAL_CACHE_BYTES
    wanted = min(max(_TIMES_CACHE * cache_bytes, _LEAST_BYTES), _MOST_BYTES)
    free = memory.available_bytes()
    size = wanted if free is None else min(wanted, free // 2)
    if size < _LEAST_TIMES_CACHE * cache_bytes:
        raise BackendError(
            f"half of the free memory is {format_bytes(size)}, and the processor's cache has "
            f"{format_bytes(cache_bytes)}; free some memory"
        )
    return size


def _fill(block: NDArray[np.float32]) -> None:
    block[:] = 1  # a page that was never written is not in memory


def _cache_bytes(path: Path) -> int:
    try:
        text = path.read_text("utf-8").strip()
        return int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0
