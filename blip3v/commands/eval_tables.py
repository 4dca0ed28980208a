"""A benchmark's scores and the paper's tables, for the terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from blip3v.evaluation.benchmark.paper import NOT_JUDGED, NOT_RUN, PaperTable
from blip3v.evaluation.benchmark.results import Result, Score

__all__ = ["paper_table", "score_table"]

# How each score is shown, as its papers do: factor and decimals. The others are shares, in per cent.
_SHOWN = {"judge score": (1.0, 2), "CIDEr": (100.0, 1), "BLEU-4": (1.0, 1)}
_PER_CENT = (100.0, 1)


def score_table(result: Result) -> Table:
    """Every score with its interval."""
    header = result.header
    title = f"{header.model}, {header.precision}, on {header.benchmark}, split {header.split}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE)
    for heading in ("score", "kind", "questions", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("score", "kind") else "right")
    for one in result.scores:
        table.add_row(one.name, escape(one.kind), str(one.num), _number(one, one.value), _interval(one))
    if result.unread:
        table.add_row("without an answer", "", str(len(result.unread)), "", "")
    if result.judge is not None and result.judge.num_unparsable:
        table.add_row("without a verdict", "", str(result.judge.num_unparsable), "", "")
    return table


def paper_table(paper: PaperTable) -> Table:
    """One of the paper's tables, our rows in bold."""
    table = Table(title=f"Table {paper.number}: {escape(paper.title)}", title_justify="left", box=box.SIMPLE)
    for heading in ("model", "size", "tokens", *paper.columns):
        table.add_column(heading, justify="left" if heading in ("model", "size") else "right")
    for row in paper.rows:
        cells = [f"[dim]{cell}[/dim]" if cell in (NOT_RUN, NOT_JUDGED) else cell for cell in row.cells]
        model = f"[bold]{escape(row.model)}[/bold]" if row.is_ours else escape(row.model)
        table.add_row(model, row.size, row.tokens, *cells)
    return table


def _number(score: Score, value: float | None) -> str:
    if value is None:
        return "-"
    factor, decimals = _SHOWN.get(score.name, _PER_CENT)
    return f"{factor * value:.{decimals}f}"


def _interval(score: Score) -> str:
    return "" if score.low is None else f"{_number(score, score.low)} to {_number(score, score.high)}"
