"""Regenerates the example clips and questions.json: python examples/make.py NEW_FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

from blip3v.data.film import make_film
from blip3v.data.film_files import write_films

# Seeds from the split "test", chosen so that each clip shows one thing clearly.
FILMS = {"turn.mp4": 5471, "bounces.mp4": 98, "order.mp4": 234, "appear.mp4": 82, "speed.mp4": 146}
HEIGHT = 480


def main(folder: Path) -> None:
    """Writes the clips and questions.json to the new folder ``folder``."""
    write_films(folder, {file: make_film(seed, "test") for file, seed in FILMS.items()}, height=HEIGHT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
