"""Counts the parameters of every temporal encoder at full width, and compares its graph on ONNX Runtime with PyTorch.

python scripts/encoder_table.py measure benchmarks/results/encoders.json    # 80 exports: 15 minutes, 3 GiB
python scripts/encoder_table.py table benchmarks/results/encoders.json docs/encoders.md

The width is that of the released model; vision encoder and resampler are cut to one layer on small pictures, since
their parity is not tested here, so that an encoder of patches gives fewer tokens than its row says. Weights are random.
A row that is in the JSON is not measured again; delete the file to measure all in the environment that it names.
``table`` replaces what is between the page's two markers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.bench.environment import describe_environment, load_average
from blip3v.bundle.precision import PRECISIONS, GraphPrecision
from blip3v.config import ModelConfig, preset
from blip3v.export.parity import compare
from blip3v.export.to_onnx import save_graph, video_encoder_to_onnx
from blip3v.model.blocks import TokenLearner
from blip3v.model.temporal import BUILT_IN, build_temporal, has_resampler, with_encoder
from blip3v.model.weights import RandomWeights, empty_model, fill
from blip3v.publishing import write_file
from blip3v.runtime.memory import peak_rss_bytes
from scripts.page_tables import replace_table

COMMAND = "python scripts/encoder_table.py measure benchmarks/results/encoders.json"
RELEASED = preset("xgen-mm-vid")
# Of the precisions in floating point; those in integers are calibrated.
TOLERANCES = {name: entry.tolerance for name, entry in PRECISIONS.items() if entry.tolerance is not None}
_WIDTH = RELEASED.vision.hidden_size
_IMAGE_SIZE = 98  # pixels: 49 patches, instead of 729
_COUNTS = (16, 32, 128, 256)
_SIZES = ((1, 8), (2, 2))  # clips, frames; the graph is traced with (2, 3)


@dataclass(frozen=True)
class Case:
    """One encoder in one form."""

    encoder: str
    num_video_tokens: int
    form: str = ""  # in words; empty: there is only one
    options: Mapping[str, Any] = field(default_factory=dict)
    authors: str | None = None  # the authors' name for it, if their code has exactly this form
    unused: Mapping[str, int] = field(default_factory=dict)  # unused elements of their state dict

    @property
    def config(self) -> ModelConfig:
        """The released model with this encoder."""
        return with_encoder(RELEASED, self.encoder, num_video_tokens=self.num_video_tokens, **self.options)

    @property
    def cut_config(self) -> ModelConfig:
        """The model that runs."""
        cut = dataclasses.replace(
            RELEASED,
            vision=dataclasses.replace(RELEASED.vision, num_layers=1, image_size=_IMAGE_SIZE),
            resampler=dataclasses.replace(RELEASED.resampler, depth=1),
            text=dataclasses.replace(RELEASED.text, num_layers=1),
        )
        count = self.num_video_tokens if has_resampler(self.config) else None  # None: the usual one of so few patches
        return with_encoder(cut, self.encoder, num_video_tokens=count, **self.options)


def cases() -> list[Case]:
    """Every encoder at each of the paper's counts that it supports, and at its own; unlisted ones at their usual."""
    read, output = ({name: _learner(m)} for name, m in (("ttm_unit.read_layer", 128), ("ttm_unit.output_layer", 32)))
    mean, attention, stamps = {"pooling": "mean"}, {"pooling": "attention"}, {"time_stamps": True}
    steps, memory = {"memory_output": False}, {"memory_output": True}
    listed = [
        *(Case("tokenlearner", m, authors="tl" if m in (32, 128) else None) for m in _COUNTS),
        Case("tokenlearner", 32, "time stamps", stamps),
        Case("gttm", 128, "mean over slots", mean, "gttm", read),
        *(Case("gttm", m, "attentional pooling", attention) for m in _COUNTS),
        Case("ttm", 128, "16 a frame", steps, "ttm"),
        *(Case("ttm", m, "last memory", memory) for m in _COUNTS),
        Case("ttm", 128, "last memory, time stamps", memory | stamps, "ttm_m128pos", output),
        *(Case("transformer", m, authors="tts" if m == 128 else None) for m in _COUNTS),
        *(Case("perceiver", m, authors="perceiver_only" if m == 32 else None) for m in _COUNTS[:3]),
        Case("mean", 128, "mean", mean, "mean"),
        Case("mean", 128, "sum", {"pooling": "sum"}),
        Case("max", 128, authors="max"),
        *(Case("per-frame", m, f"{m // 8} a frame", authors="tl_per_frame" if m == 32 else None) for m in _COUNTS),
        *(Case("space-time-pool", m, authors="st_max" if m == 32 else None) for m in _COUNTS[:3]),
        Case("none", 1024, authors="raw"),
        Case("single-frame", 128),
        Case("mambalike", 128, "mean over slots", mean, "mambalike", {"expand_mlp2": 42}),
        *(Case("mambalike", m, "attentional pooling", attention) for m in _COUNTS),
    ]
    others = [name for name in BUILT_IN if name not in {case.encoder for case in listed}]
    return listed + [Case(name, with_encoder(RELEASED, name).num_video_tokens) for name in others]


