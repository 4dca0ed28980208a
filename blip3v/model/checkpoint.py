"""Opens every kind of checkpoint: our model folder, the released folder, and the authors' ``.pt`` file.

Opening reads the configs and the names, shapes and dtypes of the tensors, and checks them; each weight is read on
access. Not here: each kind's own format (``folder.py``, ``released.py``, ``native.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
from torch import Tensor

from blip3v.config import ModelConfig
from blip3v.errors import ConfigError
from blip3v.folders import kind_of
from blip3v.model.arguments import check_opening
from blip3v.model.folder import check_num_tokens, check_weights, folder_weights, open_model_folder, read_text
from blip3v.model.native import NativeFile, NativeWeights
from blip3v.model.released import PREFIX, frames_in_training, open_shards, small_files, without_prefix
from blip3v.model.released_config import base_config, generation_config, preprocessor_config
from blip3v.model.released_names import Fit, defaults, fit, has_temporal_encoder
from blip3v.model.weight_file import TensorInfo, UnusedKey
from blip3v.model.weights import FileWeights, Place
from blip3v.text.generation import GenerationConfig
from blip3v.text.released_tokenizer import released_tokenizer_json
from blip3v.text.template import RELEASED_TEMPLATE
from blip3v.text.tokenizer import Tokenizer
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Checkpoint", "Kind", "UnusedKey", "open_checkpoint"]

Kind = Literal["blip3v", "released", "native"]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model with everything that prompts and preprocessing need; its weights are not loaded."""

    path: Path
    kind: Kind
    config: ModelConfig
    stored: Mapping[str, TensorInfo]  # shape and dtype of every weight
    weights: Mapping[str, Tensor]  # released names without ``vlm.``, exactly those of the model's state dict
    tokenizer_json: str
    preprocessor: PreprocessorConfig
    generation: GenerationConfig
    chat_template: str
    hashed_files: tuple[Path, ...]  # the files that a bundle's manifest hashes as its source
    unused_keys: tuple[UnusedKey, ...]  # tensors and rows that no computation uses; empty for our own folders
    frames_from: str  # what states ``config.num_frames``


def open_checkpoint(
    path: Path, *, tokenizer: Path | None = None, encoder: str | None = None, num_frames: int | None = None
) -> Checkpoint:
    """Opens a checkpoint of any kind and checks every tensor's name, shape and dtype; loads no weights.

    Args:
        path: our model folder, the released folder, or a ``.pt`` file.
        tokenizer: the released folder whose tokenizer and processor go with a ``.pt`` file, which has none.
        encoder: the temporal encoder, for authors' checkpoints that hold no tensors of one.
        num_frames: frames per clip, for authors' checkpoints; None: as its name or model card says, or 8.

    Raises:
        ArtifactMissingError: the file or folder, or a part of it, does not exist.
        ArtifactError: a broken file, or tensors that are unknown, missing or misshapen, by name.
        ConfigError: an invalid config.
        UsageError: an argument that is required and missing, or has no effect on this kind; or sources that disagree
            about the number of frames.
    """
    check_opening(path, tokenizer=tokenizer, encoder=encoder, num_frames=num_frames)
    if tokenizer is not None:
        return _open_native(path, tokenizer, encoder, num_frames)
    if kind_of(path) == "released":
        return _open_released(path, encoder, num_frames)
    return _open_own(path)


def _open_own(path: Path) -> Checkpoint:
    folder = open_model_folder(path)
    stored = check_weights(folder)
    check_num_tokens(Tokenizer.load(folder.tokenizer), folder.config, folder.tokenizer)
    return Checkpoint(
        path=path,
        kind="blip3v",
        config=folder.config,
        stored=stored,
        weights=folder_weights(folder, stored),
        tokenizer_json=read_text(folder.tokenizer),
        preprocessor=PreprocessorConfig.load(folder.preprocessor),
        generation=GenerationConfig.load(folder.generation),
        chat_template=read_text(folder.chat_template),
        hashed_files=folder.files,
        unused_keys=(),
        frames_from="config.json",
    )


def _open_released(path: Path, encoder: str | None, num_frames: int | None) -> Checkpoint:
    shards = open_shards(path)
    found = without_prefix(shards.tensors, path)
    base = base_config(path, defaults(found), image_model=not has_temporal_encoder(found))
    frames = _frames(path, num_frames)
    fitted = fit(found, base, where=str(path), encoder=encoder, num_frames=frames[0])
    places = {
        name: Place(shards.files[PREFIX + origin.name], PREFIX + origin.name, origin.num_rows)
        for name, origin in fitted.origins.items()
    }
    return _authors_checkpoint(
        path, "released", path, fitted, found, FileWeights(places), (*small_files(path), *shards.paths), frames[1]
    )


def _open_native(path: Path, tokenizer: Path, encoder: str | None, num_frames: int | None) -> Checkpoint:
    file = NativeFile(path)
    base = defaults(file.tensors)
    if (tokenizer / "config.json").is_file():
        base = base_config(tokenizer, base, image_model=not has_temporal_encoder(file.tensors))
    frames = _frames(path, num_frames)
    fitted = fit(file.tensors, base, where=str(path), encoder=encoder, num_frames=frames[0])
    weights = NativeWeights(file, {name: (origin.name, origin.num_rows) for name, origin in fitted.origins.items()})
    return _authors_checkpoint(
        path, "native", tokenizer, fitted, file.tensors, weights, (*small_files(tokenizer), path), frames[1]
    )


def _frames(path: Path, num_frames: int | None) -> tuple[int, str]:
    return frames_in_training(path) if num_frames is None else (num_frames, "as asked")


def _authors_checkpoint(
    path: Path,
    kind: Literal["released", "native"],
    folder: Path,
    fitted: Fit,
    found: Mapping[str, TensorInfo],
    weights: Mapping[str, Tensor],
    hashed_files: tuple[Path, ...],
    frames_from: str,
) -> Checkpoint:
    """Builds the checkpoint of an authors' kind; ``folder`` holds everything but the weights."""
    tokenizer_json = released_tokenizer_json(folder)
    check_num_tokens(Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json), where=str(folder)), fitted.config, folder)
    preprocessor = preprocessor_config(folder)
    if preprocessor.image_size != fitted.config.vision.image_size:
        raise ConfigError(
            f"the processor in {folder} makes pictures of {preprocessor.image_size} pixels a side, and the vision "
            f"encoder takes {fitted.config.vision.image_size}; use the processor and weights of the same release"
        )
    return Checkpoint(
        path=path,
        kind=kind,
        config=fitted.config,
        stored={name: _first_rows(found[origin.name], origin.num_rows) for name, origin in fitted.origins.items()},
        weights=weights,
        tokenizer_json=tokenizer_json,
        preprocessor=preprocessor,
        generation=generation_config(folder),
        # The released script builds its prompts in code, in the form of this template.
        chat_template=RELEASED_TEMPLATE,
        hashed_files=hashed_files,
        unused_keys=fitted.unused_keys,
        frames_from=frames_from,
    )


def _first_rows(stored: TensorInfo, num_rows: int | None) -> TensorInfo:
    return stored if num_rows is None else TensorInfo((num_rows, *stored.shape[1:]), stored.dtype)
