"""Graphs whose writer means harm: each engine reads files of the graph's own folder only, and no other.

A bundle's hashes prove that its graphs are the ones that were written, not that their writer meant well. blip3v leaves
the refusal to the engines, from the versions on that the extras name; this is the test that they keep it up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config
from toy_parts import graph_file as toy_file

from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.errors import ArtifactError, BackendError, Blip3vError
from blip3v.runtime import VideoLM
from blip3v.runtime.backends import get_backend

SECRET = np.array([4.0, 3.0, 2.0, 1.0], np.float32)


def run_onnxruntime(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def run_openvino(path: Path, x: np.ndarray) -> np.ndarray:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    return np.asarray(core.compile_model(core.read_model(str(path)), "CPU")([x])[0])


ENGINES = [pytest.param(run_onnxruntime, id="onnxruntime"), pytest.param(run_openvino, id="openvino")]
# OpenVINO reads neither functions nor sparse initializers.
PLACES = ["initializer", "constant", "attribute", "sparse-constant", "subgraph", "function", "sparse-initializer"]
UNKNOWN_TO_OPENVINO = ("function", "sparse-initializer")


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def first_value(location: str) -> TensorProto:
    tensor = external(location)
    tensor.dims[0] = 1
    tensor.external_data[2].value = "4"
    return tensor


def sparse(location: str) -> onnx.SparseTensorProto:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    return onnx.SparseTensorProto(values=external(location), indices=indices, dims=[4])


def hostile_graph(place: str, location: str) -> bytes:
    """A graph that adds what lies at ``location`` to x, named at one of the places that may hold a tensor."""
    nodes, weights, sparse_weights, functions = [helper.make_node("Add", ["x", "w"], ["y"])], [], [], []
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xyz")
    if place == "initializer":
        weights.append(external(location))
    elif place == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=external(location)))
    elif place == "attribute":
        weights.append(helper.make_tensor("shape", TensorProto.INT64, [1], [4]))
        nodes.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["w"], value=first_value(location)))
    elif place == "sparse-constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse(location)))
    elif place == "sparse-initializer":
        sparse_weights.append(sparse(location))
    elif place == "subgraph":
        then = helper.make_graph(nodes, "then", [], [y], initializer=[external(location)])
        otherwise = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "else", [], [z])
        weights.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
        nodes = [helper.make_node("If", ["true"], ["out"], then_branch=then, else_branch=otherwise)]
        y = helper.make_tensor_value_info("out", TensorProto.FLOAT, [4])
    else:
        body = [helper.make_node("Constant", [], ["w"], value=external(location)), *nodes]
        functions.append(helper.make_function("d", "f", ["x"], ["y"], body, [helper.make_opsetid("", 20)]))
        nodes = [helper.make_node("f", ["x"], ["y"], domain="d")]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=weights, sparse_initializer=sparse_weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("d", 1)]
    return bytes(helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10).SerializeToString())


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    """Where to put a graph: its own data is beside it, secrets are one and two folders above."""
    folder = tmp_path / "bundle" / "onnx"
    folder.mkdir(parents=True)
    for path in (folder / "decoder.data", tmp_path / "bundle" / "config.json", tmp_path / "secret"):
        path.write_bytes(SECRET.tobytes())
    (folder / "link.data").symlink_to(tmp_path / "secret")
    return folder / "decoder.onnx"


@pytest.mark.parametrize("run", ENGINES)
@pytest.mark.parametrize("place", PLACES)
def test_a_graph_reads_its_own_data(graph_file: Path, place: str, run: Callable) -> None:
    """Without this the refusals below would prove nothing."""
    if run is run_openvino and place in UNKNOWN_TO_OPENVINO:
        pytest.skip("refused wherever its data lies")
    graph_file.write_bytes(hostile_graph(place, "decoder.data"))
    expected = SECRET[:1].repeat(4) if place == "attribute" else SECRET
    assert np.array_equal(run(graph_file, np.zeros(4, np.float32)), expected)


@pytest.mark.parametrize("run", ENGINES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../config.json", "../../secret", "x/../../config.json", "/", "link.data", ""])
def test_a_graph_cannot_read_outside_its_folder(graph_file: Path, place: str, location: str, run: Callable) -> None:
    outside = str(graph_file.parents[2] / "secret") if location == "/" else location
    graph_file.write_bytes(hostile_graph(place, outside))
    with pytest.raises(Exception, match=r"."):  # what an engine raises is its own; the test above is the control
        run(graph_file, np.zeros(4, np.float32))


def test_a_bundle_with_a_hostile_graph_does_not_open(tmp_path: Path) -> None:
    """Its hashes are right, and the error is ours."""
    config = toy_config()
    bundle = write_bundle(tmp_path / "bundle", config, Weights.random(config.text))
    graph = bundle / "onnx" / "video_encoder.onnx"
    model = onnx.load(graph)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.extend(external("../config.json").external_data)
    graph.write_bytes(model.SerializeToString())
    values = json.loads((bundle / "manifest.json").read_text("utf-8"))
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    values["files"]["onnx/video_encoder.onnx"] = {"sha256": digest, "size_bytes": graph.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(values), "utf-8")
    with pytest.raises(Blip3vError, match=r"escapes model directory|outside the base directory"):
        VideoLM.open(bundle)


@pytest.mark.parametrize("graph", ["decoder", "video_encoder"])
@pytest.mark.parametrize("name", ["input", "output", "both"])
def test_a_tensor_name_that_is_not_utf_8(
    backend: str, bundle_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], graph: str, name: str
) -> None:
    """ONNX Runtime's fallback printed to stdout and opened the graph again, and the UnicodeDecodeError escaped."""
    config = toy_config()
    names = {"decoder": (b"logits_index", b"present.0.key"), "video_encoder": (b"frames", b"video_tokens")}[graph]
    content = (bundle_path / "onnx" / f"{graph}.onnx").read_bytes()
    for old in {"input": names[:1], "output": names[1:], "both": names}[name]:
        assert old in content
        content = content.replace(old, old[:-1] + b"\xff")
    (tmp_path / "graph.onnx").write_bytes(content)
    opened = get_backend(backend)
    openers: dict[str, Callable] = {
        "decoder": lambda path: opened.open_decoder(toy_file(path, decoder_io(config)), config.text),
        "video_encoder": lambda path: opened.open_video_encoder(toy_file(path, video_encoder_io(config))),
    }
    with pytest.raises((ArtifactError, BackendError), match=r"graph\.onnx"):
        openers[graph](tmp_path / "graph.onnx")
    assert capfd.readouterr().out == ""


