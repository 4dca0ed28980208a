"""Whose results are allowed: the tolerance of a float bundle, the budget of a quantised one's report."""

from __future__ import annotations

import numpy as np
import pytest

from blip3v.bundle.precision import PRECISIONS
from blip3v.bundle.tuning import Candidate
from blip3v.calibration.record import DataRecord
from blip3v.export.accuracy import AccuracyReport, AnswerScore, EngineAccuracy, Sizes, VideoScore
from blip3v.export.accuracy import Budget as Limited
from blip3v.tuning.accuracy import Budget, differing_tokens

DEFAULT = Candidate(backend="onnxruntime")
OTHER = Candidate(backend="openvino")
NARROW = Candidate(backend="openvino:cpu-bf16")
RNG = np.random.default_rng(7)


def engine(name: str, differing: int) -> EngineAccuracy:
    """Reported to choose ``differing`` of 100 tokens otherwise than fp32."""
    answers = AnswerScore(
        num_tokens=100,
        tokens_agreeing=100 - differing,
        kl_mean=0.0,
        kl_p99=0.0,
        kl_max=0.0,
        num_answers=10,
        answers_agreeing=10,
    )
    return EngineAccuracy(
        backend=name,
        computed={},
        video=VideoScore(num_tokens=1, cosine_mean=1.0, cosine_min=1.0),
        answers=answers,
        films=None,
        data=DataRecord(num_clips=1, num_prompts=1, split="test", seeds=(0,)),
        data_sha256="",
        max_answer_tokens=16,
        command=None,
        versions={},
        seconds=1.0,
    )


def quantized(*engines: EngineAccuracy, budget: Limited | None = "tokens", limit: float = 5.0) -> Budget:
    report = AccuracyReport(
        precision="int8",
        reference="a model",
        budget=budget,
        max_accuracy_drop=limit,
        sizes=Sizes(graphs={}, bundle=1, fp32_graphs={}, fp32_bundle=4),
        tensorrt={},
        layers=None,
        formats=(),
        worst_layers=(),
        engines=engines,
        unavailable={},
    )
    return Budget(tolerances={}, report=report, is_quantized=True)


def logits(num_differing: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 100 positions, and others that choose another token at some of them."""
    theirs_NV = RNG.normal(size=(100, 8)).astype(np.float32)
    ours_NV = theirs_NV.copy()
    ours_NV[:num_differing] *= -1
    return ours_NV, theirs_NV


@pytest.mark.parametrize(("noise", "allowed"), [(0.0, True), (1e-4, True), (0.1, False), (np.nan, False)])
def test_floats_have_the_tolerance_of_their_precision(noise: float, allowed: bool) -> None:
    tolerance = PRECISIONS["fp32"].tolerance
    assert tolerance is not None
    budget = Budget(tolerances={"decoder": tolerance}, report=None, is_quantized=False)
    theirs = RNG.normal(size=(6, 16)).astype(np.float32)
    verdict = budget.judge("decoder", OTHER, theirs * (1 + noise * np.sign(RNG.normal(size=theirs.shape))), theirs, 0.0)
    assert verdict.allowed is allowed
    assert budget.known(DEFAULT, DEFAULT) is not None
    assert budget.known(OTHER, DEFAULT) is None
    assert str(budget) == "a relative error of 0.001, as for its parity with PyTorch"


def test_an_engine_that_the_report_covers_is_not_compared_again() -> None:
    budget = quantized(engine("onnxruntime", 1), engine("openvino", 3))
    known = budget.known(OTHER, DEFAULT)
    assert known is not None
    assert (known.allowed, known.text) == (True, "3.00 % lost in the bundle's report")
    assert budget.known(NARROW, DEFAULT) is None
    over = quantized(engine("openvino", 6)).known(OTHER, DEFAULT)
    assert over is not None
    assert not over.allowed


@pytest.mark.parametrize(
    ("differing", "spent", "allowed"), [(0, 9.0, True), (2, 0.0, True), (3, 0.0, False), (2, 1.0, False)]
)
def test_what_an_engine_loses_and_what_its_setting_changes_share_the_budget(
    differing: int, spent: float, allowed: bool
) -> None:
    budget = quantized(engine("onnxruntime", 1), engine("openvino", 3))
    ours, theirs = logits(differing)
    assert differing_tokens(ours, theirs) == differing
    verdict = budget.judge("decoder", NARROW, ours, theirs, spent)
    assert verdict.allowed is allowed
    assert verdict.points == differing


def test_an_engine_that_was_not_reported_has_what_the_worst_of_them_leaves() -> None:
    budget = quantized(engine("onnxruntime", 4))
    assert budget.known(OTHER, DEFAULT) is None
    assert budget.judge("decoder", OTHER, *logits(1), 0.0).allowed
    verdict = budget.judge("decoder", OTHER, *logits(2), 0.0)
    assert (verdict.allowed, verdict.text) == (False, "2 of 100 tokens differ, 1 % may")


def test_without_a_report_only_the_same_results_are_allowed() -> None:
    budget = Budget(tolerances={}, report=None, is_quantized=True)
    same, other = logits(1)
    assert budget.judge("decoder", OTHER, same, same.copy(), 0.0).allowed
    assert not budget.judge("decoder", OTHER, same, other, 0.0).allowed
    assert not budget.compares_tokens


def test_random_weights_have_nothing_to_lose() -> None:
    budget = quantized(engine("onnxruntime", 50), budget=None)
    known = budget.known(NARROW, DEFAULT)
    assert known is not None
    assert known.allowed
