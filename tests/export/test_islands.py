"""fp32 islands of fp16 graphs: chosen where activations would overflow, and enough so that nothing does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import Exported, embeddings, small_config, write_folder
from large_activations import (
    large_decoder_stream,
    large_gate_and_up,
    large_latents,
    large_product,
    large_temporal_score,
    large_values,
    large_vision_channel,
)
from torch import nn

from blip3v import cli
from blip3v.bundle import open_bundle
from blip3v.bundle.precision import PRECISIONS
from blip3v.calibration.statistics import LayerStatistics
from blip3v.errors import ExportError
from blip3v.export import precision as casting
from blip3v.export.activations import decoder_ranges, video_encoder_ranges
from blip3v.export.islands import NEAR_LIMIT, RESIDUAL, decoder_islands, video_encoder_islands
from blip3v.export.precision import cast, parameter_formats
from blip3v.export.to_onnx import save_graph, video_encoder_to_onnx
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.model import Blip3Video
from blip3v.model.weights import random_model

VIDEO, DECODER = PRECISIONS["fp16"].video_encoder, PRECISIONS["fp16"].decoder
LARGEST = 65504.0
FRAMES = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
ATTENTION = {f"vision_encoder.encoder.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkv"}
VISION_WRITERS = {
    f"vision_encoder.encoder.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.out_proj", "mlp.fc2")
}

Change = Callable[[Blip3Video], None]


def changed(change: Change, encoder: str = "tokenlearner") -> Blip3Video:
    model = random_model(small_config(encoder))
    change(model)
    return model


@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm", "mean", "transformer", "perceiver"])
@pytest.mark.parametrize(
    ("change", "wanted"),
    [(large_values, ATTENTION), (large_vision_channel, VISION_WRITERS | {RESIDUAL}), (large_latents, {RESIDUAL})],
    ids=["values", "channel", "latents"],
)
def test_a_video_encoder_that_overflows_gets_islands_and_computes_the_same(
    change: Change, wanted: set[str], encoder: str
) -> None:
    model = changed(change, encoder)
    assert max(video_encoder_ranges(model, FRAMES, VIDEO).values()) > LARGEST
    found, tokens_MD = video_encoder_islands(VideoEncoderGraph(model, scan=False), FRAMES, VIDEO)
    assert wanted <= set(found.peaks)
    assert max(video_encoder_ranges(model, FRAMES, found.precision).values()) < LARGEST
    with torch.inference_mode():
        expected = model.encode_video(torch.from_numpy(FRAMES)[None])[0].numpy()
        half = cast(VideoEncoderGraph(model, scan=False), found.precision)
        got = half(torch.from_numpy(FRAMES)[None].half())[0][0]
    np.testing.assert_array_equal(tokens_MD, expected)
    assert got.dtype == torch.float16
    assert np.abs(got.float().numpy() - expected).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (large_product, {"layers.1.gate_up_proj", "layers.1.down_proj"}),
        (large_gate_and_up, {"layers.1.down_proj"}),
        (
            large_decoder_stream,
            {RESIDUAL, "layers.0.o_proj", "layers.0.down_proj", "layers.1.o_proj", "layers.1.down_proj"},
        ),
    ],
    ids=["product", "gate and up", "stream"],
)
def test_a_decoder_that_overflows_gets_the_islands_that_it_needs(change: Change, wanted: set[str]) -> None:
    model = changed(change)
    text, weights = model.config.text, model.state_dict()
    embeds_tD = embeddings(text, 9) * (2.0**14 if change is large_decoder_stream else 1)
    assert max(decoder_ranges(text, weights, embeds_tD, DECODER).values()) > LARGEST
    stages: list[tuple[int, int]] = []
    found = decoder_islands(text, weights, embeds_tD, DECODER, progress=lambda *stage: stages.append(stage))
    assert set(found.peaks) == wanted
    assert min(found.peaks.values()) > NEAR_LIMIT * LARGEST
    assert [island.name for island in found.precision.islands] == ["logits_bias", *found.peaks]
    assert max(decoder_ranges(text, weights, embeds_tD, found.precision).values()) < LARGEST
    assert stages == [(1, 2), (2, 2)]


def test_a_temporal_encoder_is_an_island_as_a_whole() -> None:
    model = changed(large_temporal_score)
    graph = VideoEncoderGraph(model, scan=False)
    found, _ = video_encoder_islands(graph, FRAMES, VIDEO)
    assert set(found.peaks) == {"temporal encoder"}
    formats = parameter_formats(graph, found.precision)
    assert {name.startswith("temporal.") for name, form in formats.items() if form == "float32"} == {True, False}
    assert all("temporal" in name for name, form in formats.items() if form == "float32")
    assert max(video_encoder_ranges(model, FRAMES, found.precision).values()) < LARGEST


def test_a_model_without_large_activations_keeps_its_precision() -> None:
    model = random_model(small_config())
    found, _ = video_encoder_islands(VideoEncoderGraph(model, scan=False), FRAMES, VIDEO)
    assert (found.precision, found.peaks) == (VIDEO, {})
    text = model.config.text
    plain = decoder_islands(text, model.state_dict(), embeddings(text, 9), DECODER)
    assert (plain.precision, plain.peaks) == (DECODER, {})


@pytest.mark.parametrize("encoder", ["tokenlearner", "gttm"])
def test_the_residual_island_holds_every_norm_that_reads_the_stream(encoder: str) -> None:
    """A norm in fp16 would be given the stream in fp16."""
    model = changed(large_latents, encoder)
    graph = VideoEncoderGraph(model, scan=False)
    found, _ = video_encoder_islands(graph, FRAMES, VIDEO)
    formats = parameter_formats(graph, found.precision)
    norms = [name for name, part in graph.named_modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) > 10
    assert {formats[f"{name}.{part}"] for name in norms for part in ("weight", "bias")} == {"float32"}


class Extreme:
    """Statistics of a calibration that saw larger inputs of one layer than the clip and the prompt."""

    def __init__(self, layer: str, model: Blip3Video) -> None:
        self.parts = dict(model.named_modules())
        self.extreme = layer
        self.asked: list[str] = []

    def layer(self, name: str) -> LayerStatistics:
        self.asked.append(name)
        size = 4e4 if name == self.extreme else 1e-3
        rows_NK = torch.full((2, self.parts[name].get_parameter("weight").shape[1]), 1e-3)
        return LayerStatistics(absmax_K=rows_NK[0] * 1e3 * size, rows_NK=rows_NK, num_seen=9, num_extreme=1)


def test_inputs_that_a_calibration_saw_count() -> None:
    model = random_model(small_config())
    name = "vision_encoder.encoder.layers.1.mlp.fc2"
    seen = Extreme(name, model)
    found, _ = video_encoder_islands(VideoEncoderGraph(model, scan=False), FRAMES, VIDEO, seen)
    assert found.peaks == {name: pytest.approx(4e4)}
    text = model.config.text
    seen = Extreme("lang_model.model.layers.1.mlp.down_proj", model)
    plain = decoder_islands(text, model.state_dict(), embeddings(text, 9), DECODER, seen)
    assert plain.peaks == {"layers.1.down_proj": pytest.approx(4e4)}
    assert len(seen.asked) == 8


def test_what_no_island_can_hold_is_refused() -> None:
    def large_keys(model: Blip3Video) -> None:
        model.lang_model.get_parameter("model.layers.1.self_attn.qkv_proj.weight").mul_(1e5)

    model = changed(large_keys)
    text = model.config.text
    with pytest.raises(ExportError, match=r"queries, keys and values of layer 1 reach .*; float16 holds at most 65504"):
        decoder_islands(text, model.state_dict(), embeddings(text, 9), DECODER)

    def large_tokens(model: Blip3Video) -> None:
        model.vision_tokenizer.get_parameter("projection.weight").mul_(1e5)

    graph = VideoEncoderGraph(changed(large_tokens), scan=False)
    with pytest.raises(ExportError, match=r"the video tokens reach .*; float16 holds at most 65504"):
        video_encoder_islands(graph, FRAMES, VIDEO)


def test_a_graph_of_one_dtype_is_traced_without_any_cast_of_ours(
    video_encoder: Callable[[str, str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bundles that need no islands keep the bytes that they had before there were any."""
    exported = video_encoder("tokenlearner", "fp16")
    monkeypatch.setattr(casting, "compute_in_own_dtypes", lambda module: None)
    path = tmp_path / "video_encoder.onnx"
    save_graph(video_encoder_to_onnx(exported.model.config, exported.model.state_dict(), VIDEO), path)
    assert path.read_bytes() == exported.path.read_bytes()


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, args)])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("encoder", "changes", "wanted"),
    [
        (
            "tokenlearner",
            (large_values, large_product),
            {"video_encoder": ATTENTION, "decoder": {"layers.1.gate_up_proj", "layers.1.down_proj"}},
        ),
        (
            "gttm",
            (large_vision_channel, large_decoder_stream),
            {"video_encoder": VISION_WRITERS | {RESIDUAL}, "decoder": {RESIDUAL, "layers.0.o_proj"}},
        ),
    ],
    ids=["products", "streams"],
)
def test_an_export_that_overflowed_passes_with_its_islands_listed(
    encoder: str,
    changes: tuple[Change, ...],
    wanted: dict[str, set[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """fp16 exports of such models failed: "activations overflow in ...". One export takes about 10 s."""
    model = random_model(small_config(encoder))
    for change in changes:
        change(model)
    folder = write_folder(tmp_path / "model", model.config, model=model)
    bundle = tmp_path / "bundle"
    assert run("export", "-m", folder, "-o", bundle, "--precision", "fp16") == 0
    printed = capsys.readouterr().err
    manifest = open_bundle(bundle).manifest
    assert manifest.precision.name == "fp16"
    assert manifest.parity is not None
    assert manifest.parity["largest_activation"] < LARGEST
    assert run("inspect", bundle) == 0
    shown = "".join(capsys.readouterr().out.split())
    for graph, names in wanted.items():
        spec = manifest.precision.graphs[graph]
        assert names <= {island.name for island in spec.islands if island.weights == "float32"}
        for name in names:
            assert f"  {graph} {name} " in printed
            assert f"({name}float32)".replace(" ", "") in shown
        assert "float32" in manifest.weights[graph]
    assert dataclasses.replace(manifest.precision.decoder, islands=DECODER.islands) == DECODER
