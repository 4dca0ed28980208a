"""The manifest: round trip, strictness, and what its constructors put into it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fake_bundle import CONFIG, FP16, fake_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip3v.bundle import (
    GraphEntry,
    KVGeometry,
    Limits,
    Manifest,
    Precision,
    Source,
    WeightCount,
    decoder_io,
    video_encoder_io,
)
from blip3v.bundle.graph_io import TensorSpec
from blip3v.bundle.layout import GRAPHS, graph_file
from blip3v.bundle.manifest import FileEntry
from blip3v.bundle.precision import GraphPrecision, Island
from blip3v.config import preset
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError

COUNTS = st.integers(1, 2**40)
SIZES = st.integers(0, 2**60)
# No lone surrogates: no UTF-8 file can hold them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\"), min_size=1, max_size=12)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
SPECS = st.builds(
    TensorSpec,
    name=TEXTS,
    dtype=st.sampled_from(["float16", "float32", "int64", "int32"]),
    axes=st.lists(TEXTS | COUNTS, max_size=5).map(tuple),
)
SPEC_LISTS = st.lists(SPECS, max_size=3).map(tuple)
GRAPH_ENTRIES = st.fixed_dictionaries(
    {
        name: st.builds(GraphEntry, file=st.just(graph_file(name)), inputs=SPEC_LISTS, outputs=SPEC_LISTS)
        for name in GRAPHS
    }
)
FLOATS = st.sampled_from(["float16", "float32"])
PATTERNS = st.lists(TEXTS, min_size=1, max_size=2).map(tuple)
ISLANDS = st.builds(Island, name=TEXTS, parameters=PATTERNS, weights=TEXTS) | st.builds(
    Island, name=TEXTS, nodes=PATTERNS, weights=TEXTS
)


def specs(cache: st.SearchStrategy[str | None]) -> st.SearchStrategy[GraphPrecision]:
    return st.builds(
        GraphPrecision,
        name=st.sampled_from(["fp32", "fp16", "int4"]),
        weights=TEXTS,
        activations=TEXTS,
        io=FLOATS,
        cache=cache,
        islands=st.lists(ISLANDS, max_size=2).map(tuple),
        group_size=st.none() | COUNTS,
    )


FILE_NAMES = st.sampled_from(
    ["config.json", "README.md", "reports/parity.json", "onnx/decoder.data", "onnx/video_encoder.a-b_1.2.data"]
)
COUNTED = st.builds(WeightCount, num_tensors=COUNTS, num_elements=COUNTS, size_bytes=SIZES)
MANIFESTS = st.builds(
    Manifest,
    created_by=st.dictionaries(TEXTS, TEXTS, max_size=3),
    source=st.builds(
        Source,
        name=NAMES,
        sha256=st.dictionaries(TEXTS, DIGESTS, max_size=2),
        random_init=st.booleans(),
        trained=st.booleans(),
    ),
    model=TEXTS,
    encoder=st.sampled_from(["gttm", "of-another-package"]),
    num_frames=COUNTS,
    num_video_tokens=COUNTS,
    precision=st.builds(Precision, video_encoder=specs(st.none()), decoder=specs(FLOATS)),
    target=st.just("onnxruntime"),
    opset=COUNTS,
    graphs=GRAPH_ENTRIES,
    kv=st.builds(
        KVGeometry,
        num_layers=COUNTS,
        num_kv_heads=COUNTS,
        head_dim=COUNTS,
        sliding_window=st.none() | COUNTS,
        bytes_per_token=COUNTS,
    ),
    limits=st.builds(Limits, max_context=COUNTS),
    weights=st.dictionaries(TEXTS, st.dictionaries(TEXTS, COUNTED, max_size=2), max_size=2),
    parity=st.none() | st.dictionaries(TEXTS, JSON, max_size=3),
    files=st.dictionaries(FILE_NAMES, st.builds(FileEntry, sha256=DIGESTS, size_bytes=SIZES), max_size=3),
    calibration=st.none() | st.dictionaries(TEXTS, JSON, max_size=3),
    schema_version=st.just(2),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(manifest=MANIFESTS)
def test_any_manifest_comes_back_the_same(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "manifest.json"
    manifest.save(path)
    assert Manifest.load(path) == manifest


def test_the_entry_of_a_graph_follows_the_table_of_inputs_and_outputs() -> None:
    entry = GraphEntry.of("decoder", decoder_io(CONFIG), FP16.decoder)
    by_name = {spec.name: spec for spec in (*entry.inputs, *entry.outputs)}
    assert entry.file == "onnx/decoder.onnx"
    assert by_name["inputs_embeds"].dtype == "float16"
    assert by_name["logits"] == TensorSpec(name="logits", dtype="float32", axes=("batch", "num_positions", 611))
    assert by_name["past.3.key"] == TensorSpec(name="past.3.key", dtype="float16", axes=("batch", 4, "capacity", 32))
    assert by_name["total_sequence_length"].axes == ()
    assert (
        GraphEntry.of("video_encoder", video_encoder_io(CONFIG), Precision.parse("fp32").video_encoder).inputs[0].dtype
        == "float32"
    )


def test_kv_of_the_released_model() -> None:
    """384 KiB per token in fp16: 2 x 32 layers x 32 heads x 96 x 2 bytes."""
    kv = KVGeometry.of(preset("xgen-mm-vid"), FP16.decoder)
    assert (kv.bytes_per_token, kv.sliding_window, kv.head_dim) == (384 * 1024, 2047, 96)


def test_weights_are_counted_by_graph() -> None:
    assert fake_manifest().weights_bytes("decoder") == 64
    assert fake_manifest().weights_bytes("video_encoder") == 0


def changed_spec(graph: str, **changes: object) -> dict[str, object]:
    values = dataclasses.asdict(FP16)
    return {**values, graph: {**values[graph], **changes}}


def symbolic_graphs() -> dict[str, object]:
    """The graphs of a manifest that leaves the reader to guess a dtype."""
    graphs = fake_manifest().to_dict()["graphs"]
    graphs["decoder"]["inputs"][0]["dtype"] = "compute"
    return dict(graphs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_token": 3}, "did you mean 'num_video_tokens'"),
        ({"precision": "fp16"}, "an object with the keys of Precision"),
        ({"precision": changed_spec("decoder", name="fp8")}, "decoder is 'fp8'; allowed: fp32, fp16"),
        ({"precision": changed_spec("decoder", io="int8")}, "allowed: float32, float16"),
        ({"precision": changed_spec("decoder", cache=None)}, "must have a cache dtype"),
        ({"precision": changed_spec("video_encoder", cache="float16")}, "must have none"),
        ({"precision": changed_spec("decoder", island=[])}, "did you mean 'islands'"),
        ({"graphs": symbolic_graphs()}, "inputs_embeds of decoder is 'compute'"),
        ({"encoder": 5}, "str is expected"),
        ({"target": "tensorflow"}, "allowed: onnxruntime"),
        ({"opset": "24"}, "int is expected"),
        ({"opset": True}, "int is expected"),
        ({"num_frames": 0}, "at least 1"),
        ({"calibration": 1}, "calibration"),
        ({"graphs": {}}, "video_encoder and decoder are needed"),
        ({"files": {"config.json": {"sha256": "0" * 63, "size_bytes": 1}}}, "64 lower-case hex digits"),
        ({"files": {"config.json": {"sha256": "0" * 64 + "\n", "size_bytes": 1}}}, "64 lower-case hex digits"),
        ({"files": {"config.json": {"sha256": "0" * 64, "size_bytes": -1}}}, "size of -1 bytes"),
        ({"source": {"name": "a/b", "sha256": {}, "random_init": False, "trained": True}}, "without a path"),
        (
            {"source": {"name": "b", "sha256": {"x": "?"}, "random_init": False, "trained": True}},
            "64 lower-case hex digits",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_reading_is_strict(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**fake_manifest().to_dict(), **change}))
    with pytest.raises(ArtifactError) as caught:
        Manifest.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", sorted(fake_manifest().to_dict().keys() - {"files", "calibration", "schema_version"}))
def test_every_key_is_required(tmp_path: Path, key: str) -> None:
    values = fake_manifest().to_dict()
    del values[key]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=f"lacks the key '{key}'"):
        Manifest.load(path)


def test_values_are_checked_when_a_manifest_is_made() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        dataclasses.replace(fake_manifest(), num_video_tokens=0)


@pytest.mark.parametrize("parity", [{"error": float("nan")}, {"error": Path()}, {"text": "x" * 2**20}], ids=str)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, parity: dict[str, object]) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(ArtifactError, match="manifest"):
        dataclasses.replace(fake_manifest(), parity=parity).save(path)
    assert not path.exists()


def test_a_folder_without_the_file_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="is not a bundle"):
        Manifest.load(tmp_path / "manifest.json")
