"""Converts a checkpoint of any kind to one of our model folders, with one tensor in memory at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip3v import strict_json
from blip3v.errors import ArtifactError
from blip3v.model.arguments import check_target
from blip3v.model.checkpoint import Checkpoint
from blip3v.model.folder import write_model_folder
from blip3v.model.weight_file import DTYPES, TensorInfo, file_bytes, tensor_info
from blip3v.model.weight_values import largest_value
from blip3v.publishing import require_disk
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Converted", "convert", "folder_name", "weight_bytes"]

# Tokenizer and configs; the released tokenizer takes 4 MB.
_SMALL_FILES_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion wrote, and the time and memory it took."""

    path: Path
    size_bytes: int
    seconds: float
    peak_rss_bytes: int | None  # None if the system does not report it


def convert(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    preprocessor: PreprocessorConfig | None = None,
    force: bool = False,
    each: Callable[[int], None] = lambda num_bytes: None,
) -> Converted:
    """Writes ``checkpoint`` as a model folder, atomically.

    Args:
        checkpoint: what to write; the ``training.json`` of a model folder that has one is copied.
        folder: the folder to create.
        dtype: of the stored weights; None: unchanged. Sinusoid frequencies are fp32.
        preprocessor: how frames become pixels; None: the checkpoint's.
        force: replace an existing model folder.
        each: called for every tensor with its size in the file, in bytes.

    Raises:
        UsageError: ``folder`` exists, and ``force`` is false, it is not a model folder, or it is the source.
        ArtifactError: no disk space, a broken source, or weights that are not finite in ``dtype``.
    """
    started = time.perf_counter()
    check_target(folder, source=checkpoint.path, force=force)
    stored = {name: tensor_info(name, part, dtype) for name, part in checkpoint.stored.items()}
    require_disk(folder, file_bytes(stored) + _SMALL_FILES_BYTES, f"the model folder {folder}")

    def read(name: str) -> Tensor:
        tensor = _cast(name, checkpoint.weights[name], stored[name])
        each(stored[name].num_bytes)
        return tensor

    write_model_folder(
        folder,
        checkpoint.config,
        stored,
        read,
        tokenizer_json=checkpoint.tokenizer_json,
        preprocessor=preprocessor or checkpoint.preprocessor,
        generation=checkpoint.generation,
        chat_template=checkpoint.chat_template,
        training=_training(checkpoint),
        replace=force,
    )
    return Converted(
        path=folder,
        size_bytes=sum(item.stat().st_size for item in folder.iterdir()),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )


def folder_name(checkpoint: Checkpoint) -> str:
    """Returns the default name of the folder that a checkpoint is converted to."""
    config = checkpoint.config
    return f"{config.name}-{config.temporal.encoder}-{config.num_video_tokens}tok"


def weight_bytes(stored: Mapping[str, TensorInfo], dtype: torch.dtype | None) -> int:
    """Returns the total bytes of the tensors in the file that ``convert`` writes."""
    return sum(tensor_info(name, part, dtype).num_bytes for name, part in stored.items())


def _cast(name: str, tensor: Tensor, stored: TensorInfo) -> Tensor:
    cast = tensor.to(DTYPES[stored.dtype])
    if not math.isfinite(largest_value(cast)):  # the tensor itself is finite: it was checked when it was read
        raise ArtifactError(
            f"{name} holds {largest_value(tensor):g}, which {stored.dtype} cannot represent",
            remedy="choose bf16 or fp32 as `dtype`",
        )
    return cast


def _training(checkpoint: Checkpoint) -> dict[str, Any] | None:
    path = checkpoint.path / "training.json"
    return strict_json.read_json(path) if checkpoint.kind == "blip3v" and path.is_file() else None
