"""Models whose activations overflow half precision in one place, and that compute much the same as before."""

from __future__ import annotations

import torch

from blip3v.model import Blip3Video

NUM_UNITS = 20


def large_product(model: Blip3Video, factor: float = 2.0**15) -> None:
    """Makes ``silu(gate) * up`` of some units of a decoder layer huge, and undoes it in ``down_proj``."""
    width = model.config.text.intermediate_size
    mlp = model.lang_model.get_submodule("model.layers.1.mlp")
    mlp.get_parameter("gate_up_proj.weight")[width : width + NUM_UNITS].mul_(factor)
    mlp.get_parameter("down_proj.weight")[:, :NUM_UNITS].div_(factor)


def large_gate_and_up(model: Blip3Video) -> None:
    """Makes the product huge although neither of its factors is."""
    width = model.config.text.intermediate_size
    mlp = model.lang_model.get_submodule("model.layers.1.mlp")
    for start in (0, width):
        mlp.get_parameter("gate_up_proj.weight")[start : start + NUM_UNITS].mul_(2.0**9)
    mlp.get_parameter("down_proj.weight")[:, :NUM_UNITS].div_(2.0**18)


def large_decoder_stream(model: Blip3Video, factor: float = 2.0**14) -> None:
    """Scales all that enters the residual stream: the norms that read it take the factor out."""
    model.lang_model.get_parameter("model.embed_tokens.weight").mul_(factor)
    model.lang_model.get_parameter("model.embed_tokens.additional_embedding.weight").mul_(factor)
    for name, weight in model.lang_model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_(factor)


def large_values(model: Blip3Video, factor: float = 2.0**15) -> None:
    """Makes the values of the vision tower's attention huge, and undoes it in ``out_proj``."""
    for name, weight in model.vision_encoder.named_parameters():
        if ".v_proj." in name:
            weight.mul_(factor)
        elif name.endswith(".out_proj.weight"):
            weight.div_(factor)


def large_vision_channel(model: Blip3Video) -> None:
    """Writes 1e5 into one channel of the vision tower's residual stream, and removes it two writers later."""
    for name, change in (("0.self_attn.out_proj", 4e4), ("0.mlp.fc2", 6e4), ("1.self_attn.out_proj", -6e4)):
        model.vision_encoder.get_parameter(f"encoder.layers.{name}.bias")[3].add_(change)
    model.vision_encoder.get_parameter("encoder.layers.1.mlp.fc2.bias")[3].add_(-4e4)


def large_latents(model: Blip3Video, factor: float = 2.0**16) -> None:
    """Scales all that enters the resampler's residual stream."""
    for name, weight in model.vision_tokenizer.named_parameters():
        if name == "latents" or name.endswith(("to_out.weight", ".1.3.weight")):
            weight.mul_(factor)


def large_temporal_score(model: Blip3Video) -> None:
    """Makes a product inside the TokenLearner huge."""
    with torch.no_grad():
        model.vision_tokenizer.get_parameter("temporal_encoder.final_output.mlp.1.weight").mul_(2.0**15)
        model.vision_tokenizer.get_parameter("temporal_encoder.final_output.mlp.3.weight").mul_(2.0**-15)
