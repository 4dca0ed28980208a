"""Reads every weight once before an export, and refuses those that the bundle could not hold.

Graphs are traced without weights, which are read when a graph is written: without this, a bad one would be found after
minutes of work. Not here: the test of the values itself (``model/weight_values.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from blip3v.bundle.precision import Precision
from blip3v.config import ModelConfig
from blip3v.export.decoder_graph import DecoderGraph, OnnxRuntimeAttention
from blip3v.export.precision import TORCH_DTYPES, parameter_formats
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.export.weight_formats import unrepresentable
from blip3v.model.language import EMBEDDING_NAMES, HEAD_BIAS_NAMES, HEAD_MATRIX_NAMES
from blip3v.model.weight_values import check_values, largest_value
from blip3v.model.weights import empty_model

__all__ = ["check_weights"]

_STORED_DTYPES = TORCH_DTYPES | {"float16-stored": torch.float16}


def check_weights(
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    precision: Precision,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Reads and tests every weight, one at a time.

    Args:
        weights: by released name.
        config: the model's.
        precision: the bundle's.
        progress: called with (weights read, all weights).

    Raises:
        ArtifactError: a weight is broken or not finite.
        ExportError: a weight is too large for the floats that it is stored in.
    """
    dtypes = _stored_dtypes(config, precision)
    for index, name in enumerate(weights):
        weight, dtype = weights[name], dtypes.get(name, torch.float32)
        largest = largest_value(weight)
        if not torch.tensor(largest, dtype=torch.float64).to(dtype).isfinite():
            check_values(name, weight, where="the source")
            raise unrepresentable(name, largest, str(dtype).removeprefix("torch."))
        progress(index + 1, len(weights))


def _stored_dtypes(config: ModelConfig, precision: Precision) -> dict[str, torch.dtype]:
    """Returns the float that each weight is stored in, by released name; a format of several tensors has none."""
    model = empty_model(config)
    released = {id(parameter): (name,) for name, parameter in model.named_parameters()}
    decoder = DecoderGraph(model.lang_model, config.text, OnnxRuntimeAttention(config.text))
    joined = {"lm_head": HEAD_MATRIX_NAMES, "lm_head_bias": HEAD_BIAS_NAMES}
    dtypes = dict.fromkeys(EMBEDDING_NAMES, TORCH_DTYPES[precision.decoder.embeddings])
    for module, spec in ((VideoEncoderGraph(model), precision.video_encoder), (decoder, precision.decoder)):
        formats = parameter_formats(module, spec)
        for name, parameter in module.named_parameters(remove_duplicate=False):
            sources = joined.get(name, released.get(id(parameter), ()))
            dtypes |= dict.fromkeys(sources, _STORED_DTYPES.get(formats[name], torch.float32))
    return dtypes
