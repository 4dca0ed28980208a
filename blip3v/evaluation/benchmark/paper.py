"""The paper's Tables 1, 2 and 6 with our results as further rows. Its figures and their source: ``paper.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blip3v.evaluation.benchmark.results import Result
from blip3v.evaluation.benchmark.tasks import BENCHMARKS
from blip3v.strict_json import from_dict, read_json

__all__ = ["NOT_JUDGED", "NOT_RUN", "PaperTable", "TableRow", "markdown", "paper_source", "paper_tables"]

NOT_RUN = "not run"
NOT_JUDGED = "not judged"
_NOTHING = "-"  # a cell that the paper leaves empty


@dataclass(frozen=True)
class TableRow:
    """A model. ``cells`` are texts, one for each column of the table."""

    model: str
    size: str
    tokens: str
    cells: tuple[str, ...]
    is_ours: bool


@dataclass(frozen=True)
class PaperTable:
    """A table in the paper's layout."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    model: str
    size: str
    tokens: str
    cells: tuple[tuple[float | None, ...] | None, ...]


@dataclass(frozen=True)
class _Table:
    number: int
    title: str
    columns: tuple[str, ...]
    decimals: tuple[int, ...]  # of the numbers of a cell
    note: str
    rows: tuple[_Row, ...]


@dataclass(frozen=True)
class _Paper:
    source: str
    tables: tuple[_Table, ...]


def paper_source() -> str:
    """Where the paper's figures are from."""
    return _paper().source


def paper_tables(results: Sequence[Result], numbers: Sequence[int] = (1, 2, 6)) -> list[PaperTable]:
    """The tables with the paper's rows, and one of ours for each model; cells without data say so.

    Args:
        results: of any benchmarks and models.
        numbers: of the tables.
    """
    return [_table(table, results) for table in _paper().tables if table.number in numbers]


def markdown(table: PaperTable) -> str:
    """A table as Markdown, our rows in bold."""
    heads = ("model", "size", "tokens", *table.columns)
    lines = [
        f"**Table {table.number}.** {table.title}",
        "",
        _line(heads),
        _line(["---"] * 2 + ["---:"] * (len(heads) - 2)),
    ]
    for row in table.rows:
        model = f"**{_escaped(row.model)}**" if row.is_ours else _escaped(row.model)
        lines.append(_line((model, row.size, row.tokens, *row.cells)))
    return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in table.notes)]) + "\n"


def _paper() -> _Paper:
    return from_dict(_Paper, read_json(Path(__file__).with_name("paper.json")), "paper.json")


def _table(table: _Table, results: Sequence[Result]) -> PaperTable:
    benchmarks = {one.name: one.column for one in BENCHMARKS.values() if one.table == table.number}
    of_table = [result for result in results if result.header.benchmark in benchmarks]
    by_model: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        by_model.setdefault((result.header.model, result.header.model_digest), {})
    for result in of_table:
        key = (result.header.model, result.header.model_digest)
        by_model[key][benchmarks[result.header.benchmark]] = result
    rows = [
        TableRow(row.model, row.size, row.tokens, tuple(_paper_cell(cell, table.decimals) for cell in row.cells), False)
        for row in table.rows
    ]
    headers = {(one.header.model, one.header.model_digest): one.header for one in results}
    for key, of_model in by_model.items():
        header = headers[key]
        cells = tuple(_our_cell(of_model.get(column), table.decimals) for column in table.columns)
        name = f"{header.model}, {header.precision}"
        rows.append(TableRow(name, "", str(header.num_video_tokens), cells, True))
    return PaperTable(table.number, table.title, table.columns, tuple(rows), (table.note, *_our_notes(of_table)))


def _paper_cell(values: tuple[float | None, ...] | None, decimals: tuple[int, ...]) -> str:
    if values is None:
        return _NOTHING
    shown = zip(values, decimals, strict=True)
    return "/".join(_NOTHING if value is None else f"{value:.{places}f}" for value, places in shown)


def _our_cell(result: Result | None, decimals: tuple[int, ...]) -> str:
    if result is None:
        return NOT_RUN
    accuracy = result.score("accuracy" if result.header.form == "choice" else "judge accuracy")
    if accuracy is None:
        return NOT_JUDGED
    if accuracy.value is None:
        return _NOTHING
    score = result.score("judge score")
    values = (100 * accuracy.value, *([score.value] if score is not None else []))
    text = _paper_cell(values, decimals[: len(values)])
    available = result.header.num_available + sum(result.header.missing.values())
    return text if accuracy.num == available else f"{text} ({accuracy.num} of {available})"


def _our_notes(results: Sequence[Result]) -> list[str]:
    """What a reader has to know of our rows: who judged, and which splits other than the usual ones."""
    notes = []
    judges = sorted({_judge_text(result) for result in results if result.judge is not None})
    if judges:
        notes.append(f"Our judge: {'; '.join(judges)}.")
    for result in results:
        header = result.header
        if header.split != BENCHMARKS[header.benchmark].split:
            notes.append(f"{header.model} on {header.benchmark}: split {header.split}.")
    return notes


def _judge_text(result: Result) -> str:
    judge = result.judge
    assert judge is not None
    return f"{', '.join(judge.answered_by) or judge.model}, prompt {judge.prompt} {judge.prompt_digest[:12]}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
