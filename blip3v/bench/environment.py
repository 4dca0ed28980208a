"""The machine and the packages behind a measurement. A value is None if the system does not provide it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import blip3v
from blip3v.runtime.machine import cpu_name, cpu_quota, physical_cores, psutil_or_none, usable_cpus

__all__ = ["describe_environment", "load_average"]

_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy", "av", "tokenizers")


def describe_environment(root: Path = Path("/")) -> dict[str, Any]:
    """Returns what the numbers depend on, ready for JSON.

    Args:
        root: folder that contains ``proc`` and ``sys``.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(root),
        "physical_cores": physical_cores(root),
        "usable_cpus": usable_cpus(),
        "cpu_quota": cpu_quota(root),
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


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        psutil = psutil_or_none()
        return None if psutil is None else int(psutil.virtual_memory().total)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # engines that are not there
    return versions
