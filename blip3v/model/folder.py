"""Model folders: how PyTorch weights are stored, with everything that prompts and preprocessing need.

A folder holds ``config.json``, ``model.safetensors`` (the released names), ``tokenizer.json``, ``preprocessor.json``,
``generation.json``, ``chat_template.jinja``, and ``training.json`` if we trained the model. ``train`` and ``convert``
write it, ``-m`` reads it. Never pickle. Not here: bundles, which the runtime opens (``bundle/``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip3v import strict_json
from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError, UsageError
from blip3v.folders import MODEL_FILES, check_checkpoint
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.sizes import check_sizes
from blip3v.model.temporal import temporal_settings
from blip3v.model.weight_file import TensorInfo, compare, listed, read_tensor_infos, tensor_info, write_weights
from blip3v.model.weights import FileWeights, Place, empty_model, fill, state_shapes
from blip3v.publishing import cannot_write, new_folder
from blip3v.text.generation import GenerationConfig
from blip3v.text.tokenizer import Tokenizer
from blip3v.video.preprocess import PreprocessorConfig

__all__ = [
    "ModelFolder",
    "ModelPaths",
    "check_num_tokens",
    "check_weights",
    "folder_weights",
    "load_model_folder",
    "open_model_folder",
    "read_text",
    "save_model_folder",
    "write_model_folder",
]

PREFIX = "vlm."  # of every tensor name in the released checkpoint


@dataclass(frozen=True)
class ModelPaths:
    """A model folder whose files exist and whose config has been read; the weights are not loaded."""

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
        """The files that a model is made from; not ``training.json``."""
        return tuple(self.path / name for name in MODEL_FILES)

    @property
    def training(self) -> Path | None:
        """``training.json``, or None if we did not train the model."""
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
    """Writes a model folder atomically.

    Args:
        path: the folder to create.
        model: the weights and their config.
        tokenizer_json: text of ``tokenizer.json``.
        preprocessor: how frames become pixels.
        generation: how the model is prompted and stopped.
        chat_template: text of ``chat_template.jinja``.
        training: the content of ``training.json``; None: no such file.
        dtype: of the stored weights; None: unchanged. Sinusoid frequencies stay fp32.
        replace: whether to replace an existing folder.

    Raises:
        UsageError: ``path`` exists and ``replace`` is false.
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
    """``save_model_folder`` for weights that are not all in memory: only one tensor is at a time.

    Args:
        path: the folder to create.
        config: the model's.
        stored: shape and dtype in the file of each tensor of the state dict.
        read: returns the tensor of a name; it is cast if it has another dtype.
        tokenizer_json: text of ``tokenizer.json``.
        preprocessor: how frames become pixels.
        generation: how the model is prompted and stopped.
        chat_template: text of ``chat_template.jinja``.
        training: the content of ``training.json``; None: no such file.
        replace: whether to replace an existing folder.

    Raises:
        UsageError: ``path`` exists and ``replace`` is false.
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
        raise cannot_write(path, error) from error


def open_model_folder(path: Path) -> ModelPaths:
    """Checks that a model folder is complete and reads its config; loads no weights.

    Raises:
        ArtifactMissingError: the folder, or a file in it, does not exist.
        ConfigError: ``config.json`` is invalid, or its temporal encoder rejects its settings.
    """
    check_checkpoint(path, kinds=("model folder",))
    missing = [name for name in MODEL_FILES if not (path / name).is_file()]
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


def read_text(path: Path) -> str:
    """Reads a text file of a folder.

    Raises:
        ArtifactError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as text: {error}; copy or write it again") from error


def load_model_folder(path: Path) -> ModelFolder:
    """Loads a model folder strictly: every tensor of the model, in its shape, and no others.

    Raises:
        ArtifactMissingError: the folder, or a file in it, does not exist.
        ConfigError: a config in the folder is invalid.
        ArtifactError: weights that are broken, missing, unknown or misshapen, or a tokenizer of the wrong size.
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
    """Returns the shape and dtype of every tensor of the model, by name without ``vlm.``; reads no weights.

    Raises:
        ArtifactError: ``model.safetensors`` is broken, or its tensors are not those that the config requires.
    """
    found = read_tensor_infos(paths.weights)
    check_sizes({name.removeprefix(PREFIX): x for name, x in found.items()}, paths.config, where=str(paths.weights))
    wanted = {PREFIX + name: shape for name, shape in state_shapes(paths.config).items()}
    problems = compare(found, wanted)
    if problems:
        raise ArtifactError(f"{paths.weights} does not match its config.json: {listed(problems)}")
    return {name.removeprefix(PREFIX): found[name] for name in wanted}


def folder_weights(paths: ModelPaths, names: Iterable[str]) -> FileWeights:
    """Returns the weights ``names``, each read on access."""
    return FileWeights({name: Place(paths.weights, PREFIX + name) for name in names})


def check_num_tokens(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    """Checks that the tokenizer has one token for each row of the embedding.

    Raises:
        ArtifactError: it has more or fewer tokens.
    """
    if tokenizer.num_tokens != config.text.num_logits:
        raise ArtifactError(
            f"{where} has {tokenizer.num_tokens} tokens; the config's num_base_tokens + num_added_tokens is "
            f"{config.text.num_logits}; use both from the same model folder"
        )