def test_an_engine_that_fails_is_asked_once(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a ValueError or RuntimeError, ONNX Runtime's own class opens a graph again and says so on stdout.

    Both graphs are opened, at the same time.
    """
    opened: list[object] = []

    def fail(self: object, *arguments: object) -> None:
        opened.append(arguments)
        self._fallback_providers = ["CPUExecutionProvider"]  # type: ignore[attr-defined] # as the real one does
        raise RuntimeError("no such luck")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(BackendError, match="ONNX Runtime failed: no such luck"):
        VideoLM.open(bundle_path, backend="onnxruntime")
    assert (len(opened), capfd.readouterr().out) == (2, "")


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def endless_nesting() -> bytes:
    content = b""
    for _ in range(300):  # attribute.g, node.attribute, graph.node
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + varint(len(content)) + content
    return b"\x3a" + varint(len(content)) + content


@pytest.mark.parametrize("run", ENGINES)
@pytest.mark.parametrize(
    "content",
    [b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x05\x12", b"\x3b", b"\xff" * 11, b"\x3a\x02\x0a\x7f", endless_nesting()],
    ids=["long-field", "short-field", "group", "endless-number", "long-inside", "endless-nesting"],
)
def test_what_is_no_graph_is_refused(graph_file: Path, content: bytes, run: Callable) -> None:
    graph_file.write_bytes(content)
    with pytest.raises(Exception, match=r"."):
        run(graph_file, np.zeros(4, np.float32))
