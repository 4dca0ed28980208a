"""Measures the way from a video file to frames and answers on this machine, beside PyAV's straightforward loop.

    python scripts/video_speed.py /tmp/video-speed benchmarks/results/video-speed.json --base COMMIT --bundle BUNDLE

Makes a film of 30 s, 1280x720, with x264's own settings (a keyframe every 250 frames, B frames). Then four comparisons,
each of sides that are processes of their own, stay loaded and are asked in turns:

- `clip`: 8 frames of the film, decoded and resized to 384x384, beside the loop;
- `decoding`: the decoder's work alone, with one part of it switched off at a time;
- `answer`: `VideoLM.ask` about examples/turn.mp4: with the fork server, with a process that is started ahead, without;
- `import`: `import blip3v.runtime` in a new process.

With `--base`, the code of that commit is a side too. A ratio is the median over the rounds of a side's seconds by those
of the first side in the same round. `pause_s` passes before each sample, as between requests; 0 is a service without a
pause, in which the start of the next process competes with the answer. Sides have to agree on what comes out, or the
script fails. Minutes on two cores, on a machine that does nothing else. A step that is in the JSON is not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from scripts.full_size_report import ROOT, Report

SAMPLES = ROOT / "scripts" / "video_speed_samples.py"
CLIP = ROOT / "examples" / "turn.mp4"
WIDTH, HEIGHT, FPS = 1280, 720, 30
WARM_UPS = 3
OURS, BASE = "this", "base"


@dataclass(frozen=True, kw_only=True)
class Side:
    """A side of a comparison: what it is called, what it does, and whose code it runs."""

    name: str
    does: str
    code: str = OURS


CLIPS = (
    Side(name="PyAV loop", does="loop"),
    Side(name="blip3v", does="load"),
    Side(name="blip3v, process ahead", does="load-ahead"),
    Side(name="base", does="load", code=BASE),
)
DECODING = (
    Side(name="all", does="decode"),
    Side(name="in one thread", does="decode-in-one-thread"),
    Side(name="with pictures that nothing refers to", does="decode-every-picture"),
    Side(name="seeking over 128 frames or more", does="decode-with-long-stretches"),
)
ANSWERS = (
    Side(name="blip3v", does="answer"),
    Side(name="no fork server", does="answer-without-server"),
    Side(name="no process ahead", does="answer-without-spare"),
    Side(name="base", does="answer", code=BASE),
)


def main() -> None:
    """Runs what is not in the JSON yet, and writes it after each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the film and the base's code go")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("--base", help="a commit whose code is measured too")
    parser.add_argument("--bundle", type=Path, help="a bundle of a tiny model; without it no answer is measured")
    parser.add_argument("-r", "--rounds", type=int, default=15, help="of each comparison (default: 15)")
    parser.add_argument("--seconds", type=int, default=30, help="of the film (default: 30)")
    options = parser.parse_args()
    head = {
        "command": "python scripts/video_speed.py FOLDER OUTPUT --base COMMIT --bundle BUNDLE",
        "base": options.base,
        "film_s": options.seconds,
    }
    report = Report(options.folder.resolve(), options.output, head)
    # Modules are compiled once, as in an installed package, whatever the caller's environment says.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(report.folder / "bytecode")
    film = report.folder / f"film-{options.seconds}s.mp4"
    if not film.exists():
        write_film(film, options.seconds * FPS)
    roots = {OURS: ROOT}
    if options.base:
        roots[BASE] = checked_out(options.base, report.folder / "base")

    def measured(sides: Sequence[Side], video: Path, pause_s: float = 0.0) -> Callable[[], dict[str, Any]]:
        return lambda: compare(sides, roots, [str(video), str(options.bundle)], options.rounds, pause_s)

    report.step("clip", measured(CLIPS, film))
    report.step("decoding", measured(DECODING, film))
    if options.bundle:
        report.step("answer", measured(ANSWERS, CLIP, 0.5))
        report.step("answer without a pause", measured(ANSWERS, CLIP))
    report.step("import", lambda: imports(roots, options.rounds))
    print(options.output)


