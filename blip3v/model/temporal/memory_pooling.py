"""From the memories of all groups to the tokens out: what gttm and mambalike have in common at their end."""

# Shapes: R rows = B*N, B batch, N groups, G memory slots, D width, M tokens out.

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.blocks import TokenLearner

__all__ = ["attentional_output", "pool_memory"]


def attentional_output(config: ModelConfig) -> TokenLearner | None:
    """The paper's attentional pooling of the memories; None for the released mean over the slots."""
    if config.temporal.pooling == "mean":
        return None
    return TokenLearner(config.vision.hidden_size, num_tokens=config.temporal.num_tokens)


def pool_memory(memory_RGD: Tensor, num_groups: int, final_output: nn.Module | None) -> Tensor:
    """(B*N, G, D) to (B, N, D) by the mean over the slots, or to (B, M, D) by attention over all N*G vectors."""
    memory_BNGD = memory_RGD.view(-1, num_groups, *memory_RGD.shape[1:])
    if final_output is None:
        return memory_BNGD.mean(dim=2)
    pooled_BMD: Tensor = final_output(memory_BNGD.flatten(1, 2))
    return pooled_BMD
