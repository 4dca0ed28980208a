"""The machine: interpreter, system, processor, memory, disk. From the standard library and ``/proc`` alone."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from blip3v.runtime.memory import available_bytes

__all__ = ["Machine", "examine_machine"]

# What ONNX Runtime's kernels ask the processor for, under the kernel's names for it.
_WANTED_FLAGS = {
    "x86_64": ("avx2", "f16c", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_fp16"),
    "aarch64": ("asimd", "asimddp", "i8mm", "fphp", "asimdhp"),
}
_SAME = {"AMD64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about the machine; None where the system does not tell."""

    python: str  # version
    executable: str
    virtual_env: bool
    system: str  # name and version
    architecture: str
    cpu: str | None
    num_cpus: int  # that this process may use
    cpu_flags: dict[str, bool] | None  # flag -> there
    memory_total_bytes: int | None
    memory_available_bytes: int | None  # for this process: a control group may allow less than the machine has
    disk_free_bytes: int  # where the current folder is


def examine_machine(root: Path = Path("/")) -> Machine:
    """Looks at this machine.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    architecture = _SAME.get(platform.machine(), platform.machine())
    cpu, flags = _processor(root / "proc/cpuinfo", _WANTED_FLAGS.get(architecture, ()))
    return Machine(
        python=platform.python_version(),
        executable=sys.executable,
        virtual_env=sys.prefix != sys.base_prefix,
        system=platform.platform(terse=True),
        architecture=architecture,
        cpu=cpu or platform.processor() or None,
        num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_flags=flags,
        memory_total_bytes=_total_memory(),
        memory_available_bytes=available_bytes(root),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
    )


def _processor(path: Path, wanted: tuple[str, ...]) -> tuple[str | None, dict[str, bool] | None]:
    """Name and flags of the first processor that ``/proc/cpuinfo`` lists."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return None, None  # not Linux
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    listed = values.get("flags", values.get("Features"))
    found = set(listed.split()) if listed is not None else None
    flags = None if found is None or not wanted else {flag: flag in found for flag in wanted}
    return values.get("model name"), flags


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None  # the system has no such names
