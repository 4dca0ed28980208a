"""Chooses fp32 islands for half-precision graphs: what a clip and a prompt bring near the largest half-precision value.

The reference runs in fp32, the video encoder as a whole and the decoder one layer at a time, and the largest values
that enter and leave its modules are recorded. A linear layer that reaches too far becomes an island; so does the
residual stream with the norms that read it; so does a temporal encoder as a whole. A graph that needs none keeps its
precision as it is. Not here: how modules of different dtypes fit together (``own_dtypes.py``), and the proof that the
result does not overflow, which is a run in half precision (``activations.py``).
"""

# Shapes: F frames, M video tokens, t tokens, D width, V logits.

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.bundle.precision import GraphPrecision, Island, Precision
from blip3v.calibration.statistics import Statistics
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import ExportError
from blip3v.export.activations import Range, empty_cache, largest, recorded
from blip3v.export.decoder_graph import DecoderGraph, ReferenceAttention
from blip3v.export.precision import parameter_formats
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.model.language import embedding_table, head_matrix
from blip3v.model.layerwise import one_layer
from blip3v.model.weights import empty_model, fill
from blip3v.text.prompt import Prompt, splice

__all__ = ["NEAR_LIMIT", "RESIDUAL", "Islands", "choose_islands", "decoder_islands", "video_encoder_islands"]

# The share of the largest value from which on something becomes an island: one clip and one prompt are scanned, and
# half leaves other ones room to reach twice as far.
NEAR_LIMIT = 0.5

RESIDUAL = "residual stream"
# Parameters of the norms that read the stream, whose dtype it has, and of the tables that it begins with.
_STREAM = {
    "video_encoder": (
        "vision_encoder.embeddings.position_embedding.weight",
        "vision_encoder.*norm*",
        "vision_tokenizer.latents",
        "vision_tokenizer.layers.*.0.norm_*",
        "vision_tokenizer.layers.*.1.0.*",
        "vision_tokenizer.norm.*",
    ),
    "decoder": ("layers.*norm.weight", "norm.weight"),
}
# Modules that write into the stream of the video encoder, by the end of their names.
_WRITERS = (".embeddings", ".out_proj", ".fc2", ".to_out", ".1.3")
# Queries, keys and values enter one operator, which takes one dtype.
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "to_q", "to_kv"})
_TEMPORAL = "vision_tokenizer.temporal_encoder"  # under its first name
# Matrices of a decoder's layer, by their released names in it.
_DECODER_LAYER = {
    "qkv_proj": "self_attn.qkv_proj",
    "o_proj": "self_attn.o_proj",
    "gate_up_proj": "mlp.gate_up_proj",
    "down_proj": "mlp.down_proj",
}


@dataclass(frozen=True)
class Islands:
    """A graph's precision with the islands that it needs, and why it needs them."""

    precision: GraphPrecision
    peaks: dict[str, float]  # the largest absolute value, by the island's name; empty if none is needed


