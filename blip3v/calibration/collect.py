"""Runs the fp32 reference over a calibration set and samples what enters each linear layer.

One layer's weights are in memory at a time, and all clips or prompts pass through it before the next is read: what
they have become waits in a temporary file. So memory grows neither with the samples nor with the model's depth. The
resampler and the temporal encoder are one piece.
"""

# Shapes: F frames, P patches, M video tokens, S positions (prompt, video, answer), D width, V logits, H KV heads,
# K head width.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from blip3v.bundle.manifest import Source
from blip3v.calibration.data import AskedClip, ClipSet, ModelSource, check_set
from blip3v.calibration.layers import HEAD, linear_layers
from blip3v.calibration.record import SamplingSettings
from blip3v.calibration.sampling import RowSampler
from blip3v.calibration.spool import Spool
from blip3v.calibration.statistics import Calibration, LayerStatistics, new_calibration
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import CalibrationError
from blip3v.model.language import embedding_table
from blip3v.model.layerwise import one_layer
from blip3v.model.resampler import PerceiverResampler
from blip3v.model.vision import build_vision
from blip3v.model.weights import fill, state_shapes, without_weights
from blip3v.publishing import require_disk
from blip3v.runtime import memory
from blip3v.text.prompt import splice

__all__ = ["CollectProgress", "Sink", "calibrate", "collect"]

_DEFAULT = SamplingSettings()
# Python with torch, before any weight.
_BASE_BYTES = 600 * 2**20


class CollectProgress(Protocol):
    """Reports the progress of a calibration."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Called when ``done`` of the ``total`` parts of a stage are done."""


class Sink(Protocol):
    """Takes the statistics as they become known, each once: a ``CalibrationWriter``, for example."""

    def add(self, name: str, statistics: LayerStatistics) -> None:
        """Takes those of a linear layer."""

    def add_cache(self, name: str, absmax_K: Tensor) -> None:
        """Takes those of what the KV cache holds (``cache_names``)."""


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    pass


def calibrate(
    output: Path,
    model: ModelSource,
    provenance: Source,
    samples: ClipSet,
    *,
    settings: SamplingSettings = _DEFAULT,
    force: bool = False,
    progress: CollectProgress = _silent,
) -> Calibration:
    """Collects the statistics of a model and writes them to a folder.

    Args:
        output: the folder to create.
        model: the weights, and what makes prompts.
        provenance: the model's name and hashes.
        samples: what to run it on.
        settings: which rows to keep.
        force: whether to replace a calibration.
        progress: called at each stage.

    Raises:
        UsageError: the folder exists and may not be replaced.
        CalibrationError: too few samples, samples of the evaluation, ones that do not fit the model, or NaN.
        VideoError: a video cannot be read.
        OutOfMemoryError: the estimate exceeds the free memory; nothing was started.
        ArtifactError: the disk has no space, or the folder cannot be written. After any error nothing is left.
    """
    check_set(samples, model.config)
    memory.require(_memory_bytes(model.config, settings), "this calibration", "free some, or close other programs")
    require_disk(output, _disk_bytes(samples, model.config, settings), "this calibration")
    with new_calibration(
        output, source=provenance, config=model.config, data=samples.record, settings=settings, force=force
    ) as writer:
        folder = output.parent
        collect(model.config, model.weights, samples.clips, writer, settings=settings, folder=folder, progress=progress)
    return Calibration.load(output)


@torch.inference_mode()
def collect(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    clips: Sequence[AskedClip],
    sink: Sink,
    *,
    settings: SamplingSettings = _DEFAULT,
    folder: Path,
    progress: CollectProgress = _silent,
) -> None:
    """Runs the model over ``clips``, and gives ``sink`` the statistics of every linear layer and of the KV cache.

    Args:
        config: the model's.
        weights: by released name; each is read when it is used.
        clips: with their prompts.
        sink: what takes the statistics.
        settings: which rows to keep.
        folder: where temporary files are; nothing is left there.
        progress: called after each clip or prompt of each layer.

    Raises:
        CalibrationError: a clip or prompt that does not fit the model, or NaN.
        VideoError: a video cannot be read.
        ArtifactError: the disk is full.
    """
    lengths = [_length(clip, at, config) for clip in clips for at in range(len(clip.prompts))]
    video, text = config.vision, config.text
    with ExitStack() as stack:
        tokens = stack.enter_context(Spool(folder, [(config.num_video_tokens, text.hidden_size)] * len(clips)))
        shape = (config.num_frames, video.num_patches, video.hidden_size)
        with Spool(folder, [shape] * len(clips)) as patches:
            _encode(config, weights, clips, patches, tokens, _Recorder(sink, settings), progress)
        hidden = stack.enter_context(Spool(folder, [(length, text.hidden_size) for length in lengths]))
        _embed(text, weights, clips, tokens, hidden)
        _decode(text, weights, hidden, sink, _Recorder(sink, settings), progress)
        starts = _answer_starts(clips, config)
        _head(text, weights, hidden, starts, sink, settings)


