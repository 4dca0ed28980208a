"""What is in the files: the inputs and outputs of the contract, real fp16, nothing about the machine that made them."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from export_models import Exported, small_config

from blip3v.bundle.graph_io import SYMBOLIC_DTYPES, GraphIO, TensorSpec, decoder_io, video_encoder_io
from blip3v.bundle.precision import PRECISIONS
from blip3v.errors import ExportError
from blip3v.export.passes import fit_io, weight_counts
from blip3v.export.precision import parameter_formats
from blip3v.export.video_encoder_graph import ScannedRecurrence, VideoEncoderGraph
from blip3v.model.temporal import encoder_names
from blip3v.model.weights import random_model

VideoEncoders = Callable[[str, str], Exported]
Decoders = Callable[[str], Exported]

FP32 = PRECISIONS["fp32"].video_encoder
TYPES = {"float32": 1, "float16": 10, "int32": 6, "int64": 7}


def check_io(path: Path, io: GraphIO, floats: str) -> None:
    graph = onnx.load(path, load_external_data=False).graph
    for specs, values in ((io.inputs, graph.input), (io.outputs, graph.output)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for spec, value in zip(specs, values, strict=True):
            tensor = value.type.tensor_type
            assert tensor.elem_type == TYPES[floats if spec.dtype in SYMBOLIC_DTYPES else spec.dtype], spec.name
            assert tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim) == spec.axes, spec.name


def test_the_inputs_and_outputs_are_the_contracts(video_encoder: VideoEncoders, decoder: Decoders) -> None:
    for precision, compute in (("fp32", "float32"), ("fp16", "float16")):
        encoder = video_encoder("tokenlearner", precision)
        check_io(encoder.path, video_encoder_io(encoder.model.config), compute)
        check_io(decoder(precision).path, decoder_io(decoder(precision).model.config), compute)


def test_fp16_weights_are_fp16_except_for_the_islands(video_encoder: VideoEncoders, decoder: Decoders) -> None:
    graphs = {
        "decoder": ir.load(decoder("fp16").path),
        "tokenlearner": ir.load(video_encoder("tokenlearner", "fp16").path),
        "gttm": ir.load(video_encoder("gttm", "fp16").path),
    }
    islands = {
        name: [
            value.name
            for value in graph.graph.initializers.values()
            if value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.size > 48
        ]
        for name, graph in graphs.items()
    }
    assert len(islands["decoder"]) == 1
    assert weight_counts(graphs["decoder"])["float32"].num_elements == 611  # the logits' bias
    assert islands["tokenlearner"] == []
    temporal = video_encoder("gttm", "fp16").model.vision_tokenizer.temporal_encoder
    sizes = [parameter.numel() for parameter in temporal.parameters()]
    found = [graphs["gttm"].graph.initializers[name].const_value.size for name in islands["gttm"]]  # type: ignore[union-attr, index]
    assert sorted(found) == sorted(size for size in sizes if size > 48)
    for name, graph in graphs.items():
        counts = weight_counts(graph)
        assert counts["float16"].size_bytes == 2 * counts["float16"].num_elements, name


def test_only_a_recurrence_has_weights_that_the_scan_island_names() -> None:
    """The island is matched by the name ``temporal.encoder.*``, which no other encoder may use."""
    spec = PRECISIONS["fp16"].video_encoder
    for encoder in encoder_names():
        module = VideoEncoderGraph(random_model(small_config(encoder)))
        formats = parameter_formats(module, spec)
        kept = {name for name, form in formats.items() if form != "float16"}
        scanned = isinstance(module.temporal, ScannedRecurrence)
        assert bool(kept) is scanned, encoder
        assert {name for name in kept if name.startswith("temporal.")} == {
            f"temporal.{name}" for name, _ in module.temporal.named_parameters() if scanned
        }


def test_no_path_of_this_machine_is_in_the_files(video_encoder: VideoEncoders, decoder: Decoders) -> None:
    paths = [video_encoder(name, "fp32").path for name in ("tokenlearner", "gttm")] + [decoder("fp32").path]
    machine = {str(Path.home()), os.getcwd(), sysconfig.get_paths()["purelib"], "site-packages", ".py", "/tmp"}
    for path in paths:
        content = path.read_bytes()
        assert [text for text in machine if text.encode() in content] == [], path.name
        assert path.with_suffix(".data").stat().st_size > 10 * path.stat().st_size, "the weights are beside the graph"


def test_nodes_and_matrices_are_named_after_their_modules(decoder: Decoders) -> None:
    graph = onnx.load(decoder("fp32").path, load_external_data=False).graph
    node = next(node for node in graph.node if node.name == "/layers.1.o_proj/MatMul")
    assert node.input[1] == "layers.1.o_proj.weight"
    assert len({node.name for node in graph.node}) == len(graph.node)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("frames", "compute", (2, "num_frames", 3, 32, 32)), "axes"),
        (TensorSpec("frames", "int64", ("batch", "num_frames", 3, 32, 32)), "INT64"),
        (TensorSpec("pixels", "compute", ("batch", "num_frames", 3, 32, 32)), "pixels"),
    ],
    ids=["axis", "dtype", "name"],
)
def test_a_graph_that_breaks_the_contract_is_refused(
    video_encoder: VideoEncoders, spec: TensorSpec, message: str
) -> None:
    exported = video_encoder("tokenlearner", "fp32")
    outputs = video_encoder_io(exported.model.config).outputs
    with pytest.raises(ExportError, match=message):
        fit_io(ir.load(exported.path), GraphIO((spec,), outputs).resolved(FP32))


def test_a_fixed_input_axis_that_should_be_free_is_refused(video_encoder: VideoEncoders) -> None:
    exported = video_encoder("tokenlearner", "fp32")
    model = ir.load(exported.path)
    model.graph.inputs[0].shape = ir.Shape([1, "num_frames", 3, 32, 32])
    with pytest.raises(ExportError, match="was exported with the axes"):
        fit_io(model, video_encoder_io(exported.model.config).resolved(FP32))
