"""The JSON files of the released Hugging Face folder: what each setting means here.

A setting is applied, accepted with the one value that this model computes with, or passed over because it changes no
answer (training, bookkeeping, any-res pictures); every other one is refused by name. Values that are missing are
defaults of the released code, as ``released_names.defaults`` gives them. Not here: weights and tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from blip3v import strict_json
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import ArtifactMissingError, ConfigError
from blip3v.folders import MODEL_TYPE
from blip3v.text.generation import RELEASED_SYSTEM_PROMPT, GenerationConfig
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["base_config", "generation_config", "preprocessor_config"]


_MAX_NEW_TOKENS = 1024  # of the released inference script
_BICUBIC = ("bicubic", 3)  # by name, and PIL's number

Allowed = dict[str, tuple[object, ...]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that one JSON object may have."""

    only: Allowed  # accepted with one of these values
    applied: Mapping[str, str]  # their name -> ours
    unread: frozenset[str]  # accepted with any value

    def check(self, values: Mapping[str, Any], where: str) -> None:
        """Refuses everything else.

        Raises:
            ConfigError: names the setting, its value and what is allowed.
        """
        for name, value in values.items():
            if name in self.only:
                if not any(_same(value, allowed) for allowed in self.only[name]):
                    listed = " or ".join(map(repr, self.only[name]))
                    raise ConfigError(f"{where} has {name} {short(value)}, which is not supported; allowed: {listed}")
            elif name not in self.applied and name not in self.unread:
                near = difflib.get_close_matches(name, [*self.only, *self.applied], n=1)
                hint = f"did you mean {near[0]!r}?" if near else "remove it if the model's answers do not depend on it"
                raise ConfigError(f"{where} has {name} {short(value)}, a setting that blip3v does not know; {hint}")


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _same(value: object, allowed: object) -> bool:
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


# How the transformers library generates text, if not told otherwise; decoding here is the released script's.
_GENERATION: Allowed = {
    "do_sample": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "bad_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "exponential_decay_length_penalty": (None,),
    "remove_invalid_values": (False,),
    "num_return_sequences": (1,),
}
_GENERATION_UNREAD = _words(
    "max_length early_stopping temperature top_k top_p typical_p length_penalty output_scores return_dict_in_generate "
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id use_cache transformers_version "
    "output_attentions output_hidden_states"
)
# What any config of the transformers library may hold.
_ANY_CONFIG: Allowed = {
    "tie_word_embeddings": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    **_GENERATION,
}
_ANY_CONFIG_UNREAD = _GENERATION_UNREAD | _words(
    "architectures auto_map torch_dtype dtype _name_or_path name_or_path _commit_hash attn_implementation "
    "_attn_implementation_autoset return_dict torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward "
    "finetuning_task id2label label2id tokenizer_class prefix task_specific_params problem_type"
)
_SECTIONS = ("text_config", "vision_encoder_config", "vision_tokenizer_config")
_TOP = Settings(
    only=_ANY_CONFIG | {"model_type": (MODEL_TYPE,)},
    applied={name: name for name in _SECTIONS},
    unread=_ANY_CONFIG_UNREAD,
)
_TEXT = Settings(
    applied={
        "initial_tokenizer_len": "num_base_tokens",
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "max_position_embeddings": "max_context",
        "sliding_window": "sliding_window",
        "rope_theta": "rope_theta",
        "rms_norm_eps": "rms_norm_eps",
    },
    only=_ANY_CONFIG
    | {
        "model_type": ("phi3",),
        "hidden_act": ("silu", "swish"),
        "rope_scaling": (None,),
        "rope_parameters": (None,),
        "partial_rotary_factor": (1.0,),
        "attention_bias": (False,),
    },
    unread=_ANY_CONFIG_UNREAD
    | _words("original_max_position_embeddings resid_pdrop embd_pdrop attention_dropout initializer_range"),
)
_VISION = Settings(
    applied={"image_aspect_ratio": "", "anyres_patch_sampling": ""},  # only in pairs: see below
    only=_ANY_CONFIG | {"model_type": ("xgenmm_vision_encoder",), "model_name": ("google/siglip-so400m-patch14-384",)},
    unread=_ANY_CONFIG_UNREAD | {"anyres_grids", "initializer_range"},
)
# image_aspect_ratio and anyres_patch_sampling: a frame is one picture of the whole. The image models, which have no
# temporal encoder, cut large pictures into parts; frames are never cut.
_WHOLE_FRAMES = (("pad", False), ("none", True))
_PARTS = (("anyres", True),)
_PROCESSOR = Settings(
    applied={name: name for name in ("size", "resize_mode", "image_mean", "image_std", "interpolation_mode")},
    only={
        "image_processor_type": ("Blip3ImageProcessor",),
        "do_resize": (True,),
        "do_rescale": (True,),
        "do_normalize": (True,),
        "do_convert_rgb": (True,),
        "do_center_crop": (False,),
    },
    unread=frozenset(("auto_map", "grids", "processor_class", "transformers_version")),
)
_GENERATION_FILE = Settings(
    applied={"max_new_tokens": "max_new_tokens"},
    only=_GENERATION | {"min_new_tokens": (None, 0), "guidance_scale": (None, 1.0)},
    unread=_GENERATION_UNREAD | {"_from_model_config"},
)


