"""The decoder as one graph: Phi-3 over embeddings with a preallocated KV cache, for prefill and every further token.

The layers are written out flat over the reference's own weights. How a layer attends to the cache is an object:
``ReferenceAttention`` runs in PyTorch (parity, tests); ``OnnxRuntimeAttention`` emits GroupQueryAttention, which
PyTorch itself cannot run. Inputs and outputs are those of ``bundle/graph_io.decoder_io``. Not here: the forms for
TensorRT (``tensorrt_decoder.py``).

An int8 cache has a scale per channel of a KV head, the same for every token (``CacheScales``): keys, once rotated, and
values are rounded when they are written, and the new tokens too attend to what was rounded.
"""

# Shapes: L layers, B rows, t new tokens, n of their positions, S cache capacity, P rope positions, D width, H heads,
# G KV heads, K head width, E = (H + 2G) * K, V logits.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3v.config import TextConfig
from blip3v.model.language import LanguageModel

__all__ = [
    "CacheAttention",
    "CacheScales",
    "CacheState",
    "DecoderGraph",
    "LayerScales",
    "OnnxRuntimeAttention",
    "RMSNorm",
    "ReferenceAttention",
    "RopeTables",
    "rotated",
    "split_heads",
    "written",
]

LayerScales = tuple[Tensor, Tensor]  # of keys and of values, fp32 (1, G, 1, K)
RMSNorm = Callable[[Tensor, nn.Module, float], Tensor]  # of a tensor, by the weight of a module, with an epsilon
State = TypeVar("State", bound="RopeTables", contravariant=True)


@dataclass(frozen=True)
class CacheScales:
    """Scales of an int8 cache: value = scale * integer in [-128, 127].

    Attributes:
        keys_LGK: fp32, positive; of rotated keys.
        values_LGK: fp32, positive.
    """

    keys_LGK: Tensor
    values_LGK: Tensor

    def layer(self, layer: int) -> LayerScales:
        """Returns those of a layer."""
        return self.keys_LGK[layer][None, :, None].clone(), self.values_LGK[layer][None, :, None].clone()


@dataclass(frozen=True)
class RopeTables:
    """What every layer's attention needs to know in any call."""

    cos_PK: Tensor  # (P, K / 2)
    sin_PK: Tensor  # (P, K / 2)


@dataclass(frozen=True)
class CacheState(RopeTables):
    """What it needs to know about this call, for ONNX Runtime."""

    seqlens_k_B: Tensor  # int32: valid tokens per row after this call, minus 1
    total_sequence_length: Tensor  # int32 scalar: the largest number of valid tokens


class CacheAttention(Protocol[State]):
    """Applies rope, writes the new keys and values into the cache, and attends to the valid part of it."""

    def __call__(
        self,
        qkv_BtE: Tensor,
        past_key_BGSK: Tensor,
        past_value_BGSK: Tensor,
        state: State,
        scales: LayerScales | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the mixed values (B, t, H*K) and the caches after this call; ``scales`` are those of int8 caches."""
        ...


_INT8_ATTRIBUTES = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}


class OnnxRuntimeAttention:
    """Emits one ``com.microsoft::GroupQueryAttention`` node, whose outputs in eager PyTorch are zeros."""

    def __init__(self, config: TextConfig) -> None:
        self._attributes: Any = {  # torch's type for it is longer than the table
            "num_heads": config.num_heads,
            "kv_num_heads": config.num_kv_heads,
            "do_rotary": 1,
            "local_window_size": -1 if config.sliding_window is None else config.sliding_window,
        }
        self._width = config.num_heads * config.head_dim

    def __call__(
        self,
        qkv_BtE: Tensor,
        past_key_BGSK: Tensor,
        past_value_BGSK: Tensor,
        state: CacheState,
        scales: LayerScales | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``CacheAttention``."""
        batch, num_new = qkv_BtE.shape[:2]
        lengths = (state.seqlens_k_B, state.total_sequence_length, state.cos_PK, state.sin_PK)
        # Between the tables and the scales stand three inputs that are not used here.
        in_int8 = () if scales is None else (None, None, None, *scales)
        mixed, key, value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [qkv_BtE, None, None, past_key_BGSK, past_value_BGSK, *lengths, *in_int8],
            self._attributes if scales is None else self._attributes | _INT8_ATTRIBUTES,
            dtypes=[qkv_BtE.dtype, past_key_BGSK.dtype, past_value_BGSK.dtype],
            shapes=[(batch, num_new, self._width), past_key_BGSK.shape, past_value_BGSK.shape],
            version=1,
        )
        return mixed, key, value


