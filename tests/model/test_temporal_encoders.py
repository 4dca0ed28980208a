"""Every temporal encoder against a plain numpy formula in float64, and the properties that distinguish them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from model_checks import SIZES, close, randomise, small_config, tokens, weights
from plain_formulas import (
    Array,
    Weights,
    gated_memories,
    gttm_memories,
    pooled_grid,
    process,
    slow_frames,
    stamped,
    token_learner,
    ttm_steps,
)
from torch import nn

from blip3v.config import preset
from blip3v.model.resampler import PerceiverResampler
from blip3v.model.temporal import build_temporal, encoder_names, find_encoder, temporal_settings, with_encoder

# Of ``small_config``.
NUM_LATENTS, GRID, DIM, LAYERS, HEADS = 32, 8, 24, SIZES["num_layers"], SIZES["num_heads"]

# Encoders whose output does not depend on the order of the frames.
ORDER_FREE = ("tokenlearner", "perceiver", "mean", "max", "space-time-pool")

# Each encoder with its options; ``expected`` has the formulas.
CASES: list[tuple[str, dict[str, object]]] = [
    ("tokenlearner", {"num_video_tokens": 16}),
    ("tokenlearner", {"num_video_tokens": 32, "time_stamps": True}),
    ("tokenlearner", {"num_video_tokens": 256}),
    ("gttm", {}),
    ("gttm", {"num_video_tokens": 16}),
    ("gttm", {"num_video_tokens": 32, "pooling": "attention"}),
    ("ttm", {}),
    ("ttm", {"num_video_tokens": 32, "step_tokens": 4, "time_stamps": True}),
    ("ttm", {"num_video_tokens": 16}),
    ("ttm", {"num_video_tokens": 128, "memory_output": True, "time_stamps": True}),
    ("transformer", {"num_video_tokens": 16}),
    ("transformer", {"num_video_tokens": 32}),
    ("mean", {}),
    ("mean", {"pooling": "sum"}),
    ("max", {}),
    ("per-frame", {"num_video_tokens": 16}),
    ("per-frame", {"num_video_tokens": 32}),
    ("space-time-pool", {"num_video_tokens": 16}),
    ("space-time-pool", {"num_video_tokens": 32}),
    ("none", {}),
    ("single-frame", {}),
    ("mambalike", {}),
    ("mambalike", {"num_video_tokens": 16}),
    ("video-chatgpt", {}),
    ("pllava", {}),
    ("pllava", {"num_video_tokens": 8 * 9}),  # a side that does not divide the grid
    ("slowfast-llava", {}),
    ("slowfast-llava", {"slow_frames": 3, "fast_side": 3}),
    ("llama-vid-content", {}),
    ("llama-vid-content", {"num_video_tokens": 8 * 4}),
]
# Encoders that read patches, (T, GRID * GRID, D), instead of latents.
OF_PATCHES = {name for name, _ in CASES if find_encoder(name).reads == "patches"}


def expected(encoder: str, choices: dict[str, object], x_TND: Array, w: Weights) -> Array:
    """The tokens of one clip. A count that the released form does not produce comes from the paper's form."""
    num_video_tokens, by_form = (
        choices.get("num_video_tokens"),
        "num_video_tokens" in choices and "step_tokens" not in choices,
    )
    x = stamped(x_TND) if choices.get("time_stamps") else x_TND
    pool = functools.partial(token_learner, w=w, at="final_output.")
    if encoder == "tokenlearner":
        return pool(np.concatenate(x))
    if encoder in ("gttm", "mambalike"):
        memories_NGD = gttm_memories(x, w, LAYERS, HEADS) if encoder == "gttm" else gated_memories(x, w)
        return pool(np.concatenate(memories_NGD)) if by_form else memories_NGD.mean(1)
    if encoder == "ttm":
        memory, processed = ttm_steps(x, w, LAYERS, HEADS)
        if by_form:
            return memory
        return np.concatenate([token_learner(z, w, "ttm_unit.output_layer.") for z in processed])
    if encoder == "transformer":
        assert isinstance(num_video_tokens, int)
        return process(np.concatenate(x), w, "", LAYERS, HEADS)[-num_video_tokens:]
    if encoder == "per-frame":
        return np.concatenate([pool(frame) for frame in x])
    if encoder == "space-time-pool":
        assert isinstance(num_video_tokens, int)
        width = NUM_LATENTS // num_video_tokens
        return np.stack([x[:, i : i + width].max(axis=(0, 1)) for i in range(0, NUM_LATENTS, width)])
    if encoder in ("pllava", "llama-vid-content"):
        count = choices.get("num_video_tokens", 8 * (16 if encoder == "pllava" else 1))
        assert isinstance(count, int)
        return np.concatenate([pooled_grid(frame, math.isqrt(count // 8)) for frame in x])
    if encoder == "slowfast-llava":
        num_slow, side = choices.get("slow_frames", 2), choices.get("fast_side", 4)
        assert isinstance(num_slow, int)
        assert isinstance(side, int)
        slow = [frame[i : i + 2].max(0)[None] for frame in slow_frames(x, num_slow) for i in range(0, GRID * GRID, 2)]
        return np.concatenate([*slow, *(pooled_grid(frame, side) for frame in x)])
    plain: dict[str, Callable[[Array], Array]] = {
        "video-chatgpt": lambda x: np.concatenate((x.mean(1), x.mean(0))),
        "mean": lambda x: x.sum(0) if choices else x.sum(0) / len(x),
        "max": lambda x: x.max(0),
        "none": np.concatenate,
        "single-frame": lambda x: x[len(x) // 2],
    }
    return plain[encoder](x)


def _build(encoder: str, **choices: object) -> nn.Module:
    return randomise(build_temporal(small_config(encoder, **choices)))


def _input(encoder: str, num_clips: int, num_frames: int) -> torch.Tensor:
    return tokens(num_clips, num_frames, GRID * GRID if encoder in OF_PATCHES else NUM_LATENTS, DIM)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("encoder", "choices"), CASES, ids=[" ".join(map(str, (name, *choices.values()))) for name, choices in CASES]
)
def test_against_the_plain_formula(encoder: str, choices: dict[str, object], num_frames: int) -> None:
    model = _build(encoder, **choices)
    x, w = _input(encoder, 2, num_frames), weights(model)
    want = np.stack([expected(encoder, choices, clip, w) for clip in x.double().numpy()])
    close(model(x), want)
    if num_frames == 8:
        assert want.shape[1] == small_config(encoder, **choices).num_video_tokens


def test_every_encoder_has_a_formula() -> None:
    """The perceiver's is in ``test_blocks.py``, since the resampler computes it."""
    assert {name for name, _ in CASES} | {"perceiver"} == set(encoder_names())


@pytest.mark.parametrize("encoder", encoder_names())
@pytest.mark.parametrize("seed", [0, 1])
def test_which_encoders_depend_on_the_order_of_frames(encoder: str, seed: int) -> None:
    """Pooling over all frames does not; the released tokenlearner has no time stamps, which is why tiny adds them."""
    torch.manual_seed(seed)
    model = randomise(PerceiverResampler(small_config(encoder)))
    patches = tokens(1, 4, 64, DIM)
    order_free = encoder in ORDER_FREE
    difference = (model(patches) - model(patches.flip(1))).abs().max()
    assert difference < 1e-5 if order_free else difference > 1e-4


def test_time_stamps_make_tokenlearner_depend_on_the_order() -> None:
    assert not temporal_settings(with_encoder(preset("xgen-mm-vid"), "tokenlearner")).time_stamps
    assert temporal_settings(preset("tiny")).time_stamps
    x, model = tokens(1, 8, NUM_LATENTS, DIM), _build("tokenlearner", time_stamps=True)
    assert not torch.allclose(model(x), model(x.flip(1)), atol=1e-3)


@pytest.mark.parametrize("encoder", ["ttm", "per-frame", "none"])
def test_the_output_of_a_frame_does_not_depend_on_later_frames(encoder: str) -> None:
    x, model = tokens(2, 6, NUM_LATENTS, DIM), _build(encoder)
    early = model(x[:, :3])
    close(early, model(x)[:, : early.shape[1]].detach().double().numpy())


@pytest.mark.parametrize("encoder", ["gttm", "mambalike", "mean", "max"])
def test_groups_never_mix(encoder: str) -> None:
    x, model = tokens(1, 4, NUM_LATENTS, DIM), _build(encoder)
    other = x.clone()
    other[:, :, 5] += 1.0
    changed = (model(x) - model(other)).abs().amax(dim=(0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [5]


def test_attention_over_the_memories_mixes_groups() -> None:
    x, model = tokens(1, 4, NUM_LATENTS, DIM), _build("gttm", pooling="attention", num_video_tokens=16)
    other = x.clone()
    other[:, :, 5] += 1.0
    assert ((model(x) - model(other)).abs().amax(dim=(0, 2)) > 0).all()


def test_the_transformer_sees_all_frames_and_no_positions() -> None:
    x, model = tokens(1, 3, NUM_LATENTS, DIM), _build("transformer", num_video_tokens=32)
    swapped = x[:, [1, 0, 2]]
    close(model(swapped), model(x).detach().double().numpy())
    other = x.clone()
    other[:, 0] += tokens(1, NUM_LATENTS, DIM)
    assert not torch.allclose(model(other), model(x), atol=1e-3)


@pytest.mark.parametrize(("encoder", "choices"), CASES)
def test_gradients_reach_every_weight(encoder: str, choices: dict[str, object]) -> None:
    """A weight that nothing reads is not to be built."""
    model = _build(encoder, **choices)
    model(_input(encoder, 2, 3).requires_grad_()).square().sum().backward()
    assert [name for name, x in model.named_parameters() if x.grad is None or not x.grad.any()] == []
