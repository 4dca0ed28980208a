"""Measures how long a bundle takes to open on ONNX Runtime, with packed weights and without, in turns.

    blip3v build BUNDLE --library onnxruntime
    python scripts/open_speed.py BUNDLE OUT.json

Every opening is a process of its own; the first turn, which warms the page cache, is discarded. Peak memory includes
mapped pages of files, which the system can drop.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from blip3v.bench.environment import describe_environment, load_average
from blip3v.bundle import layout, open_bundle
from blip3v.bundle.scan import hash_file
from blip3v.errors import Blip3vError, UsageError
from blip3v.publishing import write_file
from blip3v.python_arguments import code_arguments
from blip3v.runtime.opening import graph_files
from blip3v.runtime.packed_graphs import find_packed
from blip3v.strict_json import dumps
from blip3v.units import format_bytes, format_duration, format_ratio

__all__ = ["main", "open_once"]

_TURNS = 5
_SIDES = ("without", "with")
_CODE = "from scripts.open_speed import open_once; open_once()"


def main(bundle: Path, output: Path) -> None:
    """Measures ``bundle`` and writes the JSON.

    Raises:
        UsageError: it has no packed weights for this machine.
    """
    opened = open_bundle(bundle)
    packed = [name for name, graph in graph_files(opened).items() if find_packed(graph) is not None]
    if not packed:
        raise UsageError(f"{bundle} has no packed weights; run `blip3v build {bundle} --library onnxruntime`")
    before = load_average()
    turns = [{side: _child(bundle, side) for side in _SIDES} for _ in range(_TURNS + 1)][1:]
    ratios = [turn["with"]["open_s"] / turn["without"]["open_s"] for turn in turns]
    result = {
        "command": f"python scripts/open_speed.py {bundle.name} {output.name}",
        "manifest_sha256": hash_file(bundle / layout.MANIFEST),
        "packed": packed,
        "turns": turns,
        "medians": {side: _medians([turn[side] for turn in turns]) for side in _SIDES},
        "ratio": statistics.median(ratios),
        "environment": describe_environment() | {"load_average": {"before": before, "after": load_average()}},
    }
    write_file(output, dumps(result))
    for side, found in result["medians"].items():
        memory = f"peak memory {format_bytes(round(found['peak_rss_bytes']))}"
        anonymous = f"{format_bytes(round(found['anonymous_bytes']))} of it not in files"
        sys.stdout.write(
            f"{side} packed weights: {format_duration(found['open_s'])}, {memory}, {anonymous} at the end\n"
        )
    sys.stdout.write(f"{format_ratio(result['ratio'])} the time\n")


def open_once() -> None:
    """The child process: opens the bundle named first and prints what that took as one line of JSON."""
    from blip3v.runtime import VideoLM
    from blip3v.runtime.backends import onnxruntime
    from blip3v.runtime.memory import peak_rss_bytes

    bundle, side = sys.argv[1:]
    if side == "without":
        vars(onnxruntime)["find_packed"] = lambda graph: None
    start_s, start = time.perf_counter(), os.times()
    with VideoLM.open(bundle, backend="onnxruntime", allow_random=True):
        open_s, end = time.perf_counter() - start_s, os.times()
        found = {
            "open_s": open_s,
            "user_s": end.user - start.user,
            "system_s": end.system - start.system,
            "peak_rss_bytes": peak_rss_bytes(),
            "anonymous_bytes": _anonymous_bytes(),
        }
    sys.stdout.write(json.dumps(found) + "\n")


def _child(bundle: Path, side: str) -> dict[str, Any]:
    command = [sys.executable, *code_arguments(_CODE, str(bundle), side)]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([root, *(path for path in sys.path if path)])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    if done.returncode:
        raise UsageError(f"{bundle} cannot be opened: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _medians(samples: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def _anonymous_bytes() -> int:
    """Resident memory that is not in files; Linux only."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python scripts/open_speed.py BUNDLE OUT.json")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except Blip3vError as error:
        raise SystemExit(str(error)) from error
