"""The shipped model in integers: exported, proven layer by layer, and answering as in fp32, on both engines."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch import Tensor

from blip3v.bundle import Precision, open_bundle
from blip3v.calibration import plan as plan_module
from blip3v.calibration.collect import calibrate
from blip3v.calibration.data import film_clips
from blip3v.calibration.options import RecipeOptions
from blip3v.calibration.quantized import QuantizedMatrix
from blip3v.calibration.statistics import Calibration
from blip3v.commands.inspect import command as inspect
from blip3v.errors import ArtifactMissingError, CalibrationError, ExportError, ParityError, ProviderError, UsageError
from blip3v.export import export_bundle
from blip3v.export.accuracy import AccuracyReport, load_report
from blip3v.export.accuracy_run import AccuracyOptions, measure_accuracy
from blip3v.export.block_values import channel_scales, int8_values, unpacked
from blip3v.export.packed_graphs import build_prompt_weights
from blip3v.export.pipeline import ExportResult
from blip3v.export.quantization import QuantizationOptions
from blip3v.export.source import ExportSource, resolve_source
from blip3v.export.stored_layers import read_layers
from blip3v.export.to_onnx import layer_names
from blip3v.runtime import VideoLM
from blip3v.runtime.opening import graph_files
from blip3v.tuning.candidates import variants

BACKENDS = ("onnxruntime", "openvino")
PAIR = "decoder=onnxruntime:cpu-int8+onnxruntime"
CLIP = Path(__file__).parents[2] / "examples" / "turn.mp4"


@pytest.fixture(scope="module")
def source() -> ExportSource:
    return resolve_source()


@pytest.fixture(scope="module")
def calibration(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    samples = film_clips(source, num_clips=12, prompts_per_clip=2)
    folder = tmp_path_factory.mktemp("calibrated") / "calibration"
    return calibrate(folder, source, source.hashed_provenance(), samples)


def options(calibration: Calibration, *, backends: tuple[str, ...] = BACKENDS, **recipe: object) -> QuantizationOptions:
    return QuantizationOptions(
        calibration=calibration.path,
        recipe=RecipeOptions(**recipe),  # type: ignore[arg-type]
        accuracy=AccuracyOptions(num_questions=24, backends=backends, max_drop=5),
    )


@pytest.fixture(scope="module", params=["int8", "int4"])
def exported(
    request: pytest.FixtureRequest,
    source: ExportSource,
    calibration: Calibration,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportResult:
    precision = Precision.parse(request.param)
    folder = tmp_path_factory.mktemp("exported") / request.param
    return export_bundle(source, folder, precision=precision, quantization=options(calibration))


def test_a_model_in_integers_answers_as_in_fp32_on_both_engines(exported: ExportResult) -> None:
    report = exported.accuracy
    assert report is not None
    assert report.passed
    assert [engine.backend for engine in report.engines] == list(BACKENDS)
    for engine in report.engines:
        assert engine.answers.tokens_agreeing / engine.answers.num_tokens > 0.96
        assert engine.video.cosine_mean > 0.999
        assert engine.films is not None
        assert engine.films.num_questions == 24
    assert load_report(exported.path) == report
    for backend in BACKENDS:
        with VideoLM.open(exported.path, backend=backend) as model:
            assert model.ask(CLIP, "Which way does the red circle turn?").text == "up then right"


def test_every_layer_is_counted_and_measured(exported: ExportResult) -> None:
    report = exported.accuracy
    assert report is not None
    assert report.layers is not None
    # 4 vision layers, the feed-forward parts of 2 resampler layers, 6 decoder layers, and the head.
    assert (report.layers.asked, report.layers.quantized) == (4 * 6 + 2 * 2 + 6 * 4 + 1,) * 2
    # The widths are no multiples of 128, so groups are smaller, and those OpenVINO computes in fp32.
    assert sum(kind.num_layers for kind in report.formats) == report.layers.quantized + report.layers.kept
    for kind in report.formats:
        blocks = kind.group_size is not None
        assert kind.weights.endswith("-block") == blocks
        assert not blocks or kind.computed["openvino"].startswith("fp32") == (kind.group_size != 128)
    assert len(report.worst_layers) == 10
    assert all(0 < layer.relative_error < 0.5 for layer in report.worst_layers)


def test_the_manifest_says_how_it_was_made(exported: ExportResult, source: ExportSource) -> None:
    manifest = open_bundle(exported.path).manifest
    assert manifest.precision == Precision.parse(manifest.precision.name)
    assert manifest.parity is None
    assert manifest.calibration is not None
    assert manifest.calibration["recipe"] == dataclasses.asdict(RecipeOptions())
    assert len(manifest.calibration["data"]["seeds"]) == 12
    assert exported.accuracy is not None
    sizes = exported.accuracy.sizes
    assert sum(sizes.graphs.values()) < 0.4 * sum(sizes.fp32_graphs.values())


def test_blocks_have_weights_for_prompts_and_int8_needs_none(exported: ExportResult, source: ExportSource) -> None:
    precision = open_bundle(exported.path).manifest.precision
    if precision.name == "int8":
        with pytest.raises(
            UsageError, match=r"decoder in int8, .* int8 reads prompts in int8 already; leave `prompt_w"
        ):
            build_prompt_weights(exported.path)
        with pytest.raises(ProviderError, match="does not run decoders in int8, which onnxruntime multiplies as int8"):
            VideoLM.open(exported.path, backend=PAIR)
        return
    with pytest.raises(ArtifactMissingError, match=r"run `blip3v build .*int4` with `library='onnxruntime'` and `p"):
        VideoLM.open(exported.path, backend=PAIR)
    graph = graph_files(open_bundle(exported.path))["decoder"]
    errors = dict(_errors_of_int8(graph.path, source))
    assert len(errors) == 6 * 4
    assert max(errors.values()) < 0.01, errors
    built = build_prompt_weights(exported.path)
    assert built.is_new
    assert not build_prompt_weights(exported.path).is_new
    small = AccuracyOptions(num_questions=24, backends=(PAIR,), max_drop=5)
    report = measure_accuracy(source, exported.path, precision, small)
    assert report.passed
    assert exported.accuracy is not None
    plain = exported.accuracy.engines[0].answers
    assert report.engines[0].answers.tokens_agreeing >= plain.tokens_agreeing - 0.02 * plain.num_tokens
    with VideoLM.open(exported.path, backend=PAIR, threads=1) as model:
        answer = model.ask(CLIP, "Which way does the red circle turn?")
    assert answer.text == "up then right"
    assert str(answer.backend.decoder) == "int8 (prompts) + int8 by int4 (steps) on ONNX Runtime CPU"
    shown = CliRunner().invoke(inspect, [str(exported.path)], catch_exceptions=False).stdout
    assert "weights for prompts" in shown
    assert candidate_names(exported.path).count("onnxruntime:cpu-int8") == 1
    shutil.rmtree(exported.path / "engines")
    assert "onnxruntime:cpu-int8" not in candidate_names(exported.path)


def candidate_names(bundle: Path) -> list[str]:
    """What ``blip3v tune`` would try for the decoder."""
    return [candidate.backend for candidate in variants(open_bundle(bundle), "decoder")]


def _errors_of_int8(path: Path, source: ExportSource) -> Iterator[tuple[str, float]]:
    """How far each matrix in 4-bit blocks moves when it becomes int8: the norm of the difference over its own."""
    for layer in read_layers(path, layer_names(source.config)["decoder"]):
        if layer.weights == "int4-block":
            assert layer.scales is not None
            values, scales_Ng = layer.values.numpy(), layer.scales.numpy()
            scales_N = channel_scales(values, scales_Ng, 4)
            new_NK = int8_values(values, scales_Ng, 4, scales_N, layer.num_inputs).T * scales_N[:, None]
            blocks_NgS = unpacked(values, 4) * scales_Ng[:, :, None]
            old_NK = blocks_NgS.reshape(len(values), -1)[:, : layer.num_inputs]
            yield layer.layer, float(np.linalg.norm(new_NK - old_NK) / np.linalg.norm(old_NK))


def test_a_broken_layer_is_caught_and_named(
    source: ExportSource, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale off by a factor of 8 in one of 25 layers: the report fails, and blames that layer."""
    broken, pattern = "lang_model.model.layers.2.mlp.down_proj", "decoder:/layers.2.down_proj/MatMul"
    real = plan_module._Recipe.quantize

    def quantize(self: object, layer: str, weight_NK: Tensor, **how: object) -> QuantizedMatrix:
        matrix = real(self, layer, weight_NK, **how)  # type: ignore[arg-type]
        return dataclasses.replace(matrix, scales_Ng=8 * matrix.scales_Ng) if layer == broken else matrix

    monkeypatch.setattr(plan_module._Recipe, "quantize", quantize)
    reports: list[AccuracyReport] = []
    with pytest.raises(ParityError, match=rf"lose too much: .* worst layers: {pattern} \(int8, error (699|70\d)\."):
        export_bundle(
            source,
            tmp_path / "bundle",
            precision=Precision.parse("video_encoder=fp16,decoder=int8"),
            quantization=options(calibration, backends=BACKENDS[:1]),
            on_accuracy=reports.append,
        )
    assert not (tmp_path / "bundle").exists()
    assert reports[0].worst_layers[0].name == broken


