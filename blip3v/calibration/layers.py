"""The linear layers of a model that can be quantised, by the released name of their module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from blip3v.bundle.layout import GRAPHS
from blip3v.config import ModelConfig
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.language import SplitHead
from blip3v.model.weights import without_weights

__all__ = ["HEAD", "LinearLayer", "linear_layers"]

HEAD = "lang_model.lm_head"  # base and added rows joined, as ``head_matrix`` returns them


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A matrix product ``x @ weight.T``."""

    name: str  # of its module, for example "lang_model.model.layers.3.self_attn.qkv_proj"
    graph: str  # video_encoder or decoder
    block: str  # the layer of the model that it belongs to, for example "lang_model.model.layers.3"
    num_inputs: int  # K
    num_outputs: int  # N


def linear_layers(config: ModelConfig) -> dict[str, LinearLayer]:
    """Returns every linear layer by name, in the order in which the model computes them."""
    with without_weights():
        model = Blip3Video(config)
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitHead):
            layers[HEAD] = _layer(HEAD, config.text.hidden_size, config.text.num_logits)
        elif isinstance(module, nn.Linear) and not name.startswith(f"{HEAD}."):
            layers[name] = _layer(name, module.in_features, module.out_features)
    return layers


def _layer(name: str, num_inputs: int, num_outputs: int) -> LinearLayer:
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    graph = GRAPHS[1] if parts[0] == "lang_model" else GRAPHS[0]
    block = "vision_tokenizer.temporal_encoder" if "temporal_encoder" in parts else ".".join(parts[: numbered + 1])
    return LinearLayer(name=name, graph=graph, block=block, num_inputs=num_inputs, num_outputs=num_outputs)
