"""How the linear layers of quantised graphs are stored, and what each back end computes them in: a row for each kind.

The written files are the evidence: what a precision asks for says little where a width is no multiple of the group.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from blip3v.bundle.layout import graph_file
from blip3v.bundle.precision import GraphPrecision, Precision
from blip3v.calibration.layers import linear_layers
from blip3v.config import ModelConfig
from blip3v.export.accuracy import LayerFormats
from blip3v.export.stored_layers import StoredLayer, read_layers
from blip3v.export.to_onnx import layer_names
from blip3v.runtime.backends import GRAPHS, Backend, GraphName

__all__ = ["computed_in", "count_formats", "layer_formats", "read_quantized"]


def read_quantized(folder: Path, config: ModelConfig, precision: Precision) -> dict[str, list[StoredLayer]]:
    """Reads the layers of the quantised graphs of a bundle, by graph.

    Args:
        folder: the bundle.
        config: the model's.
        precision: of its graphs.
    """
    quantized = [graph for graph in GRAPHS if precision.graphs[graph].is_quantized]
    names = layer_names(config) if quantized else {}
    return {graph: read_layers(folder / graph_file(graph), names[graph]) for graph in quantized}


def layer_formats(
    stored: Mapping[str, Sequence[StoredLayer]],
    config: ModelConfig,
    precision: Precision,
    backends: Mapping[str, Mapping[GraphName, Backend]],
) -> tuple[LayerFormats, ...]:
    """Returns the formats of all linear layers of the quantised graphs, in the order of their first layers.

    Args:
        stored: the layers of each graph.
        config: the model's.
        precision: of its graphs.
        backends: the back end of each graph, by the text that names them.
    """
    linear = linear_layers(config)
    found: list[LayerFormats] = []
    for graph in GRAPHS:
        if not precision.graphs[graph].is_quantized:
            continue
        layers = [layer for layer in stored[graph] if layer.layer in linear]
        engines = {name: chosen[graph] for name, chosen in backends.items()}
        found += count_formats(layers, graph, precision.graphs[graph], engines)
    return tuple(found)


def count_formats(
    layers: list[StoredLayer], graph: str, precision: GraphPrecision, backends: Mapping[str, Backend]
) -> list[LayerFormats]:
    """Returns the formats of the layers of one graph."""
    kinds = [
        LayerFormats(
            graph=graph,
            weights=layer.weights,
            group_size=layer.group_size,
            padded=layer.group_size is not None and layer.num_inputs % layer.group_size != 0,
            num_layers=1,
            computed=computed_in(precision, backends, layer),
        )
        for layer in layers
    ]
    first = {kind.key: kind for kind in reversed(kinds)}
    counts = Counter(kind.key for kind in kinds)
    return [dataclasses.replace(first[key], num_layers=count) for key, count in counts.items()]


def computed_in(precision: GraphPrecision, backends: Mapping[str, Backend], layer: StoredLayer) -> dict[str, str]:
    """Returns what each back end computes a layer in, by the name of the back end.

    Args:
        precision: of the layer's graph.
        backends: by name.
        layer: as it is stored.
    """
    return {
        name: str(
            dataclasses.replace(
                backend.execution(precision),
                dtype=backend.layer_dtype(precision, layer.weights, layer.group_size, layer.num_inputs),
            )
        )
        for name, backend in backends.items()
    }
