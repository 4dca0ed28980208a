"""How ``blip3v bench`` ends: the comparison with a baseline, the files, the tables or JSON, the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from blip3v.bench.compare import Comparison, compare
from blip3v.bench.results import Result
from blip3v.commands.bench_files import ResultFiles, draw_default
from blip3v.commands.bench_tables import print_comparison
from blip3v.commands.failure import print_json, with_error
from blip3v.errors import SlowerError
from blip3v.strict_json import dumps
from blip3v.units import format_count, format_ratio

__all__ = ["finish"]

_TOLERANCE = 0.1


def finish(
    result: Result,
    print_result: Callable[[Console], None],
    earlier: Result | None,
    tolerance: float | None,
    differences: tuple[str, ...],
    files: ResultFiles,
    as_json: bool,
    *,
    default_plot: Path | None = None,
) -> None:
    """Compares, writes and prints a result.

    Raises:
        SlowerError: a median is slower than the tolerance allows.
    """
    comparison = None
    if earlier is not None:
        comparison = compare(
            result, earlier, tolerance=_TOLERANCE if tolerance is None else tolerance, differences=differences
        )
        result["comparison"] = comparison.to_dict()
    files.write(result)
    if default_plot is not None:
        draw_default(result, default_plot)
    slower = None if comparison is None else _slower(comparison)
    if as_json:
        print_json(dumps(result if slower is None else with_error(result, slower)))
    else:
        console = Console(highlight=False)
        print_result(console)
        if comparison is not None:
            print_comparison(comparison, console)
    if slower is not None:
        raise slower


def _slower(comparison: Comparison) -> SlowerError | None:
    """The error of a comparison in which a median is worse."""
    worse = sorted(comparison.worse, key=lambda median: -median.ratio)
    if not worse:
        return None
    first = worse[0]
    what = f"{first.quantity.removesuffix('_s').replace('_', ' ')} at {first.row}"
    return SlowerError(
        f"{len(worse)} of {format_count(len(comparison.medians), 'median')} are slower than the baseline by more than "
        f"{100 * comparison.tolerance:g} %, {what} the most ({format_ratio(first.ratio)}); measure again on an idle "
        "machine, or look for what made it slower"
    )
