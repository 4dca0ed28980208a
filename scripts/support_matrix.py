"""Measures what each encoder, precision and target was proven to do, and writes docs/support-matrix.md's table.

python scripts/support_matrix.py measure FOLDER benchmarks/results/support-matrix.json    # 54 exports: 40 minutes
python scripts/support_matrix.py table benchmarks/results/support-matrix.json docs/support-matrix.md

Each row is one `blip3v export`, whose own check compares the graphs with PyTorch in ONNX Runtime; for the targets of
TensorRT one `blip3v build` with TensorRT-RTX, which needs no GPU; and one `blip3v ask` on each engine that is
installed. A row that is in the JSON is not measured again, unless it failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v.bench.environment import describe_environment
from blip3v.bundle.targets import Target
from blip3v.model.temporal import encoder_names
from blip3v.publishing import write_file
from scripts.page_tables import replace_table

SCRIPT = "support_matrix.py"
ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "examples" / "turn.mp4"
NUM_QUESTIONS = 200  # of the accuracy check of a quantised row
QUESTION = "Which way does the red circle turn?"

SHIPPED = ("tokenlearner", "gttm", "none")
UNTRAINED = tuple(name for name in encoder_names() if name not in SHIPPED)
PRECISIONS: dict[Target, tuple[str, ...]] = {
    "onnxruntime": ("fp32", "fp16", "int8", "int4"),
    "tensorrt-rtx": ("fp16", "int8", "int4"),
    "tensorrt-legacy": ("fp16", "int8"),
}
ENGINES: dict[Target, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "openvino"),
    "tensorrt-rtx": ("onnxruntime",),
    "tensorrt-legacy": ("onnxruntime",),
}
# The graphs of tensorrt are those of tensorrt-rtx.
TARGET_NAMES = {"tensorrt-rtx": "tensorrt, tensorrt-rtx"}


@dataclass(frozen=True)
class Case:
    """One row."""

    encoder: str
    precision: str
    target: Target
    trained: bool

    @property
    def key(self) -> dict[str, str]:
        """What identifies it in the JSON."""
        return {"encoder": self.encoder, "precision": self.precision, "target": self.target}


def cases() -> Iterator[Case]:
    """Every precision of the shipped models, and fp16 of the encoders without trained weights."""
    for target, precisions in PRECISIONS.items():
        for encoder, precision in itertools.product(SHIPPED, precisions):
            yield Case(encoder, precision, target, trained=True)
        for encoder in UNTRAINED:
            yield Case(encoder, "fp16", target, trained=False)


def measure(folder: Path, output: Path) -> None:
    """Runs the rows that the JSON lacks, and writes it after each."""
    values = json.loads(output.read_text("utf-8")) if output.is_file() else {"rows": []}
    values |= {"command": f"python scripts/{SCRIPT} measure FOLDER OUTPUT", "environment": describe_environment()}
    done = {
        tuple(row[name] for name in ("encoder", "precision", "target")) for row in values["rows"] if not row["error"]
    }
    for case in sorted(cases(), key=lambda case: case.precision not in ("fp16", "fp32")):  # the quick ones first
        if tuple(case.key.values()) in done:
            continue
        print(*case.key.values(), file=sys.stderr)
        row = {**case.key, "trained": case.trained, **_measured(case, folder)}
        values["rows"] = [old for old in values["rows"] if any(old[name] != text for name, text in case.key.items())]
        values["rows"].append(row)
        write_file(output, json.dumps(values, indent=1) + "\n")


def _measured(case: Case, folder: Path) -> dict[str, Any]:
    bundle = folder / "bundle"
    weights = [] if case.trained else ["--init", "random"]
    calibration = _calibration(case, folder) if case.precision in ("int8", "int4") else []
    made = {"--encoder": case.encoder, "--precision": case.precision, "--target": case.target}
    words = ["export", *weights, *itertools.chain(*made.items()), *calibration]
    if calibration:
        words += ["--questions", str(NUM_QUESTIONS)]
    row: dict[str, Any] = {"command": " ".join(["blip3v", *words]).replace(str(folder), "FOLDER"), "error": None}
    try:
        row |= _checked(_json([*words, "-o", str(bundle), "--force"]))
        if case.target != "onnxruntime":
            row["built"] = _built(_json(["build", str(bundle), "--library", "tensorrt_rtx"]))
        row["answers"] = {engine: _answer(bundle, engine, case.trained) for engine in ENGINES[case.target]}
    except subprocess.CalledProcessError as error:
        row["error"] = error.stderr.strip().splitlines()[-1].replace(str(folder), "FOLDER")
    return row


def _calibration(case: Case, folder: Path) -> list[str]:
    """One calibration for each model, made when it is first needed."""
    path = folder / f"calibration-{case.encoder}"
    if not path.is_dir():
        _json(["calibrate", "--encoder", case.encoder, "-o", str(path)])
    return ["--calibration", str(path)]


def _checked(exported: dict[str, Any]) -> dict[str, Any]:
    """What the export's own check found."""
    if exported.get("parity") is not None:
        comparisons, tokens = exported["parity"]["comparisons"], exported["parity"]["tokens"]
        worst = max(row["relative_error"] for row in comparisons)
        return {"parity": {"relative_error": worst, "tokens": tokens["compared"], "differing": tokens["differing"]}}
    engines = exported["accuracy"]["engines"]
    return {
        "accuracy": {
            engine["backend"]: {
                "points_lost": engine["films"]["drop"]["points"],
                "same_tokens": engine["answers"]["tokens_agreeing"] / engine["answers"]["num_tokens"],
            }
            for engine in engines
        }
    }


