"""The error of a stored layer: massive rows, ordinary rows and rows without output each count for what they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from blip3v.calibration.plan import Plan
from blip3v.calibration.quantized import nearest, scales_of
from blip3v.calibration.record import LayerRecord
from blip3v.config import preset
from blip3v.export.layer_errors import layer_errors, relative_error
from blip3v.export.stored_layers import StoredLayer

LAYER = "lang_model.model.layers.0.mlp.down_proj"
NUM_EXTREME, NUM_RANDOM, NUM_SEEN = 64, 448, 20_000


def _inputs(massive: float) -> Tensor:
    """As calibration keeps them: the extreme rows first, of which some are massive in one channel."""
    rows_NK = torch.randn(NUM_EXTREME + NUM_RANDOM, 32, generator=torch.Generator().manual_seed(0))
    rows_NK[:4, 0] = massive
    return rows_NK


def _error(rows_NK: Tensor, *, factor: float = 1.0) -> float:
    """Of a layer in static int8 with a min-max scale, whose weight's scales are off by ``factor``."""
    weight_NK = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    matrix = nearest(weight_NK, scales_of(weight_NK, 8, None), 8, None)
    stored = StoredLayer(
        layer=LAYER,
        node="/layers.0.down_proj/MatMul",
        weights="int8",
        group_size=None,
        num_inputs=32,
        values=ir.tensor(matrix.values_NK.T.contiguous().numpy()),
        scales=ir.tensor(np.ascontiguousarray(factor * matrix.scales_Ng[:, 0].numpy())),
        input_scale=float(rows_NK.abs().max()) / 127,
    )
    plan = cast(Plan, SimpleNamespace(weights={f"{LAYER}.weight": weight_NK}, rows=lambda layer: rows_NK))
    sampled = {LAYER: LayerRecord(num_seen=NUM_SEEN, num_rows=len(rows_NK), num_extreme=NUM_EXTREME)}
    computed: Any = lambda layer: {"onnxruntime": layer.weights}  # noqa: E731
    [error] = layer_errors([stored], "decoder", plan, sampled, preset("tiny").text, computed)
    assert error.computed == {"onnxruntime": "int8"}
    return error.relative_error


def test_ordinary_rows_that_are_all_rounded_to_0_are_seen() -> None:
    """The report said 1.4 %: one norm over the first 128 rows, in which the massive ones hid the others."""
    assert _error(_inputs(massive=4.0)) < 0.03
    assert 0.9 < _error(_inputs(massive=4000.0)) < 1.1


def test_massive_rows_that_are_wrong_are_seen() -> None:
    """They are few, and what their outputs do to the model is not."""
    exact_RN = torch.ones(128, 8)
    exact_RN[:2] = 1000.0
    got_RN = exact_RN.clamp(max=100.0)
    weights_R = torch.tensor([1.0] * 64 + [300.0] * 64)
    assert relative_error(exact_RN, got_RN, weights_R) == pytest.approx(0.9, abs=0.01)


def test_a_row_without_output_does_not_hide_the_rest() -> None:
    exact_RN = torch.ones(128, 8)
    exact_RN[5] = 1e-6
    weights_R = torch.ones(128)
    assert relative_error(exact_RN, exact_RN + 0.01, weights_R) == pytest.approx(0.01, rel=0.1)
    exact_RN[5] = 0.0
    assert relative_error(exact_RN, exact_RN, weights_R) == 0.0
    assert relative_error(torch.zeros(3, 8), torch.zeros(3, 8), torch.ones(3)) == 0.0


def test_a_scale_that_is_off_by_8_shows_as_such() -> None:
    assert _error(_inputs(massive=4.0), factor=8.0) == pytest.approx(7.0, abs=0.05)
