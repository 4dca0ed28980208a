"""What is measured by default: bundles of the shipped models, kept for the next run, and a film."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import blip3v
from blip3v.bundle import Precision, open_bundle
from blip3v.bundle.precision import DEFAULT_PRECISION
from blip3v.data.film import make_film
from blip3v.data.film_files import ClipRecord, describe
from blip3v.data.mp4 import write_mp4
from blip3v.errors import ArtifactError
from blip3v.folders import EXAMPLE_CLIP, shipped_model
from blip3v.model.arguments import check_opening

if TYPE_CHECKING:
    from blip3v.export import ExportSource

__all__ = [
    "ROWS",
    "BundleRow",
    "check_models",
    "default_bundles",
    "default_film",
    "kept_bundle",
    "write_default_clip",
]

_FILM_SEED, _FILM_HEIGHT = 5471, 480  # of examples/turn.mp4
_DEFAULT = Precision.parse(DEFAULT_PRECISION)
_KEY_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class BundleRow:
    """One row of the benchmark."""

    encoder: str  # of the shipped model, which also provides all other parts
    num_video_tokens: int
    new_encoder: bool = False  # a temporal encoder with random weights instead of the trained one: speed only


ROWS = (
    BundleRow(encoder="none", num_video_tokens=1024),
    BundleRow(encoder="gttm", num_video_tokens=128),
    BundleRow(encoder="tokenlearner", num_video_tokens=32),
    BundleRow(encoder="tokenlearner", num_video_tokens=16, new_encoder=True),
)


def default_bundles(
    folder: Path,
    *,
    models: Path | None = None,
    precision: Precision = _DEFAULT,
    rows: Sequence[BundleRow] = ROWS,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Exports the bundles of ``rows`` to ``folder``, or reuses the intact ones that are already there.

    A bundle's name ends with a hash of the weights, the settings and blip3v's version, so that an old bundle is never
    used for another model.

    Args:
        folder: where bundles are kept; created if it does not exist.
        models: folder with the model folders ``tiny-ENCODER``; None: those in the package.
        precision: of each graph; fp16 unless given.
        rows: which bundles.
        progress: called with a line about each bundle.

    Returns:
        The bundles' folders in the order of ``rows``.

    Raises:
        ArtifactError: a model folder is missing or cannot be used.
        ExportError, ParityError: as ``blip3v export``.
    """
    check_models(models, rows)
    return [kept_bundle(_source(row, models), folder, precision, progress) for row in rows]


def check_models(models: Path | None, rows: Sequence[BundleRow] = ROWS) -> None:
    """Checks that the model folders of ``rows`` exist, without importing PyTorch.

    Raises:
        ArtifactError: one does not, or is something else.
    """
    for row in rows:
        check_opening(_model(row, models), tokenizer=None, encoder=None, num_frames=None)


def _model(row: BundleRow, models: Path | None) -> Path:
    return shipped_model(row.encoder) if models is None else models / f"tiny-{row.encoder}"


def _source(row: BundleRow, models: Path | None) -> ExportSource:
    # These import PyTorch, which only exporting needs.
    from blip3v.export import folder_source, new_encoder_source

    model = _model(row, models)
    if row.new_encoder:
        return new_encoder_source(model, row.encoder, num_video_tokens=row.num_video_tokens)
    return folder_source(model, encoder=row.encoder, num_video_tokens=row.num_video_tokens)


def kept_bundle(
    source: ExportSource,
    folder: Path,
    precision: Precision,
    progress: Callable[[str], None],
    *,
    check: bool = True,
    before_export: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Exports one bundle to ``folder``, or reuses the intact one that is already there; see ``default_bundles``.

    Args:
        source: what is exported.
        folder: where bundles are kept.
        precision: of each graph.
        progress: called with a line about the bundle.
        check: whether to compare the graphs with PyTorch.
        before_export: called with the bundle's path unless it is reused; may raise.
    """
    from blip3v.export import export_bundle  # imports PyTorch
    from blip3v.export.quantization import QuantizationOptions

    path = folder / f"{source.folder_name}-{precision.file_name}-{_key(source, precision)}"
    if path.exists():
        try:
            open_bundle(path)
        except ArtifactError as error:
            progress(f"{path} is damaged and exported again: {error}")
        else:
            progress(f"using {path}")
            return path
    before_export(path)
    progress(f"exporting {path}")
    folder.mkdir(parents=True, exist_ok=True)
    quantization = QuantizationOptions.for_speed_alone() if precision.is_quantized else None
    exported = export_bundle(
        source, path, precision=precision, quantization=quantization, check=check, force=path.exists()
    )
    return exported.path


def _key(source: ExportSource, precision: Precision) -> str:
    parts = (
        source.hashed_provenance().sha256,
        source.provenance.trained,
        source.config.to_dict(),
        dataclasses.asdict(precision),
        blip3v.__version__,
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


def default_film() -> ClipRecord:
    """The record of the clip that ``write_default_clip`` writes, with its questions and true answers."""
    return describe({EXAMPLE_CLIP: make_film(_FILM_SEED, "test")}, height=_FILM_HEIGHT).clips[0]


def write_default_clip(folder: Path) -> Path:
    """Writes the clip that is measured by default, the film of ``examples/turn.mp4``, to ``folder``.

    Raises:
        VideoError: the installed PyAV cannot encode H.264.
    """
    path = folder / EXAMPLE_CLIP
    write_mp4(make_film(_FILM_SEED, "test"), path, height=_FILM_HEIGHT)
    return path