def _built(made: dict[str, Any]) -> dict[str, Any]:
    record = made["engines"]
    graphs = {
        name: {"build_s": graph["build_s"], "size_bytes": graph["size_bytes"]}
        for name, graph in record["graphs"].items()
    }
    return {"library": f"{record['library']} {record['library_version']}", "graphs": graphs, "layers": made["layers"]}


def _answer(bundle: Path, engine: str, trained: bool) -> str:
    words = ["ask", str(CLIP), QUESTION, "-m", str(bundle), "--backend", engine]
    text: str = _json([*words, *([] if trained else ["--allow-random"])])["text"]
    return text


def _json(words: Sequence[str]) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "blip3v", *words, "--quiet", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    values: dict[str, Any] = json.loads(ran.stdout)
    return values


# --- the page -------------------------------------------------------------------------------------------------------


def table(values: dict[str, Any]) -> str:
    """The table of docs/support-matrix.md."""
    lines = [
        "| target | encoder | precision | against PyTorch | TensorRT-RTX built | answered on |",
        "|---|---|---|---|---|---|",
    ]
    order = [tuple(case.key.values()) for case in cases()]
    for row in sorted(values["rows"], key=lambda row: order.index((row["encoder"], row["precision"], row["target"]))):
        target = TARGET_NAMES.get(row["target"], row["target"])
        encoder = row["encoder"] if row["trained"] else f"{row['encoder']} (random weights)"
        cells = (target, encoder, row["precision"], _against(row), _engines(row), ", ".join(row.get("answers", {})))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"failed: {row['error']}"
    if "parity" in row:
        parity = row["parity"]
        return f"{parity['relative_error']:.0e}, {parity['tokens'] - parity['differing']} of {parity['tokens']} tokens"
    parts = [
        f"{engine} {found['points_lost']:+.2f} points lost, {100 * found['same_tokens']:.2f} % tokens"
        for engine, found in row["accuracy"].items()
    ]
    return "; ".join(parts)


def _engines(row: dict[str, Any]) -> str:
    if "built" not in row:
        return ""
    sizes = [graph["size_bytes"] for graph in row["built"]["graphs"].values()]
    return f"{row['built']['library'].split()[-1]}: {' and '.join(f'{size / 1e6:.1f}' for size in sizes)} MB"


def main() -> None:
    """Measures, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("folder", type=Path, help="where bundles and calibrations go")
    measuring.add_argument("output", type=Path, help="the JSON")
    writing = commands.add_parser("table")
    writing.add_argument("result", type=Path)
    writing.add_argument("page", type=Path)
    options = parser.parse_args()
    if options.command == "measure":
        options.folder.mkdir(parents=True, exist_ok=True)
        measure(options.folder.resolve(), options.output)
        return
    made = table(json.loads(options.result.read_text("utf-8")))
    write_file(options.page, replace_table(options.page.read_text("utf-8"), SCRIPT, made))
    print(options.page)


if __name__ == "__main__":
    main()