def choose_islands(
    precision: Precision,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    pixels_FCHW: Callable[[], NDArray[np.float32]],
    prompt: Prompt,
    *,
    statistics: Statistics | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Precision, dict[str, float]]:
    """Returns the precision with the islands of both graphs, and the peaks of all, as ``decoder layers.3.down_proj``.

    Args:
        precision: without islands of a scan.
        config: the model's.
        weights: by released name; the decoder's are read one layer at a time.
        pixels_FCHW: returns a clip with the config's number of frames, in [-1, 1]; called if there is a scan.
        prompt: a question about the clip.
        statistics: of a calibration, whose inputs count like the clip's; None: the clip and the prompt only.
        progress: called with (layers of the decoder done, total layers).

    Raises:
        ExportError: a value leaves a graph that half precision cannot hold, so that no island helps.
    """
    chosen: dict[str, Islands] = {}
    if any(spec.activation_limit is not None for spec in precision.graphs.values()):
        progress(0, config.text.num_layers)
        model = empty_model(config)
        for name in ("vision_encoder", "vision_tokenizer"):
            fill(model.get_submodule(name), weights, f"{name}.")
        graph = VideoEncoderGraph(model, scan=False)
        chosen["video_encoder"], tokens_MD = video_encoder_islands(
            graph, pixels_FCHW(), precision.video_encoder, statistics
        )
        del model, graph
        if precision.decoder.activation_limit is not None:
            table_VD: NDArray[np.float32] = embedding_table(weights, config.text).numpy()
            embeds_tD = splice(table_VD[list(prompt.ids)], prompt.image_position, tokens_MD)
            chosen["decoder"] = decoder_islands(
                config.text, weights, embeds_tD, precision.decoder, statistics, progress
            )
    changed = dataclasses.replace(precision, **{name: found.precision for name, found in chosen.items()})
    peaks = {f"{name} {island}": peak for name, found in chosen.items() for island, peak in found.peaks.items()}
    return changed, peaks


@torch.inference_mode()
def video_encoder_islands(
    graph: VideoEncoderGraph,
    pixels_FCHW: NDArray[np.float32],
    precision: GraphPrecision,
    statistics: Statistics | None = None,
) -> tuple[Islands, NDArray[np.float32]]:
    """Returns the islands of the video encoder, and the clip's video tokens, fp32 (M, D).

    Args:
        graph: fp32, with weights and without scan.
        pixels_FCHW: a clip.
        precision: without islands of a scan; if its activations cannot overflow, there are none.
        statistics: see ``choose_islands``.
    """
    with recorded(graph) as ranges:
        tokens_MD: NDArray[np.float32] = graph(torch.from_numpy(pixels_FCHW)[None])[0][0].numpy()
    if precision.activation_limit is None:
        return Islands(precision, {}), tokens_MD
    parts = dict(graph.named_modules())
    for name, part in parts.items():
        if isinstance(part, nn.Linear):
            _add_statistics(ranges[name], part, name, statistics)
    _check_fits("the video tokens", ranges["vision_tokenizer.projection"].outputs, "video_encoder", precision)

    temporal = max((found.largest for name, found in ranges.items() if name.startswith(_TEMPORAL)), default=0.0)
    ours = {name: part for name, part in parts.items() if not name.startswith(_TEMPORAL)}
    stream = [ranges[name].largest for name, part in ours.items() if isinstance(part, nn.LayerNorm)]
    stream += [ranges[name].outputs for name in ours if name.endswith(_WRITERS)]
    stream.append(ranges["temporal" if "temporal" in ranges else _TEMPORAL].inputs)
    peaks = {name: ranges[name].largest for name, part in ours.items() if isinstance(part, (nn.Linear, nn.Conv2d))}
    islands = [_stream_island("video_encoder", stream)]
    # A recurrence is an island in any case, and many encoders have no weights.
    formats = parameter_formats(graph, precision)
    if any(name.startswith("temporal.") and form != "float32" for name, form in formats.items()):
        islands.append((_island("temporal encoder", "temporal.*"), temporal))
    return _with(precision, [*islands, *_layer_islands(_joined(peaks))]), tokens_MD