def test_a_layer_that_is_left_out_is_an_error(
    source: ExportSource, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in ONNX Runtime's own 4-bit quantiser, which passes over a Gemm without a word."""
    from blip3v.export import lazy_initializers

    real = lazy_initializers._is_matrix
    monkeypatch.setattr(lazy_initializers, "_is_matrix", lambda value: value.name != "lm_head" and real(value))
    with pytest.raises(ExportError, match=r"1 of 25 layers .* lang_model.lm_head \(float32 instead of int8-block\)"):
        export_bundle(
            source,
            tmp_path / "bundle",
            precision=Precision.parse("video_encoder=fp16,decoder=int4"),
            quantization=options(calibration, rounding="nearest", smoothing=False),
        )


def test_what_cannot_be_quantised_as_asked_is_refused(
    source: ExportSource, calibration: Calibration, tmp_path: Path
) -> None:
    def export(source: ExportSource, precision: str, options: QuantizationOptions | None) -> None:
        export_bundle(source, tmp_path / "bundle", precision=Precision.parse(precision), quantization=options)

    with pytest.raises(UsageError, match="precision fp16 is not quantised"):
        export(source, "fp16", options(calibration))
    with pytest.raises(
        CalibrationError, match="was made of another model, tiny-tokenlearner, not of this one, tiny-gttm"
    ):
        export(resolve_source(encoder="gttm"), "int8", options(calibration))
    with pytest.raises(UsageError, match=r"precision mixed .*the sensitivity scan of `blip3v calibrate`"):
        export(source, "mixed", None)
    # Before a calibration is made, which takes long.
    with pytest.raises(UsageError, match="int8 cache cannot be combined with"):
        export(source, "int8+kv-int8", QuantizationOptions(recipe=RecipeOptions(rotation=True)))
    with pytest.raises(CalibrationError, match="nowhere"):
        export(source, "int8", QuantizationOptions(accuracy=AccuracyOptions(data=tmp_path / "nowhere")))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_in_half_precision_beside_a_quantised_one_is_scanned_with_the_calibration(
    source: ExportSource, calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clip alone decided whether it overflows, although many had been seen."""
    seen: list[object] = []

    def stop(*_: object, statistics: object, **__: object) -> None:
        seen.append(statistics)
        raise ExportError("enough")

    monkeypatch.setattr("blip3v.export.pipeline.choose_islands", stop)
    with pytest.raises(ExportError, match="enough"):
        export_bundle(
            source,
            tmp_path / "bundle",
            precision=Precision.parse("video_encoder=fp16,decoder=int8"),
            quantization=options(calibration),
        )
    assert isinstance(seen[0], Calibration)


def test_a_rotated_model_computes_the_same(source: ExportSource, calibration: Calibration, tmp_path: Path) -> None:
    precision = Precision.parse("video_encoder=fp16,decoder=int8-weight")
    result = export_bundle(
        source,
        tmp_path / "bundle",
        precision=precision,
        quantization=options(calibration, backends=BACKENDS[:1], rotation=True),
    )
    assert result.accuracy is not None
    assert result.accuracy.engines[0].answers.kl_mean < 1e-3
