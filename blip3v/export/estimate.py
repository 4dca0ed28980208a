"""What an export will take, from the config alone, and what it took."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import nn

from blip3v.bundle.manifest import Precision
from blip3v.config import ModelConfig
from blip3v.model.blip3_video import Blip3Video

__all__ = ["Estimate", "estimate", "peak_rss_bytes"]

# Python with torch, transformers and the exporter, before any weight.
_BASE_BYTES = 600 * 2**20
# Graph files, tokenizer, reports.
_SMALL_FILES_BYTES = 4 * 2**20
# Tracing, passes and the parity run cost about this whatever the size; the rest grows with the bytes on disk.
_BASE_S, _S_PER_GIB = 15.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Rough figures, meant to tell minutes from hours and a laptop from a server."""

    num_weights: dict[str, int]  # video_encoder, decoder, embeddings
    disk_bytes: int
    memory_bytes: int  # peak, parity check included
    seconds: float


def estimate(config: ModelConfig, precision: Precision) -> Estimate:
    """Counts weights without making them, and scales from there."""
    with torch.device("meta"):
        model = Blip3Video(config)
    embeddings = config.text.num_logits * config.text.hidden_size
    counts = {
        "video_encoder": _count(model.vision_encoder) + _count(model.vision_tokenizer),
        "decoder": _count(model.lang_model) - _count(model.lang_model.model.embed_tokens),
        "embeddings": embeddings,
    }
    item_bytes = 2 if precision == "fp16" else 4
    disk_bytes = sum(counts.values()) * item_bytes
    # The fp32 reference stays; the largest component stands beside it as the cast copy, as the folded graph, and in
    # ONNX Runtime, which widens fp16 on a CPU.
    largest = max(counts["video_encoder"], counts["decoder"])
    memory_bytes = _BASE_BYTES + 4 * sum(counts.values()) + largest * (2 * item_bytes + 4)
    return Estimate(
        num_weights=counts,
        disk_bytes=disk_bytes + _SMALL_FILES_BYTES,
        memory_bytes=memory_bytes,
        seconds=_BASE_S + _S_PER_GIB * disk_bytes / 2**30,
    )


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far; None where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return None
    # Not on Windows, so not at the top.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
