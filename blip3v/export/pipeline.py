"""The whole export: two graphs, checked one after the other, and everything else that a bundle holds."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

import blip3v
from blip3v import _strict
from blip3v.bundle import (
    BundleWriter,
    GraphEntry,
    KVGeometry,
    Limits,
    Manifest,
    MemoryEstimate,
    WeightCount,
    decoder_io,
    render_card,
    video_encoder_io,
    write_embeddings,
)
from blip3v.bundle.manifest import DTYPES, Precision
from blip3v.config import ModelConfig
from blip3v.errors import UsageError
from blip3v.export.activations import decoder_ranges, video_encoder_ranges
from blip3v.export.clip import film_clip, film_prompt
from blip3v.export.estimate import peak_rss_bytes
from blip3v.export.parity import FP16_LARGEST, TOLERANCES, ActivationRanges, ParityReport
from blip3v.export.parity_run import (
    NUM_STEPS,
    DecoderCheck,
    VideoCheck,
    check_decoder,
    check_video_encoder,
    embedding_table,
)
from blip3v.export.passes import weight_counts
from blip3v.export.source import ExportSource
from blip3v.export.to_onnx import OPSET, decoder_to_onnx, save_graph, video_encoder_to_onnx
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.language import LanguageModel
from blip3v.runtime.ort import load_onnxruntime
from blip3v.text.prompt import Prompt, splice
from blip3v.text.tokenizer import Tokenizer

__all__ = ["ExportResult", "export_bundle"]

_TOOLS = ("torch", "transformers", "onnx-ir", "onnxscript")

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A bundle that was made."""

    path: Path
    manifest: Manifest  # without the file hashes, which the writer adds
    parity: ParityReport | None  # None: not checked
    size_bytes: int
    seconds: float
    peak_rss_bytes: int | None


def export_bundle(
    source: ExportSource,
    output: Path,
    *,
    precision: Precision = "fp32",
    check: bool = True,
    force: bool = False,
    progress: Progress = lambda stage: None,
    on_parity: Callable[[ParityReport], None] = lambda report: None,
) -> ExportResult:
    """Makes a bundle for ONNX Runtime.

    Args:
        source: weights, config, tokenizer and the rest.
        output: the folder to make.
        precision: of the stored weights.
        check: whether the graphs are compared with PyTorch; a miss leaves no bundle.
        force: whether a bundle that is there gives way.
        progress: called with the name of each stage as it begins.
        on_parity: called with the parity report, whether it passed or not.

    Raises:
        UsageError: the folder exists, or the prompt of the check does not fit the model's context.
        ArtifactError: the weights cannot be used, or the bundle cannot be written.
        ExportError: torch cannot make a graph.
        ParityError: a graph does not match PyTorch.
        ProviderError: the check needs ONNX Runtime, which is not installed.
    """
    started = time.perf_counter()
    if check:
        load_onnxruntime()  # missing, it must show before minutes of work
    with BundleWriter(output, force=force) as writer:
        work = _Work(source, writer.path, precision, check, progress)
        report, weights = work.graphs()
        work.small_files(report)
        manifest = _manifest(source, precision, weights, report)
        (writer.path / "README.md").write_text(render_card(manifest), "utf-8")
        if report is not None:
            on_parity(report)
            report.check()
        progress("publish")
        path = writer.publish(manifest)
    return ExportResult(
        path=output,
        manifest=manifest,
        parity=report,
        size_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )


