"""Model folders: the form in which PyTorch weights are kept, with all that prompt and preprocessing need.

A folder holds ``config.json``, ``model.safetensors`` (the released names), ``tokenizer.json``, ``preprocessor.json``,
``generation.json``, ``chat_template.jinja``, and ``training.json`` where we trained the model. ``train`` writes it,
``-m`` reads it. Never pickle. What is not here: bundles, which the runtime opens (``bundle/``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import blip3v
from blip3v import strict_json
from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError, UsageError
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.temporal import temporal_settings
from blip3v.model.weight_file import TensorInfo, compare, listed, read_tensor_infos, tensor_info, write_weights
from blip3v.model.weights import FileWeights, Place, empty_model, fill, state_shapes
from blip3v.publishing import new_folder
from blip3v.text.generation import GenerationConfig
from blip3v.text.tokenizer import Tokenizer
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "ModelFolder",
    "ModelPaths",
    "check_num_tokens",
    "check_weights",
    "folder_weights",
    "is_model_folder",
    "load_model_folder",
    "open_model_folder",
    "save_model_folder",
    "shipped_model",
    "write_model_folder",
]

_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "preprocessor.json",
    "generation.json",
    "chat_template.jinja",
)
PREFIX = "vlm."  # what the released checkpoint puts before every name


@dataclass(frozen=True)
class ModelPaths:
    """A model folder whose files are there and whose config was read; the weights are not loaded."""

    path: Path
    config: ModelConfig

    @property
    def weights(self) -> Path:
        """``model.safetensors``."""
        return self.path / "model.safetensors"

    @property
    def tokenizer(self) -> Path:
        """``tokenizer.json``."""
        return self.path / "tokenizer.json"

    @property
    def preprocessor(self) -> Path:
        """``preprocessor.json``."""
        return self.path / "preprocessor.json"

    @property
    def generation(self) -> Path:
        """``generation.json``."""
        return self.path / "generation.json"

    @property
    def chat_template(self) -> Path:
        """``chat_template.jinja``."""
        return self.path / "chat_template.jinja"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that a model is made from; not ``training.json``."""
        return tuple(self.path / name for name in _FILES)

    @property
    def training(self) -> Path | None:
        """``training.json``, or None where the folder was not trained by us."""
        path = self.path / "training.json"
        return path if path.is_file() else None


@dataclass(frozen=True)
class ModelFolder(ModelPaths):
    """A model folder with its weights: ``model`` is fp32, on the CPU, in eval mode, without gradients."""

    model: Blip3Video


def save_model_folder(
    path: Path,
    model: Blip3Video,
    tokenizer_json: str,
    preprocessor: PreprocessorConfig,
    generation: GenerationConfig,
    chat_template: str,
    training: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = torch.float16,
    replace: bool = False,
) -> None:
    """Writes a model folder; it appears whole or not at all.

    Args:
        path: the folder to make.
        model: the weights and their config.
        tokenizer_json: text of ``tokenizer.json``.
        preprocessor: how frames become pixels.
        generation: how the model is prompted and stopped.
        chat_template: text of ``chat_template.jinja``.
        training: what ``training.json`` holds; None: no such file.
        dtype: of the stored weights; None: as they are. Sinusoid frequencies stay fp32.
        replace: whether a folder that is already there gives way.

    Raises:
        UsageError: ``path`` is there and ``replace`` is false.
        ArtifactError: the folder cannot be written.
    """
    state = model.state_dict()
    write_model_folder(
        path,
        model.config,
        {name: tensor_info(name, tensor, dtype) for name, tensor in state.items()},
        lambda name: state[name],
        tokenizer_json=tokenizer_json,
        preprocessor=preprocessor,
        generation=generation,
        chat_template=chat_template,
        training=training,
        replace=replace,
    )