class _Recorder:
    """Samples what enters the linear layers of a module while it runs."""

    def __init__(self, sink: Sink, settings: SamplingSettings) -> None:
        self._sink, self._settings = sink, settings

    @contextmanager
    def __call__(self, module: nn.Module, prefix: str) -> Iterator[None]:
        """Gives the sink the statistics of the layers ``prefix`` + their name in ``module`` when the block ends."""
        samplers, hooks = [], []
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear):
                sampler = RowSampler(prefix + name, part.in_features, self._settings)
                samplers.append(sampler)
                hooks.append(part.register_forward_pre_hook(_taking(sampler)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for sampler in samplers:
            self._sink.add(sampler.name, sampler.result())


def _taking(sampler: RowSampler) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: sampler.add(inputs[0])


def _encode(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    clips: Sequence[AskedClip],
    patches: Spool,
    tokens: Spool,
    record: _Recorder,
    progress: CollectProgress,
) -> None:
    """Runs the video encoder over every clip: pixels to patches (F, P, D), and those to tokens (M, D)."""
    with without_weights():
        tower = build_vision(dataclasses.replace(config.vision, num_layers=1)).eval()
        resampler = PerceiverResampler(config).eval()
    embeddings, encoder, norm = (tower.get_submodule(name) for name in ("embeddings", "encoder", "post_layernorm"))
    fill(embeddings, weights, "vision_encoder.embeddings.")
    for at, clip in enumerate(clips):
        patches.write(at, embeddings(_pixels(clip, config)))
        progress("read the videos", at + 1, len(clips))
    layer, num_layers = encoder.get_submodule("layers.0"), config.vision.num_layers
    for index in range(num_layers):
        name = f"vision_encoder.encoder.layers.{index}."
        fill(layer, weights, name)
        with record(layer, name):
            for at in range(len(clips)):
                patches.write(at, encoder(inputs_embeds=patches.read(at)).last_hidden_state)
                progress("vision encoder", index * len(clips) + at + 1, num_layers * len(clips))
    fill(norm, weights, "vision_encoder.post_layernorm.")
    fill(resampler, weights, "vision_tokenizer.")
    with record(resampler, "vision_tokenizer."):
        for at in range(len(clips)):
            tokens.write(at, resampler(norm(patches.read(at))[None])[0])
            progress("resampler and temporal encoder", at + 1, len(clips))


def _embed(
    text: TextConfig, weights: Mapping[str, Tensor], clips: Sequence[AskedClip], tokens: Spool, hidden: Spool
) -> None:
    """Writes the decoder's inputs: each prompt with its video tokens and its answer."""
    table_VD = embedding_table(weights, text).numpy()
    row = 0
    for at, clip in enumerate(clips):
        video_MD = tokens.read(at).numpy()
        for asked in clip.prompts:
            ids = [*asked.prompt.ids, *asked.answer_ids]
            hidden.write(row, torch.from_numpy(splice(table_VD[ids], asked.prompt.image_position, video_MD)))
            row += 1


def _decode(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    hidden: Spool,
    sink: Sink,
    record: _Recorder,
    progress: CollectProgress,
) -> None:
    """Runs every layer of the decoder, but not the final norm."""
    phi3: Any = one_layer(text).model  # the transformers library, untyped
    phi3.norm = nn.Identity()  # it belongs after the last layer
    for index in range(text.num_layers):
        name = f"lang_model.model.layers.{index}."
        fill(phi3.layers[0], weights, name)
        caches = [torch.zeros(text.num_kv_heads, text.head_dim) for _ in range(2)]
        with record(phi3.layers[0], name):
            for at in range(len(hidden)):
                cache: Any = DynamicCache()
                out = phi3(inputs_embeds=hidden.read(at)[None], past_key_values=cache, use_cache=True)
                hidden.write(at, out.last_hidden_state[0])
                for absmax_HK, new_1HSK in zip(caches, (cache.layers[0].keys, cache.layers[0].values), strict=True):
                    torch.maximum(absmax_HK, new_1HSK[0].abs().amax(dim=1), out=absmax_HK)
                progress("decoder", index * len(hidden) + at + 1, text.num_layers * len(hidden))
        for part, absmax_HK in zip(("key_cache", "value_cache"), caches, strict=True):
            sink.add_cache(f"{name}{part}", absmax_HK.flatten())


def _head(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    hidden: Spool,
    starts: Sequence[int],
    sink: Sink,
    settings: SamplingSettings,
) -> None:
    """Samples what enters the head: at the last position of each prompt and those of its answer."""
    norm: Any = one_layer(text).model.norm
    fill(norm, weights, "lang_model.model.norm.")
    sampler = RowSampler(HEAD, text.hidden_size, settings)
    for at, start in enumerate(starts):
        sampler.add(norm(hidden.read(at)[start:]))
    sink.add(HEAD, sampler.result())


def _answer_starts(clips: Sequence[AskedClip], config: ModelConfig) -> list[int]:
    """The last position of each prompt, which predicts the first token of the answer."""
    return [asked.prompt.length(config.num_video_tokens) - 1 for clip in clips for asked in clip.prompts]


def _length(clip: AskedClip, at: int, config: ModelConfig) -> int:
    """Positions of a prompt with video and answer."""
    asked = clip.prompts[at]
    length = asked.prompt.length(config.num_video_tokens) + len(asked.answer_ids)
    if length > config.text.max_context:
        raise CalibrationError(
            f"the question {asked.question!r} about {clip.name} has {length} tokens with video and answer; the "
            f"model's context has {config.text.max_context}: shorten or leave out this one"
        )
    return length


def _pixels(clip: AskedClip, config: ModelConfig) -> Tensor:
    """Loads a clip, (F, 3, side, side)."""
    pixels_FCHW = clip.load()
    side = config.vision.image_size
    wanted = (config.num_frames, 3, side, side)
    if pixels_FCHW.shape != wanted or pixels_FCHW.dtype != np.float32:
        raise CalibrationError(
            f"{clip.name} has pixels {pixels_FCHW.dtype} {pixels_FCHW.shape}; this model takes float32 {wanted}"
        )
    if not np.isfinite(pixels_FCHW).all():
        raise CalibrationError(f"{clip.name} has pixels that are NaN or infinite; values in [-1, 1] are expected")
    return torch.from_numpy(pixels_FCHW)


def _memory_bytes(config: ModelConfig, settings: SamplingSettings) -> int:
    """Roughly: the largest piece of the model as it is read and in fp32, its sampled rows, and the embedding."""
    pieces: dict[str, int] = {}
    for name, shape in state_shapes(config).items():
        parts = name.split(".")
        is_layer = "layers" in parts and parts[0] != "vision_tokenizer"
        piece = ".".join(parts[: parts.index("layers") + 2]) if is_layer else parts[0]
        pieces[piece] = pieces.get(piece, 0) + 4 * int(np.prod(shape))
    rows = max(layer.num_inputs for layer in linear_layers(config).values()) * settings.num_rows * 4
    return _BASE_BYTES + 2 * max(pieces.values()) + 8 * rows


def _disk_bytes(samples: ClipSet, config: ModelConfig, settings: SamplingSettings) -> int:
    """What the result and the temporary files take."""
    rows = sum(layer.num_inputs for layer in linear_layers(config).values()) * settings.num_rows * 4
    patches = config.num_frames * config.vision.num_patches * config.vision.hidden_size * 4 * len(samples.clips)
    width = config.text.hidden_size * 4
    lengths = [_length(clip, at, config) for clip in samples.clips for at in range(len(clip.prompts))]
    return rows + max(patches, sum(lengths) * width) + config.num_video_tokens * width * len(samples.clips)
