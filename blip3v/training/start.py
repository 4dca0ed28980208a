"""What a run starts from: a checkpoint, two pretrained towers, or random weights. Weights are read one by one.

Existing weights are copied, the others are random: a temporal encoder that the checkpoint lacks, or everything between
two towers. The rows that the model adds to Phi-3's tables are drawn from N(0, 0.02), and its biases are zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from blip3v.config import ModelConfig, TextConfig, preset
from blip3v.data.samples import film_texts
from blip3v.errors import ConfigError, UsageError
from blip3v.model import Blip3Video
from blip3v.model.checkpoint import Checkpoint, open_checkpoint
from blip3v.model.resampler import PerceiverResampler
from blip3v.model.temporal import build_temporal, with_frames
from blip3v.model.weights import Gathered, state_shapes
from blip3v.text import RELEASED_SYSTEM_PROMPT, RELEASED_TEMPLATE, GenerationConfig, Tokenizer, train_tokenizer
from blip3v.text.released_tokenizer import released_tokenizer_json
from blip3v.training.chat_rows import ChatFormat
from blip3v.training.initialise import new_model
from blip3v.training.options import check_init
from blip3v.training.recipe import Recipe
from blip3v.training.towers import language_weights, num_language_rows, vision_weights
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["PARTS", "Start", "find_start"]

# The temporal encoder is counted separately, although it is inside the vision tokenizer.
PARTS = ("vision_encoder", "vision_tokenizer", "temporal_encoder", "lang_model")

_FILM_ANSWER_TOKENS = 48  # the default limit for an answer about a film
_ANSWER_TOKENS = 1024  # the released limit
_TEMPORAL = "vision_tokenizer.temporal_encoder."
_FROM_CHECKPOINT = ("vocab_size", "num_latents")  # sizes in which a checkpoint may differ from its preset
_ROW_STD = 0.02  # as the library initialises its own rows


@dataclass(frozen=True)
class Start:
    """The model at step 0, with its tokenizer, chat format and preprocessing."""

    config: ModelConfig
    weights: Mapping[str, Tensor]  # by the model's names
    origin: dict[str, str]  # of each part of the model, in words
    tokenizer_json: str
    chat: ChatFormat
    preprocessor: PreprocessorConfig


def find_start(recipe: Recipe, init: Path | None) -> Start:
    """Opens what ``recipe`` starts from; random weights are drawn from torch's generator.

    Args:
        recipe: the recipe, which also names the folders of pretrained towers.
        init: the checkpoint to start from: anything that ``open_checkpoint`` reads.

    Raises:
        UsageError: a checkpoint is given but the recipe takes none, or it takes one and none is given.
        ConfigError: the checkpoint and the recipe's preset differ in shape.
        ArtifactError: a folder that cannot be used.
    """
    start = _find(recipe, init)
    if recipe.resize_mode is None:
        return start
    return dataclasses.replace(
        start, preprocessor=dataclasses.replace(start.preprocessor, resize_mode=recipe.resize_mode)
    )


def _find(recipe: Recipe, init: Path | None) -> Start:
    check_init(recipe, init)
    if recipe.vision is not None and recipe.language is not None:
        return _from_towers(recipe, Path(recipe.vision), Path(recipe.language))
    if init is not None:
        return _from_checkpoint(recipe, init)
    return _from_scratch(recipe)


def _from_checkpoint(recipe: Recipe, path: Path) -> Start:
    checkpoint = _open(path, None if recipe.tokenizer is None else Path(recipe.tokenizer))
    given, config = checkpoint.config, recipe.model_config(_sized(preset(recipe.preset), checkpoint.config, path))
    same = with_frames(given, config.num_frames).temporal == config.temporal
    temporal = _random_temporal(recipe, config)
    sources = {
        name: checkpoint.weights if same or not name.startswith(_TEMPORAL) else temporal
        for name in state_shapes(config)
    }
    other = f"random, since {path} has {_form(given)} and the recipe {_form(config)}" if temporal else "has no weights"
    origin = dict.fromkeys(PARTS, str(path)) | {"temporal_encoder": str(path) if same and temporal else other}
    chat = ChatFormat(_tokenizer(checkpoint.tokenizer_json, path), checkpoint.chat_template, checkpoint.generation)
    return Start(config, Gathered(sources), origin, checkpoint.tokenizer_json, chat, checkpoint.preprocessor)


def _open(path: Path, tokenizer: Path | None) -> Checkpoint:
    try:
        return open_checkpoint(path, tokenizer=tokenizer)
    except UsageError:
        # The image model has no temporal encoder: none is copied then, so the name does not matter.
        return open_checkpoint(path, tokenizer=tokenizer, encoder="none")


def _from_towers(recipe: Recipe, vision: Path, language: Path) -> Start:
    own = preset(recipe.preset)
    rows = num_language_rows(language)
    if rows < own.text.num_base_tokens:
        raise ConfigError(f"{language} has {rows} embedding rows; the preset needs {own.text.num_base_tokens}")
    text = dataclasses.replace(own.text, vocab_size=rows)
    config = recipe.model_config(dataclasses.replace(own, text=text))
    rest = _named("vision_tokenizer.", PerceiverResampler(config)) | _added_rows(config.text)
    parts = (vision_weights(vision, config), language_weights(language, config), rest)
    weights = Gathered({name: part for part in parts for name in part})
    folder = Path(recipe.tokenizer) if recipe.tokenizer is not None else language
    tokenizer_json = _tokenizer_json(folder)
    tokenizer = _tokenizer(tokenizer_json, folder)
    if tokenizer.num_tokens != config.text.num_logits:
        raise ConfigError(
            f"the tokenizer has {tokenizer.num_tokens} tokens, but the preset has {config.text.num_logits}; "
            "name the folder of the model's own tokenizer as tokenizer in the recipe"
        )
    generation = GenerationConfig(system_prompt=RELEASED_SYSTEM_PROMPT, max_new_tokens=_ANSWER_TOKENS)
    chat = ChatFormat(tokenizer, RELEASED_TEMPLATE, generation)
    preprocessor = PreprocessorConfig(image_size=config.vision.image_size)
    origin = dict.fromkeys(PARTS, "random") | {"vision_encoder": str(vision), "lang_model": str(language)}
    return Start(config, weights, origin, tokenizer_json, chat, preprocessor)


def _from_scratch(recipe: Recipe) -> Start:
    config = recipe.model_config()
    tokenizer = train_tokenizer(film_texts(), vocab_size_base=config.text.num_base_tokens)
    generation = GenerationConfig(system_prompt=None, max_new_tokens=_FILM_ANSWER_TOKENS)
    chat = ChatFormat(Tokenizer(tokenizer), RELEASED_TEMPLATE, generation)
    preprocessor = PreprocessorConfig(image_size=config.vision.image_size)
    model = new_model(config) if recipe.start == "spread" else Blip3Video(config)
    origin = dict.fromkeys(PARTS, "random")
    return Start(config, model.state_dict(), origin, tokenizer.to_str(pretty=True), chat, preprocessor)


def _sized(own: ModelConfig, given: ModelConfig, path: Path) -> ModelConfig:
    """The preset with the checkpoint's numbers of embedding rows and latents; all other sizes must be equal."""
    for part in ("vision", "resampler", "text"):
        want, have = (dataclasses.asdict(getattr(config, part)) for config in (own, given))
        for name, value in want.items():
            if name not in _FROM_CHECKPOINT and have[name] != value:
                raise ConfigError(
                    f"the initial weights do not fit the recipe's model: {part}.{name} is {have[name]} in {path} and "
                    f"{value} in preset {own.name}; use a recipe and a checkpoint of the same preset"
                )
    return dataclasses.replace(own, resampler=given.resampler, text=given.text)