def write_model_folder(
    path: Path,
    config: ModelConfig,
    stored: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    *,
    tokenizer_json: str,
    preprocessor: PreprocessorConfig,
    generation: GenerationConfig,
    chat_template: str,
    training: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """``save_model_folder`` for weights that are not all in memory: one tensor is, at a time.

    Args:
        path: the folder to make.
        config: of the model.
        stored: shape and dtype of each tensor of its state dict in the file.
        read: gives the tensor of a name; it is cast where it has another dtype.
        tokenizer_json: text of ``tokenizer.json``.
        preprocessor: how frames become pixels.
        generation: how the model is prompted and stopped.
        chat_template: text of ``chat_template.jinja``.
        training: what ``training.json`` holds; None: no such file.
        replace: whether a folder that is already there gives way.

    Raises:
        UsageError: ``path`` is there and ``replace`` is false.
        ArtifactError: the folder cannot be written.
    """
    if path.exists() and not replace:
        raise UsageError(f"{path} exists; choose another folder, or allow replacing it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path) as staging:
            config.save(staging / "config.json")
            preprocessor.save(staging / "preprocessor.json")
            generation.save(staging / "generation.json")
            (staging / "tokenizer.json").write_text(tokenizer_json, "utf-8")
            (staging / "chat_template.jinja").write_text(chat_template, "utf-8")
            if training is not None:
                (staging / "training.json").write_text(strict_json.dumps(dict(training)), "utf-8")
            tensors = {PREFIX + name: part for name, part in stored.items()}
            write_weights(staging / "model.safetensors", tensors, lambda name: read(name.removeprefix(PREFIX)))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error}; choose a folder with room and permission") from error


def open_model_folder(path: Path) -> ModelPaths:
    """Checks that a model folder is complete and reads its config; loads no weights.

    Raises:
        ArtifactMissingError: no such folder, or a file of it is not there.
        ConfigError: ``config.json`` is not valid, or its temporal encoder does not admit its settings.
    """
    if not path.is_dir():
        raise ArtifactMissingError(
            f"{path} is not a folder; a model folder as `blip3v train` or `convert` writes it is expected"
        )
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise ArtifactMissingError(
            f"the model folder {path} lacks {', '.join(missing)}; write it again with `blip3v train` or `convert`"
        )
    config = ModelConfig.load(path / "config.json")
    try:
        temporal_settings(config)
    except ConfigError as error:
        raise ConfigError(f"{path / 'config.json'}: {error}") from error
    return ModelPaths(path, config)


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` has all the files of a model folder, whatever is in them."""
    return all((path / name).is_file() for name in _FILES)


def load_model_folder(path: Path) -> ModelFolder:
    """Loads a model folder strictly: every tensor of the model, in its shape, and no other.

    Raises:
        ArtifactMissingError: no such folder, or a file of it is not there.
        ConfigError: a config of the folder is not valid.
        ArtifactError: weights that are broken, missing, unknown or misshapen, or a tokenizer of another size.
    """
    paths = open_model_folder(path)
    config = paths.config
    PreprocessorConfig.load(paths.preprocessor)
    GenerationConfig.load(paths.generation)
    check_num_tokens(Tokenizer.load(paths.tokenizer), config, paths.tokenizer)
    stored = check_weights(paths)
    model = empty_model(config)
    fill(model, folder_weights(paths, stored))
    return ModelFolder(path, config, model)


def check_weights(paths: ModelPaths) -> dict[str, TensorInfo]:
    """Shape and dtype of every tensor of the model, by name without ``vlm.``; the weights are not read.

    Raises:
        ArtifactError: ``model.safetensors`` is broken, or holds other tensors than the config asks for.
    """
    found = read_tensor_infos(paths.weights)
    wanted = {PREFIX + name: shape for name, shape in state_shapes(paths.config).items()}
    problems = compare(found, wanted)
    if problems:
        raise ArtifactError(f"{paths.weights} does not fit its config.json: {listed(problems)}")
    return {name.removeprefix(PREFIX): found[name] for name in wanted}


def folder_weights(paths: ModelPaths, names: Iterable[str]) -> FileWeights:
    """The weights of those names, each read when it is asked for."""
    return FileWeights({name: Place(paths.weights, PREFIX + name) for name in names})


def check_num_tokens(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    """Holds the tokenizer to the rows of the embedding.

    Raises:
        ArtifactError: it has another number of tokens.
    """
    if tokenizer.num_tokens != config.text.num_logits:
        raise ArtifactError(
            f"{where} has {tokenizer.num_tokens} tokens; the config's num_base_tokens + num_added_tokens is "
            f"{config.text.num_logits}; take both from the same model folder"
        )


def shipped_model(encoder: str) -> Path:
    """The trained ``tiny`` model folder that the package holds for ``encoder``.

    Raises:
        ArtifactMissingError: the package holds none for this encoder.
    """
    models = Path(blip3v.__file__).parent / "models"
    path = models / f"tiny-{encoder}"
    if (path / "config.json").is_file():
        return path
    found = sorted(item.name.removeprefix("tiny-") for item in models.glob("tiny-*") if item.is_dir())
    held = f"shipped are: {', '.join(found)}" if found else "this installation ships none"
    raise ArtifactMissingError(
        f"no trained model with the encoder {encoder!r} is shipped; {held}",
        remedy="name a model folder as `model`, or take random weights with `init='random'`",
    )
