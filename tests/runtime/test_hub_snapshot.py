"""A bundle in the hub's cache, all links into ``blobs/``, answers on each engine as the same files in a folder do."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_bundle import rewrite
from hub_cache import as_snapshot

from blip3v.errors import ArtifactError, BackendError
from blip3v.runtime import GenerationOptions, VideoLM

QUESTION = "which way does the circle turn"
OPTIONS = GenerationOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def plain(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with the weights of both graphs in files of their own, as real bundles have them."""
    bundle = Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("plain") / "bundle"))
    for name in ("video_encoder", "decoder"):
        graph = bundle / "onnx" / f"{name}.onnx"
        model = onnx.load(graph)
        onnx.save(model, graph, save_as_external_data=True, location=f"{name}.data", size_threshold=200)
        for file in (graph, graph.with_suffix(".data")):
            rewrite(bundle, f"onnx/{file.name}", file.read_bytes())
    return bundle


@pytest.fixture(scope="module")
def expected(plain: Path, backend: str, film: np.ndarray) -> list[int]:
    return answer(plain, backend, film)


def answer(bundle: Path, backend: str, film: np.ndarray) -> list[int]:
    with VideoLM.open(bundle, backend=backend, threads=1) as lm:
        return list(lm.ask(film, QUESTION, options=OPTIONS).token_ids)


@pytest.mark.parametrize("shared", [False, True], ids=["blobs", "shared-blobs"])
def test_a_snapshot_answers_as_a_folder_does(
    plain: Path, expected: list[int], backend: str, film: np.ndarray, tmp_path: Path, shared: bool
) -> None:
    """OpenVINO followed no link to weights outside the graph's folder, ONNX Runtime only those into one folder."""
    snapshot = as_snapshot(plain, tmp_path / "hub", shared=shared)
    assert answer(snapshot, backend, film) == expected
    assert not list(tmp_path.rglob(".blip3v-*"))


def test_without_hard_links_an_engine_follows_the_links_or_says_what_to_do(
    plain: Path, expected: list[int], backend: str, film: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("blip3v.bundle.hub_links.os.link", link)
    snapshot = as_snapshot(plain, tmp_path / "hub")
    if backend == "onnxruntime":
        assert answer(snapshot, backend, film) == expected
    else:
        with pytest.raises(ArtifactError, match=r"this engine does not follow.*cp -rL"):
            answer(snapshot, backend, film)


def test_weights_in_a_file_that_nobody_hashes_are_not_read(
    plain: Path, expected: list[int], backend: str, film: np.ndarray, tmp_path: Path
) -> None:
    """Such a bundle answered, and answered otherwise after the file was swapped; ``verify`` found nothing changed."""
    bundle = Path(shutil.copytree(plain, tmp_path / "bundle"))
    (bundle / "onnx" / "._w").write_bytes((bundle / "onnx" / "decoder.data").read_bytes())
    assert answer(bundle, backend, film) == expected  # a stranger alone does no harm
    graph = bundle / "onnx" / "decoder.onnx"
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "._w"
    rewrite(bundle, "onnx/decoder.onnx", model.SerializeToString())
    with pytest.raises(BackendError):
        answer(bundle, backend, film)
