"""The table of a sensitivity scan on the screen: a bar for each block, the most sensitive first."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3v.calibration.sensitivity_table import Block, SensitivityTable
from blip3v.commands.tables import print_table
from blip3v.units import format_count

__all__ = ["print_sensitivity"]

_ROWS, _BAR_WIDTH = 20, 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"


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
    for heading in ("block", "format", "KL, nats", "", "same token", "other format, nats"):
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
    others = ", ".join(f"{name} {other.kl:.2g}" for name, other in block.measured.items() if name != form)
    return (
        Text(block.short_name + (" (kept)" if block.is_kept else ""), style=style),
        Text(form, style=style),
        f"{result.kl:.2e}",
        Text(_bar(result.kl / largest if largest else 0.0, ascii_only=ascii_only), style=style),
        _share(result.agreement),
        others,
    )


def _bar(share: float, *, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(share * _BAR_WIDTH)
    whole, eighths = divmod(round(share * _BAR_WIDTH * 8), 8)
    return "█" * whole + (_EIGHTHS[eighths] if eighths else "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
