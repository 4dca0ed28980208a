"""Weights that ONNX Runtime has packed before: the same answers, found for the machine they were packed on alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v import cli
from blip3v.bundle import open_bundle
from blip3v.bundle.engines import engine_folders
from blip3v.errors import ArtifactError, UsageError
from blip3v.export.packed_graphs import build_packed, build_prompt_weights
from blip3v.runtime import GenerationOptions, VideoLM, packed_graphs
from blip3v.runtime.backends import get_backend
from blip3v.runtime.backends.onnxruntime import BACKEND
from blip3v.runtime.opening import graph_files
from blip3v.runtime.packed_graphs import find_packed, packed_folder

pytestmark = pytest.mark.skipif(not get_backend("onnxruntime").is_installed(), reason="ONNX Runtime is not installed")


@pytest.fixture(scope="module", autouse=True)
def packs_fp32() -> Iterator[None]:
    """The toy graphs have fp32 weights, whose packed form ONNX Runtime stores like that of int8 ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_graphs, "_PACKABLE", frozenset({"float32"}))
        yield


def toy(path: Path, precision: str = "fp32") -> Path:
    config = toy_config()
    return write_bundle(path, config, Weights.random(config.text), precision=precision)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = toy(tmp_path_factory.mktemp("packed") / "toy")
    assert build_packed(bundle).is_new
    return bundle


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "toy"))


def answer(bundle: Path) -> tuple[list[int], np.ndarray]:
    frames = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), np.uint8)
    with VideoLM.open(bundle, backend="onnxruntime", threads=1) as lm:
        video = lm.encode(frames)
        options = GenerationOptions(max_new_tokens=12, ignore_stop_token=True)
        return list(lm.ask(video, "Which way?", options=options).token_ids), np.asarray(video.tokens)


def test_answers_are_those_of_the_graphs_that_were_packed(copy: Path) -> None:
    graphs = graph_files(open_bundle(copy))
    assert all(find_packed(graph) is not None for graph in graphs.values())
    ids, tokens = answer(copy)
    shutil.rmtree(copy / "engines")
    assert all(find_packed(graph) is None for graph in graphs.values())
    plain_ids, plain_tokens = answer(copy)
    assert ids == plain_ids
    assert np.array_equal(tokens, plain_tokens)


def test_the_packed_graph_is_what_is_opened(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    plain = packed_graphs.find_packed

    def find(graph: object) -> Path | None:
        found = plain(graph)  # type: ignore[arg-type]
        opened.extend([] if found is None else [found])
        return found

    monkeypatch.setattr("blip3v.runtime.backends.onnxruntime.find_packed", find)
    answer(copy)
    assert {path.name for path in opened} == {"decoder.onnx", "video_encoder.onnx"}
    assert all(path.parent.parent == copy / "engines" for path in opened)


def test_packed_weights_stay_in_their_file(copy: Path) -> None:
    graph = graph_files(open_bundle(copy))["decoder"]
    assert BACKEND.footprint(graph).weights_bytes == 0
    with_file_s = BACKEND.open_s(graph)
    shutil.rmtree(copy / "engines")
    assert BACKEND.footprint(graph).weights_bytes == graph.weights_bytes
    assert with_file_s < BACKEND.open_s(graph)


@pytest.mark.parametrize("change", ["version", "processor", "graph"])
def test_another_machine_or_graph_has_none(copy: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_files(open_bundle(copy))["decoder"]
    before = packed_folder(graph)
    if change == "version":
        monkeypatch.setattr(packed_graphs, "package_version", lambda name: "0.1")
    elif change == "processor":
        monkeypatch.setattr(packed_graphs, "_processor", lambda: "another")
    else:
        monkeypatch.setattr("blip3v.runtime.opening.graph_hash", lambda bundle, name: "another")
        graph = graph_files(open_bundle(copy))["decoder"]
    assert packed_folder(graph) != before
    assert find_packed(graph) is None


def test_a_cut_file_is_refused_before_it_is_mapped(copy: Path) -> None:
    folder = packed_folder(graph_files(open_bundle(copy))["decoder"])
    assert folder is not None
    data = folder / "decoder.onnx"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="does not hold the files that were written; delete it"):
        answer(copy)
    (folder / "packed.json").unlink()
    with pytest.raises(ArtifactError, match=r"cannot be read: .*; delete it"):
        answer(copy)


def test_what_is_there_is_kept_and_is_no_engine_of_tensorrt(copy: Path) -> None:
    assert not build_packed(copy).is_new
    assert build_packed(copy, force=True).is_new
    assert engine_folders(copy / "engines") == []
    open_bundle(copy)  # nothing in it is unknown


def test_other_bundles_have_nothing_to_pack(tmp_path: Path) -> None:
    bundle = toy(tmp_path / "toy", "fp16")
    assert packed_folder(graph_files(open_bundle(bundle))["decoder"]) is None
    with pytest.raises(UsageError, match="ONNX Runtime keeps packed weights of int8 graphs for onnxruntime alone"):
        build_packed(bundle)


def test_only_decoders_in_blocks_have_weights_for_prompts(
    packed: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they are made of and compute: test_quantized_export.py."""
    with pytest.raises(UsageError, match=r"has a decoder in fp32, without weights in blocks.*`prompt_weights` out, or"):
        build_prompt_weights(packed)
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(copy), "--library", "onnxruntime", "--prompt-weights", "int8"])
    assert ended.value.code == 2
    assert "leave --prompt-weights out, or export with --precision int4" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(copy), "--prompt-weights", "int8"])
    assert ended.value.code == 2
    assert "has no effect without --library onnxruntime; add it" in capsys.readouterr().err


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: object, folder: Path) -> None:
        (folder / "decoder.onnx").write_bytes(b"half")
        raise OSError("no space")

    bundle = toy(tmp_path / "toy")
    monkeypatch.setattr("blip3v.export.packed_graphs.write_packed", fail)
    with pytest.raises(ArtifactError, match="cannot be written"):
        build_packed(bundle)
    assert [path for path in (bundle / "engines").iterdir() if not path.name.startswith(".")] == []


def test_the_command(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "engines")
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(copy), "--library", "onnxruntime", "--json", "-q"])
    assert ended.value.code == 0
    values = json.loads(capsys.readouterr().out)
    assert values["is_new"]
    assert set(values["graphs"]) == {"video_encoder", "decoder"}
    assert values["size_bytes"] > 0
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", str(copy), "--library", "onnxruntime", "--max-frames", "4"])
    assert ended.value.code == 2
    assert "--max-frames is for TensorRT and has no effect with --library onnxruntime" in capsys.readouterr().err