def base_config(folder: Path, base: ModelConfig, *, image_model: bool = False) -> ModelConfig:
    """Returns ``base`` with the values of ``config.json``; the temporal encoder stays that of ``base``.

    Args:
        folder: the released one.
        base: the values that ``config.json`` need not state.
        image_model: the weights have no temporal encoder, so the config may be an image model's.

    Raises:
        ConfigError: not a config of model_type xgenmm with Phi-3, or a setting or value that is not supported.
    """
    path = folder / "config.json"
    values = strict_json.read_json(path)
    _TOP.check({"model_type": None, **values}, str(path))
    text, vision, tokenizer = (_section(values, name, path) for name in _SECTIONS)
    _TEXT.check({"model_type": None, **text}, f"{path}: text_config")
    _check_vision(vision, f"{path}: vision_encoder_config", image_model)
    merged = _text(base.text, text, f"{path}: text_config")
    latents = _num_latents(base, merged, tokenizer, f"{path}: vision_tokenizer_config")
    try:
        return dataclasses.replace(
            base, text=merged, resampler=dataclasses.replace(base.resampler, num_latents=latents)
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def preprocessor_config(folder: Path) -> PreprocessorConfig:
    """Returns how the folder's processor turns frames into pixels.

    Raises:
        ArtifactMissingError: no ``preprocessor_config.json``.
        ConfigError: a setting or value that is not supported.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise ArtifactMissingError(f"{path} does not exist; copy it from the released folder")
    values = strict_json.read_json(path)
    _PROCESSOR.check(values, str(path))
    size = values.get("size", [384, 384])
    if not isinstance(size, list) or len(size) != 2 or size[0] != size[1]:
        raise ConfigError(f"{path} has size {size!r}; two equal sides are expected")
    if values.get("interpolation_mode", "bicubic") not in _BICUBIC:
        raise ConfigError(
            f"{path} has interpolation_mode {values['interpolation_mode']!r}; the released processor has only bicubic"
        )
    own: dict[str, Any] = {key: values[key] for key in ("resize_mode", "image_mean", "image_std") if key in values}
    return strict_json.from_dict(PreprocessorConfig, own | {"image_size": size[0]}, str(path))


def generation_config(folder: Path) -> GenerationConfig:
    """Returns the released system prompt and limits, and ``max_new_tokens`` of ``generation_config.json`` if set.

    Raises:
        ConfigError: a setting or value that decoding cannot use.
    """
    path = folder / "generation_config.json"
    values = strict_json.read_json(path) if path.is_file() else {}
    _GENERATION_FILE.check(values, str(path))
    own = {name: values[name] for name in ("max_new_tokens",) if name in values}
    released = {"system_prompt": RELEASED_SYSTEM_PROMPT, "max_new_tokens": _MAX_NEW_TOKENS}
    return strict_json.from_dict(GenerationConfig, released | own, str(path))


def _section(values: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    section = values.get(name)
    if not isinstance(section, dict):
        found = f"has {name} {short(section)}" if name in values else f"has no {name}"
        raise ConfigError(f"{path} {found}; an object is expected, as in the released config.json")
    return section


def _text(base: TextConfig, values: Mapping[str, Any], where: str) -> TextConfig:
    """Applies the settings one by one, so that an error names the one in the file."""
    merged = base
    for theirs, ours in _TEXT.applied.items():
        if theirs in values:
            own = dataclasses.asdict(merged) | {ours: values[theirs]}
            try:
                merged = strict_json.from_dict(TextConfig, own, where)
            except ConfigError as error:
                raise ConfigError(str(error).replace(ours, theirs)) from error
    return merged


def _check_vision(values: Mapping[str, Any], where: str, image_model: bool) -> None:
    _VISION.check(values, where)
    pair = values.get("image_aspect_ratio"), values.get("anyres_patch_sampling")
    allowed = (*_WHOLE_FRAMES, *_PARTS) if image_model else _WHOLE_FRAMES
    if not any(all(map(_same, pair, known)) for known in allowed):
        listed = " or ".join(f"{ratio!r} with {sampling}" for ratio, sampling in allowed)
        raise ConfigError(
            f"{where} has image_aspect_ratio {pair[0]!r} with anyres_patch_sampling {pair[1]!r}; for video only "
            f"{listed} is supported"
        )


def _num_latents(base: ModelConfig, text: TextConfig, values: Mapping[str, Any], where: str) -> int:
    settings = Settings(
        applied={"num_vis_tokens": "num_latents"},
        only=_ANY_CONFIG
        | {
            "model_type": ("xgenmm_vision_tokenizer",),
            "vis_feature_dim": (base.vision.hidden_size,),
            "lang_embedding_dim": (text.hidden_size,),
            "image_aspect_ratio": ("pad", "none"),
        },
        unread=_ANY_CONFIG_UNREAD,
    )
    settings.check(values, where)
    latents = values.get("num_vis_tokens", base.resampler.num_latents)
    if type(latents) is not int or latents < 1:
        raise ConfigError(f"{where} has num_vis_tokens {latents!r}; an integer of at least 1 is expected")
    return latents
