"""Grouped gated recurrence: a variant in the authors' code that is not in the paper.

Groups, memories, time stamps and output are those of gttm; the step is linear in the memory:
memory <- sigmoid(gate) * memory + gate * token. The gate of a slot comes from an MLP that sees one number of the token
at a time, 1 -> 2G -> G, after a LayerNorm over that one number. Such a norm returns its bias whatever the number is, so
the authors' gates depend only on weights; the form is kept. Their second MLP, ``expand_mlp2``, is never called (both
gates come from the first) and is not built here.
"""

# Shapes: B batch, T frames, N groups, G memory slots, D width, R rows = B*N.

from __future__ import annotations

from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.model.temporal.grouped import GroupedRecurrence, GroupedSettings, grouped_token_counts, pooling_forms
from blip3v.model.temporal.recurrence import no_output
from blip3v.model.temporal.spec import CheckpointForm, EncoderSpec, Shapes
from blip3v.model.temporal.stored import HEAD, has_part, num_tokens, unused

__all__ = ["ENCODER"]


class GatedRecurrence(GroupedRecurrence):
    """(B, T, N, D) to (B, N, D) by the mean over the slots, or to (B, M, D) by attention; any T."""

    def __init__(self, config: ModelConfig, settings: GroupedSettings) -> None:
        super().__init__(config, settings)
        num_slots = settings.num_slots
        self.expand_mlp = nn.Sequential(
            nn.LayerNorm(1),
            nn.Linear(1, 2 * num_slots, bias=False),
            nn.GELU(),
            nn.Linear(2 * num_slots, num_slots, bias=False),
        )

    def step(self, memory_RGD: Tensor, token_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the memory after one more frame; frames have no output."""
        gate_RGD = self.expand_mlp(token_RD[..., None]).transpose(1, 2)
        updated_RGD = gate_RGD.sigmoid() * memory_RGD + gate_RGD * token_RD[:, None]
        return updated_RGD, no_output(updated_RGD)


def _find(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    if not has_part(shapes, "expand_mlp"):
        return None
    slots, attention = num_tokens(shapes, "expand_mlp", mlp=""), has_part(shapes, HEAD)
    second = {"0.weight": (1,), "0.bias": (1,), "1.weight": (2 * slots, 1), "3.weight": (slots, 2 * slots)}
    return CheckpointForm(
        num_video_tokens=num_tokens(shapes, HEAD) if attention else None,
        options={"num_slots": slots, "pooling": "attention" if attention else "mean"},
        unused_keys=unused("expand_mlp2", second, "both gates come from the first MLP")
        if has_part(shapes, "expand_mlp2")
        else (),
    )


ENCODER = EncoderSpec(
    settings=GroupedSettings,
    module=GatedRecurrence,
    token_counts=grouped_token_counts,
    forms=pooling_forms,
    find=_find,
)
