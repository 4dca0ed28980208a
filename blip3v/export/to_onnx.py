"""Exports the two graphs from config and weights: ``torch.onnx.export`` on our inference modules, then the passes.

The modules are traced without weights, which are added one by one when the graph's file is written
(``lazy_initializers.py``).
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from blip3v.bundle.graph_io import GraphIO, decoder_io, video_encoder_io
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.calibration.layers import HEAD
from blip3v.calibration.plan import Plan
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import Blip3vError, ExportError
from blip3v.export import passes
from blip3v.export.decoder_graph import CacheAttention, CacheScales, DecoderGraph, OnnxRuntimeAttention
from blip3v.export.lazy_initializers import WeightSource, set_lazy_initializers, with_placeholders
from blip3v.export.precision import TORCH_DTYPES
from blip3v.export.tensorrt_decoder import (
    LegacyAttention,
    LegacyDecoderGraph,
    TensorRTAttention,
    TensorRTDecoderGraph,
)
from blip3v.export.video_encoder_graph import VideoEncoderGraph, stages_of
from blip3v.model.language import head_bias, head_matrix
from blip3v.model.weights import empty_model, fill_buffers

__all__ = ["OPSETS", "STAGE_PREFIX", "decoder_to_onnx", "layer_names", "save_graph", "video_encoder_to_onnx"]

OPSETS: dict[Target, int] = {"onnxruntime": 24, "tensorrt": 24, "tensorrt-rtx": 24, "tensorrt-legacy": 20}
STAGE_PREFIX = "stage."

# The module and how its layers attend to their cache.
_DECODERS: dict[Target, tuple[type[DecoderGraph], Callable[[TextConfig], CacheAttention[Any]]]] = {
    "onnxruntime": (DecoderGraph, OnnxRuntimeAttention),
    "tensorrt": (TensorRTDecoderGraph, TensorRTAttention),
    "tensorrt-rtx": (TensorRTDecoderGraph, TensorRTAttention),
    "tensorrt-legacy": (LegacyDecoderGraph, LegacyAttention),
}
# Sizes of the example call. Each is at least 2, since torch treats 0 and 1 as fixed, and all differ.
_BATCH, _FRAMES, _POSITIONS, _NEW_TOKENS, _CAPACITY = 2, 3, 4, 5, 7


def video_encoder_to_onnx(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    precision: GraphPrecision,
    plan: Plan | None = None,
    *,
    target: Target = DEFAULT_TARGET,
) -> ir.Model:
    """Exports the video encoder. Its stages are named values inside the graph: ``stage.vision`` and so on.

    For TensorRT, which builds no Scan with attention inside, the steps of a recurrent encoder follow one another.

    Args:
        config: the model's.
        weights: by released name; read when the graph is written.
        precision: the graph's.
        plan: of a quantised graph, whose weights replace ``weights``.
        target: the form of the graph.

    Raises:
        ExportError: torch cannot export it, or its inputs and outputs are not those of the table.
    """
    io = video_encoder_io(config, target).resolved(precision)
    side, scan = config.vision.image_size, not is_tensorrt(target)
    num_frames = _FRAMES if scan else config.num_frames
    frames = torch.zeros(_BATCH, num_frames, 3, side, side, dtype=TORCH_DTYPES[precision.io])
    names = [f"{STAGE_PREFIX}{stage}" for stage in stages_of(config)]
    free = {"frames": {0: Dim("batch"), 1: Dim("num_frames")} if scan else {0: Dim("batch")}}
    model = empty_model(config)
    fill_buffers(model.vision_tokenizer, weights, "vision_tokenizer.")
    module = VideoEncoderGraph(model, scan=scan)
    graph = _export(with_placeholders(module, precision), (frames,), free, io, names, OPSETS[target])
    sources = _sources(module, model, weights if plan is None else plan.weights)
    return _finish(graph, io, sources, precision, plan, target)


def decoder_to_onnx(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    precision: GraphPrecision,
    plan: Plan | None = None,
    *,
    cache_scales: CacheScales | None = None,
    target: Target = DEFAULT_TARGET,
) -> ir.Model:
    """Exports the decoder. Other arguments and errors as for ``video_encoder_to_onnx``.

    Args:
        config: the model's.
        weights: by released name.
        precision: the graph's.
        plan: of its quantisation; None: the weights as they are.
        cache_scales: of a cache in int8; None for any other cache.
        target: the form of the graph.
    """
    weights = weights if plan is None else plan.weights
    rotation_DD = None if plan is None else plan.input_rotation_DD
    io, text = decoder_io(config, target).resolved(precision), config.text
    assert precision.cache is not None, "a decoder has a cache"
    assert (cache_scales is None) == (precision.cache in TORCH_DTYPES), "an int8 cache has scales, others have none"
    model = empty_model(config)
    kind, attention = _DECODERS[target]
    module = kind(model.lang_model, text, attention(text), cache_scales, rotated=rotation_DD is not None)
    arguments, free = _decoder_call(text, precision, target)
    graph = _export(with_placeholders(module, precision), arguments, free, io, [], OPSETS[target])
    sources = _sources(module, model, weights) | {
        "lm_head": WeightSource(lambda: head_matrix(weights, text), HEAD, ("lm_head",)),
        "lm_head_bias": WeightSource(lambda: head_bias(weights, text), HEAD, ("lm_head_bias",)),
    }
    if rotation_DD is not None:
        sources["rotation"] = WeightSource(lambda: rotation_DD, "rotation", ("rotation",))
    return _finish(graph, io, sources, precision, plan, target)


def _decoder_call(
    text: TextConfig, precision: GraphPrecision, target: Target
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example call of the decoder, and its free axes by argument."""
    assert precision.cache is not None, "a decoder has a cache"
    shape = (_BATCH, text.num_kv_heads, _CAPACITY, text.head_dim)
    cache = [
        torch.zeros(shape, dtype=TORCH_DTYPES.get(precision.cache, torch.int8)) for _ in range(2 * text.num_layers)
    ]
    embeds = torch.zeros(_BATCH, _NEW_TOKENS, text.hidden_size, dtype=TORCH_DTYPES[precision.io])
    batch, capacity = Dim("batch"), Dim("capacity")
    lengths: dict[str, tuple[Tensor, Any]] = {
        "seqlens_k": (torch.full((_BATCH,), _NEW_TOKENS - 1, dtype=torch.int32), {0: batch}),
        "total_sequence_length": (torch.tensor(_NEW_TOKENS, dtype=torch.int32), None),
    }
    if is_tensorrt(target):
        lengths = {"write_indices": (torch.zeros(_BATCH, dtype=torch.int64), {0: batch})}
    free = {
        "inputs_embeds": {0: batch, 1: Dim("num_new_tokens")},
        "logits_index": {0: batch, 1: Dim("num_positions")},
        **{name: axes for name, (_, axes) in lengths.items()},
        "cache": [{0: batch, 2: capacity}] * len(cache),
    }
    logits_index = torch.zeros(_BATCH, _POSITIONS, dtype=torch.int64)
    return (embeds, logits_index, *(tensor for tensor, _ in lengths.values()), cache), free


