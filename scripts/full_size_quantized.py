"""Measures int8 and int4 of the 4B model on this machine: export, size, opening, memory, and speed beside fp32.

    python scripts/full_size_quantized.py /tmp/full-size benchmarks/results/full-size-quantized.json

Weights are random. Whole models are calibrated, exported, opened and asked, each in its own process. Speed is measured
on graphs of the same width with fewer layers, since fp32 and int8 do not fit into memory together otherwise: for each
comparison one process for each precision stays loaded, and they are asked in turns. A ratio is the median over the
rounds of fp32's seconds by the other's in the same round.

The time of one layer of the vision encoder is the difference between graphs with many layers and with one, divided by
the number of layers between them; that of the temporal encoder, between a graph with and one without it.

Needs 24 GiB of memory, 45 GB of disk in the first folder and hours on two cores. A step that is in the JSON is not
run again; `--parts export cut` makes everything, `--parts ask speed` then measures, which alone needs an idle machine.
`--preset tiny --decoder-layers 2 --vision-layers 3` runs all of it in minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v.bundle.scan import hash_file
from blip3v.config import ModelConfig, preset
from scripts.full_size_report import ROOT, Report, run_command

SAMPLES = (sys.executable, str(ROOT / "scripts" / "full_size_samples.py"))
BACKENDS = ("onnxruntime", "openvino")
ASKED = ("auto", *BACKENDS)
ASKS = 3  # of each precision on each back end
WHOLE = ("int8", "int4")
# Of cut models: speed does not depend on the values of scales and weights.
SHORT_CALIBRATION = ("--clips", "2", "--prompts", "4")
SHORT_RECIPE = ("--no-smoothing", "--ranges", "minmax")
TEMPORAL = ("--quantize", "video_encoder:/scan/*")  # the products of gttm

FORMS: dict[str, tuple[str, ...]] = {
    "fp32": ("--precision", "fp32"),
    "int8": ("--precision", "int8"),
    "int4": ("--precision", "int4", "--rounding", "nearest"),
    "int8, temporal encoder too": ("--precision", "int8", *TEMPORAL),
}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A model of full width with fewer layers, and the forms that it is measured in."""

    name: str
    config: ModelConfig
    forms: tuple[str, ...]


def main() -> None:
    """Runs what is not in the JSON yet, and writes it after each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where models, calibrations and bundles go")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("--preset", default="xgen-mm-vid", help="shape of the model (default: xgen-mm-vid)")
    parser.add_argument("--decoder-layers", type=int, default=12, help="of the cut decoder (default: 12)")
    parser.add_argument("--vision-layers", type=int, default=9, help="of the cut vision encoder (default: 9)")
    parser.add_argument("-r", "--rounds", type=int, default=5, help="of each comparison (default: 5)")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="(default: all)")
    options = parser.parse_args()
    head = {
        "command": "python scripts/full_size_quantized.py FOLDER OUTPUT",
        "preset": options.preset,
        "decoder_layers": options.decoder_layers,
        "vision_layers": options.vision_layers,
    }
    report = Report(options.folder.resolve(), options.output, head)
    for part in options.parts:
        PARTS[part](report, options)
    print(options.output)


# --- whole models ---------------------------------------------------------------------------------------------------


def export_whole(report: Report, options: argparse.Namespace) -> None:
    """Calibrates once, then exports each precision."""
    source = ["--preset", options.preset, "--init", "random", "--encoder", "gttm"]
    calibration = report.folder / "calibration"
    made = ("seconds", "peak_rss_bytes", "size_bytes")
    report.command("calibrate", ["calibrate", *source], calibration, made)
    for precision in WHOLE:
        # The accuracy of random weights means nothing; its report would take most of the time.
        words = ["export", *source, "--precision", precision, "--calibration", str(calibration), "--no-check"]
        report.command(f"export {precision}", words, _whole_bundle(report, precision), made)


def ask_whole(report: Report, options: argparse.Namespace) -> None:
    """Opens and asks each precision on each back end, and on what ``auto`` chooses."""
    for precision, backend in itertools.product(WHOLE, ASKED):
        report.step(
            f"ask {precision} on {backend}", functools.partial(_asked, _whole_bundle(report, precision), backend)
        )


def _asked(bundle: Path, backend: str) -> dict[str, Any]:
    """What processes of their own measured, and the medians. The files are read first, so that no disk is measured."""
    runs: list[dict[str, Any]] = []
    for _ in range(ASKS):
        for file in (file for file in bundle.rglob("*") if file.is_file()):
            hash_file(file)
        runs.append(json.loads(run_command([*SAMPLES, "ask", str(bundle), backend])))
    return {"runs": runs, "median": _medians(runs)}


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number in equal nested objects, and the texts of the first."""
    found: dict[str, Any] = {}
    for key, value in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(value, dict):
            found[key] = _medians(values)
        else:
            found[key] = value if isinstance(value, str) else statistics.median(values)
    return found


