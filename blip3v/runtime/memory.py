"""Memory that this process took and may still take, and refusals with numbers before it takes more.

What it may take is known on Linux only (``/proc/meminfo`` and control groups); elsewhere nothing is refused here. Not
here: what devices have, which ``nvidia.py`` and the back ends know.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blip3v.errors import OutOfMemoryError
from blip3v.units import format_bytes

__all__ = ["HOST", "Memory", "available_bytes", "peak_rss_bytes", "require", "return_freed"]


@dataclass(frozen=True)
class Memory:
    """A memory that weights and caches lie in: the machine's, or that of a device which has its own.

    Args:
        name: for sentences: "the GPU".
        ask: returns the bytes that ``free_bytes`` does.
        bound: what those are: what is free, or, where no one tells that, what there is in all.
    """

    name: str
    ask: Callable[[], int | None] = field(compare=False)
    bound: Literal["free", "in all"] = "free"

    def free_bytes(self) -> int | None:
        """What may still be taken at most; None where that is not known."""
        return self.ask()


def require(num_bytes: int, what: str, advice: str) -> None:
    """Raises unless ``num_bytes`` of memory are free.

    Raises:
        OutOfMemoryError: they are not. The message says ``what`` needs how much, how much there is, and ``advice``.
    """
    free = available_bytes()
    if free is not None and num_bytes > free:
        raise OutOfMemoryError(
            f"{what} needs about {format_bytes(num_bytes)} of memory and {format_bytes(free)} are free", remedy=advice
        )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take: the machine's, or its control group's where that is less.

    Args:
        root: where ``proc`` and ``sys`` are.

    Returns:
        Bytes; None where the system does not tell.
    """
    machine = _meminfo(root / "proc/meminfo")
    groups = [free for free in map(_group_free, _groups(root)) if free is not None]
    return None if machine is None else max(0, min([machine, *groups]))


def peak_rss_bytes(root: Path = Path("/")) -> int | None:
    """Largest resident memory of this process so far, mapped files included.

    From ``/proc``, since ``getrusage`` also counts the process that started this one; from there where there is none.

    Args:
        root: where ``proc`` is.

    Returns:
        Bytes; None where the system does not tell (Windows).
    """
    for line in _read(root / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    # Not on Windows, so not at the top.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed() -> None:
    """Has the C library return to the system what was freed. glibc keeps much of it, weights of a closed model too."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
        if trim is not None:
            trim(0)


def _free_on_host() -> int | None:
    return available_bytes()  # by its name, which tests replace


# A device that shares the machine's memory has this one too.
HOST = Memory("the machine", _free_on_host)


def _meminfo(path: Path) -> int | None:
    for line in _read(path).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _groups(root: Path) -> list[Path]:
    """Folders of the control groups that limit this process, of both versions, with all their parents."""
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        folder = base / path.lstrip("/")
        folders += [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]
    return folders


def _group_free(folder: Path) -> int | None:
    """What is left of a group's limit; file pages that nobody uses count as free, since the kernel drops them."""
    for limit_name, usage_name, stat_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
        if limit.isdigit() and usage.isdigit():
            stat = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
            return int(limit) - int(usage) + int(stat.get(stat_key, "0"))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # absent on this kind of system: the caller then knows no limit