class _Work:
    """One export into a staging folder. A component's reference is let go before the next is exported."""

    def __init__(self, source: ExportSource, folder: Path, precision: Precision, check: bool, progress: Progress):
        self._source = source
        self._config = source.config
        self._folder = folder
        self._precision = precision
        self._check = check
        self._progress = progress
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(source.tokenizer_json))
        self._prompt = film_prompt(tokenizer, source.chat_template, source.generation)
        _check_fits(source.config, self._prompt)

    def graphs(self) -> tuple[ParityReport | None, dict[str, dict[str, WeightCount]]]:
        """Exports and checks both components; gives the report and the stored weights of each graph."""
        self._progress("load weights")
        model = self._source.load()
        video_weights, video, ranges, facts = self._video_encoder(model)
        language = model.lang_model
        del model  # and with it vision and resampler
        decoder_weights, decoder, more_ranges = self._decoder(language, video)
        weights = {"video_encoder": video_weights, "decoder": decoder_weights}
        if video is None or decoder is None:
            return None, weights
        ranges |= more_ranges
        report = ParityReport(
            precision=self._precision,
            tolerance=TOLERANCES[self._precision],
            clip={**facts, "reference_ids": list(decoder.reference_ids)},
            comparisons=(*video.comparisons, *decoder.comparisons),
            tokens=decoder.tokens,
            activations=ActivationRanges(limit=FP16_LARGEST, largest=max(ranges.values()), layers=ranges)
            if ranges
            else None,
        )
        return report, weights

    def small_files(self, report: ParityReport | None) -> None:
        """Everything but graphs, embeddings, manifest and card."""
        source, folder = self._source, self._folder
        source.config.save(folder / "config.json")
        source.preprocessor.save(folder / "preprocessor.json")
        source.generation.save(folder / "generation.json")
        (folder / "tokenizer.json").write_text(source.tokenizer_json, "utf-8")
        (folder / "chat_template.jinja").write_text(source.chat_template, "utf-8")
        if report is not None and report.passed:
            (folder / "reports" / "parity.json").write_text(_strict.dumps(report.to_dict()), "utf-8")

    def _video_encoder(
        self, model: Blip3Video
    ) -> tuple[dict[str, WeightCount], VideoCheck | None, dict[str, float], dict[str, Any]]:
        path = self._folder / "onnx" / "video_encoder.onnx"
        self._progress("export video encoder")
        graph = video_encoder_to_onnx(model, self._precision)
        save_graph(graph, path)
        weights = weight_counts(graph)
        if not self._check:
            return weights, None, {}, {}
        del graph
        self._progress("check video encoder")
        clip = film_clip(self._config.num_frames, self._source.preprocessor)
        video = check_video_encoder(path, model, clip.pixels_FCHW, self._precision)
        ranges = video_encoder_ranges(model, clip.pixels_FCHW) if self._precision == "fp16" else {}
        return weights, video, ranges, clip.facts

    def _decoder(
        self, language: LanguageModel, video: VideoCheck | None
    ) -> tuple[dict[str, WeightCount], DecoderCheck | None, dict[str, float]]:
        path = self._folder / "onnx" / "decoder.onnx"
        self._progress("export decoder")
        graph = decoder_to_onnx(language, self._config, self._precision)
        save_graph(graph, path)
        weights = weight_counts(graph)
        table_VD = embedding_table(language)
        write_embeddings(self._folder / "embeddings.safetensors", table_VD.astype(DTYPES[self._precision]))
        if video is None:
            return weights, None, {}
        del graph
        self._progress("check decoder")
        prompt = self._prompt
        decoder = check_decoder(path, language, self._config, prompt, video, self._precision)
        if self._precision != "fp16":
            return weights, decoder, {}
        embeds_tD = splice(table_VD[prompt.ids], prompt.image_position, video.expected_MD)
        said_tD = table_VD[list(decoder.reference_ids)]
        return weights, decoder, decoder_ranges(language, self._config, np.concatenate((embeds_tD, said_tD)))


def _check_fits(config: ModelConfig, prompt: Prompt) -> None:
    needed = prompt.length(config.visual_tokens) + NUM_STEPS
    if needed > config.text.max_positions:
        raise UsageError(
            f"{config.visual_tokens} video tokens with a question and {NUM_STEPS} answer tokens are {needed}; the "
            f"context has {config.text.max_positions}; choose fewer frames or an encoder that gives fewer tokens"
        )


def _manifest(
    source: ExportSource,
    precision: Precision,
    weights: dict[str, dict[str, WeightCount]],
    report: ParityReport | None,
) -> Manifest:
    config = source.config
    stored = sum(count.size_bytes for counts in weights.values() for count in counts.values())
    return Manifest(
        created_by={"blip3v": blip3v.__version__, **{tool: importlib.metadata.version(tool) for tool in _TOOLS}},
        source=source.provenance,
        model=config.name,
        encoder=config.temporal.encoder,
        num_frames=config.num_frames,
        num_tokens=config.visual_tokens,
        precision=precision,
        target="onnxruntime",
        opset=OPSET,
        graphs={
            "video_encoder": GraphEntry.of("video_encoder", video_encoder_io(config), precision),
            "decoder": GraphEntry.of("decoder", decoder_io(config), precision),
        },
        kv=KVGeometry.of(config, precision),
        limits=Limits(max_positions=config.text.max_positions),
        memory=MemoryEstimate.of(stored, precision),
        weights=weights,
        parity=None if report is None else report.summary(),
    )
