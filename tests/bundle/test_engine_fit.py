"""Whether an engine fits a machine and a graph: each reason why not, with what was built, what is here, what to run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from blip3v.bundle.engines import (
    RECORD,
    BuiltGraph,
    EngineHost,
    EngineLimits,
    EngineRecord,
    check_engine,
    engine_file,
    find_engine,
)
from blip3v.errors import ArtifactError, ArtifactHashError, ArtifactMissingError, EngineMismatchError

GRAPH = "0" * 64
ENGINE = b"a plan" * 100
HOST = EngineHost(
    library="tensorrt_rtx", library_version="1.7.1.116", compute_capability="8.6", platform="linux-x86_64"
)
RECORDED = EngineRecord(
    library="tensorrt_rtx",
    library_version="1.7.1.116",
    compute_capabilities=("8.6", "8.9"),
    platform="linux-x86_64",
    limits=EngineLimits(max_batch_size=1, max_frames=8, max_seq_len=512, prefill_chunk=256),
    version_compatible=False,
    hardware_compatibility="none",
    optimization_level=3,
    graphs={
        "decoder": BuiltGraph(
            graph_sha256=GRAPH,
            sha256=hashlib.sha256(ENGINE).hexdigest(),
            size_bytes=len(ENGINE),
            build_s=1.5,
            peak_rss_bytes=None,
        )
    },
)


def publish(bundle: Path, record: EngineRecord = RECORDED) -> Path:
    folder = bundle / "engines" / record.key
    folder.mkdir(parents=True)
    record.save(folder)
    (folder / engine_file("decoder")).write_bytes(ENGINE)
    return folder


def test_the_engine_of_this_machine_is_found_and_checked(tmp_path: Path) -> None:
    other = dataclasses.replace(RECORDED, library_version="1.8.0.1")
    publish(tmp_path, other)
    folder = publish(tmp_path)
    (tmp_path / "engines" / ".unfinished.0a1b2c3d.partial").mkdir()
    assert find_engine(tmp_path / "engines", "decoder", GRAPH, HOST) == (folder, RECORDED)
    assert check_engine(folder, "decoder", GRAPH, HOST) == RECORDED


BUILT = "was built with TensorRT-RTX 1.7.1.116 for compute capability 8.6, 8.9 and linux-x86_64; here is "


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        pytest.param(
            {"library_version": "1.8.0.1"},
            f"{BUILT}TensorRT-RTX 1.8.0.1, compute capability 8.6 and linux-x86_64",
            id="another version",
        ),
        pytest.param(
            {"compute_capability": "9.0"},
            f"{BUILT}TensorRT-RTX 1.7.1.116, compute capability 9.0 and linux-x86_64",
            id="another GPU",
        ),
        pytest.param(
            {"platform": "linux-aarch64"},
            f"{BUILT}TensorRT-RTX 1.7.1.116, compute capability 8.6 and linux-aarch64",
            id="another processor",
        ),
        pytest.param(
            {"library": "tensorrt", "library_version": "11.4.0"},
            f"{BUILT}TensorRT 11.4.0, compute capability 8.6 and linux-x86_64",
            id="another library",
        ),
    ],
)
def test_an_engine_for_something_else_is_refused(tmp_path: Path, host: Any, reason: str) -> None:
    folder, here = publish(tmp_path), dataclasses.replace(HOST, **host)
    with pytest.raises(EngineMismatchError) as caught:
        check_engine(folder, "decoder", GRAPH, here)
    advice = f"run `blip3v build {tmp_path}` on this machine"
    assert str(caught.value) == f"{folder / 'decoder.engine'} {reason}; {advice}"
    with pytest.raises(EngineMismatchError) as caught:
        find_engine(tmp_path / "engines", "decoder", GRAPH, here)
    assert str(caught.value) == f"no engine of {tmp_path} fits: {folder.name} {reason}; {advice}"


def test_a_bundle_that_was_exported_again_needs_new_engines(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    with pytest.raises(EngineMismatchError, match="was built from another decoder: the bundle was exported again"):
        check_engine(folder, "decoder", "1" * 64, HOST)
    with pytest.raises(EngineMismatchError, match="has no engine of the video_encoder"):
        check_engine(folder, "video_encoder", GRAPH, HOST)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(ENGINE[:-1], "has 599 bytes; 600 were built", id="truncated"),
        pytest.param(ENGINE[:-1] + b"!", r"is not the engine that was built \(sha256 differs\)", id="altered"),
    ],
)
def test_a_damaged_engine_is_never_loaded(tmp_path: Path, content: bytes, message: str) -> None:
    folder = publish(tmp_path)
    (folder / "decoder.engine").write_bytes(content)
    with pytest.raises(ArtifactHashError, match=message) as caught:
        check_engine(folder, "decoder", GRAPH, HOST)
    assert f"delete {folder} and run `blip3v build {tmp_path}`" in str(caught.value)


def test_a_missing_engine_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError) as caught:
        find_engine(tmp_path / "engines", "decoder", GRAPH, HOST)
    assert str(caught.value) == f"{tmp_path} has no engines; run `blip3v build {tmp_path}`"
    folder = publish(tmp_path)
    (folder / "decoder.engine").unlink()
    with pytest.raises(ArtifactMissingError, match=r"decoder\.engine is missing"):
        check_engine(folder, "decoder", GRAPH, HOST)
    (folder / RECORD).write_text("{}")
    with pytest.raises(ArtifactError, match="build the engines again"):
        check_engine(folder, "decoder", GRAPH, HOST)


@pytest.mark.parametrize(
    ("flags", "host", "fits"),
    [
        pytest.param({"version_compatible": True}, {"library_version": "1.8.0"}, True, id="a later version"),
        pytest.param({"version_compatible": True}, {"library_version": "1.6.9"}, False, id="an earlier version"),
        pytest.param({"hardware_compatibility": "ampere_plus"}, {"compute_capability": "12.0"}, True, id="a later GPU"),
        pytest.param(
            {"hardware_compatibility": "ampere_plus"}, {"compute_capability": "7.5"}, False, id="before Ampere"
        ),
        pytest.param(
            {"hardware_compatibility": "same_compute_capability"}, {"compute_capability": "9.0"}, False, id="other SM"
        ),
    ],
)
def test_compatible_engines_fit_what_they_were_built_for(tmp_path: Path, flags, host, *, fits: bool) -> None:
    folder = publish(tmp_path, dataclasses.replace(RECORDED, **flags))
    here = dataclasses.replace(HOST, **host)
    if fits:
        check_engine(folder, "decoder", GRAPH, here)
    else:
        with pytest.raises(EngineMismatchError):
            check_engine(folder, "decoder", GRAPH, here)


def test_the_key_does_not_depend_on_what_the_build_came_to() -> None:
    """So that an engine that is there already is found before it is built."""
    built = dataclasses.replace(RECORDED.graphs["decoder"], sha256="1" * 64, size_bytes=1, build_s=9.0)
    assert dataclasses.replace(RECORDED, graphs={"decoder": built}).key == RECORDED.key
    assert dataclasses.replace(RECORDED, optimization_level=5).key != RECORDED.key
    assert RECORDED.key.startswith("tensorrt_rtx-1.7.1.116-sm86-sm89-")
