"""Which engine of a bundle is opened, without TensorRT: several libraries, keys and damaged files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from cuda_stand_in import VERSIONS
from toy_engines import CAPABILITY, write_engines
from toy_graphs import toy_config, write_video_encoder
from toy_parts import graph_file

from blip3v.bundle.engines import RECORD, EngineHost
from blip3v.bundle.graph_io import video_encoder_io
from blip3v.errors import ArtifactError, ArtifactHashError, ArtifactMissingError, EngineMismatchError
from blip3v.runtime.backends import GraphFile
from blip3v.runtime.backends.tensorrt.selection import choose_engine
from blip3v.runtime.tensorrt_library import host_platform

RTX = EngineHost(
    library="tensorrt_rtx",
    library_version=VERSIONS["tensorrt_rtx"],
    compute_capability=CAPABILITY,
    platform=host_platform(),
)
TENSORRT = dataclasses.replace(RTX, library="tensorrt", library_version=VERSIONS["tensorrt"])


@pytest.fixture
def graph(tmp_path: Path) -> GraphFile:
    config = toy_config()
    write_video_encoder(tmp_path / "video_encoder.onnx", config)
    found = graph_file(tmp_path / "video_encoder.onnx", video_encoder_io(config))
    return dataclasses.replace(found, digest="of the graph", engines=tmp_path / "engines")


def _write(graph: GraphFile, host: EngineHost = RTX, **changes: tuple[str, ...]) -> Path:
    graphs = {"video_encoder": graph}
    return write_engines(graph.engines, graphs, library=host.library, **changes)


def test_each_library_takes_its_own_engine(graph: GraphFile) -> None:
    folders = {host.library: _write(graph, host) for host in (RTX, TENSORRT)}
    for host in (RTX, TENSORRT):
        assert choose_engine(graph, "video_encoder", [host]).path.parent == folders[host.library]


def test_where_both_libraries_are_installed_the_one_that_has_an_engine_is_taken(graph: GraphFile) -> None:
    _write(graph, RTX)
    assert choose_engine(graph, "video_encoder", [TENSORRT, RTX]).record.library == "tensorrt_rtx"


def test_a_refusal_compares_an_engine_with_its_own_library(graph: GraphFile) -> None:
    _write(graph, RTX, capabilities=("12.0",))
    with pytest.raises(
        EngineMismatchError, match=rf"for compute capability 12\.0 .*here is TensorRT-RTX {RTX.library_version}"
    ):
        choose_engine(graph, "video_encoder", [TENSORRT, RTX])


def test_a_graph_without_engines_is_refused(graph: GraphFile) -> None:
    with pytest.raises(ArtifactMissingError, match="has no engines; run `blip3v build"):
        choose_engine(graph, "video_encoder", [RTX])
    with pytest.raises(ArtifactMissingError, match="not in a bundle"):
        choose_engine(dataclasses.replace(graph, engines=None), "video_encoder", [RTX])
    _write(graph)
    with pytest.raises(EngineMismatchError, match="has no engine of the decoder"):
        choose_engine(graph, "decoder", [RTX])


def test_an_engine_of_another_graph_is_refused(graph: GraphFile) -> None:
    _write(graph)
    with pytest.raises(EngineMismatchError, match="was built from another video_encoder"):
        choose_engine(dataclasses.replace(graph, digest="another"), "video_encoder", [RTX])


def test_a_damaged_engine_or_record_is_refused(graph: GraphFile) -> None:
    folder = _write(graph)
    path = folder / "video_encoder.engine"
    plan = path.read_bytes()
    for damaged, message in ((plan[:-1], "were built"), (plan[:-1] + b"?", "sha256 differs")):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactHashError, match=message):
            choose_engine(graph, "video_encoder", [RTX])
    path.unlink()
    with pytest.raises(ArtifactMissingError, match="is missing"):
        choose_engine(graph, "video_encoder", [RTX])
    (folder / RECORD).write_text("{")
    with pytest.raises(ArtifactError, match=RECORD):
        choose_engine(graph, "video_encoder", [RTX])
