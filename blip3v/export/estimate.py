"""What an export will take, from the config alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from blip3v.bundle.manifest import Precision, stays_mapped
from blip3v.config import ModelConfig
from blip3v.model.blip3_video import Blip3Video
from blip3v.publishing import require_disk
from blip3v.runtime import memory

__all__ = ["Estimate", "estimate"]

# Python with torch, transformers and the exporter, before any weight.
_BASE_BYTES = 600 * 2**20
# What the engine takes in the check beside fp32 weights, in units of their bytes: seen at full size.
_ENGINE_SHARE = 0.19
# Graph files, tokenizer, reports.
_SMALL_FILES_BYTES = 4 * 2**20
# Tracing, passes and a small parity run cost about this whatever the size; the rest grows with the bytes on disk.
_BASE_S, _S_PER_GIB, _CHECK_S_PER_GIB = 15.0, 20.0, 25.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Rough figures, meant to tell minutes from hours and a laptop from a server."""

    num_weights: dict[str, int]  # video_encoder, decoder, embeddings
    disk_bytes: int
    memory_bytes: int  # peak, parity check included
    seconds: float

    def require(self, output: Path) -> None:
        """Lets the export begin where it fits.

        Raises:
            OutOfMemoryError: less memory is free.
            ArtifactError: less disk is free where ``output`` will be.
        """
        memory.require(self.memory_bytes, "this export", "free some, or skip the comparison with `check=False`")
        require_disk(output, self.disk_bytes, "this export")


def estimate(config: ModelConfig, precision: Precision, *, check: bool = True) -> Estimate:
    """Counts weights without making them, and scales from there."""
    with torch.device("meta"):
        model = Blip3Video(config)
    counts = {
        "video_encoder": _count(model.vision_encoder) + _count(model.vision_tokenizer),
        "decoder": _count(model.lang_model) - _count(model.lang_model.model.embed_tokens),
        "embeddings": config.text.num_logits * config.text.hidden_size,
    }
    item_bytes = 2 if precision == "fp16" else 4
    disk_bytes = sum(counts.values()) * item_bytes
    largest_weight = max(parameter.numel() for parameter in model.parameters())
    # Written one by one: as it was read, as it is stored, and as bytes.
    memory_bytes = _BASE_BYTES + largest_weight * (4 + 2 * item_bytes)
    if check:
        # One at a time: the engine with one graph, which widens fp16 on a CPU and may leave fp32 in its file; then the
        # reference in fp32, whole for the video encoder and one layer of the decoder.
        encoder_bytes, decoder_bytes = 4 * counts["video_encoder"], 4 * counts["decoder"]
        held = 0 if stays_mapped(decoder_bytes, precision) else decoder_bytes
        in_engine = max((1 + _ENGINE_SHARE) * encoder_bytes, held + _ENGINE_SHARE * decoder_bytes)
        memory_bytes = _BASE_BYTES + int(in_engine)
    seconds_per_gib = _S_PER_GIB + (_CHECK_S_PER_GIB if check else 0.0)
    return Estimate(
        num_weights=counts,
        disk_bytes=disk_bytes + _SMALL_FILES_BYTES,
        memory_bytes=memory_bytes,
        seconds=_BASE_S + seconds_per_gib * disk_bytes / 2**30,
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
