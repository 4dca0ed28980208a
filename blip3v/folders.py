"""What a path is, from the names in it alone: so that a wrong one is refused with words, and before anything is loaded.

Also where the shipped models are. Not here: whether a folder is complete and valid, which its own reader checks.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Literal

from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError
from blip3v.strict_json import read_json

__all__ = [
    "EXAMPLE_CLIP",
    "MODEL_FILES",
    "MODEL_TYPE",
    "Kind",
    "check_bundle",
    "check_checkpoint",
    "describe",
    "example_clip",
    "is_model_folder",
    "kind_of",
    "shipped_model",
]

Kind = Literal["missing", "file", "empty", "bundle", "headless", "model folder", "released", "run", "films", "other"]

# The files of a model folder, besides training.json.
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "preprocessor.json",
    "generation.json",
    "chat_template.jinja",
)
EXAMPLE_CLIP = "turn.mp4"
MODEL_TYPE = "xgenmm"  # of the released checkpoints
_WEIGHT_SUFFIXES = (".pt", ".pth")  # of the authors' files
_MANIFEST, _CONFIG = "manifest.json", "config.json"
_ALLOWED: dict[Kind, str] = {
    "model folder": "a model folder from `blip3v train` or `blip3v convert`",
    "released": f"a released Hugging Face folder (model_type {MODEL_TYPE})",
    "file": "the authors' .pt file",
    "bundle": "a bundle from `blip3v export`",
}
_ON_THE_HUB = "or a hub id (ORG/NAME)"
_FILE_FIRST = "; a .pt file goes through `blip3v convert` first"
_RELEASES = re.compile(r"xgen-mm-vid-[\w.-]+", re.ASCII)  # as the authors' repositories are called
_AUTHORS = "Salesforce"
_MAX_NAMES = 6
_WORDS: dict[Kind, str] = {
    "missing": "does not exist",
    "file": "is a file",
    "empty": "is an empty folder",
    "bundle": "is a bundle",
    "headless": "is a bundle that lacks its manifest.json",
    "model folder": "is a model folder",
    "released": "is a released checkpoint",
    "run": "is the folder of a training run",
    "films": "is a folder of films",
}


def kind_of(path: Path) -> Kind:
    """What ``path`` looks like. Reads at most its ``config.json``; never raises."""
    if not os.path.exists(path):
        return "missing"
    if not path.is_dir():
        return "file"
    if (path / _MANIFEST).is_file():
        return "bundle"
    if (path / "onnx").is_dir():
        return "headless"
    if (path / _CONFIG).is_file():
        return _kind_of_config(path / _CONFIG)
    if any((path / name).is_dir() for name in ("model", "checkpoint")) and (path / "log.jsonl").is_file():
        return "run"
    if (path / "questions.json").is_file():
        return "films"
    return "other" if _names(path) else "empty"


def describe(path: Path) -> str:
    """What ``path`` is, in words that follow its name in a sentence: "is an empty folder"."""
    kind = kind_of(path)
    if kind != "other":
        return _WORDS[kind]
    names = _names(path)
    return f"contains {', '.join(names[:_MAX_NAMES])}{', ...' if len(names) > _MAX_NAMES else ''}"


def check_bundle(path: Path) -> None:
    """Checks that ``path`` looks like a bundle.

    Raises:
        ArtifactMissingError: it has no manifest. The message says what it is instead, and which command takes it.
    """
    kind = kind_of(path)
    if kind != "bundle":
        no_bundle = "" if kind in ("missing", "headless") else "is not a bundle: it "
        raise ArtifactMissingError(f"{path} {no_bundle}{describe(path)}; {_instead_of_bundle(path, kind)}")


def check_checkpoint(path: Path, *, kinds: tuple[Kind, ...] = ("model folder", "released", "file")) -> None:
    """Checks that ``path`` looks like a checkpoint.

    Args:
        path: to check.
        kinds: that are allowed; "file": the authors' .pt file. A command that takes bundles as well adds them.

    Raises:
        ArtifactMissingError: it does not exist, or is a folder of something else.
        ArtifactError: it is a bundle, or another kind of file.
    """
    kind = kind_of(path)
    if kind in kinds and (kind != "file" or path.suffix in _WEIGHT_SUFFIXES):
        return
    allowed = f"{', '.join(_ALLOWED[each] for each in kinds)}, {_ON_THE_HUB}{'' if 'file' in kinds else _FILE_FIRST}"
    error = ArtifactError if kind in ("bundle", "file") else ArtifactMissingError
    raise error(f"{path} {describe(path)}{_instead_of_checkpoint(path, kind)}; allowed: {allowed}{_meant(path, kind)}")


def is_model_folder(path: Path) -> bool:
    """Whether ``path`` has all the files of a model folder, whatever they contain."""
    return all((path / name).is_file() for name in MODEL_FILES)


def shipped_model(encoder: str) -> Path:
    """Returns the trained ``tiny`` model folder that is shipped with the package for ``encoder``.

    Raises:
        ArtifactMissingError: none is shipped for this encoder.
    """
    models = Path(__file__).parent / "models"
    path = models / f"tiny-{encoder}"
    if (path / _CONFIG).is_file():
        return path
    found = sorted(item.name.removeprefix("tiny-") for item in models.glob("tiny-*") if item.is_dir())
    shipped = f"available: {', '.join(found)}" if found else "this installation ships none"
    raise ArtifactMissingError(
        f"no trained model with the encoder {encoder!r} is shipped; {shipped}",
        remedy="pass a model folder as `model`, or use random weights with `init='random'`",
    )


def example_clip() -> Path | None:
    """Returns the example clip of this checkout or installation, about which ``blip3v.bench.default_film`` knows all.

    Returns:
        The file; None if the examples were not installed.
    """
    package = Path(__file__).parent
    clips = (folder / "examples" / EXAMPLE_CLIP for folder in (package, package.parent))
    return next((clip for clip in clips if clip.is_file()), None)


def _kind_of_config(path: Path) -> Kind:
    try:
        values = read_json(path)
    except ConfigError:
        return "model folder"  # whose reader says what is wrong with the file
    if "schema_version" in values:
        return "model folder"
    return "released" if values.get("model_type") == MODEL_TYPE else "other"


def _instead_of_bundle(path: Path, kind: Kind) -> str:
    if kind == "headless":
        return "copy the bundle again, or run `blip3v export` again"
    if kind in ("model folder", "released"):
        return f"make a bundle of it with `blip3v export -m {shlex.quote(str(path))}`"
    if kind == "run":
        return f"make a bundle of its model with `blip3v export -m {shlex.quote(str(path / 'model'))}`"
    if kind == "file" and path.suffix in _WEIGHT_SUFFIXES:
        return "`blip3v convert` makes a model folder of a file of weights, and `blip3v export` a bundle of that"
    inside = [name for name in _names(path) if (path / name / _MANIFEST).is_file()] if path.is_dir() else []
    if inside:
        return f"the bundles in it are {', '.join(str(path / name) for name in inside[:_MAX_NAMES])}: name one"
    return "a bundle is a folder with a manifest.json, made by `blip3v export`"


def _instead_of_checkpoint(path: Path, kind: Kind) -> str:
    if kind in ("bundle", "headless"):
        return ", whose graphs cannot be read back"
    if kind == "run" and (path / "model").is_dir():
        return f", whose model is {path / 'model'}"
    if kind == "file" and path.suffix not in _WEIGHT_SUFFIXES:
        return f" that does not end in {' or '.join(_WEIGHT_SUFFIXES)}"
    if kind != "other":
        return ""
    if not (path / _CONFIG).is_file():
        return " and no config.json"
    return f", with model_type {read_json(path / _CONFIG).get('model_type')!r}"


def _meant(path: Path, kind: Kind) -> str:
    """The hub id of a release that was typed without its organisation."""
    is_release = kind == "missing" and _RELEASES.fullmatch(str(path)) is not None
    return f"; did you mean {_AUTHORS}/{path}?" if is_release else ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []
