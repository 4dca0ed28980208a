"""Pixels against PIL plus a plain numpy formula, and the strict ``preprocessor.json``."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blip3v.errors import ConfigError, UsageError
from blip3v.video import PreprocessorConfig, preprocess
from blip3v.video.preprocess import Preprocessing, ResizeMode, level_values, resize


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def bicubic_1d(values: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bicubic (a = -0.5) along axis 0 in float64: the textbook form of PIL's fixed-point resize."""
    scale = len(values) / size
    support = 2.0 * max(scale, 1.0)
    out = []
    for i in range(size):
        center = (i + 0.5) * scale
        low, high = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), len(values))
        x = np.abs((np.arange(low, high) - center + 0.5) / max(scale, 1.0))
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        out.append(np.tensordot(weight / weight.sum(), values[low:high], 1))
    return np.clip(np.rint(np.stack(out)), 0, 255)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (31, 17), (200, 150), (16, 16)])
def test_squash_is_pil_bicubic_then_mean_and_std(height: int, width: int) -> None:
    frame = picture(height, width)
    resized = np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BICUBIC), np.float32)
    expected = ((resized / np.float32(255)) - np.float32(0.5)) / np.float32(0.5)
    pixels = preprocess([frame], PreprocessorConfig(image_size=32))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1)[None])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (100, 75), (20, 24)])
def test_squash_is_the_textbook_bicubic(height: int, width: int) -> None:
    frame = picture(height, width, seed=1)
    across = bicubic_1d(frame.transpose(1, 0, 2).astype(np.float64), 32).transpose(1, 0, 2)
    expected = bicubic_1d(across, 32) / 127.5 - 1
    pixels = preprocess([frame], PreprocessorConfig(image_size=32))[0].transpose(1, 2, 0)
    # PIL's weights are fixed point: at most one grey level apart.
    assert np.abs(pixels - expected).max() <= 1.01 / 127.5


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [
        pytest.param(30, 41, 5, 0, id="wide-odd"),
        pytest.param(40, 24, 0, 8, id="tall"),
        pytest.param(20, 20, 0, 0, id="square"),
    ],
)
def test_pad_puts_the_picture_in_the_middle_of_a_grey_square(height: int, width: int, top: int, left: int) -> None:
    side = max(height, width)
    square = np.full((side, side, 3), 127, np.uint8)
    square[top : top + height, left : left + width] = picture(height, width)
    # At image_size == side the resize does nothing, so the square itself comes out.
    pixels = preprocess([picture(height, width)], PreprocessorConfig(image_size=side, resize_mode="pad"))
    np.testing.assert_allclose(pixels[0].transpose(1, 2, 0), square / 127.5 - 1, atol=1e-6)


def test_pad_and_squash_agree_on_a_square_and_differ_elsewhere() -> None:
    squash, pad = PreprocessorConfig(image_size=16), PreprocessorConfig(image_size=16, resize_mode="pad")
    np.testing.assert_array_equal(preprocess([picture(40, 40)], squash), preprocess([picture(40, 40)], pad))
    assert not np.array_equal(preprocess([picture(40, 60)], squash), preprocess([picture(40, 60)], pad))


def test_mean_and_std_are_per_channel() -> None:
    config = PreprocessorConfig(image_size=4, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.25, 1.0))
    pixels = preprocess([np.full((4, 4, 3), (0, 128, 255), np.uint8)], config)
    expected = [(0 - 0.1) / 0.5, (128 / 255 - 0.2) / 0.25, (1 - 0.3) / 1.0]
    np.testing.assert_allclose(pixels[0, :, 0, 0], expected, rtol=1e-6)


