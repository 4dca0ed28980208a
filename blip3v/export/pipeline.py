"""The whole export: two graphs, checked one after the other, and everything else in a bundle."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

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
from blip3v.config import ModelConfig
from blip3v.errors import UsageError
from blip3v.export.accuracy import AccuracyReport, save_report
from blip3v.export.accuracy_run import AccuracyOptions, measure_accuracy, runnable_backends
from blip3v.export.clip import film_clip, film_prompt
from blip3v.export.estimate import estimate
from blip3v.export.parity import PARITY_BACKEND, ActivationRanges, ParityReport, tolerances
from blip3v.export.parity_decoder import NUM_STEPS, DecoderCheck, check_decoder
from blip3v.export.parity_video import VideoCheck, check_video_encoder
from blip3v.export.passes import weight_counts
from blip3v.export.source import ExportSource
from blip3v.export.to_onnx import OPSET, decoder_to_onnx, save_graph, video_encoder_to_onnx
from blip3v.export.weight_check import check_weights
from blip3v.model.language import embedding_table
from blip3v.runtime.backends import get_backend, stored_and_computed
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.text.prompt import Prompt
from blip3v.text.tokenizer import Tokenizer

__all__ = ["ExportResult", "Progress", "export_bundle"]

_DEFAULT = Precision.parse(DEFAULT_PRECISION)
_ACCURACY = AccuracyOptions()
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
    parity: ParityReport | None  # None: not checked
    accuracy: AccuracyReport | None  # None: not quantised, or not checked
    size_bytes: int
    seconds: float
    peak_rss_bytes: int | None


def export_bundle(
    source: ExportSource,
    output: Path,
    *,
    precision: Precision = _DEFAULT,
    check: bool = True,
    force: bool = False,
    accuracy: AccuracyOptions = _ACCURACY,
    progress: Progress = _silent,
    on_parity: Callable[[ParityReport], None] = lambda report: None,
    on_accuracy: Callable[[AccuracyReport], None] = lambda report: None,
) -> ExportResult:
    """Exports a bundle for ONNX Runtime.

    Args:
        source: weights, config, tokenizer and the rest.
        output: the folder to create.
        precision: of each graph; fp16 unless given.
        check: whether to compare the graphs with PyTorch; a mismatch leaves no bundle.
        force: whether to replace an existing bundle.
        accuracy: what is measured of a quantised model, and what it may lose; more than that leaves no bundle.
        progress: called at each stage.
        on_parity: called with the parity report, passed or not.
        on_accuracy: called with the accuracy report, within the budget or not.

    Raises:
        UsageError: the folder exists, or the prompt of the check does not fit the model's context.
        OutOfMemoryError: the estimate exceeds the free memory; nothing was started.
        ArtifactError: the disk has no space, the weights cannot be used, or the bundle cannot be written.
        ExportError: the weights do not fit ``precision``, or torch cannot make a graph.
        ParityError: a graph does not match PyTorch, or a quantised one loses more than ``accuracy`` allows.
        ProviderError: the check needs ONNX Runtime, which is not installed.
    """
    started = time.perf_counter()
    if check:
        get_backend(PARITY_BACKEND).check_installed()  # if it is missing, fail before minutes of work
    measured = check and _is_quantized(precision)
    if measured:
        runnable_backends(accuracy.backends)
    estimate(source.config, precision, check=check).require(output)
    with BundleWriter(output, force=force) as writer:
        if not source.provenance.random_init:  # generated weights are right, and take time to generate
            check_weights(source.weights, source.config, precision, partial(progress, "check the weights"))
        job = _Job(source, writer.path, precision, check, progress)
        report, weights = job.graphs()
        job.small_files(report)
        if source.hashed_files:
            progress("hash the checkpoint")
        manifest = _manifest(source, source.hashed_provenance(), precision, weights, report)
        (writer.path / "README.md").write_text(render_card(manifest, stored_and_computed(precision)), "utf-8")
        if report is not None:
            on_parity(report)
            report.check()
        found = measure_accuracy(source, writer.path, precision, accuracy, progress=progress) if measured else None
        if found is not None:
            on_accuracy(found)
            found.check()
            save_report(found, writer.path)
        progress("publish")
        path = writer.publish(manifest)
    return ExportResult(
        path=output,
        manifest=manifest,
        parity=report,
        accuracy=found,
        size_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )


class _Job:
    """One export into a staging folder, one component at a time; weights are read when they are used."""

    def __init__(self, source: ExportSource, folder: Path, precision: Precision, check: bool, progress: Progress):
        self._source = source
        self._config = source.config
        self._folder = folder
        self._precision = precision
        self._check = check
        self._progress = progress
        tokenizer = Tokenizer.parse(source.tokenizer_json)
        self._prompt = film_prompt(tokenizer, source.chat_template, source.generation)
        _check_fits(source.config, self._prompt)

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
        counts = self._write("video encoder", path, lambda: video_encoder_to_onnx(config, weights, precision))
        if not self._check:
            return counts, None, {}
        self._progress("check video encoder")
        clip = film_clip(config.num_frames, self._source.preprocessor)
        return counts, check_video_encoder(path, config, weights, clip.pixels_FCHW, precision), clip.facts

    def _decoder(self, video: VideoCheck | None) -> tuple[dict[str, WeightCount], DecoderCheck | None]:
        config, weights, precision = self._config, self._source.weights, self._precision.decoder
        path = self._folder / "onnx" / "decoder.onnx"
        counts = self._write("decoder", path, lambda: decoder_to_onnx(config, weights, precision))
        table_VD = embedding_table(weights, config.text).numpy().astype(precision.io)
        write_embeddings(self._folder / "embeddings.safetensors", table_VD)
        if video is None:
            return counts, None
        self._progress("check decoder")
        stage = partial(self._progress, "check decoder: layers of the reference")
        tolerance = tolerances(self._precision)["decoder"]
        return counts, check_decoder(path, config, weights, self._prompt, video, precision, tolerance, stage)

    def _write(self, name: str, path: Path, make: Callable[[], ir.Model]) -> dict[str, WeightCount]:
        """Traces a component and writes it; returns its stored weights."""
        self._progress(f"export {name}")
        graph = make()
        save_graph(graph, path, partial(self._progress, f"write {name}"))
        return weight_counts(graph)


def _is_quantized(precision: Precision) -> bool:
    return any(spec.is_quantized for spec in precision.graphs.values())


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
    weights: dict[str, dict[str, WeightCount]],
    report: ParityReport | None,
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
        target="onnxruntime",
        opset=OPSET,
        graphs={
            "video_encoder": GraphEntry.of("video_encoder", video_encoder_io(config), precision.video_encoder),
            "decoder": GraphEntry.of("decoder", decoder_io(config), precision.decoder),
        },
        kv=KVGeometry.of(config, precision.decoder),
        limits=Limits(max_context=config.text.max_context),
        weights=weights,
        parity=None if report is None else report.summary(),
    )
