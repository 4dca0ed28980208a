"""What is collected layer by layer, against hooks on the whole model in one plain pass."""

# Shapes: N rows, K inputs, M video tokens, S positions, D width, H KV heads.

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from export_models import WINDOWED, small_config
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.calibration.collect import calibrate, collect
from blip3v.calibration.data import AskedClip, ClipSet, film_clips
from blip3v.calibration.layers import HEAD, linear_layers
from blip3v.calibration.record import SamplingSettings
from blip3v.calibration.statistics import Calibration, LayerStatistics, cache_names
from blip3v.config import ModelConfig
from blip3v.errors import CalibrationError
from blip3v.export.source import ExportSource, random_source
from blip3v.model.weights import random_model
from blip3v.text.prompt import splice

SETTINGS = SamplingSettings(num_rows=24, num_extreme=8)
FloatArray = NDArray[np.float32]


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.layers: dict[str, LayerStatistics] = {}
        self.caches: dict[str, Tensor] = {}

    def add(self, name: str, statistics: LayerStatistics) -> None:
        assert name not in self.layers
        self.layers[name] = statistics

    def add_cache(self, name: str, absmax_K: Tensor) -> None:
        assert name not in self.caches
        self.caches[name] = absmax_K


@torch.inference_mode()
def plain_rows(config: ModelConfig, clips: Sequence[AskedClip]) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """All rows that enter each layer, and the keys and values of each decoder layer, (N, K) each."""
    model = random_model(config)
    rows: dict[str, list[Tensor]] = defaultdict(list)
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):

            def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
                rows[name].append(inputs[0].flatten(0, -2))
                outputs[name].append(output.flatten(0, -2))

            part.register_forward_hook(hook)
    for clip in clips:
        video_MD = model.encode_video(torch.from_numpy(clip.load())[None])[0].numpy()
        for asked in clip.prompts:
            ids = torch.tensor([*asked.prompt.ids, *asked.answer_ids])
            embeds_SD = splice(model.lang_model.embed(ids).numpy(), asked.prompt.image_position, video_MD)
            hidden_SD = model.lang_model.hidden(torch.from_numpy(embeds_SD)[None])[0]
            rows[HEAD].append(hidden_SD[-1 - len(asked.answer_ids) :])
    caches: dict[str, list[FloatArray]] = defaultdict(list)
    width = config.text.num_kv_heads * config.text.head_dim
    for layer in range(config.text.num_layers):
        for qkv_SE in outputs[f"lang_model.model.layers.{layer}.self_attn.qkv_proj"]:
            name = f"lang_model.model.layers.{layer}."
            caches[f"{name}key_cache"].append(plain_rope(qkv_SE[:, -2 * width : -width].numpy(), config))
            caches[f"{name}value_cache"].append(qkv_SE[:, -width:].numpy())
    stacked = {name: torch.cat(parts).numpy() for name, parts in rows.items()}
    return stacked, {name: np.concatenate(parts) for name, parts in caches.items()}


def plain_rope(keys_SE: FloatArray, config: ModelConfig) -> FloatArray:
    """Rotates pairs (k, k + half) of each head's channels by position * theta ** (-k / half)."""
    half = config.text.head_dim // 2
    angles = np.arange(len(keys_SE))[:, None] * config.text.rope_theta ** (-np.arange(half) / half)
    heads_SHE = keys_SE.reshape(len(keys_SE), config.text.num_kv_heads, -1)
    first, second = heads_SHE[..., :half], heads_SHE[..., half:]
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    turned = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.reshape(len(keys_SE), -1).astype(np.float32)


def places(rows_NK: FloatArray, all_MK: FloatArray) -> list[int]:
    """Where in ``all_MK`` each row is, to rounding."""
    distance_NM = np.abs(rows_NK[:, None] - all_MK[None]).max(axis=2)
    assert distance_NM.min(axis=1).max() < 1e-4
    return [int(at) for at in distance_NM.argmin(axis=1)]


