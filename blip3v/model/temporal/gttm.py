"""Grouped Token Turing Machine: the paper's sequential encoder and the released one (paper section 2.3).

Every resampler token position is a group with a small memory of its own; all groups share the weights and never mix.
At each frame a group processes its memory with the frame's token and rewrites the memory. The output is the mean over
the memory slots (released), or the paper's attentional pooling of all memories. The released module also holds a read
layer that it never calls; it is not built here.
"""

# Shapes: B batch, T frames, N groups, G memory slots, D width, R rows = B*N.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError
from blip3v.model.blocks import ProcessLayers, TokenLearner
from blip3v.model.temporal.grouped import GroupedRecurrence, GroupedSettings, grouped_token_counts, pooling_forms
from blip3v.model.temporal.recurrence import no_output
from blip3v.model.temporal.spec import CheckpointForm, EncoderSpec, Shapes, at_least_one, check_heads
from blip3v.model.temporal.stored import HEAD, has_part, num_layers, num_tokens, token_learners, unused_token_learner

__all__ = ["ENCODER"]


@dataclass(frozen=True, kw_only=True)
class Settings(GroupedSettings):
    """Extends the groups' slots and pooling; the defaults are the released form."""

    num_layers: int = 4  # layers that process memory and token at every frame
    num_heads: int = 8  # attention heads of those layers
    ff_mult: int = 4  # their feed-forward width, in units of the token width

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_layers", "num_heads", "ff_mult")


class _Unit(nn.Module):
    """The process and write steps of one group at one frame."""

    def __init__(self, dim: int, settings: Settings) -> None:
        super().__init__()
        self.process_layers = ProcessLayers(
            dim, num_layers=settings.num_layers, num_heads=settings.num_heads, ff_mult=settings.ff_mult
        )
        self.write_layer = TokenLearner(dim, num_tokens=settings.num_slots)

    def forward(self, memory_RGD: Tensor, token_RD: Tensor) -> Tensor:
        """Maps memory (R, G, D) and the frame's tokens (R, D) to the new memory (R, G, D)."""
        processed = self.process_layers(torch.cat((memory_RGD, token_RD[:, None]), dim=1))
        written_RGD: Tensor = self.write_layer(torch.cat((memory_RGD, processed), dim=1))
        return written_RGD


class GroupedTTM(GroupedRecurrence):
    """(B, T, N, D) to (B, N, D) by the mean over the slots, or to (B, M, D) by attention; any T."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        super().__init__(config, settings)
        self.ttm_unit = _Unit(config.vision.hidden_size, settings)

    def step(self, memory_RGD: Tensor, token_RD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the memory after one more frame; frames have no output."""
        updated_RGD: Tensor = self.ttm_unit(memory_RGD, token_RD)
        return updated_RGD, no_output(updated_RGD)


def _find(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    """Finds the released form, or the paper's attentional pooling if there is one more TokenLearner, of any name."""
    memory = shapes.get("initial_memory")
    # ttm has a unit of the same name; its memory has no groups, and its unit has an output layer.
    grouped = not has_part(shapes, "ttm_unit.output_layer") if memory is None else len(memory) == 3
    if not has_part(shapes, "ttm_unit") or not grouped:
        return None
    read, write = "ttm_unit.read_layer", "ttm_unit.write_layer"
    heads = sorted(token_learners(shapes) - {read, write})
    if len(heads) > 1:
        raise ArtifactError(
            f"the temporal encoder has the TokenLearners {', '.join(heads)}; gttm has at most one besides its read and "
            "write layers, which pools the memory"
        )
    layers, slots = num_layers(shapes, "ttm_unit.process_layers"), num_tokens(shapes, write)
    return CheckpointForm(
        num_video_tokens=num_tokens(shapes, heads[0]) if heads else None,
        options={"num_layers": layers, "num_slots": slots, "pooling": "attention" if heads else "mean"},
        renamed=dict.fromkeys(heads, HEAD),
        unused_keys=unused_token_learner(
            read, shapes, config, "the read layer of grouped memories is built and never called"
        ),
    )


ENCODER = EncoderSpec(
    settings=Settings,
    module=GroupedTTM,
    token_counts=grouped_token_counts,
    presets={"tiny": Settings(num_layers=2, num_heads=6, ff_mult=2)},
    forms=pooling_forms,
    check=lambda settings, config: check_heads(settings.num_heads, config),
    find=_find,
)
