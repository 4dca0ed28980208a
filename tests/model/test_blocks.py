"""The blocks and the resampler against plain numpy formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import close, randomise, small_config, tokens, weights
from plain_formulas import (
    attention,
    feed_forward,
    layer_norm,
    perceive,
    process,
    self_attention,
    time_stamp,
    token_learner,
)

from blip3v.model.blocks import FeedForward, ProcessLayers, SelfAttention, TimeStamps, TokenLearner
from blip3v.model.resampler import CrossAttention, PerceiverResampler

DIM = 96


def test_self_attention_has_no_output_projection() -> None:
    block, x = randomise(SelfAttention(DIM, num_heads=6)), tokens(2, 5, DIM)
    want = np.stack([self_attention(row, weights(block), "", 6) for row in x.double().numpy()])
    close(block(x), want)


def test_feed_forward() -> None:
    block, x = randomise(FeedForward(DIM, mult=2)), tokens(2, 5, DIM)
    close(block(x), feed_forward(x.double().numpy(), weights(block), ""))


def test_process_layers() -> None:
    block, x = randomise(ProcessLayers(DIM, num_layers=3, num_heads=6, ff_mult=2)), tokens(2, 5, DIM)
    w = {f"process_layers.{name}": value for name, value in weights(block).items()}
    close(block(x), np.stack([process(row, w, "", 3, 6) for row in x.double().numpy()]))


@pytest.mark.parametrize("num_video_tokens", [4, 32])
def test_token_learner_pools_the_unnormalised_inputs(num_video_tokens: int) -> None:
    block, x = randomise(TokenLearner(DIM, num_tokens=num_video_tokens)), tokens(2, 40, DIM)
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


@pytest.mark.parametrize(
    ("encoder", "num_frames"), [("mean", 2), ("single-frame", 4), ("perceiver", 1), ("perceiver", 3)]
)
def test_resampler_projects_after_the_temporal_encoder(encoder: str, num_frames: int) -> None:
    """The frames one by one, only the middle one, or all patches at once and then the first latents."""
    config = small_config(encoder)
    resampler = config.resampler
    model = randomise(PerceiverResampler(config))
    patches, w = tokens(2, num_frames, 64, 24), weights(model)
    layers, heads, inner = resampler.depth, resampler.num_heads, resampler.num_heads * resampler.head_dim
    want = []
    for clip in patches.double().numpy():
        if encoder == "perceiver":
            pooled = perceive(np.concatenate(list(clip)), w, layers, heads, inner)
        else:
            frames = [perceive(frame, w, layers, heads, inner) for frame in clip]
            pooled = np.mean(frames, axis=0) if encoder == "mean" else frames[num_frames // 2]
        want.append(layer_norm(pooled, w, "norm") @ w["projection.weight"].T + w["projection.bias"])
    close(model(patches), np.stack(want))


def test_the_joint_perceiver_keeps_the_first_latents() -> None:
    all_latents, some = (randomise(PerceiverResampler(small_config("perceiver", num_video_tokens=m))) for m in (32, 16))
    some.load_state_dict(all_latents.state_dict())
    patches = tokens(2, 3, 64, 24)
    assert some(patches).shape[1] == 16
    close(some(patches), all_latents(patches)[:, :16].detach().double().numpy())
