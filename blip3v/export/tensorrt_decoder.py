"""The decoder as TensorRT takes it: a cache of fixed capacity that is written at given positions, and attention to it.

    onnxruntime                          tensorrt                                  tensorrt-legacy
    qkv, past -> GroupQueryAttention     q, k -> RotaryEmbedding                   the same in MatMul, Softmax,
                                         k, v, past -> TensorScatter -> present    Mul and ScatterElements
                                         q, present, mask -> Attention

``TensorScatter`` and the mask are all that knows how many tokens each row holds: shapes stay the same from token to
token. Attention has no length input that TensorRT's parser would use (it drops ``nonpad_kv_seqlen`` without a word).
"""

# Shapes: B rows, t new tokens, n of their positions, S cache capacity, P rope positions, D width, H heads, G KV heads,
# K head width, E = (H + 2G) * K.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3v.config import TextConfig
from blip3v.export.decoder_graph import DecoderGraph, LayerScales, RMSNorm, RopeTables, rotated, split_heads, written

__all__ = ["LegacyAttention", "LegacyDecoderGraph", "TensorRTAttention", "TensorRTDecoderGraph"]


@dataclass(frozen=True)
class WrittenState(RopeTables):
    """What every layer's attention needs to know about this call."""

    write_indices_B: Tensor  # int64: tokens in each row before this call
    positions_Bt: Tensor  # int64: of the new tokens
    sees_B1tS: Tensor  # bool: the slots of the cache that each new token attends to


class TensorRTAttention:
    """Emits RotaryEmbedding, TensorScatter and Attention of ONNX 24; in eager PyTorch its caches are zeros."""

    def __init__(self, config: TextConfig) -> None:
        self._config = config

    def __call__(
        self,
        qkv_BtE: Tensor,
        past_key_BGSK: Tensor,
        past_value_BGSK: Tensor,
        state: WrittenState,
        scales: LayerScales | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``CacheAttention``."""
        assert scales is None, "caches for TensorRT are floats"
        q, k, v = split_heads(qkv_BtE, self._config)
        q, k = self._rotated(q, state), self._rotated(k, state)
        key, value = self._written(past_key_BGSK, k, state), self._written(past_value_BGSK, v, state)
        grouped = self._config.num_heads != self._config.num_kv_heads
        mixed_BHtK = F.scaled_dot_product_attention(q, key, value, attn_mask=state.sees_B1tS, enable_gqa=grouped)
        return mixed_BHtK.transpose(1, 2).flatten(2), key, value

    def _rotated(self, x_BHtK: Tensor, state: WrittenState) -> Tensor:
        return torch.onnx.ops.rotary_embedding(x_BHtK, state.cos_PK, state.sin_PK, state.positions_Bt)

    def _written(self, past_BGSK: Tensor, new_BGtK: Tensor, state: WrittenState) -> Tensor:
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            [past_BGSK, new_BGtK, state.write_indices_B],
            {"axis": -2},
            dtype=past_BGSK.dtype,
            shape=past_BGSK.shape,
            version=24,
        )


class LegacyAttention(TensorRTAttention):
    """The same in operators that TensorRT 10.3 has; PyTorch can run it."""

    def _rotated(self, x_BHtK: Tensor, state: WrittenState) -> Tensor:
        return rotated(x_BHtK, state.cos_PK[state.positions_Bt], state.sin_PK[state.positions_Bt])

    def _written(self, past_BGSK: Tensor, new_BGtK: Tensor, state: WrittenState) -> Tensor:
        return written(past_BGSK, new_BGtK, state.positions_Bt)


class TensorRTDecoderGraph(DecoderGraph):
    """A ``DecoderGraph`` whose rows are where ``write_indices`` says."""

    def forward(  # type: ignore[override]  # other lengths than for ONNX Runtime
        self, inputs_embeds: Tensor, logits_index: Tensor, write_indices: Tensor, cache: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Runs one call: prefill (t tokens, empty cache), a further chunk, or one token.

        Args:
            inputs_embeds: (B, t, D).
            logits_index: int64 (B, n), in [0, t): the positions of each row whose logits to return.
            write_indices: int64 (B,): tokens in each row before this call.
            cache: key and value of each layer in order, (B, G, S, K).

        Returns:
            Logits, fp32 (B, n, V), then the caches in the same order.
        """
        positions_Bt = write_indices[:, None] + torch.arange(inputs_embeds.shape[1])
        slots_S = torch.arange(cache[0].shape[2])
        sees_BtS = slots_S <= positions_Bt[..., None]
        if self.config.sliding_window is not None:
            sees_BtS &= slots_S > positions_Bt[..., None] - self.config.sliding_window
        state = WrittenState(self.cos_PK, self.sin_PK, write_indices, positions_Bt, sees_BtS[:, None])
        return self.run(inputs_embeds, logits_index, state, cache)


def _plain_rms_norm(x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype) * norm.get_parameter("weight")


class LegacyDecoderGraph(TensorRTDecoderGraph):
    """The same with norms in operators that TensorRT 10.3 has; their statistics are fp32."""

    rms_norm: RMSNorm = staticmethod(_plain_rms_norm)
