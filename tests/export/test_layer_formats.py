"""The table of how layers are stored, and whether an engine computes them as the table says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from blip3v.bundle import Precision
from blip3v.bundle.graph_io import decoder_io
from blip3v.calibration.fake import on_block_grid
from blip3v.calibration.quantized import group_of
from blip3v.config import preset
from blip3v.export.accuracy import LayerFormats
from blip3v.export.layer_formats import count_formats
from blip3v.export.stored_layers import StoredLayer
from blip3v.runtime.backends import GraphFile, get_backend

SPEC = Precision.parse("int8-weight").decoder
HAS_VNNI = Path("/proc/cpuinfo").is_file() and "vnni" in Path("/proc/cpuinfo").read_text()
BLOCKS, FLOATS = "int8 on ONNX Runtime CPU", "fp32 on ONNX Runtime CPU"


def _stored(num_inputs: int, weights: str = "int8-block") -> StoredLayer:
    empty = ir.tensor(np.zeros(0, np.float32))
    size = group_of(num_inputs, 128) if weights == "int8-block" else None
    return StoredLayer(
        layer=f"layer.{num_inputs}",
        node=f"/layer.{num_inputs}/MatMul",
        weights=weights,
        group_size=size,
        num_inputs=num_inputs,
        values=empty,
        scales=empty,
        input_scale=None,
    )


def test_groups_that_became_smaller_or_are_padded_have_rows_of_their_own() -> None:
    """The 4304 inputs of a vision layer got groups of 16 instead of 128, and nothing said so."""
    layers = [_stored(1152), _stored(4304), _stored(1152), _stored(600), _stored(1152, "float16-stored")]
    backends = {name: get_backend(name) for name in ("onnxruntime", "openvino")}
    kinds = count_formats(layers, "video_encoder", SPEC, backends)
    shown = [(kind.weights, kind.group_size, kind.padded, kind.num_layers) for kind in kinds]
    assert shown == [
        ("int8-block", 128, False, 2),
        ("int8-block", 16, False, 1),
        ("int8-block", 16, True, 1),
        ("float16-stored", None, False, 1),
    ]
    assert [kind.computed["onnxruntime"] for kind in kinds] == [BLOCKS, BLOCKS, BLOCKS, FLOATS]
    assert [kind.computed["openvino"].split()[0] for kind in kinds] == ["int8", "fp32", "fp32", "fp32"]
    assert kinds[0] == LayerFormats(
        graph="video_encoder",
        weights="int8-block",
        group_size=128,
        padded=False,
        num_layers=2,
        computed={"onnxruntime": BLOCKS, "openvino": "int8 on OpenVINO CPU"},
    )


@pytest.mark.parametrize(
    ("num_inputs", "group_size", "block"),
    [
        (256, 128, 128),
        (256, 128, 32),
        pytest.param(144, 16, 128, id="smaller group"),
        pytest.param(200, 16, 16, id="padded"),
    ],
)
def test_openvino_computes_a_layer_as_it_says(tmp_path: Path, num_inputs: int, group_size: int, block: int) -> None:
    """Groups that are smaller than the block of its inputs were reported as int8; OpenVINO computes them in fp32."""
    from blip3v.runtime.backends.openvino.sessions import open_core

    spec = dataclasses.replace(SPEC, group_size=block)
    dtype = get_backend("openvino").layer_dtype(spec, "int8-block", group_size, num_inputs)
    if dtype == "int8" and not HAS_VNNI:
        pytest.skip("OpenVINO rounds inputs only where the processor has VNNI")
    path = tmp_path / "layer.onnx"
    weight_NK = _write_layer(path, num_inputs, group_size)
    x = torch.randn(4, num_inputs, generator=torch.Generator().manual_seed(0))
    file = GraphFile(path=path, io=decoder_io(preset("tiny")), precision=spec, weights_bytes=0)
    got = open_core(file, 1).compile_model(str(path), "CPU")(x.numpy())[0]
    expected = (on_block_grid(x, block) if dtype == "int8" else x) @ weight_NK.T
    assert np.abs(got - expected.numpy()).max() < 1e-4 * float(expected.abs().max())


def _write_layer(path: Path, num_inputs: int, group_size: int) -> torch.Tensor:
    """Writes a product of 8-bit blocks with 32 outputs; returns its weight (N, K)."""
    rng = np.random.default_rng(0)
    groups = -(-num_inputs // group_size)
    values = rng.integers(1, 256, (32, groups, group_size)).astype(np.uint8)
    values.reshape(32, -1)[:, num_inputs:] = 128
    scales = rng.uniform(0.005, 0.015, (32, groups)).astype(np.float32)
    stored = [ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in (("w", values), ("s", scales))]
    x = ir.val("x", ir.DataType.FLOAT, (4, num_inputs))
    attributes = {"K": num_inputs, "N": 32, "bits": 8, "block_size": group_size, "accuracy_level": 4}
    node = ir.node("MatMulNBits", [x, *stored], attributes, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape((4, 32))
    opsets = {"": 24, "com.microsoft": 1}
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=stored, opset_imports=opsets, name="layer")
    ir.save(ir.Model(graph, ir_version=10), path)
    weight = (values.astype(np.float32) - 128) * scales[..., None]
    return torch.from_numpy(weight.reshape(32, -1)[:, :num_inputs].copy())
