"""The options of ``blip3v export`` that only a quantised precision takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from blip3v.bundle.precision import GROUP_SIZES, Precision
from blip3v.calibration.options import DEFAULT_MAX_KL, RangeRule, RecipeOptions, Rounding
from blip3v.errors import UsageError

if TYPE_CHECKING:
    from blip3v.export.quantization import QuantizationOptions

__all__ = ["QuantizationChoice", "quantization_options"]

_RECIPE = RecipeOptions()
_NO_EFFECT = "choose int8, int8-weight, int4 or mixed as the precision, or leave it out"


@dataclass(frozen=True, kw_only=True)
class QuantizationChoice:
    """What was given; None and False mean that it was not."""

    calibration: Path | None
    group_size: str | None
    keep: tuple[str, ...]
    quantize: tuple[str, ...]
    no_smoothing: bool
    rotation: bool
    rounding: Rounding | None
    ranges: RangeRule | None
    max_kl: float | None
    max_accuracy_drop: float | None
    backends: tuple[str, ...]
    data: Path | None
    num_questions: int | None

    def applied(self, precision: Precision) -> Precision:
        """Returns the precision with its group size and its exceptions.

        Raises:
            UsageError: an option has no effect on ``precision``, or its value cannot be used.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = [name for name, value in values.items() if value is not False and value not in (None, ())]
        if given and not precision.is_quantized:
            name = {"backends": "backend", "num_questions": "questions"}.get(given[0], given[0].replace("_", "-"))
            raise UsageError(f"--{name} has no effect: precision {precision.name} is not quantised; {_NO_EFFECT}")
        self._check_effect(precision)
        changed = precision if self.group_size is None else precision.with_group_size(int(self.group_size))
        return changed.with_nodes(keep=self.keep, quantize=self.quantize)

    def check_unchecked(self) -> None:
        """Checks the options of an export whose accuracy is not measured.

        Raises:
            UsageError: one of them is about the accuracy.
        """
        about_accuracy = {
            "max-accuracy-drop": self.max_accuracy_drop,
            "backend": self.backends or None,
            "data": self.data,
            "questions": self.num_questions,
        }
        for name, value in about_accuracy.items():
            if value is not None:
                raise UsageError(
                    f"--{name} has no effect with --no-check, which measures nothing; leave one of them out"
                )

    def _check_effect(self, precision: Precision) -> None:
        graphs = precision.graphs.values()
        has_ranges = any(spec.activations == "int8" for spec in graphs)
        has_blocks = any(spec.group_size is not None for spec in graphs)
        for name, value, has_effect, why in (
            ("ranges", self.ranges, has_ranges, "has no static ranges"),
            ("rounding", self.rounding, has_blocks, "stores no weights in blocks"),
            ("max-kl", self.max_kl, precision.needs_sensitivity, "is not mixed"),
            ("rotation", self.rotation or None, precision.decoder.is_quantized, "does not quantise the decoder"),
        ):
            if value is not None and not has_effect:
                raise UsageError(f"--{name} has no effect: precision {precision.name} {why}; leave it out")

    def options(self, command: str) -> QuantizationOptions:
        """Returns what the export takes; ``command`` is what its report says it was made with."""
        # Imports PyTorch.
        from blip3v.export.accuracy_run import AccuracyOptions
        from blip3v.export.quantization import QuantizationOptions

        recipe = RecipeOptions(
            smoothing=not self.no_smoothing,
            rotation=self.rotation,
            rounding=self.rounding or _RECIPE.rounding,
            ranges=self.ranges or _RECIPE.ranges,
        )
        accuracy = AccuracyOptions(
            backends=self.backends or None, data=self.data, num_questions=self.num_questions, command=command
        )
        if self.max_accuracy_drop is not None:
            accuracy = dataclasses.replace(accuracy, max_drop=self.max_accuracy_drop)
        options = QuantizationOptions(calibration=self.calibration, recipe=recipe, accuracy=accuracy)
        return options if self.max_kl is None else dataclasses.replace(options, max_kl=self.max_kl)


def quantization_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; the command takes them as one argument, ``quantization``."""
    names = [field.name for field in dataclasses.fields(QuantizationChoice)]

    @functools.wraps(function)
    def collected(**arguments: Any) -> None:
        choice = QuantizationChoice(**{name: arguments.pop(name) for name in names})
        function(quantization=choice, **arguments)

    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected


_FOLDER = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--calibration", type=_FOLDER, help="Folder of `blip3v calibrate`.  [default: calibrate on films]"),
    click.option(
        "--group-size",
        type=click.Choice([str(size) for size in GROUP_SIZES]),
        help="Weights that share a scale in int4 and int8-weight.  [default: 128]",
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="GRAPH:PATTERN",
        help="Keep matrix products in half precision, by node name, as 'decoder:/layers.0.*'; may be repeated. The "
        "accuracy report names the worst.",
    ),
    click.option(
        "--quantize",
        multiple=True,
        metavar="GRAPH:PATTERN",
        help="Quantise matrix products that are kept by default; may be repeated.",
    ),
    click.option("--no-smoothing", is_flag=True, help="Do not move outliers of activations into weights."),
    click.option("--rotation", is_flag=True, help="Rotate the residual stream of the decoder."),
    click.option(
        "--rounding",
        type=click.Choice(get_args(Rounding)),
        help=f"How weights in blocks are rounded.  [default: {_RECIPE.rounding}]",
    ),
    click.option(
        "--ranges",
        type=click.Choice(get_args(RangeRule)),
        help=f"How static ranges of activations are chosen.  [default: {_RECIPE.ranges}]",
    ),
    click.option(
        "--max-kl",
        type=click.FloatRange(min=0),
        help=f"Budget of mixed: mean KL divergence of the logits in nats.  [default: {DEFAULT_MAX_KL}]",
    ),
    click.option(
        "--max-accuracy-drop",
        type=click.FloatRange(0, 100),
        help="What a quantised model may lose: points of exact match for a model of the films, per cent of tokens that "
        "differ from fp32 for any other. If it loses more, no bundle is left.  [default: 1]",
    ),
    click.option(
        "--backend",
        "backends",
        multiple=True,
        metavar="BACKEND",
        help="Back end to measure the accuracy on; may be repeated.  [default: all installed ones of the CPU]",
    ),
    click.option(
        "--data",
        type=_FOLDER,
        help="Folder of your own videos with a questions.json, to measure the accuracy on (the first 128 questions).  "
        "[default: synthetic films]",
    ),
    click.option(
        "--questions",
        "num_questions",
        type=click.IntRange(min=1),
        help="Questions about films in the accuracy report.  [default: 2000 for a model of films, else 32]",
    ),
)
