"""Which limit a stage is compared with, and when there is none."""

from __future__ import annotations

import dataclasses

import pytest

from blip3v.bench.limits import GemmRate, Limits
from blip3v.bench.shares import shares_of
from blip3v.bench.work import Work

WORK = Work(
    video_encoder_operations=10**9,
    video_encoder_kind="int8",
    prefill_operations=2 * 10**9,
    decoder_kind="int4-block",
    step_bytes=10**8,
)
LIMITS = Limits(
    threads=1,
    read_bytes_per_s=1e9,
    read_problem=None,
    cache_bytes=None,
    gemm=(
        GemmRate(backend="onnxruntime", kind="int8", operations_per_s=4e9),
        GemmRate(backend="openvino", kind="int8", operations_per_s=5e9),
        GemmRate(backend="onnxruntime", kind="int4-block", operations_per_s=None, problem="no kernel"),
    ),
)
SECONDS = {"video_encoder_s": 0.5, "prefill_s": 0.5, "per_token_s": 0.2}


def test_arithmetic_and_memory_are_the_limits() -> None:
    encoder, prefill, step = shares_of(WORK, LIMITS, **SECONDS)
    assert (encoder.limit, encoder.limit_per_s) == ("int8 GEMM", 5e9)
    assert encoder.share == pytest.approx(0.4)
    assert (step.limit, step.unit) == ("memory bandwidth", "bytes")
    assert step.share == pytest.approx(0.5)
    assert (prefill.reached_per_s, prefill.share, prefill.problem) == (4e9, None, "onnxruntime: no kernel")


def test_there_is_no_share_without_a_limit_or_without_a_count() -> None:
    on_gpu = dataclasses.replace(WORK, video_encoder_kind=None, decoder_kind=None)
    assert all(share.share is None and "CPU" in str(share.problem) for share in shares_of(on_gpu, LIMITS, **SECONDS))
    unknown = dataclasses.replace(WORK, video_encoder_operations=None)
    encoder = shares_of(unknown, LIMITS, **SECONDS)[0]
    assert (encoder.reached_per_s, encoder.share) == (None, None)
    assert "operations of its temporal encoder are not known" in str(encoder.problem)
    nothing = Limits(threads=1, read_bytes_per_s=None, read_problem="killed", cache_bytes=None, gemm=())
    assert [share.problem for share in shares_of(WORK, nothing, **SECONDS)] == ["killed"] * 3
