"""Engines of a toy bundle, built with the real TensorRT-RTX: what is published, and every bundle that must not be.

Building needs no GPU; reading an engine does, so what is in one is seen in its bytes and in the parsed network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from toy_tensorrt import FP16, decoder_model, int8_decoder, trt_config, video_encoder_model, write_trt_bundle

from blip3v.bundle import reader
from blip3v.bundle.engines import EngineHost, EngineLimits, EngineRecord, check_engine
from blip3v.bundle.reader import open_bundle
from blip3v.bundle.verify import verify_bundle
from blip3v.errors import (
    ArtifactError,
    ArtifactHashError,
    BackendError,
    EngineMismatchError,
    ExportError,
    ProviderError,
    UsageError,
)
from blip3v.export import engine_builder, engine_report, engines
from blip3v.export.engine_network import layer_precisions, parse_graph
from blip3v.export.engine_report import no_report, read_engine
from blip3v.export.engine_request import EngineRequest
from blip3v.export.engines import EngineBuild, build_engines
from blip3v.runtime.opening import graph_hash
from blip3v.runtime.tensorrt_library import TensorRT, compute_capability, host_platform, is_installed, load_tensorrt

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT-RTX is not installed"),
]
SMALL = EngineRequest(max_seq_len=64, prefill_chunk=64, compute_capability=("8.6",))


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same everywhere: nothing is built for, or read on, a GPU that this machine happens to have."""
    monkeypatch.setattr(engines, "compute_capability", lambda: None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineBuild]:
    """A bundle and its engines, for tests that change nothing."""
    bundle = write_trt_bundle(tmp_path_factory.mktemp("bundles") / "toy")
    return bundle, build_engines(bundle, SMALL)


@pytest.fixture
def rtx() -> TensorRT:
    return load_tensorrt("tensorrt_rtx")


def host(record: EngineRecord) -> EngineHost:
    return EngineHost(
        library=record.library,
        library_version=record.library_version,
        compute_capability="8.6",
        platform=host_platform(),
    )


def test_both_graphs_are_built_and_published_under_their_key(built: tuple[Path, EngineBuild]) -> None:
    bundle, result = built
    record = result.record
    assert result.is_new
    assert result.path == bundle / "engines" / record.key
    assert sorted(file.name for file in result.path.iterdir()) == [
        "decoder.engine",
        "engine.json",
        "video_encoder.engine",
    ]
    assert [path.name for path in (bundle / "engines").iterdir()] == [record.key]
    assert EngineRecord.load(result.path) == record
    assert record.limits == EngineLimits(max_batch_size=1, max_frames=4, max_seq_len=64, prefill_chunk=64)
    assert record.compute_capabilities == ("8.6",)
    for name, graph in record.graphs.items():
        content = (result.path / f"{name}.engine").read_bytes()
        assert graph.sha256 == hashlib.sha256(content).hexdigest()
        assert graph.size_bytes == len(content)
        assert graph.graph_sha256 == graph_hash(open_bundle(bundle), name)  # type: ignore[arg-type]
        assert check_engine(result.path, name, graph.graph_sha256, host(record)) == record
    assert "no CUDA driver" in str(result.unreadable)
    assert verify_bundle(bundle).ok


def test_the_network_computes_in_half_precision(built: tuple[Path, EngineBuild]) -> None:
    _, result = built
    layers = result.layers["decoder"]
    assert layers["MATRIX_MULTIPLY"] == {"HALF": 4 * 3 + 1}
    assert layers["KV_CACHE_UPDATE"] == {"HALF": 2 * 3}
    assert result.layers["video_encoder"]["MATRIX_MULTIPLY"] == {"HALF": 1}


