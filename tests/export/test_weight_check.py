"""Weights that a bundle cannot hold are refused by name before any graph is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_models import small_config
from safetensors.torch import load_file, save_file

from blip3v.bundle import Precision
from blip3v.errors import ArtifactError, Blip3vError, ExportError
from blip3v.export import export_bundle, folder_source
from blip3v.export.to_onnx import save_graph
from blip3v.export.weight_check import check_weights
from blip3v.model.weight_values import largest_value
from blip3v.model.weights import RandomWeights

EMBEDDING = "lang_model.model.embed_tokens.weight"
ADDED = "lang_model.model.embed_tokens.additional_embedding.weight"
HEAD, BIAS = "lang_model.lm_head.weight", "lang_model.lm_head.additional_fc.bias"
NORM, PATCHES = "lang_model.model.norm.weight", "vision_encoder.embeddings.patch_embedding.weight"
MATRIX = "lang_model.model.layers.1.mlp.down_proj.weight"
WRITE = "vision_tokenizer.temporal_encoder.ttm_unit.write_layer.mlp.3.weight"  # small: stored inside the graph
LARGE, NAN = 7e4, float("nan")
MIXED = "video_encoder=fp32,decoder=fp16"


@pytest.mark.parametrize(
    ("name", "value", "precision", "error"),
    [
        (EMBEDDING, NAN, "fp32", ArtifactError),
        (WRITE, NAN, "fp32", ArtifactError),
        (WRITE, -torch.inf, "fp16", ArtifactError),
        (MATRIX, torch.inf, "fp16", ArtifactError),
        (EMBEDDING, LARGE, "fp16", ExportError),
        (ADDED, -LARGE, "fp16", ExportError),
        (HEAD, LARGE, "fp16", ExportError),
        (NORM, LARGE, "fp16", ExportError),
        (MATRIX, LARGE, MIXED, ExportError),
        (PATCHES, LARGE, "fp16", ExportError),
        # stored in fp32
        (PATCHES, LARGE, MIXED, None),
        (WRITE, LARGE, "fp16", None),
        (BIAS, LARGE, "fp16", None),
        (EMBEDDING, LARGE, "fp32", None),
        # what fp16 rounds to its largest
        (MATRIX, 65519.0, "fp16", None),
    ],
)
def test_each_weight_is_checked_in_the_format_that_it_is_stored_in(
    name: str, value: float, precision: str, error: type[Blip3vError] | None
) -> None:
    config = small_config("gttm")
    weights = dict(RandomWeights(config).items())
    weights[name] = weights[name].clone()
    weights[name].view(-1)[-1] = value
    if error is None:
        check_weights(weights, config, Precision.parse(precision))
        return
    with pytest.raises(error, match=name.replace(".", r"\.")) as caught:
        check_weights(weights, config, Precision.parse(precision))
    # In fp32 the advice would be wrong, and it does not help against what is not finite.
    assert ("export with `precision='fp32'`" in str(caught.value)) == (error is ExportError)


def test_each_weight_is_scanned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: for values that are not finite, and for the largest. Weights of a file were scanned when read, too."""
    config = small_config("gttm")
    weights = dict(RandomWeights(config).items())
    scanned: list[int] = []

    def largest(weight: torch.Tensor) -> float:
        scanned.append(id(weight))
        return largest_value(weight)

    for module in ("export.weight_check", "model.weight_values"):
        monkeypatch.setattr(f"blip3v.{module}.largest_value", largest)
    check_weights(weights, config, Precision.parse("fp16"))
    assert scanned == [id(weight) for weight in weights.values()]


def test_a_broken_row_that_the_check_does_not_read_is_found_before_any_graph(folder: Path) -> None:
    """A bundle with NaN in a row of the embedding was published: no other row than the prompt's was ever read."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[f"vlm.{EMBEDDING}"][601] = torch.nan
    save_file(tensors, path)
    stages: list[str] = []
    with pytest.raises(ArtifactError, match=r"embed_tokens\.weight in .* not finite: 128 of 81920; .*download"):
        export_bundle(
            folder_source(folder),
            folder.with_name("bundle"),
            progress=lambda stage, done=0, total=0: stages.append(stage),
        )
    assert set(stages) == {"check the weights"}
    assert [item.name for item in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("error", [ArtifactError("broken"), OSError(28, "full")])
def test_an_error_of_a_weight_stored_inside_the_graph_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    """Up to 256 bytes are written inline, and onnx_ir wraps what that raises: the command ended in its traceback."""

    def read() -> ir.TensorProtocol:
        raise error

    lazy = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([4]), name="small")
    value = ir.Value(name="small", const_value=lazy)
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 24})
    with pytest.raises(type(error)) as caught:
        save_graph(ir.Model(graph, ir_version=10), tmp_path / "graph.onnx")
    assert caught.value is error


def test_what_onnx_ir_itself_cannot_write_is_an_export_error(tmp_path: Path) -> None:
    class Odd:
        name, dtype, shape, nbytes, size = "odd", ir.DataType.FLOAT, ir.Shape([4]), 16, 4
        doc_string = metadata_props = meta = None

        def numpy(self) -> np.ndarray:
            raise ValueError("odd")

        tobytes = __array__ = numpy

    value = ir.Value(name="odd", const_value=Odd())  # type: ignore[arg-type]
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 24})
    with pytest.raises(ExportError, match=r"graph\.onnx cannot be written"):
        save_graph(ir.Model(graph, ir_version=10), tmp_path / "graph.onnx")
