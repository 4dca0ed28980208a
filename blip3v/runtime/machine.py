"""What this machine is, as far as it decides how fast engines are; from ``/proc``, the control group and the driver.

A value is None if the system does not provide it. psutil, from the extra ``bench``, fills in for ``/proc``; it is not
an error if it is missing.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from blip3v.bundle.tuning import Machine
from blip3v.runtime import nvidia

__all__ = ["cpu_features", "cpu_name", "cpu_quota", "physical_cores", "psutil_or_none", "this_machine", "usable_cpus"]

_MODEL = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")  # x86, then ARM


def this_machine(root: Path = Path("/")) -> Machine:
    """This machine, and what of it this process may use.

    Args:
        root: folder that contains ``proc`` and ``sys``.
    """
    first = next(iter(_processors(root)), {})
    return Machine(
        cpu=cpu_name(root) or "unknown",
        cpu_model="/".join(first[name] for name in _MODEL if name in first),
        architecture=platform.machine(),
        logical_cpus=os.cpu_count(),
        usable_cpus=usable_cpus(),
        cpu_quota=cpu_quota(root),
        gpus=tuple(gpu.name for gpu in nvidia.query().gpus),
    )


def cpu_name(root: Path = Path("/")) -> str | None:
    """Name of the processor."""
    return _first(_processors(root), "model name") or platform.processor() or None


def cpu_features(root: Path = Path("/")) -> str | None:
    """What the processor can do, as the system lists it, separated by spaces; None: it does not."""
    return _first(_processors(root), "flags", "Features")  # x86, ARM


def usable_cpus() -> int | None:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def physical_cores(root: Path = Path("/")) -> int | None:
    """Cores of all processors, hyper-threads not counted."""
    processors = _processors(root)
    if processors and all("core id" in values for values in processors):
        return len({(values.get("physical id"), values["core id"]) for values in processors})
    psutil = psutil_or_none()
    return None if psutil is None else psutil.cpu_count(logical=False)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU time that the control group allows, in CPUs; None: no limit, or not known."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text("utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def psutil_or_none() -> Any | None:
    """The package, if it is installed."""
    try:
        import psutil  # optional
    except ModuleNotFoundError:
        return None
    return psutil


def _first(processors: list[dict[str, str]], *names: str) -> str | None:
    return next((values[name] for values in processors for name in names if name in values), None)


def _processors(root: Path) -> list[dict[str, str]]:
    """One dict for each block of ``/proc/cpuinfo``."""
    try:
        text = (root / "proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return []
    blocks = (block.splitlines() for block in text.strip().split("\n\n"))
    pairs = ([line.partition(":") for line in lines if ":" in line] for lines in blocks)
    return [{key.strip(): value.strip() for key, _, value in block} for block in pairs if block]
