"""The whole export: two graphs, checked one after the other, and everything else in a bundle."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import blip3v
from blip3v import strict_json
from blip3v.bundle import (
    BundleWriter,
    GraphEntry,
    KVGeometry,
    Limits,
    Manifest,
    Precision,
    Source,
    WeightCount,
    decoder_io,
    render_card,
    video_encoder_io,
    write_embeddings,
)
from blip3v.bundle.precision import DEFAULT_PRECISION
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.config import ModelConfig
from blip3v.errors import ExportError, UsageError
from blip3v.export.accuracy import AccuracyReport, save_report
from blip3v.export.accuracy_run import runnable_backends
from blip3v.export.cache_scales import prompt_cache_scales
from blip3v.export.clip import ParityClip, film_clip, film_prompt
from blip3v.export.decoder_graph import CacheScales
from blip3v.export.estimate import estimate
from blip3v.export.islands import choose_islands
from blip3v.export.parity import PARITY_BACKEND, ActivationRanges, ParityReport, tolerances
from blip3v.export.parity_decoder import NUM_STEPS, DecoderCheck, check_decoder
from blip3v.export.parity_video import VideoCheck, check_video_encoder
from blip3v.export.passes import weight_counts
from blip3v.export.quantization import Quantization, QuantizationOptions, open_quantization
from blip3v.export.source import ExportSource
from blip3v.export.tensorrt_operators import check_tensorrt_operators
from blip3v.export.to_onnx import OPSETS, decoder_to_onnx, save_graph, video_encoder_to_onnx
from blip3v.export.weight_check import check_weights
from blip3v.model.language import embedding_table
from blip3v.runtime.backends import get_backend, stored_and_computed
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.text.prompt import Prompt, splice
from blip3v.text.tokenizer import Tokenizer

__all__ = ["ExportResult", "Progress", "export_bundle"]

_DEFAULT = Precision.parse(DEFAULT_PRECISION)
_TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript")


class Progress(Protocol):
    """Reports the progress of an export."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Called when a stage begins, and when ``done`` of its ``total`` parts are done."""


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The bundle that an export wrote."""

    path: Path
    manifest: Manifest  # without the file hashes, which the writer adds
    parity: ParityReport | None  # None: not checked, or quantised
    accuracy: AccuracyReport | None  # None: not measured, or not quantised
    size_bytes: int
    seconds: float
    peak_rss_bytes: int | None


def export_bundle(
    source: ExportSource,
    output: Path,
    *,
    precision: Precision = _DEFAULT,
    target: Target = DEFAULT_TARGET,
    quantization: QuantizationOptions | None = None,
    cache_scales: CacheScales | None = None,
    clip: ParityClip | None = None,
    check: bool = True,
    force: bool = False,
    progress: Progress = _silent,
    on_parity: Callable[[ParityReport], None] = lambda report: None,
    on_accuracy: Callable[[AccuracyReport], None] = lambda report: None,
    on_islands: Callable[[Mapping[str, float]], None] = lambda peaks: None,
) -> ExportResult:
    """Exports a bundle.

    Args:
        source: weights, config, tokenizer and the rest.
        output: the folder to create.
        precision: of each graph; fp16 unless given.
        target: the form of the graphs, and so what engines run them.
        quantization: how to quantise; None: the defaults. Only for a precision in integers.
        cache_scales: of a cache in int8, from calibration; None: taken from the calibration of a quantised precision,
            or from the prompt of the check.
        clip: what the graphs are compared on and half precision is chosen by; None: a film, written to a file and
            decoded like a user's, which needs PyAV.
        check: whether to compare the graphs with PyTorch; a mismatch leaves no bundle, nor does a quantised graph that
            loses more than ``quantization.accuracy`` allows.
        force: whether to replace an existing bundle.
        progress: called at each stage.
        on_parity: called with the parity report, passed or not.
        on_accuracy: called with the accuracy report of a quantised model, within its budget or not.
        on_islands: called with the largest value of each fp32 island that activations of half precision needed.

    Raises:
        UsageError: the folder exists, the target cannot have the precision, the prompt of the check does not fit the
            model's context, ``quantization`` is given for a precision in floating point, or a cache in int8 has no
            scales and nothing to take them from.
        CalibrationError: the calibration cannot be used, or none can be made.
        OutOfMemoryError: the estimate exceeds the free memory; nothing was started.
        ArtifactError: the disk has no space, the weights cannot be used, or the bundle cannot be written.
        ExportError: the weights do not fit ``precision``, torch cannot make a graph, or TensorRT cannot compute one.
        ParityError: a graph does not match PyTorch, or loses too much accuracy.
        ProviderError: the check needs ONNX Runtime, which is not installed.
    """
    started = time.perf_counter()
    precision = for_target(precision, target)
    _check_options(precision, quantization, cache_scales, check=check)
    if check:
        get_backend(PARITY_BACKEND).check_installed()  # if it is missing, fail before minutes of work
        if precision.is_quantized:
            runnable_backends((quantization or QuantizationOptions()).accuracy.backends, target)
    estimate(source.config, precision, check=check).require(output)
    with BundleWriter(output, force=force) as writer, ExitStack() as stack:
        if not source.provenance.random_init:  # generated weights are right, and take time to generate
            check_weights(source.weights, source.config, precision, partial(progress, "check the weights"))
        quantized = None
        if precision.is_quantized:
            options = quantization or QuantizationOptions()
            quantized = stack.enter_context(open_quantization(source, precision, options, progress, target))
            precision = quantized.precision
            cache_scales = cache_scales or quantized.cache_scales()
        check_parity = check and quantized is None
        job = _Job(source, writer.path, precision, target, quantized, cache_scales, clip, check_parity, progress)
        precision = job.choose_islands(on_islands)
        report, weights = job.graphs()
        job.small_files(report)
        accuracy = None if quantized is None else _measured(quantized, writer.path, check, on_accuracy)
        if source.hashed_files:
            progress("hash the checkpoint")
        record = None if quantized is None else quantized.record()
        manifest = _manifest(source, source.hashed_provenance(), precision, target, weights, report, record)
        (writer.path / "README.md").write_text(render_card(manifest, stored_and_computed(precision, target)), "utf-8")
        if report is not None:
            on_parity(report)
            report.check()
        progress("publish")
        path = writer.publish(manifest)
    return ExportResult(
        path=output,
        manifest=manifest,
        parity=report,
        accuracy=accuracy,
        size_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )


def _check_options(
    precision: Precision,
    quantization: QuantizationOptions | None,
    cache_scales: CacheScales | None,
    *,
    check: bool,
) -> None:
    if quantization is not None and not precision.is_quantized:
        raise UsageError(
            f"precision {precision.name} is not quantised; leave the options of quantisation out, or choose int8 or "
            "int4"
        )
    in_int8 = precision.decoder.cache == "int8"
    if cache_scales is not None and not in_int8:
        raise UsageError(
            f"cache_scales has no effect: the cache of {precision} is {precision.decoder.cache}",
            remedy="choose a precision such as `precision='fp16+kv-int8'`",
        )
    if in_int8 and cache_scales is None and not check and not precision.is_quantized:
        raise UsageError(
            f"the precision {precision} needs the scales of its cache, which are taken from the clip of the check",
            remedy="leave `check=False` out, or choose another cache",
        )


def _measured(
    quantized: Quantization, folder: Path, check: bool, on_accuracy: Callable[[AccuracyReport], None]
) -> AccuracyReport | None:
    """Checks how the layers are stored and, if ``check``, what the graphs lose; writes the report."""
    stored = quantized.check_layers(folder)
    if not check:
        return None
    report = quantized.accuracy(folder, stored)
    on_accuracy(report)
    report.check()
    save_report(report, folder)
    return report


class _Job:
    """One export into a staging folder, one component at a time; weights are read when they are used."""

    def __init__(
        self,
        source: ExportSource,
        folder: Path,
        precision: Precision,
        target: Target,
        quantized: Quantization | None,
        cache_scales: CacheScales | None,
        clip: ParityClip | None,
        check: bool,
        progress: Progress,
    ) -> None:
        self._given_clip = clip
        self._quantized = quantized
        self._plan = None if quantized is None else quantized.plan
        self._source = source
        self._config = source.config
        self._folder = folder
        self._precision = precision
        self._target = target
        self._cache_scales = cache_scales
        self._check = check
        self._progress = progress
        tokenizer = Tokenizer.parse(source.tokenizer_json)
        self._prompt = film_prompt(tokenizer, source.chat_template, source.generation)
        _check_fits(source.config, self._prompt)

    @cached_property
    def _clip(self) -> ParityClip:
        return self._given_clip or film_clip(self._config.num_frames, self._source.preprocessor)

    def choose_islands(self, on_islands: Callable[[Mapping[str, float]], None]) -> Precision:
        """Adds the islands that the clip and the prompt need to the precision, and returns it."""
        self._precision, peaks = choose_islands(
            self._precision,
            self._config,
            self._source.weights,
            lambda: self._clip.pixels_FCHW,
            self._prompt,
            statistics=None if self._quantized is None else self._quantized.calibration,
            progress=partial(self._progress, "scan the activations"),
        )
        on_islands(peaks)
        return self._precision

    def graphs(self) -> tuple[ParityReport | None, dict[str, dict[str, WeightCount]]]:
        """Exports and checks both components; returns the report and the stored weights of each graph."""
        video_weights, video, facts = self._video_encoder()
        decoder_weights, decoder = self._decoder(video)
        weights = {"video_encoder": video_weights, "decoder": decoder_weights}
        if video is None or decoder is None:
            return None, weights
        report = ParityReport(
            precision=self._precision.name,
            tolerances=tolerances(self._precision),
            clip={**facts, "token_ids": list(decoder.token_ids)},
            comparisons=(*video.comparisons, *decoder.comparisons),
            tokens=decoder.tokens,
            activations=self._activations(video.ranges | decoder.ranges),
        )
        return report, weights

    def _activations(self, ranges: dict[str, float]) -> ActivationRanges | None:
        limits = [spec.activation_limit for spec in self._precision.graphs.values()]
        known = [limit for limit in limits if limit is not None]
        return ActivationRanges(limit=min(known), largest=max(ranges.values()), layers=ranges) if known else None

    def small_files(self, report: ParityReport | None) -> None:
        """Writes everything but graphs, embeddings, manifest and card."""
        source, folder = self._source, self._folder
        source.config.save(folder / "config.json")
        source.preprocessor.save(folder / "preprocessor.json")
        source.generation.save(folder / "generation.json")
        (folder / "tokenizer.json").write_text(source.tokenizer_json, "utf-8")
        (folder / "chat_template.jinja").write_text(source.chat_template, "utf-8")
        if report is not None and report.passed:
            (folder / "reports" / "parity.json").write_text(strict_json.dumps(report.to_dict()), "utf-8")

    def _video_encoder(self) -> tuple[dict[str, WeightCount], VideoCheck | None, dict[str, Any]]:
        config, weights, precision = self._config, self._source.weights, self._precision.video_encoder
        path = self._folder / "onnx" / "video_encoder.onnx"
        self._choose_scales("video_encoder")
        make = partial(video_encoder_to_onnx, config, weights, precision, self._plan, target=self._target)
        counts = self._write("video encoder", path, make)
        if not self._check:
            return counts, None, {}
        self._progress("check video encoder")
        pixels = self._clip.pixels_FCHW
        video = check_video_encoder(path, config, weights, pixels, precision, target=self._target)
        return counts, video, self._clip.facts

    def _decoder(self, video: VideoCheck | None) -> tuple[dict[str, WeightCount], DecoderCheck | None]:
        config, weights, precision = self._config, self._source.weights, self._precision.decoder
        path = self._folder / "onnx" / "decoder.onnx"
        fp32_table_VD: NDArray[np.float32] = embedding_table(weights, config.text).numpy()
        scales = self._scales(fp32_table_VD, video)
        self._choose_scales("decoder")
        make = partial(
            decoder_to_onnx, config, weights, precision, self._plan, cache_scales=scales, target=self._target
        )
        counts = self._write("decoder", path, make)
        write_embeddings(self._folder / "embeddings.safetensors", fp32_table_VD.astype(precision.embeddings))
        del fp32_table_VD
        if video is None:
            return counts, None
        self._progress("check decoder")
        stage = partial(self._progress, "check decoder: layers of the reference")
        tolerance = tolerances(self._precision)["decoder"]
        checked = check_decoder(
            path, config, weights, self._prompt, video, precision, tolerance, stage, target=self._target
        )
        return counts, checked

    def _scales(self, table_VD: NDArray[np.float32], video: VideoCheck | None) -> CacheScales | None:
        """Returns the scales of a cache in int8; None for any other cache."""
        if self._precision.decoder.cache != "int8" or self._cache_scales is not None:
            return self._cache_scales
        assert video is not None, "without scales there is a check"
        prompt_tD = splice(table_VD[list(self._prompt.ids)], self._prompt.image_position, video.expected_MD)
        stage = partial(self._progress, "calibrate the KV cache")
        return prompt_cache_scales(self._config.text, self._source.weights, prompt_tD, stage)

    def _choose_scales(self, graph: str) -> None:
        if self._quantized is not None:
            self._quantized.choose_scales(graph)

    def _write(self, name: str, path: Path, make: Callable[[], ir.Model]) -> dict[str, WeightCount]:
        """Traces a component and writes it; returns its stored weights."""
        self._progress(f"export {name}")
        graph = make()
        save_graph(graph, path, partial(self._progress, f"write {name}"))
        if is_tensorrt(self._target):
            _check_operators(path, self._target)
        return weight_counts(graph)


def _check_operators(path: Path, target: Target) -> None:
    """A graph that TensorRT's parser accepts may still not be computed as it says, so its documentation decides."""
    violations = check_tensorrt_operators(path, target).violations
    if violations:
        more = f" (and {len(violations) - 1} more places)" if len(violations) > 1 else ""
        raise ExportError(f"{path.name} does not suit the target {target}: {violations[0]}{more}")


