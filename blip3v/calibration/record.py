"""What ``calibration.json`` says about a calibration: its model, its data, its settings. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from blip3v.bundle.manifest import Source
from blip3v.config import ModelConfig
from blip3v.errors import ConfigError, UsageError
from blip3v.publishing import check_writable

__all__ = [
    "RECORD_FILE",
    "SCHEMA_VERSION",
    "STATISTICS_FILE",
    "CalibrationRecord",
    "DataRecord",
    "LayerRecord",
    "SamplingSettings",
    "check_target",
]

SCHEMA_VERSION = 1
RECORD_FILE = "calibration.json"
STATISTICS_FILE = "statistics.safetensors"
_OTHER_FILES = "sensitivity."  # begins the names of what may be added later


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Which rows of a layer's inputs are kept.

    Raises:
        ConfigError: no rows, or more extreme ones than rows.
    """

    num_rows: int = 512  # of each layer
    num_extreme: int = 64  # of these, the rows with the largest values; the others are drawn at random
    seed: int = 0  # of what is drawn

    def __post_init__(self) -> None:
        if self.num_rows < 1 or not 0 <= self.num_extreme <= self.num_rows or self.seed < 0:
            raise ConfigError(
                f"{self.num_rows} rows with {self.num_extreme} extreme ones and seed {self.seed} cannot be sampled; "
                "allowed: 1 row or more, of which 0 to all are extreme, and a seed of 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What the model was run on: synthetic films, or a folder of videos."""

    num_clips: int
    num_prompts: int  # of all clips
    split: str | None = None  # of the films; None: a folder of videos
    seeds: tuple[int, ...] = ()  # of the films
    question_seed: int | None = None  # chose the films' questions
    sha256: dict[str, str] = field(default_factory=dict)  # file of the folder -> hash


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """How many rows of a layer's inputs were seen, and how many are kept."""

    num_seen: int
    num_rows: int
    num_extreme: int


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """The contents of ``calibration.json``."""

    schema_version: int = SCHEMA_VERSION
    created_by: dict[str, str]  # tool -> version
    source: Source  # the model's name and hashes
    config: ModelConfig  # the model's
    data: DataRecord
    settings: SamplingSettings
    layers: dict[str, LayerRecord]  # by name, as ``linear_layers`` has them
    sha256: str  # of statistics.safetensors


def check_target(folder: Path, *, force: bool) -> None:
    """Checks that a calibration can be written to ``folder``.

    Raises:
        UsageError: it exists and ``force`` is false, or it is something other than a calibration.
        ArtifactError: nothing can be written there.
    """
    if not folder.exists() and not folder.is_symlink():
        check_writable(folder)
        return
    if not force:
        raise UsageError(f"{folder} already exists", remedy="choose another `folder`, or replace it with `force=True`")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    strange = [n for n in names if n not in (RECORD_FILE, STATISTICS_FILE) and not n.startswith(_OTHER_FILES)]
    if RECORD_FILE not in names or strange:
        what = f"contains {strange[0]}" if strange else "has no calibration.json"
        raise UsageError(
            f"{folder} {what}, so it is not a calibration and is not replaced", remedy="choose another `folder`"
        )
    check_writable(folder)