def layer_names(config: ModelConfig) -> dict[str, dict[str, str]]:
    """Returns, for each graph, the layer of every weight by the name that the weight has in the graph."""
    model = empty_model(config)
    decoder = DecoderGraph(model.lang_model, config.text, OnnxRuntimeAttention(config.text))
    modules = {"video_encoder": VideoEncoderGraph(model), "decoder": decoder}
    names = {graph: _sources(module, model, {}) for graph, module in modules.items()}
    layers = {graph: {name: source.layer for name, source in sources.items()} for graph, sources in names.items()}
    return layers | {"decoder": layers["decoder"] | {"lm_head": HEAD}}


def save_graph(model: ir.Model, path: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Writes the graph, and its weights beside it as ``<stem>.data``; each is read, written and freed in turn.

    Args:
        model: the graph.
        path: the .onnx file.
        progress: called with (weights written, total weights).

    Raises:
        Blip3vError: a weight cannot be read or stored, as its loader says.
        ExportError: the graph cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = f"{path.stem}.data"
    try:
        ir.save(model, path, external_data=data, callback=lambda _, info: progress(info.index + 1, info.total))
    except ir.serde.SerdeError as error:  # small weights are stored in the graph, whose writer wraps what they raise
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (Blip3vError, OSError)):
            cause = cause.__cause__
        raise cause or ExportError(f"{path} cannot be written: {error}") from error


def _export(
    module: nn.Module,
    arguments: tuple[Any, ...],
    free: dict[str, Any],
    io: GraphIO,
    extra_outputs: Sequence[str],
    opset: int,
) -> ir.Model:
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=free,
                input_names=[spec.name for spec in io.inputs],
                output_names=[*(spec.name for spec in io.outputs), *extra_outputs],
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        raise ExportError(f"torch cannot export {type(module).__name__}: {error}") from error
    assert program is not None, "dynamo export without a file returns the program"
    return program.model


def _sources(module: nn.Module, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, WeightSource]:
    """Returns the source of each parameter that ``module`` shares with ``model``, which has the released names."""
    released = {id(x): name for name, x in model.named_parameters()}
    aliases: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases[id(parameter)].append(name)
    sources: dict[str, WeightSource] = {}
    for identity in aliases.keys() & released.keys():
        load = functools.partial(_fp32, weights, released[identity])
        source = WeightSource(load, released[identity].rpartition(".")[0], tuple(aliases[identity]))
        sources |= dict.fromkeys(aliases[identity], source)
    return sources


def _fp32(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[name].float()


def _finish(
    model: ir.Model,
    io: GraphIO,
    sources: Mapping[str, WeightSource],
    precision: GraphPrecision,
    plan: Plan | None,
    target: Target,
) -> ir.Model:
    passes.name_by_module(model)
    passes.fold_transposes(model)
    set_lazy_initializers(model, sources, precision, plan, contrib=not is_tensorrt(target))
    passes.hide_outputs(model, STAGE_PREFIX)
    passes.fit_io(model, io)
    passes.clean(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's exporter, which warns about its own deprecated calls and about packages that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