def _check_fits(config: ModelConfig, prompt: Prompt) -> None:
    needed = prompt.length(config.num_video_tokens) + NUM_STEPS
    if needed > config.text.max_context:
        raise UsageError(
            f"{config.num_video_tokens} video tokens with a question and {NUM_STEPS} answer tokens are {needed}; the "
            f"context has {config.text.max_context}; choose fewer frames or an encoder with fewer tokens"
        )


def _manifest(
    source: ExportSource,
    provenance: Source,
    precision: Precision,
    target: Target,
    weights: dict[str, dict[str, WeightCount]],
    report: ParityReport | None,
    calibration: dict[str, Any] | None,
) -> Manifest:
    config = source.config
    return Manifest(
        created_by={"blip3v": blip3v.__version__, **{tool: importlib.metadata.version(tool) for tool in _TOOLS}},
        source=provenance,
        model=config.name,
        encoder=config.temporal.encoder,
        num_frames=config.num_frames,
        num_video_tokens=config.num_video_tokens,
        precision=precision,
        target=target,
        opset=OPSETS[target],
        graphs={
            "video_encoder": GraphEntry.of("video_encoder", video_encoder_io(config, target), precision.video_encoder),
            "decoder": GraphEntry.of("decoder", decoder_io(config, target), precision.decoder),
        },
        kv=KVGeometry.of(config, precision.decoder),
        limits=Limits(max_context=config.text.max_context),
        weights=weights,
        parity=None if report is None else report.summary(),
        calibration=calibration,
    )
