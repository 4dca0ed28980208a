"""The vision encoder: the transformers library's SigLIP, without its pooling head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from blip3v.config import VisionConfig

__all__ = ["build_vision", "vision_features"]


def build_vision(config: VisionConfig) -> nn.Module:
    """Builds the SigLIP tower with the released parameter names (``embeddings.*``, ``encoder.layers.*``)."""
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act="gelu_pytorch_tanh",
            vision_use_head=False,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
    )
    # Older 5.x releases keep the tower one level down.
    vision = cast(nn.Module, getattr(model, "vision_model", model))
    embeddings = vision.get_submodule("embeddings")
    embeddings.position_embedding = _AllPositions(embeddings.get_parameter("position_embedding.weight"))
    return vision


class _AllPositions(nn.Module):
    """The whole position table, which every frame uses: a lookup would be evaluated during tracing."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, position_ids: Tensor) -> Tensor:
        """(P, D), whatever the ids: they count from 0 to P - 1."""
        return self.weight


def vision_features(vision: nn.Module, frames_BTCHW: Tensor) -> Tensor:
    """Computes the patch tokens of every frame, after the final LayerNorm.

    Args:
        vision: the result of ``build_vision``.
        frames_BTCHW: pixels in [-1, 1], (B, T, 3, side, side).

    Returns:
        (B, T, P, D).
    """
    tokens: Tensor = vision(torch.flatten(frames_BTCHW, 0, 1)).last_hidden_state
    return tokens.view(*frames_BTCHW.shape[:2], *tokens.shape[1:])
