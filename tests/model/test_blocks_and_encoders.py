"""Every part that is ours against a plain numpy formula in float64, written from the paper and the released code."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from blip3v.config import ModelConfig, preset
from blip3v.errors import ConfigError
from blip3v.model.blocks import FeedForward, SelfAttention, TimeStamps, TokenLearner
from blip3v.model.resampler import CrossAttention, PerceiverResampler
from blip3v.model.temporal import build_temporal

Array = npt.NDArray[np.float64]
SEED, DIM, TOLERANCE = 7, 96, 2e-5


def weights(module: nn.Module) -> dict[str, Array]:
    return {name: x.detach().double().numpy() for name, x in module.state_dict().items()}


def randomise(module: nn.Module) -> nn.Module:
    """Gives norms weights that are not 1 and 0, so that a swapped or missing norm shows."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def layer_norm(x: Array, w: dict[str, Array], name: str, eps: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    width = q.shape[-1] // heads
    parts = []
    for h in range(heads):
        s = slice(h * width, (h + 1) * width)
        parts.append(softmax(q[:, s] @ k[:, s].T / math.sqrt(width), 1) @ v[:, s])
    return np.concatenate(parts, 1)


def self_attention(x: Array, w: dict[str, Array], at: str, heads: int) -> Array:
    n = layer_norm(x, w, f"{at}norm")
    q, k, v = (n @ w[f"{at}to_{name}.weight"].T for name in "qkv")
    return attention(q, k, v, heads)


def feed_forward(x: Array, w: dict[str, Array], at: str) -> Array:
    return gelu(layer_norm(x, w, f"{at}0") @ w[f"{at}1.weight"].T) @ w[f"{at}3.weight"].T


def token_learner(x: Array, w: dict[str, Array], at: str) -> Array:
    n = layer_norm(layer_norm(x, w, f"{at}norm"), w, f"{at}mlp.0")
    scores = gelu(n @ w[f"{at}mlp.1.weight"].T) @ w[f"{at}mlp.3.weight"].T
    return softmax(scores, 0).T @ x


def time_stamp(t: int, dim: int) -> Array:
    stamp = np.zeros(dim)
    for k in range(dim // 2):
        angle = t * 10000.0 ** (-2 * k / dim)
        stamp[2 * k], stamp[2 * k + 1] = math.sin(angle), math.cos(angle)
    return stamp


def close(got: torch.Tensor, want: Array) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=TOLERANCE, atol=TOLERANCE)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED))


def config(encoder: str, **changes: int) -> ModelConfig:
    return preset("tiny").with_encoder(encoder, **changes)


def test_self_attention_has_no_output_projection() -> None:
    block, x = randomise(SelfAttention(DIM, num_heads=6)), tokens(2, 5, DIM)
    want = np.stack([self_attention(row, weights(block), "", 6) for row in x.double().numpy()])
    close(block(x), want)


def test_feed_forward() -> None:
    block, x = randomise(FeedForward(DIM, mult=2)), tokens(2, 5, DIM)
    close(block(x), feed_forward(x.double().numpy(), weights(block), ""))


@pytest.mark.parametrize("num_tokens", [4, 32])
def test_token_learner_pools_what_is_not_normalised(num_tokens: int) -> None:
    block, x = randomise(TokenLearner(DIM, num_tokens=num_tokens)), tokens(2, 40, DIM)
    want = np.stack([token_learner(row, weights(block), "") for row in x.double().numpy()])
    close(block(x), want)


def test_time_stamps() -> None:
    x = tokens(1, 5, 3, DIM)
    want = x.double().numpy() + np.stack([time_stamp(t, DIM) for t in range(5)])[None, :, None]
    close(TimeStamps(DIM)(x), want)


def test_cross_attention_puts_media_before_latents() -> None:
    block = randomise(CrossAttention(DIM, num_heads=3, head_dim=32))
    patches, latents = tokens(2, 64, DIM), tokens(2, 16, DIM) + 1.0
    w = weights(block)
    want = []
    for x, latent in zip(patches.double().numpy(), latents.double().numpy(), strict=True):
        n = layer_norm(latent, w, "norm_latents")
        keys_values = np.concatenate([layer_norm(x, w, "norm_media"), n]) @ w["to_kv.weight"].T
        k, v = keys_values[:, :DIM], keys_values[:, DIM:]
        want.append(attention(n @ w["to_q.weight"].T, k, v, 3) @ w["to_out.weight"].T)
    close(block(patches, latents), np.stack(want))