class ReferenceAttention:
    """The same in plain PyTorch: the semantics that the ONNX Runtime kernel is held to."""

    def __init__(self, config: TextConfig) -> None:
        self._config = config

    def __call__(
        self,
        qkv_BtE: Tensor,
        past_key_BGSK: Tensor,
        past_value_BGSK: Tensor,
        state: CacheState,
        scales: LayerScales | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``CacheAttention``."""
        text = self._config
        num_new, capacity = qkv_BtE.shape[1], past_key_BGSK.shape[2]
        q, k, v = split_heads(qkv_BtE, text)
        # The first call fills the cache from its start, even in right-padded rows.
        first_B = (state.seqlens_k_B + 1 - num_new) * (state.total_sequence_length != num_new)
        at_Bt = first_B[:, None] + torch.arange(num_new)
        q, k = (rotated(part, state.cos_PK[at_Bt], state.sin_PK[at_Bt]) for part in (q, k))
        if scales is not None:
            k, v = (_rounded(part, scale) for part, scale in zip((k, v), scales, strict=True))
        key, value = (written(past, new, at_Bt) for past, new in ((past_key_BGSK, k), (past_value_BGSK, v)))
        seen_key, seen_value = key, value
        if scales is not None:
            seen_key, seen_value = (each.float() * scale for each, scale in zip((key, value), scales, strict=True))
        slots_S = torch.arange(capacity)
        sees_BtS = slots_S <= at_Bt[..., None]
        if text.sliding_window is not None:
            sees_BtS &= slots_S > at_Bt[..., None] - text.sliding_window
        mixed = F.scaled_dot_product_attention(
            q, seen_key.to(q.dtype), seen_value.to(q.dtype), attn_mask=sees_BtS[:, None], enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2), key, value


def _rms_norm(x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    # One operator in the graph, whose statistics are fp32 in every precision.
    return F.rms_norm(x, (x.shape[-1],), norm.weight, eps)  # type: ignore[arg-type]


class _Layer(nn.Module):
    """One Phi-3 layer over the weights of the transformers library's module.

    Its matrices and norms may have different dtypes (``precision.py``): the residual stream has that of the norms,
    attention that of the rope tables, and each matrix product that of its weights.
    """

    def __init__(self, layer: Any, eps: float, scales: LayerScales | None, rms_norm: RMSNorm) -> None:
        super().__init__()
        self.rms_norm = rms_norm
        # The library's names, so that node names point at its weights.
        self.input_layernorm: nn.Module = layer.input_layernorm
        self.qkv_proj: nn.Module = layer.self_attn.qkv_proj
        self.o_proj: nn.Module = layer.self_attn.o_proj
        self.post_attention_layernorm: nn.Module = layer.post_attention_layernorm
        self.gate_up_proj: nn.Module = layer.mlp.gate_up_proj
        self.down_proj: nn.Module = layer.mlp.down_proj
        self.eps = eps
        # Buffers, since casts to half precision pass over them.
        self.key_scale: Tensor | None
        self.value_scale: Tensor | None
        for name, scale in zip(("key_scale", "value_scale"), scales or (None, None), strict=True):
            self.register_buffer(name, scale, persistent=False)

    def forward(
        self, x_BtD: Tensor, past_key: Tensor, past_value: Tensor, state: RopeTables, attention: CacheAttention[Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_BtD = x_BtD.to(self.input_layernorm.get_parameter("weight").dtype)
        normed_BtD = self.rms_norm(x_BtD, self.input_layernorm, self.eps)
        key_scale, value_scale = self.key_scale, self.value_scale
        scales = None if key_scale is None or value_scale is None else (key_scale, value_scale)
        qkv_BtE = self.qkv_proj(normed_BtD).to(state.cos_PK.dtype)
        mixed, key, value = attention(qkv_BtE, past_key, past_value, state, scales)
        x_BtD = x_BtD + self.o_proj(mixed).to(x_BtD.dtype)
        gate, up = self.gate_up_proj(self.rms_norm(x_BtD, self.post_attention_layernorm, self.eps)).chunk(2, dim=-1)
        # In the wider of both dtypes: this product has the largest values of a layer.
        wide = torch.promote_types(gate.dtype, self.down_proj.get_parameter("weight").dtype)
        return x_BtD + self.down_proj(F.silu(gate.to(wide)) * up.to(wide)).to(x_BtD.dtype), key, value


class DecoderGraph(nn.Module):
    """Embeddings and caches in, logits of some positions of each row and caches out.

    Args:
        language: the reference; its weights are shared, not copied.
        config: its config.
        attention: how a layer attends to its cache.
        scales: of int8 caches; None: the caches are floats.
        rotated: whether the residual stream has a basis of its own, into which ``rotation`` (D, D) turns the inputs.
    """

    rms_norm: RMSNorm = staticmethod(_rms_norm)

    def __init__(
        self,
        language: LanguageModel,
        config: TextConfig,
        attention: CacheAttention[Any],
        scales: CacheScales | None = None,
        *,
        rotated: bool = False,
    ) -> None:
        super().__init__()
        phi3: Any = language.model  # the transformers library, untyped
        self.layers = nn.ModuleList(
            _Layer(layer, config.rms_norm_eps, None if scales is None else scales.layer(index), self.rms_norm)
            for index, layer in enumerate(phi3.layers)
        )
        self.norm: nn.Module = phi3.norm
        weight, bias = language.lm_head.matrix()
        self.lm_head = nn.Parameter(weight.detach(), requires_grad=False)
        self.lm_head_bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.eps = config.rms_norm_eps
        self.attention = attention
        self.config = config
        width = config.hidden_size
        self.rotation = nn.Parameter(weight.new_empty(width, width), requires_grad=False) if rotated else None
        positions_1P = torch.arange(config.max_context)[None]
        cos_1PK, sin_1PK = phi3.rotary_emb(torch.zeros(1), positions_1P)
        # The library repeats the half table; the kernel takes it once. They are parameters so that casts apply to them.
        half = config.head_dim // 2
        self.cos_PK = nn.Parameter(cos_1PK[0, :, :half].contiguous(), requires_grad=False)
        self.sin_PK = nn.Parameter(sin_1PK[0, :, :half].contiguous(), requires_grad=False)

    def forward(
        self,
        inputs_embeds: Tensor,
        logits_index: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        cache: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Runs one call: prefill (t tokens, empty cache), a further chunk, or one token.

        Args:
            inputs_embeds: (B, t, D).
            logits_index: int64 (B, n), in [0, t): the positions of each row whose logits to return.
            seqlens_k: int32 (B,), valid tokens per row after this call, minus 1.
            total_sequence_length: int32 scalar, the largest number of valid tokens.
            cache: key and value of each layer in order, (B, G, S, K).

        Returns:
            Logits, fp32 (B, n, V), then the caches in the same order.
        """
        state = CacheState(self.cos_PK, self.sin_PK, seqlens_k, total_sequence_length)
        return self.run(inputs_embeds, logits_index, state, cache)

    def run(
        self, inputs_embeds: Tensor, logits_index: Tensor, state: RopeTables, cache: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """The layers and the head; see ``forward``. ``state`` is what ``attention`` takes."""
        x_BtD, present = inputs_embeds, []
        if self.rotation is not None:
            x_BtD = x_BtD @ self.rotation
        for index, layer in enumerate(self.layers):
            x_BtD, key, value = layer(x_BtD, cache[2 * index], cache[2 * index + 1], state, self.attention)
            present += [key, value]
        # Gathered before norm and head, so that a prompt costs one row of logits.
        at_BnD = logits_index[..., None].expand(-1, -1, x_BtD.shape[-1])
        x_BnD = self.rms_norm(x_BtD.gather(1, at_BnD), self.norm, self.eps)
        # The bias is added in fp32: half precision is too coarse for the largest logits.
        logits_BnV = F.linear(x_BnD.to(self.lm_head.dtype), self.lm_head).float() + self.lm_head_bias.float()
        return (logits_BnV, *present)


def split_heads(qkv_BtE: Tensor, config: TextConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, H, t, K), keys and values (B, G, t, K)."""
    sizes = [heads * config.head_dim for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    parts = torch.split(qkv_BtE, sizes, -1)
    q, k, v = (torch.unflatten(part, -1, (-1, config.head_dim)).transpose(1, 2) for part in parts)
    return q, k, v


def rotated(x_BHtK: Tensor, cos_BtK: Tensor, sin_BtK: Tensor) -> Tensor:
    """Turns each pair of channels (i, i + K / 2) by its position's angle; cos and sin are (B, t, K / 2)."""
    first, second = x_BHtK.chunk(2, dim=-1)
    cos, sin = cos_BtK[:, None], sin_BtK[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rounded(x_BGtK: Tensor, scale: Tensor) -> Tensor:
    return (x_BGtK.float() / scale).round().clamp(-128, 127).to(torch.int8)


def written(past_BGSK: Tensor, new_BGtK: Tensor, at_Bt: Tensor) -> Tensor:
    """The cache with the new tokens at the slots ``at_Bt``."""
    index = at_Bt[:, None, :, None].long().expand_as(new_BGtK)
    return past_BGSK.scatter(2, index, new_BGtK)
