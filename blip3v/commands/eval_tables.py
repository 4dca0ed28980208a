"""A benchmark's scores and the paper's tables, for the terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from blip3v.evaluation.benchmark.comparing import Comparison
from blip3v.evaluation.benchmark.paper import NOT_JUDGED, NOT_RUN, PaperTable
from blip3v.evaluation.benchmark.results import Result, Score
from blip3v.units import format_count

__all__ = ["loss_table", "loss_text", "paper_table", "score_table"]

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
        table.add_row(one.name, escape(one.kind), str(one.num), _number(one.name, one.value), _interval(one))
    if result.unread:
        table.add_row("without an answer", "", str(len(result.unread)), "", "")
    if result.judge is not None and result.judge.num_unparsable:
        table.add_row("without a verdict", "", str(result.judge.num_unparsable), "", "")
    return table


def loss_table(comparison: Comparison) -> Table:
    """What the model loses against its reference, score by score."""
    reference, model = comparison.reference, comparison.model
    title = f"{model.model}, {model.precision}, beside {reference.model}, {reference.precision}, on {model.benchmark}, "
    table = Table(title=escape(f"{title}split {model.split}"), title_justify="left", box=box.SIMPLE)
    for heading in ("score", "kind", "questions", "reference", "model", "lost\n(95 % interval)"):
        table.add_column(heading, justify="left" if heading in ("score", "kind") else "right")
    for one in comparison.scores:
        reference_value, model_value, lost = (_finely(one.name, x) for x in (one.reference, one.model, one.lost))
        interval = "" if one.low is None else f" ({_finely(one.name, one.low)} to {_finely(one.name, one.high)})"
        table.add_row(one.name, escape(one.kind), str(one.num), reference_value, model_value, lost + interval)
    return table


def loss_text(comparison: Comparison) -> str:
    """How many answers differ, and which way."""
    text = f"{comparison.num_changed} of {format_count(comparison.num_compared, 'answer')} differ"
    share = next((one for one in comparison.scores if one.num_lost is not None and not one.kind), None)
    if share is not None:
        text += f"; by {share.name} {share.num_lost} are right with the reference alone, {share.num_gained} with the "
        text += "model alone"
    if comparison.num_not_compared:
        text += f"; {format_count(comparison.num_not_compared, 'question')} not answered by both, in no score here"
    return text


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


def _number(name: str, value: float | None, *, further: int = 0) -> str:
    """A value of a score, with further decimals."""
    if value is None:
        return "-"
    factor, decimals = _SHOWN.get(name, _PER_CENT)
    return f"{factor * value:.{decimals + further}f}"


def _finely(name: str, value: float | None) -> str:
    """As differences are shown, and what they are of: one question of some thousands must be seen."""
    return _number(name, value, further=1)


def _interval(score: Score) -> str:
    return "" if score.low is None else f"{_number(score.name, score.low)} to {_number(score.name, score.high)}"
