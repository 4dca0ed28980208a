"""Checks of what is to be opened and written that need neither weights nor torch, so that they come before both."""

from __future__ import annotations

from pathlib import Path

from blip3v.errors import ArtifactMissingError, UsageError
from blip3v.folders import check_checkpoint, describe, is_model_folder, kind_of
from blip3v.strict_json import read_json

__all__ = ["check_opening", "check_target"]


def check_opening(path: Path, *, tokenizer: Path | None, encoder: str | None, num_frames: int | None) -> None:
    """Checks the arguments of ``open_checkpoint``.

    Raises:
        ArtifactMissingError: the file or folder does not exist, or is a folder of something else; or the tokenizer's.
        ArtifactError: it is a bundle, or another kind of file.
        UsageError: an argument that is required and missing, or has no effect on this kind.
    """
    check_checkpoint(path)
    kind = kind_of(path)
    if kind == "file":
        if tokenizer is None:
            raise UsageError(
                f"{path} holds only weights",
                remedy="run `blip3v convert` with the released folder whose tokenizer goes with them as `tokenizer`",
            )
        _check_tokenizer(tokenizer)
        return
    read_json(path / "config.json")  # a broken one is named before anything else
    if tokenizer is not None:
        raise UsageError(
            f"{path} is a folder with a tokenizer of its own; a tokenizer can only be given for a .pt file"
        )
    if kind == "model folder" and (encoder is not None or num_frames is not None):
        raise UsageError(f"{path} is a model folder whose config.json sets the encoder and frames; leave both out")


def _check_tokenizer(folder: Path) -> None:
    missing = [name for name in ("tokenizer.model", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing:
        what = f"has no {' and no '.join(missing)}" if folder.is_dir() else describe(folder)
        raise ArtifactMissingError(
            f"{folder} {what}; the tokenizer for a .pt file comes from a released Hugging Face folder, or its hub id "
            "(ORG/NAME)"
        )


def check_target(folder: Path, *, source: Path, force: bool) -> None:
    """Checks that a model folder may be written to ``folder``.

    Raises:
        UsageError: it exists, and ``force`` is false, it is not a model folder, or it is ``source``.
    """
    if not folder.exists():
        return
    if folder.resolve() == source.resolve():
        raise UsageError(f"{folder} is the source itself", remedy="choose another `folder`")
    if not force:
        raise UsageError(f"{folder} exists", remedy="choose another `folder`, or replace it with `force=True`")
    if not is_model_folder(folder):
        raise UsageError(
            f"{folder} exists and is not a model folder, so it is not replaced", remedy="choose another `folder`"
        )
