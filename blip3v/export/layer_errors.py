"""How far the integers of a written graph move the output of each linear layer: which layer is to blame.

    relative error = ||q(X) q(W)^T - X W^T|| / ||X W^T||    (Frobenius norms over sampled input rows X)

q(W) is what the graph's file holds, q(X) what an engine makes of the inputs: rounded with the constant scale in the
graph (static int8), or with a scale for each row and block (block formats, as ONNX Runtime's MatMulNBits does at
accuracy level 4). X and W are those of the smoothed or rotated model, whose outputs are the original's.
"""

# Shapes: R rows, N outputs, K inputs, g groups, S group size.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from blip3v.calibration.fake import on_block_grid, on_grid
from blip3v.calibration.plan import Plan
from blip3v.calibration.transformed import layer_weight
from blip3v.config import TextConfig
from blip3v.export.accuracy import LayerError
from blip3v.export.quantized_formats import unpacked
from blip3v.export.stored_layers import StoredLayer

__all__ = ["layer_errors"]

_MAX_ROWS = 128  # of a layer's sample: enough to tell layers apart


def layer_errors(
    layers: Sequence[StoredLayer],
    graph: str,
    plan: Plan,
    text: TextConfig,
    computed: Callable[[StoredLayer], dict[str, str]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[LayerError]:
    """Yields the error of each quantised layer; one weight is in memory at a time.

    Args:
        layers: of a written graph.
        graph: video_encoder or decoder.
        plan: that the graph was written with.
        text: the language model's shape.
        computed: what each back end computes a layer in.
        progress: called with (layers done, total layers).
    """
    quantized = [layer for layer in layers if layer.is_quantized]
    for index, layer in enumerate(quantized):
        rows_RK = plan.rows(layer.layer)[:_MAX_ROWS]
        exact_RN = rows_RK @ layer_weight(plan.weights, layer.layer, text).T
        got_RN = _rounded_inputs(rows_RK, layer) @ _stored_weight(layer).T
        error = float((got_RN - exact_RN).norm() / exact_RN.norm().clamp_min(torch.finfo(torch.float32).tiny))
        progress(index + 1, len(quantized))
        yield LayerError(
            name=layer.layer,
            graph=graph,
            node=layer.node,
            weights=layer.weights,
            relative_error=error,
            computed=computed(layer),
        )


def _stored_weight(layer: StoredLayer) -> Tensor:
    """The weight (N, K) that the file holds."""
    assert layer.scales is not None, "a quantised layer has scales"
    scales = torch.from_numpy(np.array(layer.scales.numpy()))
    values = layer.values.numpy()
    if layer.group_size is None:
        return torch.from_numpy(np.array(values)).float().T * scales[:, None]
    bits = 4 if layer.weights == "int4-block" else 8
    values_NgS = torch.from_numpy(unpacked(values, bits)).float()
    return (values_NgS * scales.view(*values_NgS.shape[:2], 1)).flatten(1)[:, : layer.num_inputs]


def _rounded_inputs(rows_RK: Tensor, layer: StoredLayer) -> Tensor:
    if layer.input_scale is not None:
        return on_grid(rows_RK, layer.input_scale)
    assert layer.group_size is not None, "a static layer has a scale for its inputs"
    return on_block_grid(rows_RK, layer.group_size)
