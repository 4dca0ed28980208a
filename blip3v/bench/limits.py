"""What this machine can do at best: how fast it reads memory, and how fast each engine multiplies matrices.

Measured in a process of its own before anything else, so that neither the bundles' memory nor their threads are in the
way. Not here: the measurements themselves (``memory_bandwidth.py``, ``gemm_rate.py``), and what a stage needs of them
(``arithmetic.py``, ``shares.py``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip3v.bench.child import child_environment
from blip3v.bench.environment import describe_environment
from blip3v.bench.gemm_graphs import GEMM_KINDS, GemmKind
from blip3v.bench.gemm_rate import ENGINES, gemm_rate
from blip3v.bench.memory_bandwidth import last_level_cache_bytes, read_bandwidth
from blip3v.errors import BackendError
from blip3v.python_arguments import code_arguments
from blip3v.runtime.backends import get_backend

__all__ = ["GemmRate", "Limits", "main", "measure_limits"]

_COMMAND = (sys.executable, *code_arguments("from blip3v.bench.limits import main; main()"))
# numpy's products run in threads of ours, one each.
_ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
_TIMEOUT_S = 120.0
_LAST_WORDS = 200


@dataclass(frozen=True, kw_only=True)
class GemmRate:
    """How fast one engine multiplies by weights of one format."""

    backend: str  # its name, as ``backend=`` takes it
    kind: GemmKind
    operations_per_s: float | None  # a multiplication and an addition are two; None: see ``problem``
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of this machine's CPU and memory with ``threads`` threads."""

    threads: int
    read_bytes_per_s: float | None  # memory bandwidth; None: see ``read_problem``
    read_problem: str | None
    cache_bytes: int | None  # the largest of the processor's caches; None: not known
    gemm: tuple[GemmRate, ...]

    def fastest(self, kind: GemmKind) -> GemmRate | None:
        """The fastest engine's rate for weights of a format; None: it could not be measured on any."""
        measured = [rate for rate in self.gemm if rate.kind == kind and rate.operations_per_s is not None]
        return max(measured, key=lambda rate: rate.operations_per_s or 0.0, default=None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Limits:
        """The limits that ``dataclasses.asdict`` gave, after they went through JSON."""
        return cls(**{**values, "gemm": tuple(GemmRate(**rate) for rate in values["gemm"])})


def measure_limits(threads: int | None) -> Limits:
    """Measures the limits in a process of its own, in a few seconds. What cannot be measured says why.

    Args:
        threads: of an operator, as bundles are measured with; None: one for each physical core.
    """
    count = _num_threads(threads)
    try:
        done = subprocess.run(
            [*_COMMAND],
            input=json.dumps({"threads": count, "engine_threads": threads}),
            capture_output=True,
            text=True,
            env=child_environment() | _ONE_THREAD,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _unknown(count, f"it took longer than {_TIMEOUT_S:g} s")
    if done.returncode:
        return _unknown(count, f"the process ended with code {done.returncode}: {done.stderr.strip()[-_LAST_WORDS:]}")
    return Limits.from_dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """The process: a JSON object on stdin, ``Limits`` as one line of JSON on stdout."""
    asked = json.loads(sys.stdin.read())
    try:
        read_bytes_per_s, problem = read_bandwidth(asked["threads"]), None
    except (BackendError, MemoryError) as error:
        read_bytes_per_s, problem = None, _in_words(error)
    limits = Limits(
        threads=asked["threads"],
        read_bytes_per_s=read_bytes_per_s,
        read_problem=problem,
        cache_bytes=last_level_cache_bytes(),
        gemm=tuple(
            _rate(name, kind, asked["engine_threads"])
            for name in ENGINES
            if get_backend(name).is_installed()
            for kind in GEMM_KINDS
        ),
    )
    sys.stdout.write(json.dumps(dataclasses.asdict(limits)) + "\n")


def _rate(name: str, kind: GemmKind, threads: int | None) -> GemmRate:
    try:
        return GemmRate(backend=name, kind=kind, operations_per_s=gemm_rate(name, kind, threads))
    except Exception as error:  # an engine may raise anything for what its build or this processor has not
        return GemmRate(backend=name, kind=kind, operations_per_s=None, problem=_in_words(error))


def _in_words(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:_LAST_WORDS]}" if text else type(error).__name__


def _num_threads(threads: int | None) -> int:
    found = describe_environment()
    usable: int = found["usable_cpus"] or os.cpu_count() or 1
    return threads or min(found["physical_cores"] or usable, usable)


def _unknown(threads: int, problem: str) -> Limits:
    return Limits(threads=threads, read_bytes_per_s=None, read_problem=problem, cache_bytes=None, gemm=())
