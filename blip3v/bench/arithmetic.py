"""What each stage has to do at least: operations of its matrix products, and bytes that a decoding step reads.

A multiplication and an addition are two operations. Counted are the products of linear layers and of attention, which
for a prompt means the positions that a token may attend to, not the square; norms, activations and softmax are not.
"""

# Shapes: F frames, P patches, L latents, D width, E heads * head width, I width of an MLP, t tokens.

from __future__ import annotations

from blip3v.bench.temporal_arithmetic import joined_frames, temporal_multiply_adds
from blip3v.config import ModelConfig, TextConfig

__all__ = [
    "attended_positions",
    "prefill_operations",
    "step_bytes",
    "training_operations",
    "video_encoder_operations",
]


def video_encoder_operations(config: ModelConfig) -> int | None:
    """Operations for one clip; None: those of its temporal encoder are not known (``temporal_arithmetic.py``)."""
    temporal = temporal_multiply_adds(config)
    if temporal is None:
        return None
    projection = config.num_video_tokens * config.vision.hidden_size * config.text.hidden_size
    return 2 * (config.num_frames * _vision(config) + _resampler(config) + temporal + projection)


def prefill_operations(text: TextConfig, num_tokens: int) -> int:
    """Operations for a prompt of ``num_tokens``, logits after the last one included."""
    heads = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    attention = text.hidden_size * (heads + text.num_heads * text.head_dim)
    mlp = 3 * text.hidden_size * text.intermediate_size  # gate, up and down
    seen = attended_positions(num_tokens, text.sliding_window)
    scores = 2 * text.num_heads * text.head_dim * seen  # and the mixed values
    layers = text.num_layers * (num_tokens * (attention + mlp) + scores)
    return 2 * (layers + text.hidden_size * text.num_logits)


def training_operations(config: ModelConfig, *, num_text_tokens: int, num_answer_tokens: int) -> int | None:
    """Operations of a training step for one clip: forward, and backward with twice as many in all that is trained.

    The vision encoder is frozen and only runs forward. What gradient checkpointing computes again is not counted.

    Args:
        config: of the model.
        num_text_tokens: of prompt and answer, ``<image>`` included.
        num_answer_tokens: the positions that have logits.

    Returns:
        None: the operations of its temporal encoder are not known.
    """
    encoder = video_encoder_operations(config)
    if encoder is None:
        return None
    frozen = 2 * config.num_frames * _vision(config)
    prefill = prefill_operations(config.text, config.num_video_tokens + num_text_tokens - 1)
    further_logits = 2 * (num_answer_tokens - 1) * config.text.hidden_size * config.text.num_logits
    return frozen + 3 * (encoder - frozen + prefill + further_logits)


def attended_positions(num_tokens: int, window: int | None) -> int:
    """Pairs of a token and one that it attends to, itself included, in a prompt of ``num_tokens``."""
    width = num_tokens if window is None else min(window, num_tokens)
    return width * (width + 1) // 2 + (num_tokens - width) * width


def step_bytes(
    weights_bytes: int, kv_bytes_per_token: int, *, num_tokens: int, window: int | None, batch_size: int = 1
) -> int:
    """Bytes that a decoding step reads: every weight once, and the keys and values of every row.

    Args:
        weights_bytes: of the decoder, as the engine holds them.
        kv_bytes_per_token: keys and values of one token in all layers.
        num_tokens: that a row holds.
        window: tokens that a token attends to, itself included; None: all.
        batch_size: rows.
    """
    seen = num_tokens if window is None else min(window, num_tokens)
    return weights_bytes + batch_size * seen * kv_bytes_per_token


def _vision(config: ModelConfig) -> int:
    """Multiply-adds for one frame."""
    vision = config.vision
    patches, dim = vision.num_patches, vision.hidden_size
    embedding = patches * 3 * vision.patch_size**2 * dim
    layer = 4 * patches * dim**2 + 2 * patches**2 * dim + 2 * patches * dim * vision.intermediate_size
    return embedding + vision.num_layers * layer


def _resampler(config: ModelConfig) -> int:
    """Multiply-adds for a clip."""
    resampler, dim = config.resampler, config.vision.hidden_size
    num_inputs, num_patches = joined_frames(config)
    latents, inner = resampler.num_latents, resampler.num_heads * resampler.head_dim
    keys = num_patches + latents
    attention = 2 * latents * dim * inner + keys * dim * 2 * inner + 2 * latents * keys * inner
    feed_forward = 2 * latents * dim * resampler.ff_mult * dim
    return num_inputs * resampler.depth * (attention + feed_forward)