def _random_temporal(recipe: Recipe, config: ModelConfig) -> dict[str, Tensor]:
    """Random weights of the temporal encoder. With ``spread`` they are taken from a whole random model."""
    if recipe.start == "spread":
        return {name: x for name, x in new_model(config).state_dict().items() if name.startswith(_TEMPORAL)}
    return _named(_TEMPORAL, build_temporal(config))


def _added_rows(config: TextConfig) -> dict[str, Tensor]:
    shape = config.num_added_tokens, config.hidden_size
    return {
        "lang_model.model.embed_tokens.additional_embedding.weight": torch.randn(shape) * _ROW_STD,
        "lang_model.lm_head.bias": torch.zeros(config.vocab_size),
        "lang_model.lm_head.additional_fc.weight": torch.randn(shape) * _ROW_STD,
        "lang_model.lm_head.additional_fc.bias": torch.zeros(config.num_added_tokens),
    }


def _tokenizer_json(folder: Path) -> str:
    """Text of the ``tokenizer.json`` of one of our model folders, or of a released folder."""
    own = folder / "tokenizer.json"
    if own.is_file() and (folder / "preprocessor.json").is_file():
        return own.read_text("utf-8")
    return released_tokenizer_json(folder)


def _tokenizer(text: str, where: Path) -> Tokenizer:
    return Tokenizer.parse(text, where=str(where))


def _form(config: ModelConfig) -> str:
    return f"{config.temporal.encoder} with {config.temporal.num_video_tokens} tokens"


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}
