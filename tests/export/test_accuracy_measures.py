"""The measures of the accuracy report against plain formulas, and the verdict that follows from them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from blip3v.calibration.record import DataRecord
from blip3v.commands.accuracy_report import print_accuracy
from blip3v.errors import ParityError, UsageError
from blip3v.export.accuracy import (
    AccuracyReport,
    AnswerScore,
    EngineAccuracy,
    FilmScore,
    LayerCounts,
    LayerError,
    LayerFormats,
    Sizes,
    VideoScore,
    load_report,
    save_report,
    worst_layers,
)
from blip3v.export.accuracy_data import answers_films
from blip3v.export.accuracy_measures import kl_divergence, paired_difference, rotation_between, token_cosines
from blip3v.export.accuracy_run import AccuracyOptions
from blip3v.folders import shipped_model

RNG = np.random.default_rng(0)


def test_kl_is_the_sum_over_all_tokens() -> None:
    expected, got = RNG.normal(0, 3, (2, 4, 7)).astype(np.float32)
    for row, (one, other) in enumerate(zip(expected, got, strict=True)):
        p = [math.exp(x) / sum(math.exp(y) for y in one) for x in one]
        q = [math.exp(x) / sum(math.exp(y) for y in other) for x in other]
        plain = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert kl_divergence(expected, got)[row] == pytest.approx(plain, rel=1e-6)


def test_kl_does_not_see_a_constant_and_stays_finite_for_certain_tokens() -> None:
    logits = np.array([[900.0, -900.0, 0.0]], np.float32)
    assert kl_divergence(logits, logits + 5) == pytest.approx([0.0])
    assert kl_divergence(logits, -logits) == pytest.approx([1800.0])


def test_cosines_of_each_token() -> None:
    expected, got = RNG.normal(size=(2, 5, 6))
    plain = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(expected, got, strict=True)]
    assert token_cosines(expected, got) == pytest.approx(plain)
    zero = np.zeros((1, 6))
    assert (token_cosines(zero, zero)[0], token_cosines(zero, got[:1])[0]) == (1.0, 0.0)


def test_the_interval_of_a_published_table() -> None:
    """1,600 people approve of a prime minister: 944, six months later 880 (Agresti, Categorical Data Analysis)."""
    drop = paired_difference(150, 86, 1600)
    assert drop.points == pytest.approx(4.0)
    # The book has Wald's interval without the added halves: 4.0 +- 1.96 * 0.95.
    assert (drop.low, drop.high) == pytest.approx((4.0 - 1.96 * 0.95, 4.0 + 1.96 * 0.95), abs=0.03)


@pytest.mark.parametrize(("lost", "gained", "total"), [(0, 0, 2000), (3, 1, 50), (40, 12, 2000)])
def test_the_interval_adds_half_a_question_to_every_cell(lost: int, gained: int, total: int) -> None:
    both = total - lost - gained
    cells = np.array([both / 2, lost, gained, both / 2]) + 0.5
    share = cells / cells.sum()
    variance = (share[1] + share[2] - (share[1] - share[2]) ** 2) / cells.sum()
    middle, spread = share[1] - share[2], 1.959964 * math.sqrt(variance)
    drop = paired_difference(lost, gained, total)
    assert (drop.low, drop.high) == pytest.approx((100 * (middle - spread), 100 * (middle + spread)), rel=1e-6)
    assert drop.low < drop.points < drop.high


def test_the_rotation_of_a_table_is_found_and_rounding_is_not_taken_for_one() -> None:
    table = RNG.normal(size=(40, 8)).astype(np.float32)
    rotation = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    assert rotation_between(table, table.astype(np.float16)) is None
    assert rotation_between(table, (table @ rotation).astype(np.float16)) == pytest.approx(rotation, abs=1e-3)


def _engine(*, lost: int = 0, agreeing: int = 100, films: bool = True) -> EngineAccuracy:
    drop = paired_difference(lost, 0, 200)
    return EngineAccuracy(
        backend="onnxruntime",
        computed={"video_encoder": "fp32 on ONNX Runtime CPU", "decoder": "fp32 on ONNX Runtime CPU"},
        video=VideoScore(num_tokens=8, cosine_mean=1.0, cosine_min=0.9),
        answers=AnswerScore(
            num_tokens=100,
            tokens_agreeing=agreeing,
            kl_mean=0.1,
            kl_p99=0.2,
            kl_max=0.3,
            num_answers=10,
            answers_agreeing=9,
        ),
        films=FilmScore(num_questions=200, reference=0.9, graphs=0.9 - lost / 200, drop=drop) if films else None,
        data=DataRecord(num_clips=50, num_prompts=200, split="test", seeds=(0, 1)),
        data_sha256="0" * 64,
        max_answer_tokens=16,
        command=None,
        versions={"blip3v": "0"},
        seconds=1.0,
    )


def _formats(**changes: object) -> LayerFormats:
    formats = LayerFormats(
        graph="decoder",
        weights="int8-block",
        group_size=128,
        padded=False,
        num_layers=11,
        computed={"onnxruntime": "int8 on ONNX Runtime CPU"},
    )
    return dataclasses.replace(formats, **changes)  # type: ignore[arg-type]


def _report(engine: EngineAccuracy, **changes: object) -> AccuracyReport:
    errors = [
        LayerError(
            name=f"layer.{i}",
            graph="decoder",
            node=f"/layers.{i}/MatMul",
            weights="int8",
            relative_error=i / 100,
            computed={},
        )
        for i in range(12)
    ]
    report = AccuracyReport(
        precision="int8",
        reference="tiny",
        budget="exact match",
        max_accuracy_drop=1.0,
        sizes=Sizes(graphs={"decoder": 1}, bundle=2, fp32_graphs={"decoder": 4}, fp32_bundle=8),
        tensorrt={"decoder": True},
        layers=LayerCounts(asked=14, quantized=12, kept=2),
        formats=(_formats(), _formats(group_size=16, padded=True, num_layers=1)),
        worst_layers=worst_layers(errors),
        engines=(engine,),
        unavailable={},
    )
    return dataclasses.replace(report, **changes)  # type: ignore[arg-type]


def test_over_budget_the_error_says_by_how_much_and_names_the_ten_worst_layers() -> None:
    _report(_engine(lost=2)).check()  # one point is allowed
    with pytest.raises(
        ParityError, match=r"1\.50 points of exact match .* on onnxruntime; allowed: 1 points"
    ) as raised:
        _report(_engine(lost=3)).check()
    assert "worst layers: decoder:/layers.11/MatMul (int8, error 11.0%), decoder:/layers.10/" in raised.value.message
    assert "layers.2/" in raised.value.message
    assert "layers.1/" not in raised.value.message


def test_without_true_answers_the_budget_is_for_tokens_and_random_weights_have_none() -> None:
    engine = _engine(agreeing=98, films=False)
    with pytest.raises(ParityError, match=r"2\.00 % of 100 tokens differ"):
        _report(engine, budget="tokens").check()
    _report(engine, budget="tokens", max_accuracy_drop=2.0).check()
    _report(engine, budget=None).check()


def test_a_report_comes_back_and_keeps_what_a_later_one_does_not_measure(tmp_path: Path) -> None:
    old = _report(_engine(lost=1))
    save_report(old, tmp_path)
    assert load_report(tmp_path) == old
    other = dataclasses.replace(_engine(), backend="openvino")
    later = _report(other, layers=None, worst_layers=(), max_accuracy_drop=5.0).merged(old)
    assert [engine.backend for engine in later.engines] == ["onnxruntime", "openvino"]
    assert (later.layers, later.worst_layers, later.max_accuracy_drop) == (old.layers, old.worst_layers, 1.0)
    assert later.formats == old.formats
    assert _report(other, precision="int4").merged(old).engines == (other,)
    assert load_report(tmp_path / "nowhere") is None


def test_formats_keep_what_the_engines_of_an_earlier_report_compute_them_in() -> None:
    old, other = _report(_engine()), dataclasses.replace(_engine(), backend="openvino")
    formats = (_formats(computed={"openvino": "int8 on OpenVINO CPU"}), _formats(group_size=64, computed={}))
    merged = _report(other, formats=formats).merged(old).formats
    assert merged[0].computed == {"onnxruntime": "int8 on ONNX Runtime CPU", "openvino": "int8 on OpenVINO CPU"}
    assert merged[1].computed == {}


def test_a_report_of_another_schema_version_is_as_good_as_none(tmp_path: Path) -> None:
    """It can be measured again, and its errors of layers were another measure."""
    path = save_report(_report(_engine()), tmp_path)
    values = json.loads(path.read_text())
    assert values["schema_version"] == 2
    path.write_text(json.dumps(values | {"schema_version": 1}))
    assert load_report(tmp_path) is None


def test_the_screen_shows_how_all_layers_are_stored_and_computed() -> None:
    """Formats and engines stood there for the ten worst layers alone, and a smaller group nowhere."""
    text = io.StringIO()
    print_accuracy(_report(_engine()), Console(file=text, width=200))
    [title] = [n for n, line in enumerate(text.getvalue().splitlines()) if "all linear layers" in line]
    rows = [" ".join(line.split()) for line in text.getvalue().splitlines()[title + 4 : title + 6]]
    assert rows == [
        "decoder 11 int8-block 128 int8 on ONNX Runtime CPU",
        "decoder 1 int8-block 16, the last ones padded int8 on ONNX Runtime CPU",
    ]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ('[{"task": "instructions", "num_films": 9}]', True),
        ('[{"task": "instructions", "num_films": 9}, {"task": "instructions", "num_films": 0}]', False),
        ('[{"task": "video-captions", "num_films": 9}]', False),
        ("[]", False),
    ],
    ids=["films", "fine-tuned on own clips", "captions", "no stages"],
)
def test_a_model_of_films_is_one_whose_last_stage_learned_answers_about_them(
    tmp_path: Path, stages: str, expected: bool
) -> None:
    assert not answers_films(tmp_path)
    (tmp_path / "training.json").write_text(f'{{"recipe": {{"stages": {stages}}}}}')
    assert answers_films(tmp_path) == expected


@pytest.mark.parametrize("encoder", ["gttm", "none", "tokenlearner"])
def test_the_shipped_models_are_models_of_films(encoder: str) -> None:
    assert answers_films(shipped_model(encoder))


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 to 100 is allowed"):
        AccuracyOptions(max_drop=-1)
    with pytest.raises(UsageError, match="leave one out"):
        AccuracyOptions(data=tmp_path, num_questions=4)
