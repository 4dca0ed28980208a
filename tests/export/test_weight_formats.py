"""A format that stores several tensors per weight is added through the tables alone: int8 values and scales."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_models import SharedBuffers, embeddings, small_config, uncached_logits, write_folder
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bundle import Precision, open_bundle
from blip3v.bundle.precision import PRECISIONS, Island, NamedPrecision, Tolerance
from blip3v.errors import ArtifactError
from blip3v.export import export_bundle, folder_source
from blip3v.export.estimate import estimate
from blip3v.export.format_table import WEIGHT_FORMATS
from blip3v.export.to_onnx import decoder_to_onnx, save_graph
from blip3v.export.weight_formats import StoredTensor
from blip3v.model.weights import RandomWeights, random_model
from blip3v.runtime import GenerationOptions, VideoLM

LARGEST = 127


class Int8Columns:
    """Symmetric int8 with one scale per column."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[NDArray[Any]]] = []
        self.most_alive = 0

    def layout(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        rows, columns = shape
        return {
            ".values": StoredTensor(ir.DataType.INT8, (rows, columns)),
            ".scales": StoredTensor(ir.DataType.FLOAT, (columns,)),
        }

    def store(self, weight: Tensor) -> Mapping[str, NDArray[Any]]:
        self.most_alive = max(self.most_alive, sum(array() is not None for array in self._made))
        scales = weight.abs().amax(0) / LARGEST
        stored = {".values": (weight / scales).round().to(torch.int8).numpy(), ".scales": scales.numpy()}
        self._made += [weakref.ref(array) for array in stored.values()]
        return stored

    def rewrite(self, graph: ir.Graph, weight: ir.Value, stored: Mapping[str, ir.Value]) -> None:
        node = ir.node("DequantizeLinear", [stored[".values"], stored[".scales"]], attributes={"axis": 1})
        node.outputs[0].name = f"{weight.name}.dequantized"
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(weight, node.outputs[0])


def dequantised(weight: Tensor) -> Tensor:
    """The values that the graph computes with, for a weight in PyTorch's layout, (N, K)."""
    scales = weight.abs().amax(1, keepdim=True) / LARGEST
    return (weight / scales).round() * scales


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Int8Columns:
    """The format, registered as int8-toy."""
    fp32, columns = PRECISIONS["fp32"], Int8Columns()
    head = Island(name="head", parameters=("lm_head",), weights="float32")
    decoder = dataclasses.replace(fp32.decoder, name="int8-toy", weights="int8-columns", islands=(head,))
    encoder = dataclasses.replace(fp32.video_encoder, name="int8-toy", weights="int8-columns")
    tolerance = Tolerance(relative_error=0.5, cosine=0.9, reason="random weights, 8 bits")
    entry = NamedPrecision(video_encoder=encoder, decoder=decoder, tolerance=tolerance)
    monkeypatch.setitem(PRECISIONS, "int8-toy", entry)
    monkeypatch.setitem(WEIGHT_FORMATS, "int8-columns", lambda weight: columns)
    return columns


class Counted(Mapping[str, Tensor]):
    """Random weights that record what is read."""

    def __init__(self) -> None:
        self._weights = RandomWeights(small_config())
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def test_one_weight_becomes_several_tensors_lazily_and_computes_the_same(toy: Int8Columns, tmp_path: Path) -> None:
    config, weights, path = small_config(), Counted(), tmp_path / "decoder.onnx"
    graph = decoder_to_onnx(config, weights, PRECISIONS["int8-toy"].decoder)
    assert weights.read == []
    save_graph(graph, path)
    assert len(weights.read) == len(set(weights.read)) > 0, "a weight is read once for all its tensors"
    assert toy.most_alive <= 2, "at most the tensors of one weight are in memory"

    stored = ir.load(path).graph.initializers
    shape = stored["layers.1.down_proj.weight.values"].shape
    assert (stored["layers.1.down_proj.weight.values"].dtype, shape) == (ir.DataType.INT8, ir.Shape([384, 128]))
    assert stored["layers.1.down_proj.weight.scales"].shape == ir.Shape([128])
    assert "layers.1.down_proj.weight" not in stored
    for kept in ("lm_head", "norm.weight"):  # an island; not the weight of a matrix product
        assert stored[kept].dtype == ir.DataType.FLOAT

    reference = random_model(config)
    for name, parameter in reference.lang_model.named_parameters():
        if "_proj." in name:
            parameter.copy_(dequantised(parameter))
    embeds_LD = embeddings(config.text, 9)
    # ONNX Runtime fuses the pair into MatMulNBits, and by default rounds its other input to int8 too; 1 is fp32.
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    got = SharedBuffers(session, config.text, 1, 16)(embeds_LD[None], [9], [8])
    np.testing.assert_allclose(got[0], uncached_logits(reference, embeds_LD)[-1], atol=2e-5, rtol=0)


def test_a_bundle_in_this_format_exports_passes_parity_and_answers(toy: Int8Columns, tmp_path: Path) -> None:
    source = folder_source(write_folder(tmp_path / "model", small_config()))
    precision = Precision.parse("video_encoder=fp32,decoder=int8-toy")
    result = export_bundle(source, tmp_path / "bundle", precision=precision)
    manifest = open_bundle(result.path).manifest
    assert manifest.precision == precision
    assert manifest.weights["decoder"]["int8"].num_elements > 0
    assert result.parity is not None
    assert result.parity.tolerances["video_encoder"].relative_error == 1e-3
    assert result.parity.tolerances["decoder"].relative_error == 0.5
    film = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), np.uint8)
    with VideoLM.open(result.path) as model:
        answer = model.ask(film, "Why?", options=GenerationOptions(max_new_tokens=4, ignore_stop_token=True))
    assert len(answer.token_ids) == 4
    assert str(answer.backend).startswith("stored video_encoder=fp32,decoder=int8-toy, computed")


def test_the_estimate_counts_what_a_format_stores(toy: Int8Columns) -> None:
    config = small_config()
    fp32, mixed = (
        estimate(config, Precision.parse(name)).disk_bytes for name in ("fp32", "video_encoder=fp32,decoder=int8-toy")
    )
    text = config.text
    matrices = text.num_layers * text.hidden_size * (4 * text.hidden_size + 3 * text.intermediate_size)
    assert fp32 - mixed > 0.7 * 4 * matrices


def test_a_scale_that_is_not_finite_is_refused(toy: Int8Columns, tmp_path: Path) -> None:
    name = "lang_model.model.layers.0.mlp.down_proj.weight"
    weights = dict(RandomWeights(small_config()).items())
    weights[name] = torch.full_like(weights[name], torch.inf)
    graph = decoder_to_onnx(small_config(), weights, PRECISIONS["int8-toy"].decoder)
    with pytest.raises(ArtifactError, match=r"layers.0.down_proj.weight in the source holds .* not finite: 49152 of"):
        save_graph(graph, tmp_path / "decoder.onnx")
