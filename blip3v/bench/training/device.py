"""What PyTorch's work on a device takes: seconds from idle to idle, peak memory, and how fast it multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from blip3v.runtime.memory import peak_rss_bytes

__all__ = ["Stopwatch", "gemm_rate", "peak_bytes", "reset_peak"]

T = TypeVar("T")

_GEMM_SIDE = {"cuda": 8192, "cpu": 2048}
_GEMM_PASSES = 8
# Writing 5 makes the process's present memory its peak (proc_pid_clear_refs(5)); Linux only.
_CLEAR_REFS = Path("/proc/self/clear_refs")


class Stopwatch:
    """Times work on a device, from idle to idle."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, work: Callable[[], T]) -> tuple[float, T]:
        """Returns the seconds that ``work`` took, and its result."""
        self._wait()
        began = time.perf_counter()
        result = work()
        self._wait()
        return time.perf_counter() - began, result

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def reset_peak(device: torch.device) -> None:
    """Starts the peak of ``peak_bytes`` again, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _CLEAR_REFS.write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """Peak memory since ``reset_peak``: of all tensors on a GPU, else of this process; None: the system does not tell.

    Where ``reset_peak`` does nothing, since the process began.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of PyTorch's product of two large square matrices: the best of several passes."""
    side = _GEMM_SIDE.get(device.type, _GEMM_SIDE["cpu"])
    left, right = (torch.rand(side, side, device=device).sub(0.5).to(dtype) for _ in range(2))
    watch, best_s = Stopwatch(device), float("inf")
    for _ in range(_GEMM_PASSES):
        seconds, _ = watch.time(lambda: left @ right)
        best_s = min(best_s, seconds)
    return 2 * side**3 / best_s