def write_film(path: Path, num_frames: int) -> None:
    """A camera that pans over a textured surface, with things that move and a little noise."""
    rng = np.random.default_rng(0)
    grains = [share * _texture(rng, (HEIGHT + 400, WIDTH + 1000), size) for size, share in GRAINS]
    ground = np.sum(grains, axis=0).astype(np.uint8)
    things = [_texture(rng, (160, 200), 8).astype(np.uint8) for _ in range(4)]
    unfinished = path.with_suffix(".part.mp4")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(num_frames):
            across, down = int(500 + 450 * np.sin(number / 120)), int(200 + 180 * np.sin(number / 77))
            picture = ground[down : down + HEIGHT, across : across + WIDTH].astype(np.int16)
            for thing, texture in enumerate(things):
                left = int((WIDTH - 200) / 2 * (1 + np.sin(thing + number * (0.01 + 0.01 * thing))))
                top = int((HEIGHT - 160) / 2 * (1 + np.cos(2 * thing + number * (0.013 + 0.01 * thing))))
                picture[top : top + 160, left : left + 200] = texture
            picture += rng.integers(-3, 4, (HEIGHT, WIDTH, 1), dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    unfinished.rename(path)


GRAINS = ((64, 0.6), (16, 0.25), (4, 0.15))  # (pixels, share)


def _texture(rng: np.random.Generator, size: tuple[int, int], grain: int) -> np.ndarray:
    small = rng.integers(0, 256, (size[0] // grain + 2, size[1] // grain + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC), np.float32)


def checked_out(commit: str, folder: Path) -> Path:
    """The package at a commit, in a folder that goes on the import path."""
    archive = subprocess.run(["git", "archive", commit, "blip3v"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def compare(
    sides: Sequence[Side],
    roots: Mapping[str, Path],
    words: Sequence[str],
    rounds: int,
    pause_s: float = 0.0,
    *,
    script: Path = SAMPLES,
) -> dict[str, Any]:
    """Seconds of each side, in turns, and their ratios to the first one's; ``script`` takes the samples.

    Raises:
        SystemExit: the sides do not agree on what comes out.
    """
    sides = [side for side in sides if side.code in roots]
    samples: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    with ExitStack() as stack:
        workers = {side.name: stack.enter_context(_worker(side, roots[side.code], words, script)) for side in sides}
        for number in range(WARM_UPS + rounds):
            for name, worker in workers.items():
                time.sleep(pause_s)
                sample = _ask(worker)
                if number >= WARM_UPS:
                    samples[name].append(sample)
    if len({sample["sha256"] for side in samples.values() for sample in side}) != 1:
        raise SystemExit(f"the sides do not agree: {', '.join(samples)}")
    seconds = {name: [sample["seconds"] for sample in side] for name, side in samples.items()}
    cpu_s = {name: statistics.median(sample["cpu_s"] for sample in side) for name, side in samples.items()}
    return {"pause_s": pause_s, **summary(seconds), "cpu_s": cpu_s}


def summary(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians, and the median of the ratios to the first side's within each round."""
    first = next(iter(seconds.values()))
    return {
        "rounds": len(first),
        "median_s": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio": {
            name: statistics.median(value / one for value, one in zip(values, first, strict=True))
            for name, values in seconds.items()
        },
        "seconds": dict(seconds),
    }


def imports(roots: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Seconds of a process that imports the runtime, in turns."""
    programs = {
        "blip3v.runtime": (OURS, "import blip3v.runtime"),
        "nothing": (OURS, "pass"),
        "numpy": (OURS, "import numpy"),
        "base": (BASE, "import blip3v.runtime"),
    }
    seconds: dict[str, list[float]] = {name: [] for name, (code, _) in programs.items() if code in roots}
    for number in range(WARM_UPS + rounds):
        for name, values in seconds.items():
            code, program = programs[name]
            started_s = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], env=_environment(roots[code]), check=True)
            if number >= WARM_UPS:
                values.append(time.perf_counter() - started_s)
    return summary(seconds)


def _environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root)}


def _worker(side: Side, root: Path, words: Sequence[str], script: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), side.does, *words]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(root), cwd=root
    )
    _answer(process)
    return process


def _ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdin is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return _answer(worker)


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, worker.args[2:]))}: ended without an answer")  # type: ignore[index]
    found: dict[str, Any] = json.loads(line)
    return found


if __name__ == "__main__":
    main()