def count(case: Case) -> dict[str, Any]:
    """Elements of the encoder at full width: ours, and those that only the authors' state dict holds."""
    with torch.device("meta"):
        module: nn.Module = build_temporal(case.config)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    buffers = sum(buffer.numel() for buffer in module.buffers())
    total = parameters + buffers + sum(case.unused.values())
    return {
        "parameters": parameters,
        "buffers": buffers,
        "unused": dict(case.unused),
        "authors_total": None if case.authors is None else total,
    }


def measure(output: Path) -> None:
    """Exports and runs every case, and writes the report."""
    before, rows = load_average(), []
    held = json.loads(output.read_text("utf-8"))["rows"] if output.is_file() else []
    known = {(row["encoder"], row["form"], row["num_video_tokens"]): row for row in held}
    for case in cases():
        if (found := known.get((case.encoder, case.form, case.num_video_tokens))) is not None:
            rows.append(found)
            continue
        started = time.perf_counter()
        rows.append({**_named(case), **count(case), "runs": list(_runs(case))})
        worst = max(run["relative_error"] for run in rows[-1]["runs"])
        print(
            f"{case.encoder} {case.form} {case.num_video_tokens}: {worst:.1e}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    report = {
        "schema_version": 1,
        "command": COMMAND,
        "preset": RELEASED.name,
        "num_frames": RELEASED.num_frames,
        "cut": {"vision_layers": 1, "resampler_depth": 1, "image_size": _IMAGE_SIZE},
        "tolerance": {name: tolerance.relative_error for name, tolerance in TOLERANCES.items()},
        "peak_rss_bytes": peak_rss_bytes(),
        "environment": describe_environment() | {"torch": torch.__version__, "load_average": [before, load_average()]},
        "rows": rows,
    }
    write_file(output, json.dumps(report, indent=1) + "\n")


def table(report: Mapping[str, Any]) -> str:
    """The rows as a Markdown table."""
    head = (
        "encoder | form | tokens of 8 frames | parameters | authors' state dict | fp32 error | fp16 error",
        "---|---|---:|---:|---:|---:|---:",
    )
    return "\n".join(f"| {line} |" for line in (*head, *map(_line, report["rows"])))


def _named(case: Case) -> dict[str, Any]:
    values = {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if f.name != "unused"}
    return values | {"options": dict(case.options)}


def _runs(case: Case) -> Iterator[dict[str, Any]]:
    """Compares the graphs with PyTorch fp32, at two sizes other than those they were traced with."""
    config = case.cut_config
    weights, generator = RandomWeights(config), np.random.default_rng(0)
    clips = [generator.uniform(-1, 1, (*size, 3, _IMAGE_SIZE, _IMAGE_SIZE)).astype(np.float32) for size in _SIZES]
    model = empty_model(config)
    for name in ("vision_encoder", "vision_tokenizer"):
        fill(model.get_submodule(name), weights, f"{name}.")
    with torch.inference_mode():
        expected = [model.encode_video(torch.from_numpy(clip)).numpy() for clip in clips]
    for precision, tolerance in TOLERANCES.items():
        got = _graph_tokens(config, weights, PRECISIONS[precision].video_encoder, clips)
        for (num_clips, num_frames), ours, theirs in zip(_SIZES, got, expected, strict=True):
            row = compare("video_tokens", f"{num_clips} x {num_frames}", ours, theirs, tolerance)
            sizes = {"precision": precision, "num_clips": num_clips, "num_frames": num_frames}
            yield sizes | {"relative_error": row.relative_error, "cosine": row.cosine, "passed": row.passed}


def _graph_tokens(
    config: ModelConfig, weights: Mapping[str, Tensor], precision: GraphPrecision, clips: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.floating]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video_encoder.onnx"
        save_graph(video_encoder_to_onnx(config, weights, precision), path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return [session.run(["video_tokens"], {"frames": clip.astype(precision.io)})[0] for clip in clips]


def _line(row: Mapping[str, Any]) -> str:
    total = "" if row["authors_total"] is None else f"{row['authors_total']:,} (`{row['authors']}`)"
    errors = [_errors(row["runs"], precision) for precision in TOLERANCES]
    cells = (f"`{row['encoder']}`", row["form"], row["num_video_tokens"], f"{row['parameters']:,}", total, *errors)
    return " | ".join(map(str, cells))


def _errors(runs: Sequence[Mapping[str, Any]], precision: str) -> str:
    return ", ".join(f"{run['relative_error']:.1e}" for run in runs if run["precision"] == precision)


def _learner(num_video_tokens: int) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in TokenLearner(_WIDTH, num_tokens=num_video_tokens).parameters())


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("measure", help="export, run and count").add_argument("output", type=Path)
    write = verbs.add_parser("table", help="replace the page's table")
    write.add_argument("report", type=Path)
    write.add_argument("page", type=Path)
    chosen = parser.parse_args()
    if chosen.verb == "measure":
        measure(chosen.output)
    else:
        report = json.loads(chosen.report.read_text("utf-8"))
        chosen.page.write_text(
            replace_table(chosen.page.read_text("utf-8"), "encoder_table.py", table(report)), "utf-8"
        )


if __name__ == "__main__":
    main()
