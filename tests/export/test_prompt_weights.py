"""Weights for prompts: the matrix of the blocks in int8, and products that round every row by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from blip3v.bundle.precision import Precision
from blip3v.errors import ArtifactError
from blip3v.export.block_values import channel_scales, int8_values, unpacked
from blip3v.export.prompt_weights import with_int8_products, write_for_prompts

INT4 = Precision.parse("int4").decoder
GROUP = 32
Blocks = tuple[NDArray[np.uint8], NDArray[np.float32]]


def blocks(num_outputs: int, num_inputs: int, bits: int = 4) -> Blocks:
    """Random values and scales; the scales of one output differ by a factor of up to 8."""
    rng = np.random.default_rng(num_outputs)
    groups = -(-num_inputs // GROUP)
    values = rng.integers(0, 256, (num_outputs, groups, GROUP * bits // 8), np.uint8)
    return values, (2.0 ** rng.uniform(-3, 0, (num_outputs, groups))).astype(np.float32)


def matrix(stored: Blocks, num_inputs: int, bits: int = 4) -> NDArray[np.float32]:
    """What the blocks stand for, (N, K)."""
    values, scales = stored
    widened = unpacked(values, bits) * scales[:, :, None]
    return np.ascontiguousarray(widened.reshape(len(values), -1)[:, :num_inputs])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_matrix_in_blocks_is_within_half_a_step_of_its_channel(bits: int) -> None:
    """Also where the last group is padded, and where a channel is zero."""
    values, scales = blocks(1030, 80, bits)  # more outputs than are computed at once
    values[5] = 2 ** (bits - 1) * (17 if bits == 4 else 1)
    exact_NK = matrix((values, scales), 80, bits)
    assert not exact_NK[5].any()
    scales_N = channel_scales(values, scales, bits)
    stored_KN = int8_values(values, scales, bits, scales_N, 80)
    assert stored_KN.shape == (80, 1030)
    assert stored_KN.min() == -127
    error_NK = np.abs(stored_KN.T * scales_N[:, None] - exact_NK)
    assert (error_NK <= scales_N[:, None] * 0.5001).all()
    assert np.linalg.norm(error_NK) < 0.006 * np.linalg.norm(exact_NK)


def write_graph(path: Path, *, data: str | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A graph of two products, of 4 and of 8 bits. Returns their matrices (N, K)."""
    inputs = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(("rows", "tokens", 80)))
    value, nodes, initializers, matrices = inputs, [], [], []
    for name, bits, num_inputs, num_outputs in (("first", 4, 80, 48), ("head", 8, 48, 24)):
        stored = blocks(num_outputs, num_inputs, bits)
        tensors = (ir.tensor(stored[0], name=f"{name}.blocks"), ir.tensor(stored[1], name=f"{name}.scales"))
        parts = [ir.val(tensor.name, const_value=tensor) for tensor in tensors]
        attributes = {"K": num_inputs, "N": num_outputs, "bits": bits, "block_size": GROUP, "accuracy_level": 4}
        nodes.append(ir.node("MatMulNBits", [value, *parts], attributes, domain="com.microsoft", name=name))
        value = nodes[-1].outputs[0]
        value.name, value.dtype = name, ir.DataType.FLOAT
        initializers += parts
        matrices.append(matrix(stored, num_inputs, bits))
    outputs = [node.outputs[0] for node in nodes]
    opsets = {"": 24, "com.microsoft": 1}
    graph = ir.Graph([inputs], outputs, nodes=nodes, initializers=initializers, opset_imports=opsets)
    ir.save(ir.Model(graph, ir_version=11), path, external_data=data, size_threshold_bytes=0)
    return matrices[0], matrices[1]


def test_products_round_each_row_by_itself_and_leave_the_head(tmp_path: Path) -> None:
    """One token with massive activations takes nothing from the others."""
    first_NK, _ = write_graph(tmp_path / "decoder.onnx", data="decoder.data")
    (tmp_path / "second-name").hardlink_to(tmp_path / "decoder.data")  # as files of a hub's cache have
    (tmp_path / "new").mkdir()
    write_for_prompts(tmp_path / "decoder.onnx", INT4, tmp_path / "new" / "decoder.onnx")
    x = np.random.default_rng(1).normal(size=(2, 3, 80)).astype(np.float32)
    x[0, 1] *= 1e4
    x[1, 2] = 0
    session = onnxruntime.InferenceSession(tmp_path / "new" / "decoder.onnx", providers=["CPUExecutionProvider"])
    found, _ = session.run(None, {"x": x})
    exact = x @ first_NK.T
    assert not found[1, 2].any()
    errors = np.linalg.norm(found - exact, axis=2) / np.maximum(np.linalg.norm(exact, axis=2), 1)
    assert errors.max() < 0.02
    written = ir.load(tmp_path / "new" / "decoder.onnx").graph
    assert [node.op_type for node in written if node.domain] == ["MatMulIntegerToFloat", "MatMulNBits"]
    assert {"first.values", "head.blocks", "head.scales"} <= set(written.initializers)
    assert written.initializers["first.values"].dtype == ir.DataType.INT8
    assert "first.scales" not in written.initializers


def test_blocks_of_8_bits_are_the_own_form_of_another_precision(tmp_path: Path) -> None:
    write_graph(tmp_path / "decoder.onnx")
    model = ir.load(tmp_path / "decoder.onnx")
    assert with_int8_products(model, Precision.parse("int8-weight").decoder) == 1
    assert [node.op_type for node in model.graph if node.domain] == ["MatMulNBits", "MatMulIntegerToFloat"]


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    write_graph(tmp_path / "decoder.onnx", data="decoder.data")
    model = ir.load(tmp_path / "decoder.onnx")
    for value in model.graph.initializers.values():
        old = value.const_value
        assert isinstance(old, ir.ExternalTensor)
        place = {"location": "../decoder.data", "offset": old.offset, "length": old.length}
        value.const_value = ir.ExternalTensor(**place, dtype=old.dtype, shape=old.shape, name=old.name)  # type: ignore[arg-type]
    (tmp_path / "hostile").mkdir()
    ir.save(model, tmp_path / "hostile" / "decoder.onnx")
    with pytest.raises(ArtifactError, match=r"reads weights from \.\./decoder.data, which is not beside it"):
        write_for_prompts(tmp_path / "hostile" / "decoder.onnx", INT4, tmp_path / "decoder.onnx")