def test_int8_is_in_the_network_and_in_the_bytes_of_the_engine(tmp_path: Path) -> None:
    model = decoder_model(trt_config(), int8=True)
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name.endswith(".int8")]
    bundle = write_trt_bundle(tmp_path / "toy", decoder=model, precision=int8_decoder())
    result = build_engines(bundle, SMALL)
    layers = result.layers["decoder"]
    assert layers["DEQUANTIZE"] == {"INT8": 2 * 4 * 3}
    assert layers["QUANTIZE"] == {"INT8": 4 * 3}
    plan = (result.path / "decoder.engine").read_bytes()
    for weight in weights:
        forms = (weight, np.ascontiguousarray(weight.T))
        assert any(form.tobytes() in plan for form in forms), "the weight is not in 8 bits there"


def test_engines_of_a_key_are_kept_until_force(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy")
    first = build_engines(bundle, SMALL)
    engine = first.path / "decoder.engine"
    written = engine.stat().st_mtime_ns
    again = build_engines(bundle, SMALL)
    assert (again.is_new, again.record, engine.stat().st_mtime_ns) == (False, first.record, written)
    forced = build_engines(bundle, SMALL, force=True)
    assert forced.is_new
    assert engine.stat().st_mtime_ns > written
    other = build_engines(bundle, EngineRequest(max_seq_len=128, compute_capability=("8.6",)))
    assert other.path != first.path
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"are damaged: .* were built; .* or replace them with `force=True`"):
        build_engines(bundle, SMALL)
    (first.path / "engine.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"are damaged: .* has schema_version None"):
        build_engines(bundle, SMALL)
    assert build_engines(bundle, SMALL, force=True).record.key == first.record.key


def test_a_bundle_that_was_exported_again_gets_engines_of_its_own(tmp_path: Path) -> None:
    old = build_engines(write_trt_bundle(tmp_path / "old"), SMALL)
    edited = write_trt_bundle(tmp_path / "new", edit=lambda model: setattr(model, "producer_name", "edited"))
    with pytest.raises(EngineMismatchError, match="was built from another decoder"):
        check_engine(old.path, "decoder", graph_hash(open_bundle(edited), "decoder"), host(old.record))
    assert build_engines(edited, SMALL).record.key != old.record.key


def test_several_gpus_are_served_by_one_engine(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy")
    record = build_engines(bundle, EngineRequest(compute_capability=("12.0", "8.6"))).record
    assert record.compute_capabilities == ("8.6", "12.0")
    assert "-sm86-sm120-" in record.key
    with pytest.raises(UsageError, match=r"does not build for compute capability 9\.0; it does for 7\.5, 8\.0, 8\.6"):
        build_engines(bundle, EngineRequest(compute_capability=("9.0",)))


def test_weights_that_changed_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_trt_bundle(tmp_path / "toy")
    data = bundle / "onnx" / "decoder.data"
    data.write_bytes(b"\0" + data.read_bytes()[1:])
    monkeypatch.setattr(reader, "HASH_ON_OPEN_BYTES", 0)  # as if the file were large
    with pytest.raises(ArtifactHashError, match=r"decoder\.data is not the file that was written"):
        build_engines(bundle, SMALL)


def drop_keys(model: onnx.ModelProto) -> None:
    """Attention with nonpad_kv_seqlen in place of the mask: the parser takes it and leaves the lengths out."""
    at = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Squeeze")
    valid = helper.make_node("Add", ["write_indices", model.graph.node[at].output[0]], ["valid"], "/valid")
    model.graph.node.insert(at + 1, valid)
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3:]
            node.input.extend(["", "", "", "valid"])


def ignore_logits_index(model: onnx.ModelProto) -> None:
    at = next(index for index, node in enumerate(model.graph.node) if node.input[:1] == ["logits_index"])
    model.graph.node[at].input[0] = "other_B1"
    other = helper.make_node("Unsqueeze", ["write_indices", "axis1"], ["other_B1"], "/other")
    model.graph.node.insert(at, other)


def unknown_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "RMSNormalization").op_type = "Det"


def foreign_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "RMSNormalization").domain = "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))


