"""``blip3v calibrate --sensitivity``: which blocks bear quantisation, as a table with bars, a picture and a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3v.bundle.precision import Precision
from blip3v.calibration.data import AskedClip
from blip3v.calibration.options import RecipeOptions
from blip3v.calibration.sensitivity_chart import CHART_FILE, draw_chart
from blip3v.calibration.sensitivity_table import TABLE_FILE, Block, SensitivityTable
from blip3v.commands.stages import ShowStage
from blip3v.commands.tables import print_table
from blip3v.units import format_count

if TYPE_CHECKING:
    from blip3v.calibration.statistics import Calibration
    from blip3v.export.source import ExportSource

__all__ = ["print_sensitivity", "scan_blocks", "summary"]

_ROWS, _BAR_WIDTH = 20, 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def scan_blocks(
    calibration: Calibration, source: ExportSource, clips: Sequence[AskedClip], *, force: bool, progress: ShowStage
) -> SensitivityTable:
    """Measures how sensitive the blocks are, into the calibration's folder, and draws it; goes on with an older scan.

    Args:
        calibration: of the model.
        source: the model.
        clips: what to ask it.
        force: whether to replace a table that was measured with something else.
        progress: called at each stage.
    """
    # They import PyTorch, which takes seconds.
    from blip3v.calibration.plan import make_plan
    from blip3v.calibration.sensitivity import Scan, add_sensitivity

    recipe, precision = RecipeOptions(), Precision.parse("mixed")
    plan = make_plan(source.weights, source.config, calibration, precision, recipe)
    progress("run the fp32 model")
    with Scan(source.config, plan, clips, folder=calibration.path.parent) as scan:
        table = add_sensitivity(
            calibration.path,
            scan,
            statistics_sha256=calibration.record.sha256,
            recipe=dataclasses.asdict(recipe),
            precision=precision,
            force=force,
            progress=lambda block, done, total: progress("quantise one block at a time", done, total),
        )
    draw_chart(table, calibration.path / CHART_FILE)
    return table


def summary(table: SensitivityTable, folder: Path) -> dict[str, Any]:
    """The JSON values of a scan."""
    return {
        "table": str(folder / TABLE_FILE),
        "chart": str(folder / CHART_FILE),
        "together": None if table.together is None else dataclasses.asdict(table.together),
        "sum_kl": table.total_kl,
        "ranked": [
            {"block": block.name, "format": block.lowest[0], **dataclasses.asdict(block.lowest[1])}
            for block in table.ranked()
        ],
    }


def print_sensitivity(console: Console, table: SensitivityTable) -> None:
    """Prints the most sensitive blocks, and what all of them do together.

    Args:
        console: where to.
        table: complete.
    """
    ranked = table.ranked()
    largest = ranked[0].lowest[1].kl
    title = f"each block quantised alone, {format_count(table.num_positions, 'position')}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("block", "format", "KL, nats", "", "same token"):
        shown.add_column(heading, justify="right" if heading in ("KL, nats", "same token") else "left")
    shown.columns[3].no_wrap = True
    for block in ranked[:_ROWS]:
        shown.add_row(*_cells(block, largest, ascii_only=console.options.ascii_only))
    print_table(console, shown)
    if ranked[_ROWS:]:
        rest = format_count(len(ranked) - _ROWS, "other block")
        console.print(f"{rest} below {ranked[_ROWS].lowest[1].kl:.2g} nats, all in sensitivity.json")
    if table.together is not None:
        console.print(
            f"all blocks that are quantised by default at once: {table.together.kl:.3g} nats "
            f"(sum of each alone: {table.total_kl:.3g}), same token {_share(table.together.agreement)}"
        )


def _cells(block: Block, largest: float, *, ascii_only: bool) -> tuple[str | Text, ...]:
    form, result = block.lowest
    style = "dim" if block.is_kept else ""
    return (
        Text(block.short_name + (" (kept)" if block.is_kept else ""), style=style),
        Text(form, style=style),
        f"{result.kl:.2e}",
        Text(_bar(result.kl / largest if largest else 0.0, ascii_only=ascii_only), style=style),
        _share(result.agreement),
    )


def _bar(share: float, *, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(share * _BAR_WIDTH)
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return "█" * whole + (_EIGHTHS[eighths] if eighths else "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
