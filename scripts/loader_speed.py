"""Measures how many clips a second training's loader makes ready on this machine, beside the code of another commit.

    python scripts/loader_speed.py /tmp/loader-speed benchmarks/results/loader-speed.json --base f364baa

Writes short clips (films of 3 to 10 s, 960x720) and a list of them, and makes batches of pixels for the released model
from it: 8 frames of a clip at 384x384, as float32 and normalised on the CPU. The sides are processes of their own, stay
loaded and are asked in turns; before each sample, what a side has made ahead is thrown away, so that no side works in
another's time to its own advantage. They have to agree on the pixels, or the script fails. ``speedup`` is the median
over the rounds of the base's seconds by the side's in the same round. Two to three minutes on two cores, on a machine
that does nothing else. A step that is in the JSON is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from blip3v.data.film import make_film
from blip3v.data.mp4 import write_mp4
from scripts.full_size_report import ROOT, Report
from scripts.video_speed import BASE, OURS, Side, checked_out, compare

SAMPLES = ROOT / "scripts" / "loader_speed_samples.py"
NUM_CLIPS = 8
CLIPS_PER_SAMPLE = 32  # as in loader_speed_samples.py
SIDES = (
    Side(name="base", does="base", code=BASE),
    Side(name="blip3v, workers", does="workers"),
    Side(name="blip3v, no workers", does="no-workers"),
)


def main() -> None:
    """Runs what is not in the JSON yet, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the clips and the base's code go")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("--base", required=True, help="the commit to compare with")
    parser.add_argument("-r", "--rounds", type=int, default=6, help="of the comparison (default: 6)")
    options = parser.parse_args()
    head = {"command": f"python scripts/loader_speed.py FOLDER OUTPUT --base {options.base}", "base": options.base}
    report = Report(options.folder.resolve(), options.output, head | {"clips_per_sample": CLIPS_PER_SAMPLE})
    # Modules are compiled once, as in an installed package, whatever the caller's environment says.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(report.folder / "bytecode")
    listed = write_clips(report.folder / "clips")
    roots = {OURS: ROOT, BASE: checked_out(options.base, report.folder / "base")}
    report.step("loader", lambda: rates(compare(SIDES, roots, [str(listed)], options.rounds, script=SAMPLES)))
    print(options.output)


def write_clips(folder: Path, num_clips: int = NUM_CLIPS, height: int = 720) -> Path:
    """Writes films and the list of them, unless they are there; returns the list."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(num_clips):
        path = folder / f"{number}.mp4"
        if not path.exists():
            unfinished = path.with_suffix(".part")
            write_mp4(make_film(number, "train"), unfinished, height=height)
            unfinished.rename(path)
        turns = [("human", "<image>\nWhat happens?"), ("gpt", "Things move.")]
        turns_of_clip = [{"from": speaker, "value": text} for speaker, text in turns]
        records.append({"path": path.name, "conversations": turns_of_clip})
    listed = folder / "clips.json"
    listed.write_text(json.dumps(records), "utf-8")
    return listed


def rates(found: dict[str, Any]) -> dict[str, Any]:
    """Adds each side's clips per second, and how many times the base's that is."""
    seconds = found["seconds"]
    base = seconds["base"]
    clips_s = {name: CLIPS_PER_SAMPLE / median for name, median in found["median_s"].items()}
    speedup = {
        name: statistics.median(one / value for one, value in zip(base, values, strict=True))
        for name, values in seconds.items()
    }
    return {"clips_per_s": clips_s, "speedup": speedup, **found}


if __name__ == "__main__":
    main()
