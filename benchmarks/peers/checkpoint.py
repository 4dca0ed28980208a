"""One random model, written once, in the files that every stack reads.

    CHECKPOINT/text/     Phi-3 as the transformers library stores it: config.json, model.safetensors, tokenizer
    CHECKPOINT/vision/   SigLIP likewise, without the pooling head
    CHECKPOINT/sizes.json  what workers need to make inputs; written last, so that a part of a checkpoint is not used
    CHECKPOINT/model.json  the same shapes as a config of ours

Values are random, in fp16, and differ in every layer: engines share equal weights, and would read less memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from blip3v.config import ModelConfig, TemporalConfig, preset
from blip3v.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cut_config", "stored_name", "write_checkpoint"]

_TEXT_PREFIX = "lang_model."  # of our names; the rest is the transformers library's
_VISION_PREFIX = "vision_encoder."
_SIGLIP_PREFIX = "vision_model."  # of the stored names of SigLIP
_ADDED = 3
_SPECIAL = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def cut_config(shape: str, layers: int | None, vision_layers: int | None) -> ModelConfig:
    """The preset ``shape`` with fewer layers and the least between tower and decoder.

    One resampler block and the mean of the frames are left: about one per cent of a full tower's operations.

    Args:
        shape: name of the preset.
        layers: of the decoder; None: all.
        vision_layers: of the tower; None: all.
    """
    full = preset(shape)
    text, vision = full.text, full.vision
    num_ids = text.vocab_size if shape == "xgen-mm-vid" else text.num_logits
    return dataclasses.replace(
        full,
        vision=dataclasses.replace(vision, num_layers=vision_layers or vision.num_layers),
        resampler=dataclasses.replace(full.resampler, depth=1),
        temporal=TemporalConfig(encoder="mean", num_video_tokens=full.resampler.num_latents),
        text=dataclasses.replace(
            text,
            num_layers=layers or text.num_layers,
            vocab_size=num_ids,
            num_base_tokens=num_ids - _ADDED,
            num_added_tokens=_ADDED,
        ),
    )


def write_checkpoint(folder: Path, config: ModelConfig) -> None:
    """Writes the checkpoint, unless one of the same shape is there.

    Raises:
        UsageError: the folder holds one of another shape.
    """
    if (folder / "sizes.json").is_file():
        if ModelConfig.load(folder / "model.json") != config:
            raise UsageError(f"{folder} holds a model of another shape; choose another FOLDER, or delete it")
        return
    from blip3v.export.source import random_source

    source = random_source(config)
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, dict[str, str]] = {"text": {}, "vision": {}}
    for name in source.weights:
        stored = stored_name(name)
        if stored is not None and "additional" not in name:
            names[stored[0]][stored[1]] = name
    _write_library_model(folder / "text", _text_config(config), source.weights, names["text"])
    _write_tokenizer(folder / "text", source.tokenizer_json)
    _write_library_model(folder / "vision", _vision_config(config), source.weights, names["vision"])
    config.save(folder / "model.json")
    sizes = {"num_ids": config.text.num_logits, "image_size": config.vision.image_size}
    (folder / "sizes.json").write_text(json.dumps(sizes), "utf-8")


def stored_name(name: str) -> tuple[str, str] | None:
    """The folder and the stored name of one of our tensors; None: it is ours alone.

    Our added rows are the last rows of the library's matrices, whose head has no bias.
    """
    if name.startswith(_VISION_PREFIX):
        return "vision", _SIGLIP_PREFIX + name.removeprefix(_VISION_PREFIX)
    if name.startswith(_TEXT_PREFIX) and not name.endswith("bias"):
        whole = name.replace("additional_embedding.", "").replace("additional_fc.", "")
        return "text", whole.removeprefix(_TEXT_PREFIX)
    return None


def _write_library_model(
    folder: Path, config: dict[str, object], weights: Mapping[str, Tensor], names: dict[str, str]
) -> None:
    import torch

    from blip3v.model.weight_file import tensor_info, write_weights

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}), "utf-8")
    stored = {name: tensor_info(own, weights[own], torch.float16) for name, own in names.items()}
    write_weights(folder / "model.safetensors", stored, lambda name: weights[names[name]])


def _write_tokenizer(folder: Path, tokenizer_json: str) -> None:
    (folder / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, **_SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(_SPECIAL), "utf-8")


def _text_config(config: ModelConfig) -> dict[str, object]:
    text = config.text
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": text.num_logits,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_context,
        "original_max_position_embeddings": text.max_context,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "rope_scaling": None,
        "sliding_window": text.sliding_window,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float16",
    }


def _vision_config(config: ModelConfig) -> dict[str, object]:
    vision = config.vision
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": vision.layer_norm_eps,
        "vision_use_head": False,
        "torch_dtype": "float16",
    }
