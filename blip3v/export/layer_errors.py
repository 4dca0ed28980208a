"""How far the integers of a written graph move the output of each linear layer: which layer is to blame.

    Y = X W^T,  E = q(X) q(W)^T - Y         over sampled input rows X

    relative error = max( ||E|| / ||Y||,                                            Frobenius norms
                          weighted mean over rows r of |e_r| / max(|y_r|, m / 10) )    m: weighted median of |y_r|

q(W) is what the graph's file holds, q(X) what an engine makes of the inputs: rounded with the constant scale in the
graph (static int8), or with a scale for each row and block (block formats, as ONNX Runtime's MatMulNBits does at
accuracy level 4). X and W are those of the smoothed or rotated model, whose outputs are the original's.

The first ratio is that of the largest outputs: a few massive rows hide all others in it. The second is that of ordinary
rows: each kept row weighs as much as the rows that were seen for which it stands. A row whose output is near 0 is
compared with a tenth of the usual output, or its ratio alone would be the mean.
"""

# Shapes: R rows, N outputs, K inputs, g groups, S group size.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from blip3v.calibration.fake import on_block_grid, on_grid
from blip3v.calibration.plan import Plan
from blip3v.calibration.ranges import row_weights
from blip3v.calibration.record import LayerRecord
from blip3v.calibration.statistics import LayerStatistics
from blip3v.calibration.transformed import layer_weight
from blip3v.config import TextConfig
from blip3v.export.accuracy import LayerError
from blip3v.export.block_values import unpacked
from blip3v.export.stored_layers import StoredLayer

__all__ = ["layer_errors", "relative_error"]

_MAX_ROWS = 128  # of a layer's sample, half of them extreme ones: enough to tell layers apart
_LEAST_OUTPUT = 0.1  # of the usual one, that a row is compared with


def layer_errors(
    layers: Sequence[StoredLayer],
    graph: str,
    plan: Plan,
    sampled: Mapping[str, LayerRecord],
    text: TextConfig,
    computed: Callable[[StoredLayer], dict[str, str]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[LayerError]:
    """Yields the error of each quantised layer; one weight is in memory at a time.

    Args:
        layers: of a written graph.
        graph: video_encoder or decoder.
        plan: that the graph was written with.
        sampled: how the rows of each layer in ``plan`` were chosen: the extreme ones stand first.
        text: the language model's shape.
        computed: what each back end computes a layer in.
        progress: called with (layers done, total layers).
    """
    quantized = [layer for layer in layers if layer.is_quantized]
    for index, layer in enumerate(quantized):
        rows_RK, weights_R = _sample(plan.rows(layer.layer), sampled[layer.layer])
        exact_RN = rows_RK @ layer_weight(plan.weights, layer.layer, text).T
        got_RN = _rounded_inputs(rows_RK, layer) @ _stored_weight(layer).T
        progress(index + 1, len(quantized))
        yield LayerError(
            name=layer.layer,
            graph=graph,
            node=layer.node,
            weights=layer.weights,
            relative_error=relative_error(exact_RN, got_RN, weights_R),
            computed=computed(layer),
        )


def relative_error(exact_RN: Tensor, got_RN: Tensor, weights_R: Tensor) -> float:
    """Returns how far outputs are off, 0 for none: the larger of two ratios, see above.

    Args:
        exact_RN: fp32.
        got_RN: fp32.
        weights_R: how many rows each of these stands for.
    """
    tiny = torch.finfo(torch.float32).tiny
    errors_R, norms_R = (got_RN - exact_RN).norm(dim=1), exact_RN.norm(dim=1)
    least = _LEAST_OUTPUT * _weighted_median(norms_R, weights_R)
    ratios_R = errors_R / norms_R.clamp_min(max(least, tiny))
    of_rows = float((ratios_R * weights_R).sum() / weights_R.sum())
    return max(float(errors_R.norm() / norms_R.norm().clamp_min(tiny)), of_rows)


def _weighted_median(values_R: Tensor, weights_R: Tensor) -> float:
    order_R = values_R.argsort()
    below_R = weights_R[order_R].cumsum(0) < weights_R.sum() / 2
    return float(values_R[order_R][int(below_R.sum())])


def _sample(rows_NK: Tensor, record: LayerRecord) -> tuple[Tensor, Tensor]:
    """Returns the most extreme rows and as many random ones, and how many of those seen each stands for."""
    num_extreme = min(record.num_extreme, _MAX_ROWS // 2)
    random_RK = rows_NK[record.num_extreme :][: _MAX_ROWS - num_extreme]
    rows_RK = torch.cat((rows_NK[:num_extreme], random_RK))
    found = LayerStatistics(rows_RK.abs().amax(dim=0), rows_RK, record.num_seen, num_extreme)
    return rows_RK, row_weights(found)


def _stored_weight(layer: StoredLayer) -> Tensor:
    """The weight (N, K) that the file holds."""
    assert layer.scales is not None, "a quantised layer has scales"
    scales = torch.from_numpy(np.array(layer.scales.numpy(), np.float32))
    values = layer.values.numpy()
    if layer.group_size is None:
        return torch.from_numpy(np.array(values)).float().T * scales[:, None]
    if layer.dequantized:
        return (torch.from_numpy(values.astype(np.float32)) * scales.repeat_interleave(layer.group_size, dim=0)).T
    bits = 4 if layer.weights == "int4-block" else 8
    values_NgS = torch.from_numpy(unpacked(values, bits)).float()
    return (values_NgS * scales.view(*values_NgS.shape[:2], 1)).flatten(1)[:, : layer.num_inputs]


def _rounded_inputs(rows_RK: Tensor, layer: StoredLayer) -> Tensor:
    if layer.input_scale is not None:
        return on_grid(rows_RK, layer.input_scale)
    if layer.dequantized:
        return rows_RK
    assert layer.group_size is not None, "a static layer has a scale for its inputs"
    return on_block_grid(rows_RK, layer.group_size)
