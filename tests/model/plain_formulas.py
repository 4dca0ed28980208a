"""Plain numpy formulas in float64 for one clip, written from the paper and the fact sheet of the released code.

Nothing here imports blip3v: formulas take arrays, and weights by their released names.
"""

# Shapes: T frames, N tokens of a frame, R rows of any kind, D width, G memory slots.

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def layer_norm(x: Array, w: Weights, name: str, eps: float = 1e-5) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


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


def self_attention(x: Array, w: Weights, at: str, heads: int) -> Array:
    n = layer_norm(x, w, f"{at}norm")
    q, k, v = (n @ w[f"{at}to_{name}.weight"].T for name in "qkv")
    return attention(q, k, v, heads)


def feed_forward(x: Array, w: Weights, at: str) -> Array:
    return gelu(layer_norm(x, w, f"{at}0") @ w[f"{at}1.weight"].T) @ w[f"{at}3.weight"].T


def process(x: Array, w: Weights, at: str, layers: int, heads: int) -> Array:
    """Layers of self-attention and feed-forward over (R, D), with residuals."""
    for i in range(layers):
        x = x + self_attention(x, w, f"{at}process_layers.{i}.0.", heads)
        x = x + feed_forward(x, w, f"{at}process_layers.{i}.1.")
    return x


def token_learner(x: Array, w: Weights, at: str) -> Array:
    n = layer_norm(layer_norm(x, w, f"{at}norm"), w, f"{at}mlp.0")
    scores = gelu(n @ w[f"{at}mlp.1.weight"].T) @ w[f"{at}mlp.3.weight"].T
    return softmax(scores, 0).T @ x


def time_stamp(t: int, dim: int) -> Array:
    stamp = np.zeros(dim)
    for k in range(dim // 2):
        angle = t * 10000.0 ** (-2 * k / dim)
        stamp[2 * k], stamp[2 * k + 1] = math.sin(angle), math.cos(angle)
    return stamp


def stamped(x_TND: Array) -> Array:
    num_frames, _, dim = x_TND.shape
    return x_TND + np.stack([time_stamp(t, dim) for t in range(num_frames)])[:, None]


def perceive(patches_RD: Array, w: Weights, layers: int, heads: int, inner: int) -> Array:
    """The resampler's blocks: latents (R, D) after attending to ``patches_RD`` and to themselves."""
    latents = w["latents"]
    for i in range(layers):
        n = layer_norm(latents, w, f"layers.{i}.0.norm_latents")
        media = np.concatenate([layer_norm(patches_RD, w, f"layers.{i}.0.norm_media"), n])
        keys_values = media @ w[f"layers.{i}.0.to_kv.weight"].T
        query = n @ w[f"layers.{i}.0.to_q.weight"].T
        attended = attention(query, keys_values[:, :inner], keys_values[:, inner:], heads)
        latents = latents + attended @ w[f"layers.{i}.0.to_out.weight"].T
        latents = latents + feed_forward(latents, w, f"layers.{i}.1.")
    return latents


def gttm_memories(x_TND: Array, w: Weights, layers: int, heads: int) -> Array:
    """The final memories of all groups, (N, G, D): one group after another, each through all frames."""
    memories = []
    for group, memory in enumerate(w["initial_memory"]):
        for token in stamped(x_TND)[:, group]:
            z = process(np.concatenate([memory, [token]]), w, "ttm_unit.", layers, heads)
            memory = token_learner(np.concatenate([memory, z]), w, "ttm_unit.write_layer.")
        memories.append(memory)
    return np.stack(memories)


def ttm_steps(x_TND: Array, w: Weights, layers: int, heads: int) -> tuple[Array, list[Array]]:
    """The final memory of the vanilla TTM, and the processed tokens of every frame, before its output layer."""
    memory, processed = w["initial_memory"], []
    for frame in x_TND:
        read = token_learner(np.concatenate([memory, frame]), w, "ttm_unit.read_layer.")
        processed.append(process(read, w, "ttm_unit.", layers, heads))
        memory = token_learner(np.concatenate([memory, processed[-1]]), w, "ttm_unit.write_layer.")
    return memory, processed


def gated_memories(x_TND: Array, w: Weights) -> Array:
    """The final memories (N, G, D) of the gated recurrence, computed element by element."""
    memory = w["initial_memory"].copy()
    for frame in stamped(x_TND):
        for group, token in enumerate(frame):
            for d, number in enumerate(token):
                n = layer_norm(np.array([number]), w, "expand_mlp.0")
                gate = w["expand_mlp.3.weight"] @ gelu(w["expand_mlp.1.weight"] @ n)
                memory[group, :, d] = sigmoid(gate) * memory[group, :, d] + gate * number
    return memory


def pooled_grid(x_ND: Array, side: int) -> Array:
    """Adaptive average pooling of a square grid, window by window: from floor(i N / S) to ceil((i + 1) N / S)."""
    n = math.isqrt(len(x_ND))
    grid = x_ND.reshape(n, n, -1)
    edges = [(math.floor(i * n / side), math.ceil((i + 1) * n / side)) for i in range(side)]
    return np.stack([grid[a:b, c:d].mean((0, 1)) for a, b in edges for c, d in edges])


def slow_frames(x_TND: Array, count: int) -> list[Array]:
    """Frames at the floors of ``linspace(0, T, count + 1)``, without the last."""
    return [x_TND[int(at)] for at in np.linspace(0, len(x_TND), count + 1)[:-1]]
