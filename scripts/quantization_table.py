"""Measures what each precision costs in accuracy, on small models as shipped and hardened, and beside other recipes.

    python scripts/quantization_table.py WORK benchmarks/results/quantization.json --modelopt modelopt/bin/python
    python scripts/plot_quantization.py benchmarks/results/quantization.json docs/quantization.md docs/quantization.png

Every form of every model is exported and compared with its model in fp32 by `blip3v eval --reference`, on every
installed engine; about a minute a form. Hardened models (`hardened.py`) compute the same function with the outliers of
a large model. `--modelopt` is the Python of the environment that `modelopt_recipe.py` describes; without it those forms
are left out. What is in the JSON for the same weights, questions and options is not measured again, so that the command
can be interrupted; a form that fails has its message there and is tried again. Everything else stays in WORK.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from blip3v.bench.environment import describe_environment, load_average
from blip3v.bundle import BundleWriter
from blip3v.bundle.layout import GRAPHS, PARITY, graph_file, graph_files
from blip3v.bundle.reader import open_bundle
from blip3v.export.passes import weight_counts
from blip3v.model.folder import load_model_folder
from blip3v.publishing import write_file
from scripts.hardened import Hardening, calibration_frames, film_prompts, write_hardened

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("tiny-tokenlearner", "tiny-gttm")
HARDENED = "-hardened"
FOLDER = "WORK"  # stands for the working folder in the commands of the JSON
_MODELOPT_FILMS = Hardening(films=32)


@dataclass(frozen=True, kw_only=True)
class Form:
    """One row of the table."""

    name: str
    note: str  # what it is, for the page
    export: tuple[str, ...] = ()  # options of `blip3v export`
    needs: str | None = None  # what the export reads: calibration or sensitivity
    modelopt: tuple[str, ...] = ()  # options of `modelopt_recipe.py` for both graphs; exclusive with ``export``
    fp32_video_encoder: bool = False  # only the decoder is quantised by modelopt
    naive: bool = False  # stands there to be beaten


def _precision(name: str, *words: str) -> tuple[str, ...]:
    return ("--precision", name, *words)


FORMS = (
    Form(name="fp32", note="as in PyTorch", export=_precision("fp32")),
    Form(name="fp16", note="half precision", export=_precision("fp16")),
    Form(name="int8", note="W8A8: smoothing, static ranges", export=_precision("int8"), needs="calibration"),
    Form(
        name="int8, rotated", note="int8 with a rotation of the residual stream",
        export=_precision("int8", "--rotation"), needs="calibration",
    ),
    Form(name="int8-weight", note="8-bit weights", export=_precision("int8-weight"), needs="calibration"),
    Form(name="int4", note="4-bit weights of the decoder, groups of 128", export=_precision("int4"),
         needs="calibration"),
    Form(
        name="int4, groups of 32", note="4-bit weights of the decoder, groups of 32",
        export=_precision("int4", "--group-size", "32"), needs="calibration",
    ),
    Form(
        name="int4, rotated", note="int4 with a rotation of the residual stream",
        export=_precision("int4", "--rotation"), needs="calibration",
    ),
    Form(
        name="int8, int8 cache", note="int8 with keys and values in 8 bits", needs="calibration",
        export=_precision("int8", "--kv-cache", "int8"),
    ),
    Form(
        name="int8, temporal encoder too", note="int8, with the matrices of the temporal encoder", needs="calibration",
        # Its nodes begin with /scan if it is recurrent, else with /temporal.
        export=_precision("int8", "--quantize", "video_encoder:/[st][ce]*"),
    ),
    Form(name="mixed", note="chosen by the sensitivity scan", export=_precision("mixed"), needs="sensitivity"),
    Form(
        name="int8, min-max without smoothing", note="largest values as ranges, weights as they are",
        export=_precision("int8", "--no-smoothing", "--ranges", "minmax"), needs="calibration", naive=True,
    ),
    Form(
        name="int4, no smoothing, round to nearest", note="neither smoothing nor error compensation",
        export=_precision("int4", "--no-smoothing", "--rounding", "nearest"), needs="calibration", naive=True,
    ),
    Form(
        name="int4 with smoothing, round to nearest", note="the recipe without error compensation",
        export=_precision("int4", "--rounding", "nearest"), needs="calibration", naive=True,
    ),
    Form(
        name="modelopt int8", note="its defaults (entropy): norms and residual sums quantised too",
        modelopt=("--mode", "int8", "--method", "entropy"), naive=True,
    ),
    Form(
        name="modelopt int8, max", note="the same with the largest values as ranges",
        modelopt=("--mode", "int8", "--method", "max"), naive=True,
    ),
    Form(
        name="modelopt int8, products only", note="max, only MatMul and Gemm",
        modelopt=("--mode", "int8", "--method", "max", "--only", "MatMul", "Gemm"), naive=True,
    ),
    Form(
        name="modelopt int4, AWQ", note="awq_lite on the decoder, groups of 128",
        modelopt=("--mode", "int4", "--method", "awq_lite"), fp32_video_encoder=True, naive=True,
    ),
    Form(
        name="modelopt int4, round to nearest", note="rtn_dq on the decoder, groups of 128",
        modelopt=("--mode", "int4", "--method", "rtn_dq"), fp32_video_encoder=True, naive=True,
    ),
)  # fmt: skip
# Of every quantised export: the table measures by itself, and a form that loses too much is what it must show.
_UNCHECKED = ("--no-check",)


def main() -> None:
    """Measures every form that is not in the JSON yet, and writes it after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for models, calibrations and bundles")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("--questions", type=int, default=2000, help="held-out questions (default: 2000, all)")
    parser.add_argument("--models", nargs="+", default=list(SHIPPED), help="shipped models, by name")
    parser.add_argument("--only", choices=("plain", "hardened"), help="only one of each model's two states")
    parser.add_argument("--forms", nargs="+", choices=[form.name for form in FORMS], help="(default: all)")
    parser.add_argument("--modelopt", type=Path, help="Python of an environment with modelopt")
    options = parser.parse_args()
    names = [name + state for name in options.models for state in _states(options.only)]
    table = Table(options.work.resolve(), options.output, options.questions, options.modelopt)
    for name in names:
        for form in FORMS:
            if options.forms is None or form.name in options.forms:
                table.measure(name, form)
    print(options.output)