@pytest.mark.parametrize(("encoder", "text"), [("tokenlearner", {}), ("gttm", WINDOWED)], ids=["plain", "windowed"])
def test_statistics_equal_those_of_a_plain_pass_through_the_whole_model(
    encoder: str, text: dict[str, object], tmp_path: Path
) -> None:
    config = small_config(encoder, **text)
    model = random_source(config)
    clips = film_clips(model, num_clips=2, prompts_per_clip=2).clips
    kept = Kept()
    collect(config, model.weights, clips, kept, settings=SETTINGS, folder=tmp_path)
    expected, caches = plain_rows(config, clips)
    assert kept.layers.keys() == linear_layers(config).keys() == expected.keys()
    for name, statistics in kept.layers.items():
        rows = expected[name]
        assert statistics.num_seen == len(rows), name
        np.testing.assert_allclose(statistics.absmax_K.numpy(), np.abs(rows).max(axis=0), rtol=1e-4, atol=1e-5)
        count = min(len(rows), SETTINGS.num_rows)
        assert statistics.rows_NK.shape == (count, rows.shape[1])
        assert statistics.num_extreme == min(SETTINGS.num_extreme, count)
        sizes = np.abs(statistics.rows_NK.numpy()).max(axis=1)
        largest = np.sort(np.abs(rows).max(axis=1))[::-1][: statistics.num_extreme]
        np.testing.assert_allclose(sizes[: statistics.num_extreme], largest, rtol=1e-4)
        if len(rows) < 2000:  # the others are real rows, all the rows if there are few
            found = places(statistics.rows_NK.numpy(), rows)
            assert len(rows) > count or sorted(sizes) == pytest.approx(np.sort(np.abs(rows).max(axis=1)), rel=1e-4)
            assert max(found) < len(rows)
    assert tuple(kept.caches) == cache_names(config.text)
    for name, absmax_K in kept.caches.items():
        np.testing.assert_allclose(absmax_K.numpy(), np.abs(caches[name]).max(axis=0), rtol=1e-4, atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_file_and_another_one_other_rows(
    calibration: Calibration, model: ExportSource, films: ClipSet, tmp_path: Path
) -> None:
    source = model.hashed_provenance()
    same = calibrate(tmp_path / "same", model, source, films, settings=SETTINGS)
    assert same.record == calibration.record
    other = calibrate(tmp_path / "other", model, source, films, settings=dataclasses.replace(SETTINGS, seed=1))
    name = "lang_model.model.layers.0.mlp.down_proj"
    first, second = calibration.layer(name), other.layer(name)
    assert torch.equal(first.absmax_K, second.absmax_K)
    assert torch.equal(first.rows_NK[:8], second.rows_NK[:8])
    assert not torch.equal(first.rows_NK[8:], second.rows_NK[8:])


def test_memory_does_not_grow_with_the_samples(model: ExportSource, tmp_path: Path) -> None:
    def most_bytes(num_clips: int) -> int:
        """Live tensors, and the peak of what Python and numpy allocate."""
        most = 0

        def measure(stage: str, done: int = 0, total: int = 0) -> None:
            nonlocal most
            if done == total:
                # Not the fake ones that torch traces with.
                most = max(most, sum(x.nbytes for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)))

        clips = film_clips(model, num_clips=num_clips, prompts_per_clip=1).clips
        gc.collect()
        gc.freeze()  # what earlier tests left is not among ``gc.get_objects`` then
        tracemalloc.start()
        try:
            collect(model.config, model.weights, clips, Kept(), settings=SETTINGS, folder=tmp_path, progress=measure)
            return most + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            gc.unfreeze()

    most_bytes(1)  # imports and caches
    few, many = (min(most_bytes(num_clips) for _ in range(2)) for num_clips in (1, 4))
    pixels = 8 * 3 * 32 * 32 * 4  # the least that a clip takes
    assert many < few + pixels


def test_progress_counts_every_stage_to_its_end(model: ExportSource, films: ClipSet, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
    collect(
        model.config,
        model.weights,
        films.clips,
        Kept(),
        settings=SETTINGS,
        folder=tmp_path,
        progress=lambda stage, done=0, total=0: seen[stage].append((done, total)),
    )
    assert list(seen) == ["read the videos", "vision encoder", "resampler and temporal encoder", "decoder"]
    for counts in seen.values():
        assert counts == [(at + 1, len(counts)) for at in range(len(counts))]


def test_samples_that_do_not_fit_the_model_are_refused_by_name_and_nothing_is_written(
    model: ExportSource, films: ClipSet, tmp_path: Path
) -> None:
    """Pixels of another size or number of frames, NaN in them, and a prompt longer than the context."""
    clip = films.clips[1]
    pixels = clip.load()
    long = dataclasses.replace(clip.prompts[0], answer_ids=(5,) * 5000)
    cases = {
        "takes float32": dataclasses.replace(clip, load=lambda: pixels[:5]),
        "float64": dataclasses.replace(clip, load=lambda: pixels.astype(np.float64)),
        "NaN or infinite": dataclasses.replace(clip, load=lambda: pixels * np.float32("nan")),
        "context has 2048": dataclasses.replace(clip, prompts=(long,)),
    }
    for words, broken in cases.items():
        samples = ClipSet(clips=(films.clips[0], broken, *films.clips[2:], *films.clips), record=films.record)
        with pytest.raises(CalibrationError, match=words) as caught:
            calibrate(tmp_path / "new", model, model.provenance, samples, settings=SETTINGS)
        assert clip.name in str(caught.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "weight", ["vision_encoder.encoder.layers.1.layer_norm1.bias", "lang_model.model.layers.1.input_layernorm.weight"]
)
def test_nan_in_an_activation_names_the_layer_and_writes_nothing(
    weight: str, model: ExportSource, films: ClipSet, tmp_path: Path
) -> None:
    weights = {name: model.weights[name] for name in model.weights}
    weights[weight] = torch.full_like(weights[weight], torch.nan)
    broken = dataclasses.replace(model, weights=weights)
    block = weight.rsplit(".", 2)[0]
    with pytest.raises(CalibrationError, match=rf"inputs of {block}.* contain NaN or infinity"):
        calibrate(tmp_path / "new", broken, model.provenance, films, settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []
