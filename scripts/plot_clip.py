"""Draws the README's first picture: the frames of an example clip that the model sees, with question and answer.

blip3v ask examples/turn.mp4 "QUESTION" --json > answer.json
python scripts/plot_clip.py examples/turn.mp4 "QUESTION" answer.json docs/clip.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

from blip3v.video import load_clip

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def main(video: Path, question: str, answer: Path, output: Path) -> None:
    """Draws the sampled frames of ``video`` in a row, with the question above and the answer below."""
    record = json.loads(answer.read_text("utf-8"))
    clip = load_clip(video, num_frames=len(record["frames"]))
    figure, axes = plt.subplots(1, len(clip.frames), figsize=(12, 1.75))
    for axis, frame, sampled in zip(axes, clip.frames, clip.sampled, strict=True):
        axis.imshow(frame)
        axis.set_title(f"{sampled.time_s:.2f} s", fontsize=9, color="dimgray", pad=3)
        axis.axis("off")
    figure.text(0.01, 0.96, f"Q  {question}", fontsize=12, va="top")
    figure.text(0.01, 0.03, f"A  {record['text']}", fontsize=12, va="bottom", weight="bold")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.74, bottom=0.16, wspace=0.04)
    figure.savefig(output, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