def _states(only: str | None) -> tuple[str, ...]:
    return {None: ("", HARDENED), "plain": ("",), "hardened": (HARDENED,)}[only]


class StepError(Exception):
    """A command of a form ended with an error; the text is its last line."""


class Table:
    """The JSON, and the working folder in which its cells are made.

    Args:
        work: the folder.
        output: the JSON.
        num_questions: of the evaluation.
        modelopt: Python of modelopt's environment; None: its forms are left out.
    """

    def __init__(self, work: Path, output: Path, num_questions: int, modelopt: Path | None) -> None:
        self._work, self._output, self._num_questions, self._modelopt = work, output, num_questions, modelopt
        work.mkdir(parents=True, exist_ok=True)
        self._report: dict[str, Any] = {"cells": []}
        if output.is_file():
            self._report = json.loads(output.read_text("utf-8"))
        self._report |= {
            "schema_version": 1,
            "command": "python scripts/quantization_table.py WORK OUTPUT --modelopt PYTHON",
            "environment": describe_environment(),
            "forms": {form.name: {"note": form.note, "naive": form.naive} for form in FORMS},
        }

    def measure(self, model: str, form: Form) -> None:
        """Makes one cell, unless it is there or cannot be made on this machine."""
        if form.modelopt and self._modelopt is None:
            return
        folder = self._model(model)
        key = {
            "model": model,
            "form": form.name,
            "questions": self._num_questions,
            "weights_sha256": _sha256(folder / "model.safetensors"),
            "options": list(form.export or form.modelopt),
        }
        if any(key.items() <= cell.items() and "failed" not in cell for cell in self._report["cells"]):
            return
        print(f"{model}: {form.name}", file=sys.stderr)
        before, started_s = load_average(), time.perf_counter()
        try:
            found = self._cell(model, form)
        except StepError as error:
            print(f"  {error}", file=sys.stderr)
            found = {"failed": str(error)}
        cell = key | found | {"seconds": round(time.perf_counter() - started_s, 1)}
        cell["load_average"] = {"before": before, "after": load_average()}
        same = (model, form.name)
        self._report["cells"] = [x for x in self._report["cells"] if (x["model"], x["form"]) != same] + [cell]
        self._output.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._output, json.dumps(self._report, indent=1, ensure_ascii=False) + "\n")

    def _cell(self, model: str, form: Form) -> dict[str, Any]:
        bundle = self._work / "bundles" / f"{model}-{_file_name(form.name)}"
        made: dict[str, Any]
        if form.modelopt:
            made = self._modelopt_bundle(model, form, bundle)
        else:
            made = {"commands": [self._export(model, form, bundle)]}
        accuracy = self._work / "accuracy" / f"{bundle.name}.json"
        accuracy.parent.mkdir(exist_ok=True)
        words = ["eval", "-m", str(bundle), "--reference", str(self._model(model))]
        command = self._blip3v(*words, "--questions", str(self._num_questions), "-o", str(accuracy), "--force")
        report = json.loads(accuracy.read_text("utf-8"))
        made["commands"].append(command)
        # With the paths of this machine; the command above says the same.
        engines = [{name: value for name, value in engine.items() if name != "command"} for engine in report["engines"]]
        parts = {name: report[name] for name in ("precision", "reference", "sizes", "layers", "unavailable")}
        parts["unavailable"] = {name: self._shown_text(why) for name, why in parts["unavailable"].items()}
        return {**made, "manifest_sha256": _sha256(bundle / "manifest.json"), **parts, "engines": engines}

    def _export(self, model: str, form: Form, bundle: Path) -> str:
        words = ["-m", str(self._model(model)), *form.export, *_UNCHECKED]
        if form.needs is not None:
            words += ["--calibration", str(self._calibration(model, form.needs))]
        return self._blip3v("export", *words, "-o", str(bundle), "--force")

    def _model(self, name: str) -> Path:
        """The shipped folder, or the hardened form of it, which is made when it is first asked for."""
        shipped = ROOT / "blip3v" / "models" / name.removesuffix(HARDENED)
        if not name.endswith(HARDENED):
            return shipped
        folder = self._work / "models" / name
        stamp = self._work / "models" / f"{name}.sha256"
        digest = _sha256(shipped / "model.safetensors")
        if not stamp.is_file() or stamp.read_text("utf-8") != digest:
            folder.parent.mkdir(exist_ok=True)
            write_hardened(shipped, folder, replace=True)
            stamp.write_text(digest, "utf-8")
        return folder

    def _calibration(self, model: str, needs: str) -> Path:
        folder = self._model(model)
        path = self._work / "calibrations" / f"{model}-{_sha256(folder / 'model.safetensors')[:8]}-{needs}"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            words = ["--sensitivity"] if needs == "sensitivity" else []
            self._blip3v("calibrate", "-m", str(folder), *words, "-o", str(path))
        return path

    def _modelopt_bundle(self, model: str, form: Form, bundle: Path) -> dict[str, Any]:
        fp32 = self._work / "bundles" / f"{model}-fp32"
        commands = [self._export(model, FORMS[0], fp32)]
        inputs = self._modelopt_inputs(model)
        graphs, reports = {}, {}
        for name in GRAPHS:
            if name == GRAPHS[0] and form.fp32_video_encoder:
                continue
            graphs[name] = self._work / "modelopt" / f"{bundle.name}-{name}.onnx"
            command = [str(self._modelopt), "scripts/modelopt_recipe.py", str(fp32 / graph_file(name))]
            words = [str(inputs[name]), str(graphs[name]), *form.modelopt]
            printed = self._run([*command, *words])
            reports[name] = json.loads(printed.strip().splitlines()[-1])
            commands.append(self._shown(["python", *command[1:], *words]))
        with_graphs(fp32, graphs, bundle)
        return {"commands": commands, "modelopt": reports}

    def _modelopt_inputs(self, model: str) -> dict[str, Path]:
        """Calibration inputs of each graph: films of the training split, and every question about them."""
        folder = self._work / "modelopt"
        folder.mkdir(exist_ok=True)
        paths = {name: folder / f"{model}-{name}.npz" for name in GRAPHS}
        opened = load_model_folder(self._model(model))
        prompts = film_prompts(opened, _MODELOPT_FILMS).embeds_TD
        arrays: dict[str, dict[str, NDArray[np.float32]]] = {
            GRAPHS[0]: {f"frames_{i}": x.numpy() for i, x in enumerate(calibration_frames(opened, _MODELOPT_FILMS))},
            GRAPHS[1]: {f"inputs_embeds_{i}": x[None].numpy() for i, x in enumerate(prompts)},
        }
        for name, path in paths.items():
            np.savez(path, **arrays[name])  # type: ignore[arg-type]
        return paths

    def _blip3v(self, *words: str) -> str:
        """Runs a command of ours and returns it as it is shown."""
        self._run([sys.executable, "-m", "blip3v", *words, "--quiet", "--json"])
        return self._shown(["blip3v", *words])

    def _run(self, command: list[str]) -> str:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ran.returncode:
            lines = ran.stderr.strip().splitlines() or [f"ended with code {ran.returncode}"]
            name = f"blip3v {command[3]}" if command[2] == "blip3v" else Path(command[1]).name
            raise StepError(f"{name}: {self._shown_text(lines[-1])}")
        return ran.stdout

    def _shown(self, command: list[str]) -> str:
        return self._shown_text(shlex.join(command))

    def _shown_text(self, text: str) -> str:
        return text.replace(str(self._work), FOLDER).replace(f"{ROOT}/", "")


def with_graphs(bundle: Path, graphs: dict[str, Path], target: Path) -> None:
    """Writes a copy of a bundle with other graphs, which have the same inputs and outputs, each in a single file.

    Its manifest still names the first bundle's precision, since the graphs' own has no name.
    """
    opened = open_bundle(bundle)
    replaced = {file for name in graphs for file in graph_files(name, opened.manifest.files)}
    with BundleWriter(target, force=True) as writer:
        for file in opened.manifest.files:
            if file not in replaced and file != PARITY:
                shutil.copyfile(bundle / file, writer.path / file)
        weights = dict(opened.manifest.weights)
        for name, path in graphs.items():
            shutil.copyfile(path, writer.path / graph_file(name))
            weights[name] = weight_counts(ir.load(path))
        writer.publish(dataclasses.replace(opened.manifest, weights=weights, parity=None))


def _file_name(form: str) -> str:
    return form.replace(",", "").replace(" ", "-")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
