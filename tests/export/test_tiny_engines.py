"""Engines of the shipped models, exported and built as a user does: both graphs, in fp16 and int8, with TensorRT-RTX.

One encoder without and one with a recurrence. The precision is read from the parsed network and from the bytes of the
engine; reading an engine back needs a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from blip3v import cli
from blip3v.folders import shipped_model
from blip3v.runtime.tensorrt_library import is_installed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.trt,
    pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed"),
]
_NUM_LAYERS = 6  # of the decoder, each with a cache of keys and of values


def run(*args: object) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, args), "-q"])
    assert not ended.value.code


def export(folder: Path, encoder: str, precision: str) -> Path:
    """Exports a shipped model for TensorRT-RTX; int8 is calibrated on a few films, which is enough to be built."""
    model = shipped_model(encoder)
    options = ["-m", model, "--precision", precision, "--target", "tensorrt-rtx", "--no-check"]
    if precision == "int8":
        run("calibrate", "-m", model, "--clips", 4, "--prompts", 2, "--rows", 16, "-o", folder / "calibration")
        options += ["--calibration", folder / "calibration", "--ranges", "minmax", "--no-smoothing"]
    run("export", *options, "-o", folder / "bundle")
    return folder / "bundle"


def stored_int8(graph: Path) -> list[NDArray[np.int8]]:
    """The quantised matrices of a graph."""
    tensors = onnx.load(graph).graph.initializer
    matrices = [tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2]
    return [numpy_helper.to_array(tensor) for tensor in matrices]


def is_in(plan: bytes, weight: NDArray[np.int8]) -> bool:
    """Whether some rows of a matrix are in an engine; matrices of one input may lie side by side there."""
    return all(weight[row].tobytes() in plan for row in (0, len(weight) // 2, -1))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm"])
def test_a_shipped_model_becomes_engines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: str, precision: str
) -> None:
    bundle = export(tmp_path, encoder, precision)
    capsys.readouterr()
    run("build", bundle, "--compute-capability", "8.6", "--json")
    values = json.loads(capsys.readouterr().out)
    assert values["is_new"]
    assert values["layers"]["decoder"]["KV_CACHE_UPDATE"] == {"HALF": 2 * _NUM_LAYERS}
    for name, layers in values["layers"].items():
        assert set(layers["MATRIX_MULTIPLY"]) == {"HALF"}
        weights = stored_int8(bundle / "onnx" / f"{name}.onnx")
        assert layers.get("QUANTIZE", {}) == ({"INT8": len(weights)} if precision == "int8" else {})
        assert layers.get("DEQUANTIZE", {}) == ({"INT8": 2 * len(weights)} if precision == "int8" else {})
        plan = Path(values["engines"]["graphs"][name]["file"]).read_bytes()
        for weight in weights:
            assert is_in(plan, weight) or is_in(plan, weight.T), f"a matrix of the {name} is not in 8 bits there"
