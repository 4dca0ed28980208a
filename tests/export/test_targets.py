"""Graphs for TensorRT: their decoder against the uncached reference, and whole bundles from export to answer."""

# Shapes: L prompt tokens, D width, V logits.

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_models import WINDOWED, embeddings, small_config, uncached_logits, write_folder

from blip3v.bundle import Precision, open_bundle
from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import TARGETS, Target
from blip3v.data.film import make_film
from blip3v.data.mp4 import write_mp4
from blip3v.errors import ProviderError, UsageError
from blip3v.export import export_bundle, folder_source
from blip3v.export.to_onnx import decoder_to_onnx, save_graph
from blip3v.model import Blip3Video
from blip3v.model.weights import random_model
from blip3v.runtime import VideoLM
from blip3v.runtime.backends import Decoder, GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline

FORMS: tuple[Target, ...] = ("tensorrt", "tensorrt-legacy")
OPERATORS_SINCE_24 = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}
FP32 = Precision.parse("fp32").decoder  # ONNX Runtime computes it for any target; TensorRT's attention needs fp16


@pytest.fixture(scope="module", params=[(FORMS[0], "plain"), (FORMS[0], "windowed"), (FORMS[1], "plain")], ids="-".join)
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Blip3Video, Decoder]]:
    target, kind = request.param
    config = small_config("tokenlearner", **(WINDOWED if kind == "windowed" else {}))
    model = random_model(config)
    path = tmp_path_factory.mktemp(f"{target}-{kind}") / "decoder.onnx"
    save_graph(decoder_to_onnx(config, model.state_dict(), FP32, target=target), path)
    graph = GraphFile(path=path, io=decoder_io(config, target), precision=FP32, weights_bytes=0)
    with closing(get_backend("onnxruntime").open_decoder(graph, config.text, chunk=5)) as opened:
        yield model, opened


@pytest.mark.parametrize("num_prefilled", [1, 4, 5, 12])
def test_cached_decoding_equals_the_uncached_reference(decoder: tuple[Blip3Video, Decoder], num_prefilled: int) -> None:
    """Prefill in chunks of 5 tokens, then one token after the other."""
    model, opened = decoder
    embeds_LD = embeddings(model.config.text, 13)
    expected_LV = uncached_logits(model, embeds_LD)
    with closing(opened.session(1, 13)) as session:
        logits_1V = session.prefill([embeds_LD[:num_prefilled]], Deadline())
        for position in range(num_prefilled, 14):
            np.testing.assert_allclose(logits_1V[0], expected_LV[position - 1], atol=2e-4)
            if position < 13:
                logits_1V = session.step(embeds_LD[position][None])


def test_rows_of_different_lengths_do_not_see_each_other(decoder: tuple[Blip3Video, Decoder]) -> None:
    model, opened = decoder
    rows = [embeddings(model.config.text, length, seed=length) for length in (5, 2)]
    expected = [uncached_logits(model, row)[-2:] for row in rows]
    with closing(opened.session(2, 6)) as session:
        first_2V = session.prefill([row[:-1] for row in rows], Deadline())
        second_2V = session.step(np.stack([row[-1] for row in rows]))
        session.drop_row(0)
        assert session.lengths == (2,)
    np.testing.assert_allclose(first_2V, [each[0] for each in expected], atol=2e-4)
    np.testing.assert_allclose(second_2V, [each[1] for each in expected], atol=2e-4)


@pytest.mark.parametrize(("target", "encoder"), [("tensorrt", "gttm"), ("tensorrt-legacy", "tokenlearner")])
def test_a_bundle_is_checked_and_answers(target: Target, encoder: str, tmp_path: Path) -> None:
    """The export compares both graphs with PyTorch and fails if they differ; ONNX Runtime answers from them."""
    config = dataclasses.replace(small_config(encoder), num_frames=2)
    source = folder_source(write_folder(tmp_path / "model", config))
    result = export_bundle(source, tmp_path / "bundle", target=target)
    assert result.parity is not None
    assert result.parity.passed

    film = tmp_path / "film.mp4"
    write_mp4(make_film(3, "test"), film, height=240)
    with VideoLM.open(result.path) as model:
        answer = model.ask(film, "Which way does the red circle turn?")
    assert len(answer.frames) == 2
    assert answer.token_ids

    manifest = open_bundle(result.path).manifest
    assert manifest.target == target
    for name in ("video_encoder", "decoder"):
        graph = onnx.load(result.path / manifest.graphs[name].file, load_external_data=False)
        operators = {node.op_type for node in graph.graph.node}
        assert {node.domain for node in graph.graph.node} == {""}
        assert "Scan" not in operators
        assert bool(operators & OPERATORS_SINCE_24) == (target == "tensorrt")
        assert graph.opset_import[0].version == manifest.opset == (24 if target == "tensorrt" else 20)

    with pytest.raises(ProviderError, match=f"openvino does not run graphs exported for {target}"):
        VideoLM.open(result.path, backend="openvino")


@pytest.mark.parametrize(
    ("precision", "target", "message"),
    [
        ("fp32", "tensorrt", "TensorRT's attention computes in half precision"),
        ("fp16+kv-int8", "tensorrt-rtx", "no KV cache in int8"),
        ("int4", "tensorrt-legacy", "no weights in blocks"),
    ],
)
def test_a_precision_that_the_target_cannot_have_is_refused(precision: str, target: Target, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        for_target(Precision.parse(precision), target)


def test_for_tensorrt_all_floats_of_a_quantised_graph_are_half() -> None:
    for target in TARGETS[1:]:
        precision = for_target(Precision.parse("int8"), target)
        assert (precision.decoder.io, precision.decoder.cache) == ("float16", "float16")
        assert precision.name == "int8"
        assert {island.weights for island in precision.video_encoder.islands} == {"float16"}
    assert for_target(Precision.parse("int8"), "onnxruntime") == Precision.parse("int8")
