"""Draws a result as `blip3v bench --plot` does: python scripts/plot_bench.py RESULT.json OUT.png

RESULT.json comes from `blip3v bench -o`, or from scripts/full_size.py, whose result contains one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from blip3v.bench.plot import check_plot, draw
from blip3v.bench.results import read_result
from blip3v.errors import Blip3vError


def main(result: Path, output: Path) -> None:
    """Reads ``result`` and writes the picture to ``output``."""
    try:
        check_plot(output)
        draw(read_result(result), output)
    except Blip3vError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/plot_bench.py RESULT.json OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
