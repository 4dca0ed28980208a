"""The language model: the transformers library's Phi-3 with the released split of embedding and head.

Ids below ``num_base_tokens`` use the base rows; the few added tokens have rows of their own. The head is split the same
way and has a bias. Rows of the base matrices from ``num_base_tokens`` on are unused, as in the release.
"""

# Shapes: B batch, T tokens, D width, V logits.

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Phi3Config, Phi3Model

from blip3v.config import TextConfig

__all__ = [
    "EMBEDDING_NAMES",
    "HEAD_BIAS_NAMES",
    "HEAD_MATRIX_NAMES",
    "LanguageModel",
    "SplitEmbedding",
    "SplitHead",
    "embedding_table",
    "head_bias",
    "head_matrix",
]

# Released names of the base rows and of the added rows.
EMBEDDING_NAMES = (
    "lang_model.model.embed_tokens.weight",
    "lang_model.model.embed_tokens.additional_embedding.weight",
)
HEAD_MATRIX_NAMES = "lang_model.lm_head.weight", "lang_model.lm_head.additional_fc.weight"
HEAD_BIAS_NAMES = "lang_model.lm_head.bias", "lang_model.lm_head.additional_fc.bias"


class SplitEmbedding(nn.Module):
    """Embedding table with added rows (released name: ``embed_tokens``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_base_tokens = config.num_base_tokens
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        nn.init.normal_(self.weight, std=0.02)
        self.additional_embedding = nn.Embedding(config.num_added_tokens, config.hidden_size)
        nn.init.normal_(self.additional_embedding.weight, std=0.02)

    def table(self) -> Tensor:
        """Returns the rows that ids use, (V, D): base rows, then added rows."""
        return torch.cat((self.weight[: self.num_base_tokens], self.additional_embedding.weight))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T) ids in [0, V) to (B, T, D)."""
        return F.embedding(ids_BT, self.table())


class SplitHead(nn.Module):
    """Output projection with added columns and a bias (released names: ``lm_head``, ``lm_head.additional_fc``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_base_tokens = config.num_base_tokens
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        nn.init.normal_(self.weight, std=0.02)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.additional_fc = nn.Linear(config.hidden_size, config.num_added_tokens)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """Returns the live weight (V, D) and bias (V,)."""
        weight = torch.cat((self.weight[: self.num_base_tokens], self.additional_fc.weight))
        return weight, torch.cat((self.bias[: self.num_base_tokens], self.additional_fc.bias))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        weight, bias = self.matrix()
        return F.linear(x_BTD, weight, bias)


def embedding_table(weights: Mapping[str, Tensor], config: TextConfig) -> Tensor:
    """Returns ``SplitEmbedding.table`` from weights by released name, fp32 (V, D)."""
    return _joined(weights, config, *EMBEDDING_NAMES)


def head_matrix(weights: Mapping[str, Tensor], config: TextConfig) -> Tensor:
    """Returns the weight of ``SplitHead.matrix`` from weights by released name, fp32 (V, D)."""
    return _joined(weights, config, *HEAD_MATRIX_NAMES)


def head_bias(weights: Mapping[str, Tensor], config: TextConfig) -> Tensor:
    """Returns the bias of ``SplitHead.matrix`` from weights by released name, fp32 (V,)."""
    return _joined(weights, config, *HEAD_BIAS_NAMES)


def _joined(weights: Mapping[str, Tensor], config: TextConfig, base: str, added: str) -> Tensor:
    """Concatenates the live base rows and the added rows."""
    return torch.cat((weights[base][: config.num_base_tokens].float(), weights[added].float()))


class LanguageModel(nn.Module):
    """Phi-3 from embeddings to logits (released name: ``lang_model``)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Phi3Model(_phi3(config))
        self.model.embed_tokens = SplitEmbedding(config)  # type: ignore[assignment]
        self.lm_head = SplitHead(config)

    def embed(self, ids_BT: Tensor) -> Tensor:
        """(B, T) ids to (B, T, D)."""
        embedded: Tensor = self.model.embed_tokens(ids_BT)
        return embedded

    def hidden(self, embeds_BTD: Tensor, positions_BT: Tensor | None = None, mask_B1TT: Tensor | None = None) -> Tensor:
        """Returns the hidden states after the final norm: (B, T, D) to (B, T, D). Causal without a mask."""
        out = self.model(inputs_embeds=embeds_BTD, position_ids=positions_BT, attention_mask=mask_B1TT, use_cache=False)
        hidden_BTD: Tensor = out.last_hidden_state
        return hidden_BTD

    def forward(self, embeds_BTD: Tensor) -> Tensor:
        """Returns the logits of every position: (B, T, D) to (B, T, V)."""
        logits_BTV: Tensor = self.lm_head(self.hidden(embeds_BTD))
        return logits_BTV


def _phi3(config: TextConfig) -> Phi3Config:
    return Phi3Config(
        vocab_size=1,  # the library's own table is replaced by the split one
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_context,
        original_max_position_embeddings=config.max_context,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=config.rms_norm_eps,
        sliding_window=config.sliding_window,
        tie_word_embeddings=False,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