def _whole_bundle(report: Report, precision: str) -> Path:
    return report.folder / f"random-{precision}"


# --- cut models -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Cut models that are measured in turns, with one of their graphs."""

    name: str
    graph: str
    cuts: tuple[str, ...]


COMPARISONS = (
    Comparison(name="decoder", graph="decoder", cuts=("decoder",)),
    Comparison(name="vision layers", graph="video_encoder", cuts=("vision", "one vision layer")),
    Comparison(
        name="other parts", graph="video_encoder", cuts=("one vision layer", "one vision layer, no temporal encoder")
    ),
    Comparison(name="whole video encoder", graph="video_encoder", cuts=("whole video encoder",)),
)


def _cuts(options: argparse.Namespace) -> dict[str, Cut]:
    full = preset(options.preset)
    gttm = preset("xgen-mm-vid").temporal if options.preset == "xgen-mm-vid" else _with_encoder(full, "gttm").temporal
    small_text = dataclasses.replace(full.text, num_layers=1)
    base = dataclasses.replace(full, temporal=gttm, text=small_text)

    def vision(num_layers: int) -> ModelConfig:
        return dataclasses.replace(base, vision=dataclasses.replace(base.vision, num_layers=num_layers))

    encoders, temporal = ("fp32", "int8"), "int8, temporal encoder too"
    one = vision(1)
    decoder = dataclasses.replace(
        _with_encoder(one, "none"), text=dataclasses.replace(full.text, num_layers=options.decoder_layers)
    )
    cuts = (
        Cut(name="decoder", config=decoder, forms=("fp32", "int8", "int4")),
        Cut(name="vision", config=vision(options.vision_layers), forms=encoders),
        Cut(name="one vision layer", config=one, forms=(*encoders, temporal)),
        Cut(name="one vision layer, no temporal encoder", config=_with_encoder(one, "none"), forms=encoders),
        Cut(name="whole video encoder", config=base, forms=(*encoders, temporal)),
    )
    return {cut.name: cut for cut in cuts}


def _with_encoder(config: ModelConfig, encoder: str) -> ModelConfig:
    from blip3v.model.temporal import with_encoder  # imports PyTorch, which no measuring process needs

    return with_encoder(config, encoder)


def make_cuts(report: Report, options: argparse.Namespace) -> None:
    """Makes the cut models and their bundles."""
    for cut in _cuts(options).values():
        _make(report, options, cut)


def compare(report: Report, options: argparse.Namespace) -> None:
    """Measures the cut models of each comparison in turns on each back end."""
    cuts = _cuts(options)
    for comparison, backend in itertools.product(COMPARISONS, options.backends):
        bundles = {
            (name, form): _cut_bundle(report, name, form) for name in comparison.cuts for form in cuts[name].forms
        }
        measured = functools.partial(_measured, bundles, backend, comparison.graph, options.rounds)
        report.step(f"{comparison.name} on {backend}", measured)


