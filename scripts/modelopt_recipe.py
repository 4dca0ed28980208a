"""Quantises one exported fp32 graph with the recipe of NVIDIA's modelopt, to compare ours with it.

    python -m venv modelopt
    modelopt/bin/pip install nvidia-modelopt==0.47.0 torch==2.13.0 "onnx~=1.21.0" "onnxruntime~=1.24.2" \\
        onnx-graphsurgeon "onnxconverter-common~=1.16.0" onnxscript onnxslim polygraphy lief ml_dtypes
    modelopt/bin/python scripts/modelopt_recipe.py bundle/onnx/decoder.onnx inputs.npz decoder.onnx --mode int8

It runs in that environment of its own, never in the project's: modelopt pins onnx and an older ONNX Runtime, and its
extra `onnx` wants the GPU packages, which calibration on a CPU does without (hence the list above). Nothing of blip3v
is imported here; `quantization_table.py` writes the inputs and puts the graphs into a bundle.

What it takes with our graphs (modelopt 0.47.0):

- a copy of the graph with a name, since ours has none and modelopt runs onnx.checker, which insists on one;
- `calibration_eps=["cpu"]`, and real inputs: dynamic axes would otherwise become 1, so that every product looks like a
  GEMV, which modelopt passes over. The reader is a subclass of ONNX Runtime's, since AWQ iterates over it;
- `high_precision_dtype="fp32"`: ONNX Runtime has no half-precision kernels on x86, and the report is about integers;
- prompts of one length for AWQ, which joins the inputs of all calls: of the commonest length, the others are left out;
- int4 in numpy without cupy, which takes seconds on these graphs.

By default int8 quantises sums of the residual stream, products and norms' inputs too, not only matrix products; `--only
MatMul Gemm` limits it to those. Shape inference stops at GroupQueryAttention, so that it leaves some of the
decoder's sums alone; all its matrix products are quantised. The last line of the output is JSON with the counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader

METHODS = {"int8": ("entropy", "max"), "int4": ("awq_clip", "awq_lite", "rtn_dq")}  # modelopt's default first


def main() -> None:
    """Writes the quantised graph as a single file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path, help="the fp32 graph of a bundle")
    parser.add_argument("inputs", type=Path, help="npz with frames_0, frames_1, ... or inputs_embeds_0, ...")
    parser.add_argument("output", type=Path, help="the new graph")
    parser.add_argument("--mode", choices=METHODS, default="int8")
    parser.add_argument("--method", help="of calibration (default: modelopt's)")
    parser.add_argument("--only", nargs="+", metavar="OPERATOR", help="operators to quantise (default: modelopt's)")
    parser.add_argument("--block", type=int, default=128, help="of int4 (default: 128)")
    options = parser.parse_args()
    method = options.method or METHODS[options.mode][0]
    if method not in METHODS[options.mode]:
        parser.error(f"--method is {method}; {options.mode} has {', '.join(METHODS[options.mode])}")
    started_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        named = _with_a_name(options.graph, Path(folder) / "graph.onnx")
        quantize(
            str(named),
            quantize_mode=options.mode,
            calibration_method=method,
            calibration_data_reader=_Reader(named, options.inputs, one_length=method.startswith("awq")),
            calibration_eps=["cpu"],
            op_types_to_quantize=options.only,
            block_size=options.block if options.mode == "int4" else None,
            high_precision_dtype="fp32",
            output_path=str(options.output),
            log_level="WARNING",
        )
    report = {
        "modelopt": importlib.metadata.version("nvidia-modelopt"),
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "mode": options.mode,
        "method": method,
        "only": options.only,
        "seconds": round(time.perf_counter() - started_s, 1),
        **_counts(options.output),
    }
    print(json.dumps(report))


def _with_a_name(graph: Path, copy: Path) -> Path:
    model = onnx.load(str(graph))
    model.graph.name = graph.stem
    onnx.save(model, str(copy))
    return copy


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration inputs in the shapes of a prefill: one clip, or one prompt with an empty cache."""

    def __init__(self, graph: Path, inputs: Path, *, one_length: bool) -> None:
        self._graph = onnx.load(str(graph), load_external_data=False).graph
        with np.load(inputs) as arrays:
            name = "frames" if "frames_0" in arrays else "inputs_embeds"
            self._values = [{name: arrays[key]} for key in arrays if key.rpartition("_")[0] == name]
        if one_length:
            shapes = Counter(array.shape for value in self._values for array in value.values())
            [(commonest, _)] = shapes.most_common(1)
            self._values = [value for value in self._values if all(x.shape == commonest for x in value.values())]
        self.rewind()

    def rewind(self) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = map(self._feeds, self._values)

    def get_first(self) -> dict[str, np.ndarray]:
        return self._feeds(self._values[0])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)

    def __len__(self) -> int:
        return len(self._values)

    def _feeds(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "frames" in given:
            return given
        length = given["inputs_embeds"].shape[1]
        feeds: dict[str, Any] = {
            **given,
            "logits_index": np.array([[length - 1]], np.int64),
            "seqlens_k": np.array([length - 1], np.int32),
            "total_sequence_length": np.array(length, np.int32),
        }
        for value in self._graph.input:
            if value.name.startswith("past."):
                heads, width = (value.type.tensor_type.shape.dim[axis].dim_value for axis in (1, 3))
                feeds[value.name] = np.zeros((1, heads, length, width), np.float32)
        return feeds


def _counts(path: Path) -> dict[str, Any]:
    """What was quantised: nodes that read a DequantizeLinear, and all nodes, by operator."""
    graph = onnx.load(str(path), load_external_data=False).graph
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    quantized = Counter(node.op_type for node in graph.node if dequantized & set(node.input))
    total = Counter(node.op_type for node in graph.node)
    return {"quantized": {name: [count, total[name]] for name, count in sorted(quantized.items())}}


if __name__ == "__main__":
    main()
