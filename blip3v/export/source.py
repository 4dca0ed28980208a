"""What is exported: a checkpoint of any kind, the shipped model, or a preset with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from blip3v.bundle.manifest import Source
from blip3v.bundle.reader import Bundle
from blip3v.bundle.scan import hash_file
from blip3v.config import ModelConfig, preset
from blip3v.data.samples import film_texts
from blip3v.errors import UsageError
from blip3v.export.accuracy_data import answers_films
from blip3v.export.request import check_own_weights, check_request, folder_name
from blip3v.folders import kind_of, shipped_model
from blip3v.hub import model_name
from blip3v.model.checkpoint import Checkpoint, open_checkpoint
from blip3v.model.temporal import with_encoder, with_frames
from blip3v.model.weights import Gathered, RandomWeights
from blip3v.text.generation import GenerationConfig
from blip3v.text.template import RELEASED_TEMPLATE
from blip3v.text.train_tokenizer import train_tokenizer
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "ExportSource",
    "bundle_source",
    "folder_source",
    "new_encoder_source",
    "random_source",
    "resolve_source",
]

_TOKENIZER_FILMS = 60  # enough text for a tokenizer of random weights
_RANDOM_ANSWER_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """Everything that goes into a bundle."""

    provenance: Source  # without file hashes, which take a while for a large model
    hashed_files: tuple[Path, ...]
    config: ModelConfig
    tokenizer_json: str
    preprocessor: PreprocessorConfig
    generation: GenerationConfig
    chat_template: str
    weights: Mapping[str, Tensor]  # by released name; each is read on access
    answers_films: bool = False  # trained to answer questions about the synthetic films (``accuracy_data.py``)
    frames_from: str | None = None  # what states ``config.num_frames``, if the source is an authors' checkpoint

    def hashed_provenance(self) -> Source:
        """Returns ``provenance`` with the hash of every file, each of which is read once."""
        return self._hashed_provenance

    @cached_property
    def _hashed_provenance(self) -> Source:
        return dataclasses.replace(self.provenance, sha256={file.name: hash_file(file) for file in self.hashed_files})

    @property
    def folder_name(self) -> str:
        """The default name of its bundle, without the precision."""
        return folder_name(self.config, random_init=self.provenance.random_init)


def resolve_source(
    *,
    model: Path | None = None,
    preset_name: str | None = None,
    init: str | None = None,
    encoder: str | None = None,
    num_frames: int | None = None,
    num_video_tokens: int | None = None,
) -> ExportSource:
    """Returns the source that the command line's options name.

    Args:
        model: a model folder or released checkpoint; None: the shipped one, or random weights.
        preset_name: a preset; None: ``tiny``. Not with ``model``, which has its own config.
        init: ``random`` for random weights; None: trained ones.
        encoder: the temporal encoder; None: the folder's or preset's own.
        num_frames: frames per clip; None: the model's own.
        num_video_tokens: video tokens; None: the model's own.

    Raises:
        UsageError: options that exclude each other, or that the weights do not match.
        ConfigError: a preset, encoder or count that does not exist.
        ArtifactError: the folder cannot be used.
    """
    check_request(
        model=model,
        preset_name=preset_name,
        init=init,
        encoder=encoder,
        num_frames=num_frames,
        num_video_tokens=num_video_tokens,
    )
    base = preset(preset_name or "tiny")
    if init is not None:
        chosen = encoder or base.temporal.encoder
        config = with_encoder(base, chosen, num_video_tokens=num_video_tokens, num_frames=num_frames)
        return random_source(config)
    folder = shipped_model(encoder or base.temporal.encoder) if model is None else model
    return folder_source(folder, encoder=encoder, num_frames=num_frames, num_video_tokens=num_video_tokens)


def folder_source(
    path: Path, *, encoder: str | None = None, num_frames: int | None = None, num_video_tokens: int | None = None
) -> ExportSource:
    """Opens a model folder or released checkpoint with its trained weights.

    Raises:
        UsageError: the weights have another encoder or token count.
        ArtifactError: the folder cannot be used.
    """
    is_own = kind_of(path) == "model folder"
    checkpoint = open_checkpoint(path, num_frames=None if is_own else num_frames)
    config = checkpoint.config
    if num_frames is not None and is_own:
        config = with_frames(config, num_frames)
    check_own_weights(path, config, encoder=encoder, num_video_tokens=num_video_tokens)
    return _from_checkpoint(checkpoint, config, checkpoint.weights, trained=True)


def bundle_source(path: Path, bundle: Bundle) -> ExportSource:
    """Opens the model that a bundle was made from.

    Raises:
        UsageError: it is another model, or its files have changed since.
        ArtifactError: the folder cannot be used.
    """
    source = folder_source(path, num_frames=bundle.config.num_frames)
    made_from = bundle.manifest.source
    if source.config != bundle.config:
        raise UsageError(
            f"{bundle.path} was not made from {path}: their configs differ; it was made from {made_from.name}"
        )
    found = source.hashed_provenance().sha256
    changed = sorted(name for name in found.keys() | made_from.sha256 if found.get(name) != made_from.sha256.get(name))
    if changed:
        kind = " with random weights" if made_from.random_init else ""
        raise UsageError(
            f"{bundle.path} was made from {made_from.name}{kind}, and {path} has other files than that: "
            f"{', '.join(changed)}; name the model that it was made from, or export this one"
        )
    return source


def new_encoder_source(path: Path, encoder: str, *, num_video_tokens: int | None = None, seed: int = 0) -> ExportSource:
    """Opens a model folder and replaces its temporal encoder with a new, untrained one: for measuring speed.

    Raises:
        ConfigError: an encoder or count that does not exist.
        ArtifactError: the folder cannot be used.
    """
    checkpoint = open_checkpoint(path)
    config = with_encoder(checkpoint.config, encoder, num_video_tokens=num_video_tokens)
    new = RandomWeights(config, seed=seed)
    weights = Gathered({name: new if ".temporal_encoder." in name else checkpoint.weights for name in new})
    return _from_checkpoint(checkpoint, config, weights, trained=False)


def random_source(config: ModelConfig, *, seed: int = 0) -> ExportSource:
    """Makes random weights in the shape of ``config``, and a tokenizer of the right size: for measuring."""
    base = config.text.num_base_tokens
    return ExportSource(
        provenance=Source(name=config.name, sha256={}, random_init=True, trained=False),
        hashed_files=(),
        config=config,
        tokenizer_json=train_tokenizer(film_texts(_TOKENIZER_FILMS), vocab_size_base=base).to_str(),
        preprocessor=PreprocessorConfig(image_size=config.vision.image_size),
        generation=GenerationConfig(system_prompt=None, max_new_tokens=_RANDOM_ANSWER_TOKENS),
        chat_template=RELEASED_TEMPLATE,
        weights=RandomWeights(config, seed=seed),
    )


def _from_checkpoint(
    checkpoint: Checkpoint, config: ModelConfig, weights: Mapping[str, Tensor], *, trained: bool
) -> ExportSource:
    return ExportSource(
        provenance=Source(name=model_name(checkpoint.path), sha256={}, random_init=False, trained=trained),
        hashed_files=checkpoint.hashed_files,
        config=config,
        tokenizer_json=checkpoint.tokenizer_json,
        preprocessor=checkpoint.preprocessor,
        generation=checkpoint.generation,
        chat_template=checkpoint.chat_template,
        weights=weights,
        answers_films=trained and checkpoint.kind == "blip3v" and answers_films(checkpoint.path),
        frames_from=None if checkpoint.kind == "blip3v" else checkpoint.frames_from,
    )
