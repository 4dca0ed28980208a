"""No width loses anything of a table."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3v.commands.tables import print_table


def printed(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(console, table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def example() -> Table:
    table = Table(title="files", box=box.SIMPLE)
    table.add_column("name", no_wrap=True)
    table.add_column("whole\nchain", justify="right", no_wrap=True)
    table.add_column("what it is for")
    table.add_row("onnx/video_encoder.data", "1.06 MiB", Text("weights [of] the graph"))
    table.add_row("past.0.key ... past.5.value (12)", "", "incomprehensibilities-of-a-very-long-word")
    return table


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_every_cell_is_shown_at_every_width(width: int) -> None:
    """`inspect` in a terminal of 40 columns showed no sizes and no hashes."""
    text = printed(example(), width)
    assert all(len(line) <= width for line in text.splitlines())
    for cell in ("files", "onnx/video_encoder.data", "1.06MiB", "weights[of]thegraph", "past.0.key...past.5.value(12)"):
        assert cell in squeezed(text), text
    if width != 80:  # at 80 the long word is folded between the lines of other cells
        assert "incomprehensibilities-of-a-very-long-word" in squeezed(text)


def test_a_row_that_does_not_fit_is_a_paragraph() -> None:
    lines = [line.rstrip() for line in printed(example(), 50).splitlines()]
    assert lines == [
        "files",
        "  onnx/video_encoder.data: whole chain 1.06 MiB,",
        "  what it is for weights [of] the graph",
        "  past.0.key ... past.5.value (12): what it is for",
        "  incomprehensibilities-of-a-very-long-word",
        "",
    ]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=5), st.integers(24, 90))
def test_no_letter_is_lost(lengths: list[int], width: int) -> None:
    table = Table(box=box.SIMPLE)
    for index in range(len(lengths)):
        table.add_column(f"c{index}", no_wrap=index == 0)
    table.add_row(*(chr(ord("P") + index) * length for index, length in enumerate(lengths)))
    text = printed(table, width)
    for index, length in enumerate(lengths):
        assert text.count(chr(ord("P") + index)) == length, text
