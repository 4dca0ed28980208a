"""Builds TensorRT-RTX engines of the 4B model's whole video encoder and of one decoder layer, in fp16 and int8.

    python scripts/full_size_tensorrt.py measure /tmp/full-size benchmarks/results/full-size-tensorrt.json
    python scripts/full_size_tensorrt.py table benchmarks/results/full-size-tensorrt.json docs/tensorrt.md

Weights are random and the calibration is short: neither changes what is built. The decoder has one layer and the head.
Each export and each build is a process of its own, so that its peak memory is known. Needs no GPU, 8 GiB of memory and
10 GB of disk. A step that is in the JSON is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

from blip3v.config import ModelConfig, preset
from blip3v.publishing import write_file
from scripts.full_size_quantized import SAMPLES, SHORT_CALIBRATION, SHORT_RECIPE
from scripts.full_size_report import Report, run_command
from scripts.page_tables import replace_table

SCRIPT = "full_size_tensorrt.py"
TARGET = "tensorrt-rtx"
GRAPHS = {"video_encoder": "whole video encoder (`gttm`, 8 frames)", "decoder": "one decoder layer and the head"}
PRECISIONS = ("fp16", "int8")


def main() -> None:
    """Measures, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("folder", type=Path, help="where the model, its calibration and the bundles go")
    measuring.add_argument("output", type=Path, help="the JSON")
    measuring.add_argument("--preset", default="xgen-mm-vid", help="shape of the model (default: xgen-mm-vid)")
    writing = commands.add_parser("table")
    writing.add_argument("result", type=Path)
    writing.add_argument("page", type=Path)
    options = parser.parse_args()
    if options.command == "measure":
        measure(options)
        return
    made = table(json.loads(options.result.read_text("utf-8")))
    write_file(options.page, replace_table(options.page.read_text("utf-8"), SCRIPT, made))
    print(options.page)


def table(values: dict[str, Any]) -> str:
    """The table of docs/tensorrt.md."""
    lines = [
        "| graph | precision | weights on disk | engine | built in | peak memory |",
        "|---|---|---:|---:|---:|---:|",
    ]
    steps = {step["name"]: step for step in values["steps"]}
    for precision in PRECISIONS:
        for name, graph in steps[f"build {precision}"]["engines"]["graphs"].items():
            weights_bytes = steps[f"weigh {precision}"]["weights"][name]
            cells = (
                GRAPHS[name],
                precision,
                f"{weights_bytes / 1e6:,.0f} MB",
                f"{graph['size_bytes'] / 1e6:,.0f} MB",
                f"{graph['build_s']:.0f} s",
                f"{graph['peak_rss_bytes'] / 2**30:.1f} GiB",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> None:
    """Runs what is not in the JSON yet, and writes it after each step."""
    command = f"python scripts/{SCRIPT} measure FOLDER OUTPUT"
    report = Report(options.folder.resolve(), options.output, {"command": command, "preset": options.preset})
    folder = report.folder
    report.step("write the model", lambda: _written(folder, options.preset))
    calibration = folder / "calibration"
    model = ["-m", str(folder / "model")]
    report.command("calibrate", ["calibrate", *model, *SHORT_CALIBRATION], calibration, ())
    for precision in PRECISIONS:
        bundle = folder / precision
        recipe = ["--calibration", str(calibration), *SHORT_RECIPE] if precision == "int8" else []
        words = ["export", *model, "--target", TARGET, "--precision", precision, *recipe, "--no-check"]
        report.command(f"export {precision}", words, bundle, ("seconds", "peak_rss_bytes", "size_bytes"))
        report.step(f"build {precision}", functools.partial(_built, report, bundle))
        report.step(f"weigh {precision}", functools.partial(_weights, bundle))
    print(options.output)


def _weights(bundle: Path) -> dict[str, Any]:
    return {"weights": {name: (bundle / "onnx" / f"{name}.data").stat().st_size for name in GRAPHS}}


def _written(folder: Path, name: str) -> dict[str, Any]:
    config = preset(name)
    _one_layer(config).save(folder / "config.json")
    return {"printed": run_command([*SAMPLES, "model", str(folder / "model"), str(folder / "config.json")])}


def _one_layer(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=1))


def _built(report: Report, bundle: Path) -> dict[str, Any]:
    words = ["blip3v", "build", str(bundle)]
    made = json.loads(run_command([sys.executable, "-m", *words, "--quiet", "--json", "--force"]))
    keys = ("seconds", "peak_rss_bytes", "engines", "layers")
    found = {key: made[key] for key in keys}
    for graph in found["engines"]["graphs"].values():
        del graph["file"]
    return {"command": report.shown(words), **found}


if __name__ == "__main__":
    main()
