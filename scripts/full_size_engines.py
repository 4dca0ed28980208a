"""Measures the 4B model on each inference engine in turn: seconds to open, peak memory, stages, cancellation.

    python scripts/full_size_engines.py /tmp/full-size benchmarks/results/full-size-engines.json

Needs 24 GiB of memory and 27 GB of disk in the first folder. The bundles have random weights (encoder gttm); an
existing one is used. Each measurement runs in its own process, engine after engine, and the whole round is repeated. An
engine that refuses or is killed also gets an entry, which holds its message.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blip3v.bench.environment import describe_environment, load_average
from blip3v.errors import Blip3vError, CancelledError
from blip3v.publishing import write_file
from blip3v.runtime import CancelToken, GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.video import load_clip

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "examples/turn.mp4"
QUESTION = "Which way does the red circle turn?"
NEW_TOKENS = 16
LONG_PROMPT_TOKENS = 1024
MIXED = "video_encoder=openvino,decoder=onnxruntime"
RUNS = [(precision, backend) for precision in ("fp16", "fp32") for backend in ("onnxruntime", "openvino", MIXED)]


def main() -> None:
    """Runs the measurements that are not in the JSON yet, and writes it after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the bundles go")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("-r", "--rounds", type=int, default=2, help="of measurements (default: 2)")
    parser.add_argument("--measure", nargs=2, metavar=("BUNDLE", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1])))
        return
    report = json.loads(options.output.read_text("utf-8")) if options.output.is_file() else {"runs": []}
    report |= {"environment": describe_environment(), "command": "python scripts/full_size_engines.py FOLDER OUTPUT"}
    for round_number in range(options.rounds):
        for precision, backend in RUNS:
            key = {"precision": precision, "backend": backend, "round": round_number}
            if any(key.items() <= run.items() for run in report["runs"]):
                continue
            report["runs"].append(key | _in_a_process(_bundle(options.folder, precision), backend))
            report["summary"] = summary(report["runs"])
            write_file(options.output, json.dumps(report, indent=2) + "\n")
            print(json.dumps(report["runs"][-1]), file=sys.stderr)
    print(options.output)


def measure(bundle: Path, backend: str) -> dict[str, Any]:
    """Runs in its own process: opens the bundle, answers once, and cancels a video encoding and a long prefill."""
    started_s = time.perf_counter()
    with VideoLM.open(bundle, backend=backend, allow_random=True) as lm:
        open_s = time.perf_counter() - started_s
        video = lm.encode(CLIP)
        options = GenerationOptions(max_new_tokens=NEW_TOKENS, ignore_stop_token=True)
        answer = lm.ask(video, QUESTION, options=options)
        peak_bytes = peak_rss_bytes()
        frames = np.stack(load_clip(CLIP, num_frames=8).frames)
        rows = np.arange(LONG_PROMPT_TOKENS) % len(video)
        many = VideoTokens(tokens=video.tokens[rows], frames=video.frames, encoder=video.encoder)
        return {
            "computed": lm.backend.computed,
            "versions": {graph.engine: graph.version for graph in (lm.backend.video_encoder, lm.backend.decoder)},
            "open_s": open_s,
            "peak_rss_bytes": peak_bytes,
            "encode_s": video.encode_s,
            "num_video_tokens": len(video),
            **{name: value for name, value in dataclasses.asdict(answer.timings).items() if name != "encode_s"},
            "per_token_s": answer.timings.per_token_s,
            "token_ids": list(answer.token_ids),
            "cancel_encode_s": _cancelled(lambda cancel: lm.encode(frames, cancel=cancel), after_s=3.0),
            "cancel_prefill_s": _cancelled(lambda cancel: lm.ask(many, QUESTION, cancel=cancel), after_s=2.0),
        }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds of each precision and back end; a refusal keeps its message."""
    rows = []
    for precision, backend in RUNS:
        found = [run for run in runs if (run["precision"], run["backend"]) == (precision, backend)]
        if not found:
            continue
        row: dict[str, Any] = {"precision": precision, "backend": backend, "rounds": len(found)}
        refused = next((run["refused"] for run in found if "refused" in run), None)
        if refused is not None:
            rows.append(row | {"refused": refused})
            continue
        figures = {
            name: [run[name] for run in found if run[name] is not None]
            for name in found[0]
            if name.endswith(("_s", "_bytes"))
        }
        rows.append(row | {name: statistics.median(values) for name, values in figures.items() if values})
    return rows


def _bundle(folder: Path, precision: str) -> Path:
    path = folder / f"random-{precision}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = ["export", "--preset", "xgen-mm-vid", "--init", "random", "--encoder", "gttm", "--no-check"]
        subprocess.run(
            [sys.executable, "-m", "blip3v", *words, "--precision", precision, "-o", str(path)], cwd=ROOT, check=True
        )
    return path


def _in_a_process(bundle: Path, backend: str) -> dict[str, Any]:
    before = load_average()
    command = [sys.executable, __file__, "-", "-", "--measure", str(bundle), backend]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        found = {"refused": lines[-1] if lines else f"ended with code {ran.returncode} (-9: killed, out of memory)"}
    else:
        found = json.loads(ran.stdout)
    return {**found, "load_average": {"before": before, "after": load_average()}}


def _cancelled(run: Callable[[CancelToken], object], after_s: float) -> float | None:
    """Seconds from the cancellation to the end of the call; None: the call ended first."""
    cancel = CancelToken()
    started_s = time.perf_counter()
    timer = threading.Timer(after_s, cancel.cancel)
    timer.start()
    try:
        run(cancel)
    except CancelledError:
        return time.perf_counter() - started_s - after_s
    finally:
        timer.cancel()
    return None


if __name__ == "__main__":
    try:
        main()
    except Blip3vError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
