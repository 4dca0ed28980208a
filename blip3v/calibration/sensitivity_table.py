"""The table of a sensitivity scan, as it is kept in ``sensitivity.json`` beside the calibration. No PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.errors import CalibrationError, ConfigError
from blip3v.publishing import write_file

__all__ = [
    "EXACT",
    "SCHEMA_VERSION",
    "TABLE_FILE",
    "Block",
    "Comparison",
    "SensitivityTable",
    "names_of",
    "parameter_names",
]

SCHEMA_VERSION = 1
EXACT = ("float16-stored", "float16", "float32")  # formats whose error counts as none
TABLE_FILE = "sensitivity.json"
_SHORT = {
    "lang_model.model.layers.": "decoder ",
    "lang_model.lm_head": "head",
    "vision_encoder.encoder.layers.": "vision ",
    "vision_tokenizer.layers.": "resampler ",
    "vision_tokenizer.temporal_encoder": "temporal encoder",
    "vision_tokenizer.projection": "projection",
}
_RUN = "measure it with the sensitivity scan of `blip3v calibrate`"
_AGAIN = f"delete it, and {_RUN}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Logits of a quantised model beside those of fp32, at the positions that predict the answers' tokens.

    Raises:
        ConfigError: values that no comparison has.
    """

    kl: float  # mean KL(fp32 || quantised) of a position, nats
    agreement: float  # share of the positions at which both have the same largest logit

    def __post_init__(self) -> None:
        if not (math.isfinite(self.kl) and self.kl >= 0 and 0 <= self.agreement <= 1):
            raise ConfigError(
                f"kl is {self.kl} and agreement {self.agreement}; allowed: kl from 0, agreement in [0, 1]"
            )


@dataclass(frozen=True, kw_only=True)
class Block:
    """Layers that are quantised together, and what each format of theirs does to the logits."""

    graph: str  # video_encoder or decoder
    name: str  # as ``LinearLayer.block``
    layers: tuple[str, ...]
    format: str  # what the precision ``mixed`` begins with; a floating-point format: it is not quantised by default
    measured: dict[str, Comparison] = field(default_factory=dict)  # by format, with all other blocks in fp32

    @property
    def is_kept(self) -> bool:
        """Whether the block stays in floating point by default, and was quantised only to know what that costs."""
        return self.format in EXACT

    @property
    def short_name(self) -> str:
        """The name without what all blocks of its part share: ``decoder 3`` or ``vision 12``."""
        for prefix, short in _SHORT.items():
            if self.name.startswith(prefix):
                return short + self.name.removeprefix(prefix)
        return self.name

    @property
    def lowest(self) -> tuple[str, Comparison]:
        """The format that the block begins with, and its result; for a kept block the worst that was measured.

        Raises:
            CalibrationError: it was not measured.
        """
        if not self.measured:
            raise CalibrationError(f"the sensitivity of {self.name} was not measured; {_RUN}")
        if self.format in self.measured:
            return self.format, self.measured[self.format]
        return max(self.measured.items(), key=lambda item: item[1].kl)


@dataclass(frozen=True, kw_only=True)
class SensitivityTable:
    """The result of a scan."""

    statistics_sha256: str  # of the calibration's statistics, and thereby of the model
    recipe: dict[str, Any]  # fields of ``RecipeOptions``
    group_size: int  # weights of an output channel that shared a scale in block formats
    num_clips: int
    num_questions: int
    num_positions: int  # at which logits were compared
    blocks: tuple[Block, ...]  # in the order in which the model computes them
    together: Comparison | None = None  # all blocks at once, each in its ``format``; None: not measured yet
    schema_version: int = SCHEMA_VERSION

    @property
    def is_complete(self) -> bool:
        """Whether every block was measured."""
        return self.together is not None and all(block.measured for block in self.blocks)

    @property
    def total_kl(self) -> float:
        """The sum over the blocks that are quantised by default, each alone in its ``format``, nats."""
        return sum(block.measured[block.format].kl for block in self.blocks if block.format in block.measured)

    def ranked(self) -> list[Block]:
        """The blocks from the most sensitive to the least, by ``Block.lowest``."""
        return sorted(self.blocks, key=lambda block: -block.lowest[1].kl)

    def with_result(self, at: int, form: str, result: Comparison) -> SensitivityTable:
        """The table with one more measurement.

        Args:
            at: the block's index.
            form: the format that it was quantised to.
            result: what that did.
        """
        block = self.blocks[at]
        changed = dataclasses.replace(block, measured={**block.measured, form: result})
        return dataclasses.replace(self, blocks=(*self.blocks[:at], changed, *self.blocks[at + 1 :]))

    def without_results(self) -> SensitivityTable:
        """The table before the first measurement."""
        blocks = tuple(dataclasses.replace(block, measured={}) for block in self.blocks)
        return dataclasses.replace(self, blocks=blocks, together=None)

    def save(self, folder: Path) -> None:
        """Writes ``sensitivity.json`` atomically.

        Raises:
            OSError: the file system reports an error.
        """
        write_file(folder / TABLE_FILE, strict_json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, folder: Path, *, statistics_sha256: str, recipe: Mapping[str, Any]) -> SensitivityTable:
        """Reads ``sensitivity.json``.

        Args:
            folder: of the calibration.
            statistics_sha256: of the calibration's statistics.
            recipe: fields of the ``RecipeOptions`` to use the table for.

        Raises:
            CalibrationError: there is no table, it is of another schema version, or it was measured with another
                calibration or recipe.
            ConfigError: the file is broken.
        """
        path = folder / TABLE_FILE
        if not path.is_file():
            raise CalibrationError(f"{folder} has no {TABLE_FILE}: how sensitive the blocks are is not known; {_RUN}")
        values = strict_json.read_json(path)
        _check_version(values, path)
        table = strict_json.from_dict(cls, values, str(path))
        if table.statistics_sha256 != statistics_sha256:
            raise CalibrationError(f"{path} was measured with another calibration than that in {folder}; {_AGAIN}")
        if table.recipe != recipe:
            differing = [
                f"{k} {table.recipe.get(k)!r} instead of {v!r}" for k, v in recipe.items() if table.recipe.get(k) != v
            ]
            raise CalibrationError(
                f"{path} was measured with another recipe: {', '.join(differing)}; mixed takes the recipe of its table"
            )
        return table


def _check_version(values: dict[str, Any], path: Path) -> None:
    if values.get("schema_version") != SCHEMA_VERSION:
        raise CalibrationError(
            f"{path} has schema_version {values.get('schema_version')!r}; this version reads {SCHEMA_VERSION}; {_AGAIN}"
        )


def parameter_names(layer: str) -> tuple[str, ...]:
    """Returns the names of a layer's weight in its graph, which the patterns of a precision's islands match.

    Args:
        layer: as ``linear_layers`` names it.
    """
    parts = layer.split(".")
    if parts[0] != "lang_model":
        name = f"{layer}.weight"
        inside = name.partition(".temporal_encoder.")[2]
        return (name, f"temporal.{inside}") if inside else (name,)
    if parts[-1] == "lm_head":
        return ("lm_head",)
    index, projection = parts[3], parts[-1]
    return (f"layers.{index}.{projection}.weight",)


def names_of(layers: Sequence[str]) -> tuple[str, ...]:
    """Returns ``parameter_names`` of several layers."""
    return tuple(name for layer in layers for name in parameter_names(layer))
