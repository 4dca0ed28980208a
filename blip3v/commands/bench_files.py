"""The files that ``blip3v bench`` writes: checked before anything is measured, written at the end."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blip3v.bench.csv_text import csv_text
from blip3v.bench.markdown_text import markdown_text
from blip3v.bench.plot import check_plot, draw
from blip3v.bench.results import Result
from blip3v.commands.output import check_file, talk, write_json
from blip3v.errors import UsageError
from blip3v.extras import pip_line
from blip3v.publishing import write_file

__all__ = ["ResultFiles", "draw_default"]


@dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Where the result goes; None: not there."""

    output: Path | None  # JSON
    csv: Path | None
    markdown: Path | None
    plot: Path | None
    force: bool  # overwrite what exists

    def check(self) -> None:
        """Checks what can be checked before the measurement.

        Raises:
            UsageError: a file exists, or cannot be written, or is named twice; ``--force`` without a file.
            ModuleNotFoundError: a plot is asked for and matplotlib is not installed.
        """
        files = dict(self._files())
        if self.force and not files:
            raise UsageError(f"--force has no effect without {', '.join(self._options())}")
        if len({path.absolute() for path in files.values()}) < len(files):
            raise UsageError(f"two of {', '.join(files)} name the same file; each needs its own")
        for option, path in files.items():
            check_file(path, force=self.force, option=option)
        if self.plot is not None:
            check_plot(self.plot)

    def write(self, result: Result) -> None:
        """Writes the files that were asked for."""
        if self.output is not None:
            write_json(result, self.output)
        if self.csv is not None:
            write_file(self.csv, csv_text(result))
        if self.markdown is not None:
            write_file(self.markdown, markdown_text(result))
        if self.plot is not None:
            draw(result, self.plot)
        for _, path in self._files():
            talk(f"wrote {path}")

    def _files(self) -> Iterator[tuple[str, Path]]:
        values = (self.output, self.csv, self.markdown, self.plot)
        for option, path in zip(self._options(), values, strict=True):
            if path is not None:
                yield option, path

    def _options(self) -> tuple[str, ...]:
        return "--output", "--csv", "--markdown", "--plot"


def draw_default(result: Result, path: Path) -> None:
    """Draws the plot that comes without asking, or says what it needs."""
    if importlib.util.find_spec("matplotlib") is None:
        talk(f"no plot: matplotlib is not installed; run: {pip_line('eval')}")
        return
    draw(result, path)
    talk(f"wrote {path}")
