"""How much of the machine's limits each stage reaches.

The video encoder and the prefill are bound by arithmetic: their limit is the rate at which the fastest installed engine
multiplies by weights of the same format. A decoding step is bound by memory: it reads every weight for one token a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blip3v.bench.gemm_graphs import KIND_NAMES, GemmKind
from blip3v.bench.limits import Limits
from blip3v.bench.work import Work

__all__ = ["Share", "shares_of"]

_NOT_ON_CPU = "it does not run on the CPU, and only the CPU's limits are measured"
_UNKNOWN_ENCODER = "the operations of its temporal encoder are not known"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A stage and its limit, in operations or bytes per second."""

    stage: Literal["video_encoder", "prefill", "decode_step"]
    limit: str  # in words
    unit: Literal["operations", "bytes"]
    reached_per_s: float | None  # at the median time; None: see ``problem``
    limit_per_s: float | None
    share: float | None  # reached over limit; more than 1 where caches serve what memory was taken to
    problem: str | None = None


def shares_of(
    work: Work, limits: Limits, *, video_encoder_s: float, prefill_s: float, per_token_s: float
) -> tuple[Share, ...]:
    """The shares of the three stages that have a limit, from the median seconds of a turn."""
    operations = work.video_encoder_operations
    return (
        _of_gemm("video_encoder", operations, video_encoder_s, work.video_encoder_kind, limits),
        _of_gemm("prefill", work.prefill_operations, prefill_s, work.decoder_kind, limits),
        _of_memory(work, per_token_s, limits),
    )


def _of_gemm(
    stage: Literal["video_encoder", "prefill"],
    operations: int | None,
    seconds: float,
    kind: GemmKind | None,
    limits: Limits,
) -> Share:
    rate = None if kind is None else limits.fastest(kind)
    reached = None if operations is None else operations / seconds
    problem = None
    if operations is None:
        problem = _UNKNOWN_ENCODER
    elif kind is None:
        problem = _NOT_ON_CPU
    elif rate is None:
        problem = _why_no_rate(kind, limits)
    limit_per_s = None if rate is None else rate.operations_per_s
    return Share(
        stage=stage,
        limit="GEMM" if kind is None else f"{KIND_NAMES[kind]} GEMM",
        unit="operations",
        reached_per_s=reached,
        limit_per_s=limit_per_s,
        share=None if reached is None or limit_per_s is None else reached / limit_per_s,
        problem=problem,
    )


def _of_memory(work: Work, per_token_s: float, limits: Limits) -> Share:
    reached = work.step_bytes / per_token_s
    on_cpu = work.decoder_kind is not None
    limit_per_s = limits.read_bytes_per_s if on_cpu else None
    return Share(
        stage="decode_step",
        limit="memory bandwidth",
        unit="bytes",
        reached_per_s=reached,
        limit_per_s=limit_per_s,
        share=None if limit_per_s is None else reached / limit_per_s,
        problem=None if limit_per_s is not None else limits.read_problem if on_cpu else _NOT_ON_CPU,
    )


def _why_no_rate(kind: GemmKind, limits: Limits) -> str:
    problems = [f"{rate.backend}: {rate.problem}" for rate in limits.gemm if rate.kind == kind]
    return "; ".join(problems) or limits.read_problem or "no engine for a CPU is installed"
