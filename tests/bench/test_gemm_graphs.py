"""The graphs that engines' rates are measured with: valid ONNX, and products in every format."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from blip3v.bench.gemm_graphs import GEMM_KINDS, INPUT, GemmKind, gemm_graph

M, K, N = 3, 256, 8


def _weight(tensors: dict[str, Any], kind: GemmKind) -> np.ndarray:
    """The constant factor (K, N), by the format's definition."""
    stored = tensors["w"]
    if kind == "float32":
        return stored
    if kind == "int8":
        return stored.astype(np.float32) * tensors["scales_N"]
    if kind == "int4-block":
        stored = np.stack((stored & 15, stored >> 4), -1).reshape(*stored.shape[:-1], -1)
    offset = 8 if kind == "int4-block" else 128
    scales_Ng1 = tensors["scales"].reshape(N, -1, 1)
    return ((stored.astype(np.float32) - offset) * scales_Ng1).reshape(N, K).T


@pytest.mark.parametrize("kind", GEMM_KINDS)
def test_a_graph_is_valid_and_multiplies(kind: GemmKind) -> None:
    content = gemm_graph(kind, M, K, N)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    x_MK = np.random.default_rng(2).uniform(-0.9, 0.9, (M, K)).astype(np.float32)
    found = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {INPUT: x_MK})[0]
    expected = x_MK @ _weight(tensors, kind)
    assert np.abs(found - expected).max() < (1e-5 if kind == "float32" else 2e-2) * np.abs(expected).max()
