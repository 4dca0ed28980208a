"""What is exported: a trained model folder, the shipped one, or a preset with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from blip3v.bundle.manifest import Source
from blip3v.bundle.scan import hash_file
from blip3v.config import ModelConfig, preset
from blip3v.data.samples import film_texts
from blip3v.errors import UsageError
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.folder import ModelPaths, load_model_folder, open_model_folder, shipped_model
from blip3v.text.generation import GenerationConfig
from blip3v.text.template import RELEASED_TEMPLATE
from blip3v.text.train_tokenizer import train_tokenizer
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "ExportSource",
    "folder_source",
    "new_encoder_source",
    "random_source",
    "random_weights",
    "resolve_source",
]

_TOKENIZER_FILMS = 60  # enough text for a tokenizer whose answers mean nothing
_RANDOM_ANSWER_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """Everything that goes into a bundle. Weights are loaded when ``load`` is called, in fp32 on the CPU."""

    provenance: Source
    config: ModelConfig
    tokenizer_json: str
    preprocessor: PreprocessorConfig
    generation: GenerationConfig
    chat_template: str
    load: Callable[[], Blip3Video]

    @property
    def folder_name(self) -> str:
        """The default name of a bundle of it, without the precision."""
        config = self.config
        name = f"blip3v-{config.name}-{config.temporal.encoder}-{config.visual_tokens}tok"
        return f"{name}-random" if self.provenance.random_init else name


def resolve_source(
    *,
    model: Path | None = None,
    preset_name: str | None = None,
    init: str | None = None,
    encoder: str | None = None,
    num_frames: int | None = None,
    num_tokens: int | None = None,
) -> ExportSource:
    """What the command line's options name.

    Args:
        model: a model folder; None: the shipped one, or random weights.
        preset_name: a preset; None: ``tiny``. Not with ``model``, which has its own config.
        init: ``random`` for random weights; None: trained ones.
        encoder: the temporal encoder; None: the folder's or preset's own.
        num_frames: frames of a clip; None: the model's own.
        num_tokens: video tokens; None: the model's own.

    Raises:
        UsageError: options that exclude each other, or that ask for what the weights are not.
        ConfigError: a preset, encoder or count that does not exist.
        ArtifactError: the folder cannot be used.
    """
    if model is not None and (preset_name is not None or init is not None):
        odd = "--preset" if preset_name is not None else "--init"
        raise UsageError(f"{odd} has no effect with --model, whose folder holds config and weights; leave one out")
    name = preset_name or "tiny"
    if init is not None:
        config = preset(name).with_encoder(
            encoder or preset(name).temporal.encoder, num_tokens=num_tokens, num_frames=num_frames
        )
        return random_source(config)
    if model is None and preset(name).name != "tiny":
        raise UsageError(f"no weights of the preset {name} are shipped; pass --model FOLDER, or --init random")
    folder = shipped_model(encoder or preset(name).temporal.encoder) if model is None else model
    return folder_source(folder, encoder=encoder, num_frames=num_frames, num_tokens=num_tokens)


def folder_source(
    path: Path, *, encoder: str | None = None, num_frames: int | None = None, num_tokens: int | None = None
) -> ExportSource:
    """A model folder with its trained weights.

    Raises:
        UsageError: another encoder or token count than the folder's weights have.
        ArtifactError: the folder cannot be used.
    """
    paths = open_model_folder(path)
    config = _with_frames(paths.config, num_frames)
    temporal = config.temporal
    if encoder is not None and encoder != temporal.encoder:
        raise UsageError(
            f"the model folder {path} holds the encoder {temporal.encoder}, not {encoder}; leave --encoder out, "
            f"or name a folder with {encoder}"
        )
    if num_tokens is not None and num_tokens != temporal.num_tokens:
        raise UsageError(
            f"the weights in {path} give {temporal.num_tokens} tokens for {config.num_frames} frames, not {num_tokens};"
            " leave --tokens out, or export random weights with --init random"
        )

    def load() -> Blip3Video:
        model = load_model_folder(path).model
        model.config = config
        return model

    return _from_files(paths, config, load, trained=True)


def new_encoder_source(path: Path, encoder: str, *, num_tokens: int | None = None, seed: int = 0) -> ExportSource:
    """A model folder whose temporal encoder is replaced by a new, untrained one: for measuring speed.

    Raises:
        ConfigError: an encoder or count that does not exist.
        ArtifactError: the folder cannot be used.
    """
    paths = open_model_folder(path)
    config = paths.config.with_encoder(encoder, num_tokens=num_tokens)

    def load() -> Blip3Video:
        base = load_model_folder(path).model.state_dict()
        model = random_weights(config, seed=seed)
        kept = {name: value for name, value in base.items() if ".temporal_encoder." not in name}
        model.load_state_dict(model.state_dict() | kept)
        return model

    return _from_files(paths, config, load, trained=False)


def random_source(config: ModelConfig, *, seed: int = 0) -> ExportSource:
    """Random weights in the shape of ``config``, with a tokenizer of the right size: for measuring."""
    base = config.text.num_base_tokens
    return ExportSource(
        provenance=Source(name=config.name, sha256={}, random_init=True, trained=False),
        config=config,
        tokenizer_json=train_tokenizer(film_texts(_TOKENIZER_FILMS), vocab_size_base=base).to_str(),
        preprocessor=PreprocessorConfig(image_size=config.vision.image_size),
        generation=GenerationConfig(system_prompt=None, max_new_tokens=_RANDOM_ANSWER_TOKENS),
        chat_template=RELEASED_TEMPLATE,
        load=lambda: random_weights(config, seed=seed),
    )


def random_weights(config: ModelConfig, *, seed: int = 0) -> Blip3Video:
    """A model with weights from ``seed``; norms and biases differ from layer to layer too.

    Libraries start every norm at one and every bias at zero, so that a layer bound to the wrong place would not show.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip3Video(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                mean, spread = (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)
                parameter.normal_(mean, spread)
    return model


def _with_frames(config: ModelConfig, num_frames: int | None) -> ModelConfig:
    if num_frames is None or num_frames == config.num_frames:
        return config
    temporal = config.temporal
    # Without a temporal encoder the count follows from the frames; the others keep theirs.
    count = None if temporal.encoder == "none" else temporal.num_tokens
    return config.with_encoder(temporal.encoder, num_tokens=count, num_frames=num_frames)


def _from_files(
    paths: ModelPaths, config: ModelConfig, load: Callable[[], Blip3Video], *, trained: bool
) -> ExportSource:
    files = (paths.path / "config.json", paths.weights, paths.tokenizer, paths.preprocessor, paths.generation)
    hashes = {file.name: hash_file(file) for file in (*files, paths.chat_template)}
    return ExportSource(
        provenance=Source(name=paths.path.resolve().name, sha256=hashes, random_init=False, trained=trained),
        config=config,
        tokenizer_json=paths.tokenizer.read_text("utf-8"),
        preprocessor=PreprocessorConfig.load(paths.preprocessor),
        generation=GenerationConfig.load(paths.generation),
        chat_template=paths.chat_template.read_text("utf-8"),
        load=load,
    )