def _make(report: Report, options: argparse.Namespace, cut: Cut) -> None:
    folder = _cut_folder(report, cut.name)
    report.step(f"write {cut.name}", lambda: _written(folder, cut.config))
    model = ["-m", str(folder / "model")]
    calibration = folder / "calibration"
    report.command(f"calibrate {cut.name}", ["calibrate", *model, *SHORT_CALIBRATION], calibration, ())
    keys = ("seconds", "peak_rss_bytes", "size_bytes")
    for form in cut.forms:
        recipe = [] if form == "fp32" else ["--calibration", str(calibration), *SHORT_RECIPE]
        words = ["export", *model, *FORMS[form], *recipe, "--no-check"]
        report.command(f"export {cut.name} in {form}", words, _cut_bundle(report, cut.name, form), keys)


def _written(folder: Path, config: ModelConfig) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    config.save(folder / "config.json")
    return {"printed": run_command([*SAMPLES, "model", str(folder / "model"), str(folder / "config.json")])}


def _cut_folder(report: Report, cut: str) -> Path:
    return report.folder / cut.replace(",", "").replace(" ", "-")


def _cut_bundle(report: Report, cut: str, form: str) -> Path:
    return _cut_folder(report, cut) / form.replace(",", "").replace(" ", "-")


def _measured(bundles: dict[tuple[str, str], Path], backend: str, graph: str, rounds: int) -> dict[str, Any]:
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        workers = {key: stack.enter_context(_Worker(path, backend, graph)) for key, path in bundles.items()}
        computed = {" in ".join(key): worker.computed for key, worker in workers.items()}
        for worker in workers.values():
            worker.sample()  # warms up
        for number in range(rounds):
            for (cut, form), worker in workers.items():
                runs.append({"round": number, "cut": cut, "form": form, **worker.sample()})
    return {"backend": backend, "computed": computed, "runs": runs, "summary": summary(runs)}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each figure, and ratios of fp32 to the other forms within each round.

    ``between`` compares what the graphs of a comparison differ by, for example the layers that one of them has more.
    """
    cuts, forms = (list(dict.fromkeys(run[key] for run in runs)) for key in ("cut", "form"))
    figures = [name for name in runs[0] if name.endswith("_s")]
    found: dict[str, Any] = {"graphs": [], "between": []}
    for figure in figures:
        of = {(run["round"], run["cut"], run["form"]): run[figure] for run in runs}
        rounds = sorted({run["round"] for run in runs})
        for cut in cuts:
            for form in forms:
                if (rounds[0], cut, form) in of:
                    seconds = [of[n, cut, form] for n in rounds]
                    base = [of[n, cut, "fp32"] for n in rounds]
                    found["graphs"].append({"figure": figure, "cut": cut, "form": form, **ratio(seconds, base)})
        for first, second in itertools.pairwise(cuts):
            for form in forms:
                if (rounds[0], first, form) in of and (rounds[0], second, form) in of:
                    seconds = [of[n, first, form] - of[n, second, form] for n in rounds]
                    base = [of[n, first, "fp32"] - of[n, second, "fp32"] for n in rounds]
                    what = {"figure": figure, "of": first, "less": second, "form": form}
                    found["between"].append(what | ratio(seconds, base))
    return found


def ratio(seconds: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """The median of ``seconds``, one for each round, and how many times ``base`` takes as long in the same round."""
    ratios = [slow / fast for slow, fast in zip(base, seconds, strict=True)]
    return {
        "median_s": statistics.median(seconds),
        "fp32_to_this": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


class _Worker:
    """A process that holds one graph and measures it on request; a context manager."""

    def __init__(self, bundle: Path, backend: str, graph: str) -> None:
        command = [*SAMPLES, "graph", str(bundle), backend, graph]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.computed = self._read()["computed"]

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def sample(self) -> dict[str, float]:
        """Seconds by figure."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a measuring process ended with code {self._process.wait()}")
        return dict(json.loads(line))


PARTS = {"export": export_whole, "ask": ask_whole, "cut": make_cuts, "speed": compare}


if __name__ == "__main__":
    main()
