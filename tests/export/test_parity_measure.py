"""The measures of parity against plain formulas, and what fails a report."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from export_models import embeddings, small_config

from blip3v.bundle import Precision
from blip3v.bundle.precision import PRECISIONS
from blip3v.errors import ParityError
from blip3v.export.activations import decoder_ranges, video_encoder_ranges
from blip3v.export.parity import (
    ActivationRanges,
    ParityReport,
    TokenCheck,
    compare,
    count_tokens,
    tolerances,
)
from blip3v.model.weights import random_model

FP32, FP16 = PRECISIONS["fp32"].decoder, PRECISIONS["fp16"].decoder
FP16_LARGEST = 65504.0


def test_the_measures_match_their_formulas() -> None:
    ours, theirs = np.array([[1.0, 2.0], [3.0, 4.5]]), np.array([[1.0, 2.0], [3.0, -4.0]])
    row = compare("vision", "case", ours, theirs, FP32.tolerance)
    assert row.relative_error == 8.5 / 4
    assert row.cosine == pytest.approx((1 + 4 + 9 - 18) / math.sqrt((1 + 4 + 9 + 20.25) * (1 + 4 + 9 + 16)))
    assert not row.passed


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_limit_comes_from_the_table(precision: str) -> None:
    theirs = np.linspace(-1, 1, 1001)
    limit = PRECISIONS[precision].decoder.tolerance.relative_error
    for factor, passes in ((0.99, True), (1.01, False)):
        ours = theirs.copy()
        ours[500] += factor * limit
        assert compare("x", "y", ours, theirs, PRECISIONS[precision].decoder.tolerance).passed is passes


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_never_pass(bad: float) -> None:
    with np.errstate(invalid="ignore"):
        assert not compare("x", "y", np.array([1.0, bad]), np.array([1.0, 2.0]), FP16.tolerance).passed


def test_a_shape_that_differs_is_an_error_and_not_broadcast() -> None:
    with pytest.raises(ParityError, match="shape"):
        compare("x", "y", np.ones((2, 1)), np.ones((2, 3)), FP32.tolerance)


def test_a_differing_token_counts_unless_the_reference_was_undecided() -> None:
    theirs = [np.array([0.0, 1.0, 0.5]), np.array([0.0, 1.0, 0.999]), np.array([0.0, 1.0, 0.5])]
    ours = [np.array([0.0, 1.0, 0.5]), np.array([0.0, 0.99, 1.0]), np.array([0.0, 0.4, 0.5])]
    assert count_tokens(ours, theirs, FP16.tolerance) == TokenCheck(compared=3, differing=1, close_calls=1)


def test_the_decoder_is_held_to_the_wider_tolerance_of_both_graphs() -> None:
    fp32, fp16 = (PRECISIONS[name].tolerance for name in ("fp32", "fp16"))
    limits = {name: tolerances(Precision.parse(f"video_encoder={name},decoder=fp32")) for name in ("fp32", "fp16")}
    assert limits["fp32"] == {"video_encoder": fp32, "decoder": fp32}
    assert limits["fp16"] == {"video_encoder": fp16, "decoder": fp16}
    other = tolerances(Precision.parse("video_encoder=fp32,decoder=fp16"))
    assert other == {"video_encoder": fp32, "decoder": fp16}


def report(**changes: object) -> ParityReport:
    row = compare("vision", "case", np.ones(3), np.ones(3), FP16.tolerance)
    good = ParityReport(
        precision="fp16",
        tolerances=tolerances(Precision.parse("fp16")),
        clip={},
        comparisons=(row,),
        tokens=TokenCheck(compared=17, differing=0, close_calls=1),
        activations=ActivationRanges(limit=FP16_LARGEST, largest=10.0, layers={"a": 10.0}),
    )
    return dataclasses.replace(good, **changes)  # type: ignore[arg-type]


def test_a_clean_report_passes() -> None:
    report().check()
    assert report().to_dict()["passed"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": TokenCheck(compared=17, differing=2, close_calls=0)}, "2 of 17 tokens differ"),
        ({"comparisons": (compare("step 3", "c", np.ones(2), np.zeros(2), FP16.tolerance),)}, r"step 3 \(c\)"),
        (
            {"activations": ActivationRanges(limit=FP16_LARGEST, largest=math.inf, layers={"l.1": math.inf})},
            "activations overflow in l.1",
        ),
    ],
    ids=["token", "stage", "overflow"],
)
def test_each_kind_of_mismatch_fails_the_report(changes: dict[str, object], message: str) -> None:
    assert not report(**changes).passed
    with pytest.raises(ParityError, match=message):
        report(**changes).check()


def test_an_overflow_in_fp16_is_found_where_it_happens() -> None:
    """The CPU engines compute fp16 graphs in fp32; only this run in PyTorch fp16 sees the overflow."""
    model = random_model(small_config())
    config = model.config
    embeds_tD = embeddings(config.text, 6)
    sound = decoder_ranges(config.text, model.state_dict(), embeds_tD, FP16)
    assert max(sound.values()) < 100
    assert {"decoder.layers.0", "decoder.layers.1"} <= set(sound)
    model.lang_model.get_parameter("model.layers.1.mlp.gate_up_proj.weight").mul_(2000)
    broken = decoder_ranges(config.text, model.state_dict(), embeds_tD, FP16)
    assert broken["decoder.layers.0"] == sound["decoder.layers.0"]
    assert broken["decoder.layers.1"] > FP16_LARGEST


def test_the_largest_value_is_that_of_the_forward_pass() -> None:
    model = random_model(small_config("mean"))
    frames = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    ranges = video_encoder_ranges(model, frames, PRECISIONS["fp16"].video_encoder)
    with torch.inference_mode():
        features = model.features(torch.from_numpy(frames)[None])
    assert ranges["video_encoder.vision_encoder.post_layernorm"] >= float(features.abs().max()) * 0.99
    assert ranges["video_encoder.vision_tokenizer.projection"] > 0