@settings(max_examples=30)
@given(sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4))
@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_any_sizes_give_one_shape_and_range(mode: str, sizes: list[tuple[int, int]]) -> None:
    config = PreprocessorConfig(image_size=16, resize_mode=mode)  # type: ignore[arg-type]
    pixels = preprocess([picture(*size) for size in sizes], config)
    assert pixels.shape == (len(sizes), 3, 16, 16)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_a_frame_that_repeats_gives_the_same_pixels() -> None:
    first, second = picture(20, 30), picture(20, 30, seed=1)
    config = PreprocessorConfig(image_size=8)
    apart = np.concatenate([preprocess([frame], config) for frame in (first, second, first)])
    np.testing.assert_array_equal(preprocess([first, second, first], config), apart)


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_the_two_halves_give_the_same_pixels(mode: ResizeMode) -> None:
    """Bit for bit, also where each channel is normalised in its own way and frames repeat."""
    first, second = picture(20, 30), picture(45, 31, seed=1)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    config = PreprocessorConfig(image_size=16, resize_mode=mode, image_mean=mean, image_std=std)
    levels_TSSC, values_CV = resize([first, second, first], config), level_values(config)
    assert (str(levels_TSSC.dtype), levels_TSSC.shape, str(values_CV.dtype)) == ("uint8", (3, 16, 16, 3), "float32")
    halves = np.stack([values_CV[channel][levels_TSSC[..., channel]] for channel in range(3)], axis=1)
    np.testing.assert_array_equal(halves, preprocess([first, second, first], config))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 0, 1, 1, 2], [2, 0, 1, 0], [0]], ids=str)
@pytest.mark.parametrize("num_begun", [0, 1, 4])
def test_frames_that_come_one_by_one_give_the_same_pixels(order: list[int], num_begun: int) -> None:
    pictures = [picture(20 + seed, 30, seed) for seed in range(4)]
    config = PreprocessorConfig(image_size=8)
    with Preprocessing(config, len(order)) as preprocessing:
        for index in list(dict.fromkeys(order))[:num_begun]:
            preprocessing.begin(pictures[index])
        pixels = preprocessing.pixels([pictures[index] for index in order])
    expected = [preprocess([pictures[index]], config)[0] for index in order]
    np.testing.assert_array_equal(pixels, np.stack(expected))


def test_frames_of_one_array_do_not_mix() -> None:
    """Successive views of one array may have the same address; each must keep its own pixels."""
    frames = np.stack([np.full((6, 6, 3), value, np.uint8) for value in range(0, 250, 5)])
    pixels = preprocess(list(frames), PreprocessorConfig(image_size=4))
    np.testing.assert_allclose(pixels[:, 0, 0, 0], np.arange(0, 250, 5) / 127.5 - 1, atol=1e-6)
    levels = resize(frames, PreprocessorConfig(image_size=4))  # type: ignore[arg-type]
    np.testing.assert_array_equal(levels[:, 0, 0, 0], np.arange(0, 250, 5))


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([], id="none"),
        pytest.param([np.zeros((4, 4, 3), np.float32)], id="float"),
        pytest.param([np.zeros((4, 4), np.uint8)], id="grey"),
        pytest.param([np.zeros((4, 4, 4), np.uint8)], id="alpha"),
        pytest.param([np.zeros((0, 4, 3), np.uint8)], id="empty-picture"),
    ],
)
def test_what_is_not_a_picture_is_refused(frames: list[np.ndarray]) -> None:
    for function in (preprocess, resize):
        with pytest.raises(UsageError, match="needed"):
            function(list(frames), PreprocessorConfig(image_size=4))


def test_an_infinite_std_is_refused() -> None:
    with pytest.raises(ConfigError, match="finite"):
        PreprocessorConfig(image_size=8, image_std=(0.5, math.inf, 0.5))


def test_config_survives_its_file(tmp_path: Path) -> None:
    config = PreprocessorConfig(image_size=384, resize_mode="pad", image_std=(0.25, 0.5, 1.0), sampling="uniform")
    config.save(tmp_path / "preprocessor.json")
    assert PreprocessorConfig.load(tmp_path / "preprocessor.json") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"resize_mod": "pad"}, "did you mean 'resize_mode'", id="unknown-key"),
        pytest.param({"resize_mode": "crop"}, "allowed: squash, pad", id="mode"),
        pytest.param({"sampling": "first"}, "allowed: released, uniform, train", id="rule"),
        pytest.param({"image_size": 0}, "at least 1", id="size"),
        pytest.param({"image_std": [0.5, 0.0, 0.5]}, "above 0", id="std"),
        pytest.param({"image_mean": [0.5, 2.0, 0.5]}, r"\[0, 1\]", id="mean"),
        pytest.param({"image_mean": [0.5, 0.5]}, "3 are expected", id="two-channels"),
        pytest.param({"schema_version": 2}, "this blip3v reads 1", id="version"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "preprocessor.json"
    path.write_text(json.dumps(PreprocessorConfig(image_size=8).to_dict() | change))
    with pytest.raises(ConfigError, match=message):
        PreprocessorConfig.load(path)
