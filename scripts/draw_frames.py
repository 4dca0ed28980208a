"""Draws which frames of a clip the model sees, and writes the same as the table of docs/frames.md.

python scripts/draw_frames.py docs/frames.md docs/frames.png
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from blip3v.video import sample_indices

NUM_FRAMES = 8
DRAWN = (8, 12, 24, 100)  # frames of a clip
LISTED = (1, 4, 7, 8, 9, 12, 14, 15, 16, 24, 100, 300)

_COLOUR, _REPEATED, _GREY = "#2a6f97", "#d1495b", "#adb5bd"


def table() -> str:
    """The rows of the page, in Markdown."""
    lines = ["| frames of the clip | frames that the model sees | different |", "|---:|---|---:|"]
    for num_source in LISTED:
        seen = sample_indices(num_source, NUM_FRAMES).tolist()
        lines.append(f"| {num_source} | {', '.join(map(str, seen))} | {len(set(seen))} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with the table between its two marks."""
    return re.sub(r"(?s)(<!-- table.*?-->\n).*?(<!-- end)", lambda found: found[1] + table() + found[2], page)


def draw(output: Path) -> None:
    """Draws a panel for each of ``DRAWN``: the clip above, what the model gets below."""
    import matplotlib  # the table does not need it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(DRAWN), 1, figsize=(9, 6.4), dpi=110)
    for axis, num_source in zip(axes, DRAWN, strict=True):
        _panel(axis, num_source)
    figure.subplots_adjust(left=0.015, right=0.985, top=0.95, bottom=0.02, hspace=0.3)
    figure.savefig(output, facecolor="white", metadata={"Software": None})


def _panel(axis: Any, num_source: int) -> None:
    seen = sample_indices(num_source, NUM_FRAMES).tolist()
    width = 1 / num_source
    for index in range(num_source):
        fill = _COLOUR if index in seen else "white"
        axis.add_patch(_box(index * width, 1.0, width, 0.28, fill, 1.2 if num_source < 50 else 0.4))
        if num_source < 50:
            text = "white" if index in seen else _GREY
            axis.text((index + 0.5) * width, 1.14, str(index), ha="center", va="center", fontsize=7.5, color=text)
    for slot, index in enumerate(seen):
        left = slot / NUM_FRAMES
        again = slot > 0 and seen[slot - 1] == index
        colour = _REPEATED if again else _COLOUR
        axis.plot([(index + 0.5) * width, left + 0.5 / NUM_FRAMES], [1.0, 0.36], color=colour, linewidth=0.9)
        axis.add_patch(_box(left + 0.012, 0.0, 1 / NUM_FRAMES - 0.024, 0.36, colour, 0))
        axis.text(left + 0.5 / NUM_FRAMES, 0.18, str(index), ha="center", va="center", fontsize=10, color="white")
    frames = "1 frame" if len(set(seen)) == 1 else f"{len(set(seen))} different frames"
    axis.set_title(f"a clip of {num_source} frames: the model sees {frames}", fontsize=9.5, loc="left", pad=3)
    axis.set(xlim=(0, 1), ylim=(0, 1.3))
    axis.axis("off")


def _box(left: float, bottom: float, width: float, height: float, fill: str, line: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, bottom), width, height, facecolor=fill, edgecolor=_GREY, linewidth=line)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/draw_frames.py PAGE.md OUT.png")
    target = Path(sys.argv[1])
    target.write_text(with_table(target.read_text("utf-8")), "utf-8")
    draw(Path(sys.argv[2]))