def rename_output(model: onnx.ModelProto) -> None:
    for value in (*model.graph.output, *(node for node in model.graph.node if node.output[0] == "logits")):
        if isinstance(value, onnx.NodeProto):
            value.output[0] = "scores"
        elif value.name == "logits":
            value.name = "scores"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(drop_keys, r"drops valid, an input of /Attention\.\d+ \(Attention\)", id="dropped"),
        pytest.param(ignore_logits_index, "does not read logits_index of the decoder", id="unread input"),
        pytest.param(unknown_operator, r"cannot parse the decoder: /RMSNorm.* \(Det\)", id="no operator"),
        pytest.param(rename_output, "leaves logits out of the decoder", id="no output"),
    ],
)
def test_a_network_that_is_not_the_graph_is_refused(tmp_path: Path, rtx: TensorRT, edit: Any, message: str) -> None:
    """What the parser says nothing about is seen in what it made."""
    bundle = open_bundle(write_trt_bundle(tmp_path / "toy", edit=edit))
    with pytest.raises(BackendError, match=message):
        parse_graph(rtx, tmp_path / "toy" / "onnx" / "decoder.onnx", bundle.manifest.graphs["decoder"], capacity=64)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(drop_keys, r"/Attention\.\d+: .*it drops others", id="dropped"),
        pytest.param(foreign_operator, r"my\.ops", id="domain"),
        pytest.param(unknown_operator, "Det", id="no operator"),
    ],
)
def test_a_graph_that_breaks_a_rule_is_not_built(tmp_path: Path, edit: Any, message: str) -> None:
    bundle = write_trt_bundle(tmp_path / "toy", edit=edit)
    with pytest.raises(ExportError, match=message):
        build_engines(bundle, SMALL)
    assert not any((bundle / "engines").iterdir())


def test_an_asymmetric_zero_point_is_found_before_the_build(tmp_path: Path) -> None:
    shifted = decoder_model(trt_config(), int8=True, zero_point=3)
    bundle = write_trt_bundle(tmp_path / "toy", decoder=shifted, precision=int8_decoder())
    with pytest.raises(ExportError, match="is shifted; zero points are absent, or constants that are 0"):
        build_engines(bundle, SMALL)


def test_a_precision_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy", precision=int8_decoder())
    with pytest.raises(BackendError, match="would not compute the decoder in int8: matrix products: 13 in HALF"):
        build_engines(bundle, SMALL)


def test_a_cache_of_any_length_is_refused_by_the_parser(tmp_path: Path, rtx: TensorRT) -> None:
    """So the builder writes the capacity into the graph that it parses."""
    bundle = open_bundle(write_trt_bundle(tmp_path / "toy"))
    entry, path = bundle.manifest.graphs["decoder"], tmp_path / "toy" / "onnx" / "decoder.onnx"
    with pytest.raises(BackendError, match="KV cache tensor must have a static sequence length"):
        parse_graph(rtx, path, entry, capacity=None)
    network = parse_graph(rtx, path, entry, capacity=48)
    shapes = {network.definition.get_input(index).shape[2] for index in range(3, network.definition.num_inputs)}
    assert shapes == {48}
    assert layer_precisions(network.definition)["ATTENTION_INPUT"] == {"HALF": 3}


def test_shapes_that_the_builder_fails_at_are_told_with_others_to_try(tmp_path: Path, rtx: TensorRT) -> None:
    """TensorRT-RTX 1.7.1 compiles no short chunk with a batch of 1, the same graph with a batch of 2."""
    if not rtx.version.startswith("1.7."):
        pytest.skip("another version may build it")
    bundle = write_trt_bundle(tmp_path / "toy")
    with pytest.raises(BackendError, match="cannot build the decoder: IBuilder") as caught:
        build_engines(bundle, EngineRequest(max_seq_len=64, prefill_chunk=16))
    assert caught.value.remedy == "other shapes may build: try `prefill_chunk=256` or `max_batch_size=2`"
    assert not any((bundle / "engines").iterdir())
    build_engines(bundle, EngineRequest(max_seq_len=64, prefill_chunk=16, max_batch_size=2))


