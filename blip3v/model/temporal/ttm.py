"""Token Turing Machine without groups: the paper's vanilla baseline, after Ryoo et al. 2022.

At each frame the memory and the frame's tokens are read into a few tokens, processed, and written to a new memory;
reading and writing are attentional pooling. The output is the outputs of all frames, one after another, or the final
memory. Unlike in the original, the input does not reach the write, the memory starts learned rather than at zero, no
norm follows the process layers, and read and write have no positions; ``time_stamps`` adds those of gttm.
"""

# Shapes: B batch, T frames, N tokens per frame, C memory tokens, P process tokens, O output tokens per frame, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig
from blip3v.errors import ConfigError
from blip3v.model.blocks import ProcessLayers, TimeStamps, TokenLearner
from blip3v.model.temporal.recurrence import Recurrence, no_output
from blip3v.model.temporal.spec import (
    LEARNED_TOKENS,
    CheckpointForm,
    ClipSize,
    EncoderSpec,
    Shapes,
    TokenCounts,
    at_least_one,
    check_heads,
)
from blip3v.model.temporal.stored import has_part, num_layers, num_tokens, unused_token_learner

__all__ = ["ENCODER"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The defaults are the authors' form with an output at every frame; the paper gives no sizes."""

    num_layers: int = 2  # layers that process what is read at every frame
    num_heads: int = 8  # attention heads of those layers
    ff_mult: int = 4  # their feed-forward width, in units of the token width
    time_stamps: bool = False  # add the time-stamp encoding of gttm to the tokens
    process_tokens: int = 64  # tokens that a frame and the memory are read into
    memory_tokens: int = 128
    step_tokens: int = 16  # output tokens per frame
    memory_output: bool = False  # output the final memory instead of each frame's tokens

    def __post_init__(self) -> None:
        at_least_one(self, "num_layers", "num_heads", "ff_mult", "process_tokens", "memory_tokens", "step_tokens")


class _Unit(nn.Module):
    """The read, process, write and output steps of one frame."""

    def __init__(self, dim: int, settings: Settings) -> None:
        super().__init__()
        self.process_layers = ProcessLayers(
            dim, num_layers=settings.num_layers, num_heads=settings.num_heads, ff_mult=settings.ff_mult
        )
        self.read_layer = TokenLearner(dim, num_tokens=settings.process_tokens)
        self.write_layer = TokenLearner(dim, num_tokens=settings.memory_tokens)
        # The authors also build it when the memory is the output, but do not use it then.
        self.output_layer = None if settings.memory_output else TokenLearner(dim, num_tokens=settings.step_tokens)

    def forward(self, memory_BCD: Tensor, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Maps memory (B, C, D) and the frame's tokens (B, N, D) to the new memory and the frame's output (B, O, D)."""
        processed_BPD = self.process_layers(self.read_layer(torch.cat((memory_BCD, tokens_BND), dim=1)))
        written_BCD = self.write_layer(torch.cat((memory_BCD, processed_BPD), dim=1))
        return written_BCD, no_output(written_BCD) if self.output_layer is None else self.output_layer(processed_BPD)


class VanillaTTM(Recurrence):
    """(B, T, N, D) to (B, T*O, D), frame-major, or to the final memory (B, C, D); any T."""

    def __init__(self, config: ModelConfig, settings: Settings) -> None:
        super().__init__(config, settings)
        dim = config.vision.hidden_size
        self.initial_memory = nn.Parameter(torch.randn(settings.memory_tokens, dim))
        self.pos_emb = TimeStamps(dim) if settings.time_stamps else None
        self.ttm_unit = _Unit(dim, settings)

    def start(self, x_BTND: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the initial memory (B, C, D) and the tokens by frame (T, B, N, D)."""
        stamped_BTND = x_BTND if self.pos_emb is None else self.pos_emb(x_BTND)
        return self.initial_memory.expand(x_BTND.shape[0], -1, -1).clone(), stamped_BTND.transpose(0, 1)

    def step(self, memory_BCD: Tensor, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the memory after one more frame, and the frame's output tokens (B, O, D)."""
        updated_BCD, output_BOD = self.ttm_unit(memory_BCD, tokens_BND)
        return updated_BCD, output_BOD

    def finish(self, memory_BCD: Tensor, outputs_TBOD: Tensor) -> Tensor:
        """Returns the frames' outputs one after another, or the final memory."""
        if self.ttm_unit.output_layer is None:
            return memory_BCD
        return outputs_TBOD.transpose(0, 1).flatten(1, 2)


def _token_counts(settings: Settings, clip: ClipSize) -> TokenCounts:
    if settings.memory_output:
        return TokenCounts(LEARNED_TOKENS, usual=settings.memory_tokens)
    return TokenCounts((settings.step_tokens * clip.num_frames,), per_frame=True)


def _forms(settings: Settings, given: Collection[str], num_video_tokens: int | None) -> Sequence[Settings]:
    """Returns output by frame and by memory, that of ``settings`` first; an output memory has the requested size."""
    size = settings.memory_tokens
    if num_video_tokens is not None and "memory_tokens" not in given:
        size = max(num_video_tokens, 1)
    by_memory = dataclasses.replace(settings, memory_output=True, memory_tokens=size)
    by_frame = dataclasses.replace(settings, memory_output=False)
    if "memory_output" in given:
        if settings.memory_output and "step_tokens" in given:
            raise ConfigError("step_tokens has no effect on ttm with memory_output; leave one of the two out")
        return (by_memory if settings.memory_output else by_frame,)
    if "step_tokens" in given:
        return (by_frame,)
    return (by_memory, by_frame) if settings.memory_output else (by_frame, by_memory)


def _check(settings: Settings, config: ModelConfig) -> None:
    check_heads(settings.num_heads, config)
    if settings.memory_output and settings.memory_tokens != config.num_video_tokens:
        raise ConfigError(
            f"with memory_output it outputs its {settings.memory_tokens} memory_tokens, not {config.num_video_tokens}; "
            "make the two equal"
        )


def _find(shapes: Shapes, config: ModelConfig) -> CheckpointForm | None:
    """Of the authors' two forms, the one with time stamps outputs its memory and does not use its output layer."""
    read, write, output = "ttm_unit.read_layer", "ttm_unit.write_layer", "ttm_unit.output_layer"
    memory = shapes.get("initial_memory")
    # gttm has a unit of the same name; its memory has groups, and its unit has no output layer.
    grouped = not has_part(shapes, output) if memory is None else len(memory) == 3
    if not has_part(shapes, "ttm_unit") or grouped:
        return None
    memory_tokens, time_stamps = num_tokens(shapes, write), "pos_emb.inv_freq" in shapes
    options: dict[str, object] = {
        "num_layers": num_layers(shapes, "ttm_unit.process_layers"),
        "process_tokens": num_tokens(shapes, read),
        "memory_tokens": memory_tokens,
        "time_stamps": time_stamps,
    }
    if not time_stamps and has_part(shapes, output):
        step_tokens = num_tokens(shapes, output)
        options |= {"step_tokens": step_tokens, "memory_output": False}
        return CheckpointForm(num_video_tokens=step_tokens * config.num_frames, options=options)
    why = "the memory is the output, and the output layer is not called"
    return CheckpointForm(
        num_video_tokens=memory_tokens,
        options=options | {"memory_output": True},
        unused_keys=unused_token_learner(output, shapes, config, why),
    )


ENCODER = EncoderSpec(
    settings=Settings,
    module=VanillaTTM,
    token_counts=_token_counts,
    presets={"tiny": Settings(num_layers=1, num_heads=6, ff_mult=2, time_stamps=True)},
    forms=_forms,
    check=_check,
    find=_find,
)