def test_resampler_projects_after_the_temporal_encoder() -> None:
    model = randomise(PerceiverResampler(config("mean")))
    patches, w = tokens(1, 2, 64, DIM), weights(model)
    frames = []
    for frame in range(2):
        latents = w["latents"]
        x = patches[0, frame].double().numpy()
        for i in range(2):
            n = layer_norm(latents, w, f"layers.{i}.0.norm_latents")
            media = np.concatenate([layer_norm(x, w, f"layers.{i}.0.norm_media"), n])
            keys_values = media @ w[f"layers.{i}.0.to_kv.weight"].T
            attended = attention(n @ w[f"layers.{i}.0.to_q.weight"].T, keys_values[:, :DIM], keys_values[:, DIM:], 3)
            latents = latents + attended @ w[f"layers.{i}.0.to_out.weight"].T
            latents = latents + feed_forward(latents, w, f"layers.{i}.1.")
        frames.append(latents)
    pooled = layer_norm(np.mean(frames, axis=0), w, "norm")
    close(model(patches)[0], pooled @ w["projection.weight"].T + w["projection.bias"])


@pytest.mark.parametrize("num_frames", [1, 3, 8, 11])
def test_gttm_against_plain_loops(num_frames: int) -> None:
    model = randomise(build_temporal(config("gttm")))
    x, w = tokens(2, num_frames, 128, DIM), weights(model)
    got = model(x)
    assert got.shape == (2, 128, DIM)
    for row, group in ((0, 0), (1, 5), (1, 127)):
        memory = w["initial_memory"][group]
        for t in range(num_frames):
            z = np.concatenate([memory, [x[row, t, group].double().numpy() + time_stamp(t, DIM)]])
            for i in range(2):
                z = z + self_attention(z, w, f"ttm_unit.process_layers.{i}.0.", 6)
                z = z + feed_forward(z, w, f"ttm_unit.process_layers.{i}.1.")
            memory = token_learner(np.concatenate([memory, z]), w, "ttm_unit.write_layer.")
        close(got[row, group], memory.mean(0))


@pytest.mark.parametrize("num_tokens", [16, 32, 128])
@pytest.mark.parametrize("num_frames", [2, 8])
def test_tokenlearner_pools_all_frames_at_once(num_tokens: int, num_frames: int) -> None:
    model = randomise(build_temporal(config("tokenlearner", num_tokens=num_tokens)))
    x, w = tokens(2, num_frames, 128, DIM), weights(model)
    stamped = x.double().numpy() + np.stack([time_stamp(t, DIM) for t in range(num_frames)])[None, :, None]
    want = np.stack([token_learner(row.reshape(-1, DIM), w, "final_output.") for row in stamped])
    close(model(x), want)


def test_without_time_stamps_tokenlearner_cannot_tell_the_order_of_frames() -> None:
    """The released form; the reason why tiny switches the stamps on."""
    tiny = preset("tiny")
    released = preset("xgen-mm-vid").with_encoder("tokenlearner")
    assert not released.temporal.time_stamps
    assert tiny.temporal.time_stamps
    x, model = tokens(1, 8, 128, DIM), randomise(build_temporal(tiny))
    assert not torch.allclose(model(x), model(x.flip(1)), atol=1e-3)


@pytest.mark.parametrize(
    ("encoder", "formula"),
    [
        ("mean", lambda x: x.mean(1)),
        ("none", lambda x: x.reshape(x.shape[0], -1, x.shape[-1])),
        ("single-frame", lambda x: x[:, x.shape[1] // 2]),
    ],
    ids=["mean", "none", "single-frame"],
)
def test_encoders_without_weights(encoder: str, formula: object) -> None:
    x = tokens(2, 5, 128, DIM)
    close(build_temporal(config(encoder))(x), formula(x.double().numpy()))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("encoder", "num_tokens", "allowed"),
    [("tokenlearner", 31, "16, 32"), ("gttm", 32, "128"), ("none", 128, "1024"), ("mean", 16, "128")],
)
def test_a_count_that_an_encoder_cannot_give_is_an_error_that_lists_those_it_can(
    encoder: str, num_tokens: int, allowed: str
) -> None:
    with pytest.raises(ConfigError, match=allowed):
        config(encoder, num_tokens=num_tokens)
