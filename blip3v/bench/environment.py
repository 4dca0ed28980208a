"""The machine and the packages behind a measurement, from ``/proc`` and package metadata.

A value is None if the system does not provide it. psutil, from the extra ``bench``, fills in for ``/proc``; it is not
an error if it is missing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import blip3v

__all__ = ["describe_environment", "load_average"]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy", "av", "tokenizers")


def describe_environment(root: Path = Path("/")) -> dict[str, Any]:
    """Returns what the numbers depend on, ready for JSON.

    Args:
        root: folder that contains ``proc`` and ``sys``.
    """
    processors = _processors(root / "proc/cpuinfo")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": (processors[0].get("model name") if processors else None) or platform.processor() or None,
        "physical_cores": _physical_cores(processors),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_quota": _cpu_quota(root / "sys/fs/cgroup/cpu.max"),
        "memory_bytes": _memory_bytes(),
        "system": platform.platform(terse=True),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "blip3v": blip3v.__version__,
        "packages": _versions(),
    }


def load_average() -> list[float] | None:
    """Number of processes ready to run, averaged over 1, 5 and 15 minutes; None if not known."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def _processors(cpuinfo: Path) -> list[dict[str, str]]:
    """One dict for each block of ``/proc/cpuinfo``."""
    try:
        text = cpuinfo.read_text("utf-8", errors="replace")
    except OSError:
        return []
    blocks = (block.splitlines() for block in text.strip().split("\n\n"))
    pairs = ([line.partition(":") for line in lines if ":" in line] for lines in blocks)
    return [{key.strip(): value.strip() for key, _, value in block} for block in pairs if block]


def _physical_cores(processors: list[dict[str, str]]) -> int | None:
    if processors and all("core id" in values for values in processors):
        return len({(values.get("physical id"), values["core id"]) for values in processors})
    psutil = _psutil()
    return None if psutil is None else psutil.cpu_count(logical=False)


def _cpu_quota(path: Path) -> float | None:
    """CPU time that the control group allows, in CPUs; None: no limit, or not known."""
    try:
        quota, period = path.read_text("utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        psutil = _psutil()
        return None if psutil is None else int(psutil.virtual_memory().total)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # engines that are not there
    return versions


def _psutil() -> Any | None:
    try:
        import psutil  # optional
    except ModuleNotFoundError:
        return None
    return psutil
