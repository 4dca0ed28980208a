"""Short video files and lists of them, for runs on a user's own clips."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import av
import numpy as np

from blip3v.training import Recipe, Stage

NUM_CLIPS = 8
BROKEN = (2, 5)

STAGE = Stage(task="video-captions", num_steps=6, batch_size=2, pairs_per_clip=1, learning_rate=1e-3, warmup_steps=1)


def recipe(**changes: object) -> Recipe:
    """One stage on clips with the tiny model; a checkpoint every two steps."""
    stage = dataclasses.replace(STAGE, **changes)  # type: ignore[arg-type]
    return Recipe(
        preset="tiny", encoder="mean", seed=5, stages=(stage,), start="spread", save_every=2, log_every=1, num_frames=2
    )


def write_clip(path: Path, number: int) -> None:
    """Six frames of one colour that depends on the number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=6, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(6):
            picture = np.full((48, 64, 3), (30 * number, 200 - 20 * number, 40 * at), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_list(folder: Path, *, broken: tuple[int, ...] = BROKEN, answer: str = "It is red.") -> Path:
    """Clips with conversations of two turns; the ``broken`` ones are no videos."""
    records = []
    for number in range(NUM_CLIPS):
        path = folder / f"{number}.mp4"
        if number in broken:
            path.write_bytes(b"not a video " * 50)
        elif not path.exists():
            write_clip(path, number)
        texts = ["<image>\nWhat colour is it?", answer, "And then?", f"{number} comes then."]
        turns = [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(texts)]
        records.append({"path": path.name, "conversations": turns})
    listed = folder / "clips.json"
    listed.write_text(json.dumps(records), "utf-8")
    return listed
