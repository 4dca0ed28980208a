"""Weights that are added to a graph after tracing: when they are read, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_models import small_config
from torch import Tensor, nn

from blip3v.bundle.precision import PRECISIONS
from blip3v.config import ModelConfig
from blip3v.errors import ExportError
from blip3v.export.lazy_initializers import WeightSource, set_lazy_initializers, with_placeholders
from blip3v.export.passes import TRANSPOSED
from blip3v.export.to_onnx import decoder_to_onnx, save_graph
from blip3v.model.language import embedding_table, head_bias, head_matrix
from blip3v.model.weights import RandomWeights, random_model

FP32, FP16 = PRECISIONS["fp32"].decoder, PRECISIONS["fp16"].decoder


class Watched(Mapping[str, Tensor]):
    """Records every read of a weight."""

    def __init__(self, config: ModelConfig, changed: Mapping[str, Tensor] | None = None) -> None:
        self._weights = RandomWeights(config)
        self._changed = changed or {}
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return self._changed.get(name, self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def test_tracing_reads_no_weight_and_writing_reads_each_once(tmp_path: Path) -> None:
    config = small_config()
    weights = Watched(config)
    graph = decoder_to_onnx(config, weights, FP16)
    assert weights.read == []
    save_graph(graph, tmp_path / "decoder.onnx")
    expected = [name for name in weights if name.startswith("lang_model.") and ".embed_tokens." not in name]
    assert sorted(weights.read) == sorted(expected)


def test_the_stored_weights_are_the_models_own(tmp_path: Path) -> None:
    config = small_config()
    save_graph(decoder_to_onnx(config, RandomWeights(config), FP32), tmp_path / "decoder.onnx")
    stored = ir.load(tmp_path / "decoder.onnx").graph.initializers
    state = random_model(config).state_dict()
    for layer in range(config.text.num_layers):
        wanted = state[
            f"lang_model.model.layers.{layer}.self_attn.o_proj.weight"
        ]  # square: its shape would not show a transposition
        value = stored[f"layers.{layer}.o_proj.weight"].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), wanted.numpy().T)


def test_a_weight_that_half_precision_cannot_hold_is_named(tmp_path: Path) -> None:
    config = small_config()
    name = "lang_model.model.layers.1.mlp.down_proj.weight"
    large = RandomWeights(config)[name].clone()
    large[3, 5] = 7e4
    graph = decoder_to_onnx(config, Watched(config, {name: large}), FP16)
    with pytest.raises(ExportError, match=r"layers.1.down_proj.weight holds values that float16 cannot.*70000"):
        save_graph(graph, tmp_path / "decoder.onnx")
    save_graph(decoder_to_onnx(config, Watched(config, {name: large}), FP32), tmp_path / "fp32.onnx")


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    config = small_config()
    name = "lang_model.model.layers.0.mlp.down_proj.weight"
    graph = decoder_to_onnx(config, Watched(config, {name: torch.zeros(3, 4)}), FP32)
    with pytest.raises(ExportError, match=r"layers.0.down_proj.weight has shape \(4, 3\)"):
        save_graph(graph, tmp_path / "decoder.onnx")


def _source(weight: Tensor) -> WeightSource:
    return WeightSource(lambda: weight, "layer", ("name",))


def _graph(**initializers: np.ndarray) -> ir.Model:
    values = [ir.Value(name=name, const_value=ir.tensor(array, name=name)) for name, array in initializers.items()]
    return ir.Model(ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 24}), ir_version=10)


def test_a_constant_that_was_computed_from_a_weight_is_refused() -> None:
    """With placeholders it is NaN; with zeros in their place it would have been a silent zero."""
    with pytest.raises(ExportError, match="the constant folded from a weight"):
        set_lazy_initializers(_graph(folded=np.array([1.0, np.nan], np.float32)), {}, FP32)


def test_a_weight_that_the_graph_does_not_hold_is_refused() -> None:
    with pytest.raises(ExportError, match=r"the weights norm\.weight are not in the graph"):
        set_lazy_initializers(_graph(other=np.ones(2, np.float32)), {"norm.weight": _source(torch.ones(2))}, FP32)


def test_a_transposed_weight_is_transposed_on_reading() -> None:
    model = _graph(matrix=np.full((2, 3), np.nan, np.float32))
    model.graph.initializers["matrix"].metadata_props[TRANSPOSED] = "1"
    set_lazy_initializers(model, {"matrix": _source(torch.arange(6.0).reshape(3, 2))}, FP32)
    value = model.graph.initializers["matrix"].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), [[0, 2, 4], [1, 3, 5]])


def test_small_placeholders_all_differ() -> None:
    """Torch merges small constants with equal bits: two norms of the same width would become one."""
    with torch.device("meta"):
        module = nn.Sequential(nn.LayerNorm(96), nn.LayerNorm(96), nn.Linear(96, 4096))
    for precision in (FP32, FP16):
        parts = [x.numpy().tobytes() for x in with_placeholders(module, precision).parameters() if x.ndim == 1]
        assert len(set(parts)) == len(parts) == 5
        assert all(np.isnan(x.numpy()).all() for x in with_placeholders(module, precision).parameters())


def test_tables_from_weights_are_the_modules_own() -> None:
    config = small_config()
    language, weights = random_model(config).lang_model, RandomWeights(config)
    matrix_VD, bias_V = language.lm_head.matrix()
    assert torch.equal(head_matrix(weights, config.text), matrix_VD)
    assert torch.equal(head_bias(weights, config.text), bias_V)
    table_VD = language.model.embed_tokens.table()  # type: ignore[operator]
    assert torch.equal(embedding_table(weights, config.text), table_VD)
