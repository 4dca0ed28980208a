"""Estimates what an export will take, from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blip3v.bundle.precision import ITEM_BYTES, GraphPrecision, Precision
from blip3v.config import ModelConfig
from blip3v.export.format_table import stored_bytes
from blip3v.model.blip3_video import Blip3Video
from blip3v.publishing import require_disk
from blip3v.runtime import memory
from blip3v.runtime.backends.onnxruntime import resident_bytes

__all__ = ["Estimate", "estimate"]

# Python with torch, transformers and the exporter, before any weight.
_BASE_BYTES = 600 * 2**20
# What the engine takes in the check besides fp32 weights, as a share of their bytes: measured at full size.
_ENGINE_SHARE = 0.19
# Graph files, tokenizer, reports.
_SMALL_FILES_BYTES = 4 * 2**20
# Tracing, passes and a small parity run cost about this at any size; the rest grows with the bytes on disk.
_BASE_S, _S_PER_GIB, _CHECK_S_PER_GIB = 15.0, 20.0, 25.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Rough figures, meant to tell minutes from hours and a laptop from a server."""

    num_weights: dict[str, int]  # video_encoder, decoder, embeddings
    disk_bytes: int
    memory_bytes: int  # peak, including the parity check
    seconds: float

    def require(self, output: Path) -> None:
        """Raises unless the export fits.

        Raises:
            OutOfMemoryError: less memory is free.
            ArtifactError: less disk is free where ``output`` will be.
        """
        memory.require(self.memory_bytes, "this export", "free some, or skip the comparison with `check=False`")
        require_disk(output, self.disk_bytes, "this export")


def estimate(config: ModelConfig, precision: Precision, *, check: bool = True) -> Estimate:
    """Counts the weights without creating them, and extrapolates from there."""
    with torch.device("meta"):
        model = Blip3Video(config)
    language = dict(model.lang_model.named_parameters())
    parameters = {
        "video_encoder": [*model.vision_encoder.parameters(), *model.vision_tokenizer.parameters()],
        "decoder": [x for name, x in language.items() if not name.startswith("model.embed_tokens.")],
    }
    counts = {name: sum(x.numel() for x in weights) for name, weights in parameters.items()}
    counts["embeddings"] = config.text.num_logits * config.text.hidden_size
    stored = {name: sum(_stored_bytes(x, spec) for x in parameters[name]) for name, spec in precision.graphs.items()}
    disk_bytes = sum(stored.values()) + counts["embeddings"] * ITEM_BYTES[precision.decoder.embeddings]
    # Weights are written one by one, and each is held as read, as stored, and as bytes.
    read = {**parameters, "decoder": list(language.values())}  # the token embedding too
    memory_bytes = _BASE_BYTES + max(
        4 * x.numel() + 2 * _stored_bytes(x, spec) for name, spec in precision.graphs.items() for x in read[name]
    )
    if any(spec.activation_limit is not None for spec in precision.graphs.values()):
        # Activations are scanned in the fp32 reference: the whole video encoder, then one layer of the decoder.
        memory_bytes = max(memory_bytes, _BASE_BYTES + 4 * counts["video_encoder"])
    if check:
        # One at a time: the engine with one graph, then the fp32 reference, which is the whole video encoder or one
        # layer of the decoder.
        encoder_bytes, decoder_bytes = 4 * counts["video_encoder"], 4 * counts["decoder"]
        resident = resident_bytes(stored["decoder"], precision.decoder)
        engine_bytes = max((1 + _ENGINE_SHARE) * encoder_bytes, resident + _ENGINE_SHARE * decoder_bytes)
        memory_bytes = _BASE_BYTES + int(engine_bytes)
    seconds_per_gib = _S_PER_GIB + (_CHECK_S_PER_GIB if check else 0.0)
    return Estimate(
        num_weights=counts,
        disk_bytes=disk_bytes + _SMALL_FILES_BYTES,
        memory_bytes=memory_bytes,
        seconds=_BASE_S + seconds_per_gib * disk_bytes / 2**30,
    )


def _stored_bytes(weight: Tensor, precision: GraphPrecision) -> int:
    """Assumes that there are no islands and that every weight with two axes is a matrix of a matrix product."""
    if weight.ndim != 2:
        return weight.numel() * ITEM_BYTES[precision.io]
    return stored_bytes(precision.weights, tuple(weight.shape), precision.group_size)