@torch.inference_mode()
def decoder_islands(
    text: TextConfig,
    weights: Mapping[str, Tensor],
    embeds_tD: NDArray[np.floating],
    precision: GraphPrecision,
    statistics: Statistics | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Islands:
    """Returns the islands of the decoder; one layer at a time is in memory.

    Args:
        text: the language model's shape.
        weights: by released name.
        embeds_tD: the prompt with its video tokens.
        precision: without islands of a scan.
        statistics: see ``choose_islands``.
        progress: called with (layers done, total layers).
    """
    language = one_layer(text)
    graph = DecoderGraph(language, text, ReferenceAttention(text))
    cache, state = empty_cache(graph, text, len(embeds_tD), torch.float32)
    x_1tD = torch.from_numpy(embeds_tD.astype(np.float32))[None]
    stream, peaks = [largest(x_1tD)], dict[str, float]()
    for index in range(text.num_layers):
        source, layer = f"lang_model.model.layers.{index}", graph.layers[0]
        fill(language.get_submodule("model.layers.0"), weights, f"{source}.")
        with recorded(layer) as ranges:
            x_1tD = layer(x_1tD, *cache, state, graph.attention)[0]
        for name, released in _DECODER_LAYER.items():
            _add_statistics(ranges[name], layer.get_submodule(name), f"{source}.{released}", statistics)
            peaks[f"layers.{index}.{name}"] = ranges[name].largest
        _check_fits(f"queries, keys and values of layer {index}", ranges["qkv_proj"].outputs, "decoder", precision)
        # After the attention it has at most the sum; what the norms return enters the matrices after them.
        stream += [stream[-1] + ranges["o_proj"].outputs, ranges["down_proj"].outputs]
        stream += [ranges["qkv_proj"].inputs, ranges["gate_up_proj"].inputs, largest(x_1tD)]
        progress(index + 1, text.num_layers)
    norm_D = weights["lang_model.model.norm.weight"].float()
    normed_tD = F.rms_norm(x_1tD[0], norm_D.shape, norm_D, text.rms_norm_eps)
    stream.append(largest(normed_tD))
    peaks["lm_head"] = max(stream[-1], largest(normed_tD @ head_matrix(weights, text).T))
    return _with(precision, [_stream_island("decoder", stream), *_layer_islands(peaks)])


def _add_statistics(found: Range, part: nn.Module, released: str, statistics: Statistics | None) -> None:
    """Widens the range of a linear layer to that of the inputs that a calibration saw."""
    if statistics is None:
        return
    layer = statistics.layer(released)
    found.inputs = max(found.inputs, largest(layer.absmax_K))
    found.outputs = max(found.outputs, largest(part(layer.rows_NK)))


def _check_fits(what: str, peak: float, graph: str, precision: GraphPrecision) -> None:
    """Raises for a value that inputs, outputs or the cache must hold."""
    limit = precision.activation_limit
    if limit is not None and not peak <= limit:
        raise ExportError(
            f"{what} reach {peak:.3g}; {precision.io} holds at most {limit:g}",
            remedy=f"export the {graph} in fp32, as in `precision='video_encoder=fp32,decoder=fp32'`",
        )


def _joined(peaks: Mapping[str, float]) -> dict[str, float]:
    """Gives queries, keys and values of an attention the largest peak of the three."""
    groups: defaultdict[tuple[str, bool | str], list[str]] = defaultdict(list)
    for name in peaks:
        parent, _, leaf = name.rpartition(".")
        groups[parent, leaf in _ATTENTION or leaf].append(name)
    return {name: max(peaks[other] for other in names) for names in groups.values() for name in names}


def _stream_island(graph: str, values: Iterable[float]) -> tuple[Island, float]:
    return _island(RESIDUAL, *_STREAM[graph]), max(values)


def _layer_islands(peaks: Mapping[str, float]) -> list[tuple[Island, float]]:
    return [(_island(name, name if name == "lm_head" else f"{name}.*"), peak) for name, peak in peaks.items()]


def _island(name: str, *parameters: str) -> Island:
    return Island(name=name, parameters=parameters, weights="float32")


def _with(precision: GraphPrecision, candidates: Iterable[tuple[Island, float]]) -> Islands:
    """Keeps the candidates that come near the limit."""
    assert precision.activation_limit is not None, "only such graphs are scanned"
    near = NEAR_LIMIT * precision.activation_limit
    needed = [(island, peak) for island, peak in candidates if not peak <= near]
    islands = (*precision.islands, *(island for island, _ in needed))
    return Islands(dataclasses.replace(precision, islands=islands), {island.name: peak for island, peak in needed})