def test_a_batch_that_is_fixed_in_the_graph_is_the_only_one(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy", video_encoder=video_encoder_model(trt_config(), batch=1))
    assert build_engines(bundle, SMALL).is_new
    with pytest.raises(UsageError, match="batch of the video_encoder is 1 in its graph, and 2 was asked for"):
        build_engines(bundle, EngineRequest(max_batch_size=2, compute_capability=("8.6",)))


def test_progress_goes_forward_through_both_graphs(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy")
    calls: list[tuple[str, int, int]] = []
    build_engines(bundle, SMALL, progress=lambda stage, done=0, total=0: calls.append((stage, done, total)))
    assert list(dict.fromkeys(stage for stage, *_ in calls)) == [
        "hash the video_encoder",
        "hash the decoder",
        "check the video_encoder",
        "check the decoder",
        "parse the video_encoder",
        "build the video_encoder",
        "parse the decoder",
        "build the decoder",
    ]
    steps = [done for stage, done, _ in calls if stage == "build the decoder"]
    assert steps == sorted(steps)
    assert 500 < steps[-1] <= 1000


def test_two_builds_of_a_key_build_once(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy")
    with ThreadPoolExecutor(2) as pool:
        results = [*pool.map(lambda _: build_engines(bundle, SMALL), range(2))]
    assert sorted(result.is_new for result in results) == [False, True]
    assert results[0].record == results[1].record


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, rtx: TensorRT) -> TensorRT:
    """TensorRT-RTX under the name of TensorRT, on a GPU of which only the name is known: nothing can be read on it.

    Both have one interface. TensorRT-RTX answers the calls that only TensorRT needs by doing nothing.
    """
    named = TensorRT("tensorrt", rtx.module, "11.4.0.106")
    monkeypatch.setattr(engines, "load_tensorrt", lambda library: named)
    monkeypatch.setattr(engines, "compute_capability", lambda: "8.7")
    monkeypatch.setattr(engines, "write_layer_reports", lambda tensorrt, folder, record: record)
    return named


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.usefixtures("stand_in")
def test_tensorrt_builds_for_its_own_gpu_and_keeps_what_it_measured(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy", target="tensorrt")
    request = EngineRequest(
        max_seq_len=64, hardware_compatibility="ampere_plus", workspace_bytes=2**28, optimization_level=1
    )
    result = build_engines(bundle, request)
    record = result.record
    assert (record.library, record.compute_capabilities) == ("tensorrt", ("8.7",))
    assert (record.hardware_compatibility, record.optimization_level) == ("ampere_plus", 1)
    assert result.unreadable is None
    assert {path.name for path in (bundle / "engines").iterdir()} == {record.key, "tensorrt-11.4.0.106-sm87.timing"}
    assert verify_bundle(bundle).ok
    assert not build_engines(bundle, request).is_new


def test_a_library_that_cannot_stream_writes_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: TensorRT
) -> None:
    """Older versions of TensorRT have no stream of the engine; a stand-in builder hides it."""

    class Builder:
        def __init__(self, builder: Any) -> None:
            self.build_serialized_network = builder.build_serialized_network

    write = engine_builder._write_engine
    monkeypatch.setattr(engine_builder, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(
        engine_builder, "_write_engine", lambda trt, builder, *rest: write(trt, Builder(builder), *rest)
    )
    result = build_engines(write_trt_bundle(tmp_path / "toy"), SMALL)
    for name, built in result.record.graphs.items():
        content = (result.path / f"{name}.engine").read_bytes()
        assert (built.size_bytes, built.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_layer_report_needs_the_gpu(built: tuple[Path, EngineBuild], rtx: TensorRT) -> None:
    _, result = built
    assert "no CUDA driver" in str(no_report(result.record, None))
    assert no_report(result.record, "9.0") == "this machine's GPU has compute capability 9.0; the engines are for 8.6"
    assert no_report(result.record, "8.6") is None
    if compute_capability() is None:
        with pytest.raises(BackendError, match=r"cannot read .*decoder\.engine: .*CUDA driver version is insufficient"):
            read_engine(rtx, result.path / "decoder.engine")


def test_what_engines_take_of_a_gpu_is_recorded_where_they_can_be_read(
    built: tuple[Path, EngineBuild], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: TensorRT
) -> None:
    """Without a GPU nothing is known of it. ``FakeEngine`` is one that was read."""

    class FakeEngine:
        num_optimization_profiles = 2

        def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
            assert hasattr(rtx.module.ICudaEngine, "get_device_memory_size_for_profile_v2")
            return 100 + profile_index

    record = built[1].record
    if compute_capability() is None:
        assert [each.activation_bytes for each in record.graphs.values()] == [None, None]
    monkeypatch.setattr(engine_report, "read_engine", lambda tensorrt, engine, **options: FakeEngine())
    monkeypatch.setattr(engine_report, "layer_report", lambda tensorrt, engine: {})
    found = engine_report.write_layer_reports(rtx, tmp_path, record)
    assert [each.activation_bytes for each in found.graphs.values()] == [201, 201]
    assert found.key == record.key
    found.save(tmp_path)
    assert EngineRecord.load(tmp_path) == found


@pytest.mark.gpu
def test_every_layer_of_an_engine_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: TensorRT) -> None:
    """With the GPU of this machine."""
    capability = compute_capability()
    if capability not in engine_builder.rtx_capabilities(rtx):
        pytest.skip(f"TensorRT-RTX builds for no GPU with compute capability {capability}")
    monkeypatch.setattr(engines, "compute_capability", lambda: capability)
    result = build_engines(write_trt_bundle(tmp_path / "toy"), EngineRequest(max_seq_len=64))
    assert result.unreadable is None
    for name in result.record.graphs:
        assert json.loads((result.path / f"{name}.layers.json").read_text("utf-8"))["Layers"]


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to one's own process ends it there")
def test_ctrl_c_ends_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    bundle = write_trt_bundle(tmp_path / "toy")
    steps: list[int] = []
    pressed = threading.Event()

    def press(stage: str, done: int = 0, total: int = 0) -> None:
        steps.append(done)
        if stage == "build the decoder" and done > 100 and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, SMALL, progress=press)
    assert steps[-1] < 800
    assert not any((bundle / "engines").iterdir())
    assert build_engines(bundle, SMALL).is_new


def test_tensorrt_itself_needs_a_gpu_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtx: TensorRT) -> None:
    """A fake in place of TensorRT, which is not installed where there is no GPU: it is never called."""
    fake = TensorRT("tensorrt", None, "11.4.0.106")
    monkeypatch.setattr(engines, "load_tensorrt", lambda library: fake)
    bundle = write_trt_bundle(tmp_path / "toy", target="tensorrt")
    with pytest.raises(ProviderError, match="on the GPU that is to run it, and this machine has no CUDA driver"):
        build_engines(bundle)


@pytest.mark.parametrize(
    ("target", "version", "message"),
    [
        pytest.param(
            "tensorrt", "10.3.0", r"TensorRT 10\.15 or later does: install one, or export .*-legacy", id="10.3"
        ),
        pytest.param("tensorrt", "10.14.1", r"TensorRT 10\.15 or later does", id="10.14"),
        pytest.param("tensorrt-legacy", "8.6.1", r"TensorRT 10\.3 or later does: install one$", id="8.6"),
    ],
)
def test_a_version_without_the_operators_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target, version: str, message: str
) -> None:
    """A fake in place of an old TensorRT."""
    monkeypatch.setattr(engines, "load_tensorrt", lambda library: TensorRT("tensorrt", None, version))
    with pytest.raises(ProviderError, match=message):
        build_engines(write_trt_bundle(tmp_path / "toy", target=target))


def test_expected_warnings_are_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_engines(write_trt_bundle(tmp_path / "toy", precision=FP16), SMALL)
    assert [record.getMessage() for record in caplog.records] == []
