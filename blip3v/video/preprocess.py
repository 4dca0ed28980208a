"""Turns frames into pixels as the released processor does, with PIL and numpy.

Squash (the released inference script) or pad to a square (the authors' training), PIL's bicubic resize, then
(x / 255 - mean) / std. ``resize`` and ``level_values`` are the two halves of ``preprocess``, for a caller that computes
the second one elsewhere. Not here: which frames are sampled (``sampling.py``) and how they are decoded (``clip.py``).

Letters: T frames, H height, W width, C channels (3), S side of the model's image, V values of a channel (256).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from blip3v import strict_json
from blip3v.errors import ConfigError, UsageError
from blip3v.video.sampling import SamplingRule

__all__ = ["Preprocessing", "PreprocessorConfig", "ResizeMode", "level_values", "preprocess", "resize"]

ResizeMode = Literal["squash", "pad"]

SCHEMA_VERSION = 1
_MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class PreprocessorConfig:
    """The contents of ``preprocessor.json``.

    Raises:
        ConfigError: a size below 1, an unknown resize mode, or an invalid mean or std.
    """

    image_size: int  # side of the vision encoder's square input, in pixels
    resize_mode: ResizeMode = "squash"  # squash ignores the aspect ratio; pad adds grey bars first
    image_mean: tuple[float, float, float] = (
        0.5,
        0.5,
        0.5,
    )  # per channel, of values in [0, 1]; also the bars' colour
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # per channel
    sampling: SamplingRule = "released"  # how the runtime picks frames of a clip
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}; at least 1 is needed")
        if self.resize_mode not in get_args(ResizeMode):
            raise ConfigError(
                f"resize_mode {self.resize_mode!r} is unknown; allowed: {', '.join(get_args(ResizeMode))}"
            )
        if any(not 0.0 <= mean <= 1.0 for mean in self.image_mean):
            raise ConfigError(f"image_mean is {self.image_mean}; each value must lie in [0, 1]")
        if any(not 0.0 < std < math.inf for std in self.image_std):
            raise ConfigError(f"image_std is {self.image_std}; each value must be above 0 and finite")

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``preprocessor.json`` as a plain dict."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Writes ``preprocessor.json``."""
        path.write_text(strict_json.dumps(self.to_dict()), "utf-8")

    @classmethod
    def load(cls, path: Path) -> PreprocessorConfig:
        """Reads ``preprocessor.json``.

        Raises:
            ConfigError: not JSON, an unknown or missing key, another schema version, or an invalid value.
        """
        values = strict_json.read_json(path)
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{path} has schema_version {version!r}; this blip3v reads {SCHEMA_VERSION}")
        return strict_json.from_dict(cls, values, str(path))


def preprocess(
    frames: Sequence[np.ndarray], config: PreprocessorConfig, *, num_threads: int | None = None
) -> np.ndarray:
    """Resizes and normalises frames as the released processor does.

    Args:
        frames: RGB pictures, each uint8 (H, W, 3); their sizes may differ. A uint8 (T, H, W, 3) array is fine too.
        config: size, resize mode, mean and std.
        num_threads: how many frames are resized at once; None: one for each CPU, up to eight.

    Returns:
        float32 (T, 3, S, S); in [-1, 1] with the released mean and std.

    Raises:
        UsageError: no frames, or a frame with another dtype or shape.
    """
    _check_count(frames)
    with Preprocessing(config, len(frames), num_threads=num_threads) as preprocessing:
        return preprocessing.pixels(frames)


def resize(frames: Sequence[np.ndarray], config: PreprocessorConfig) -> np.ndarray:
    """The first half of ``preprocess``, in the calling thread: the resized frames, whose levels are not normalised yet.

    Args:
        frames: as ``preprocess`` takes them.
        config: size, resize mode, and mean as the colour of bars.

    Returns:
        uint8 (T, S, S, 3). ``preprocess`` returns ``level_values(config)[c, level]`` for each level of channel ``c``.

    Raises:
        UsageError: no frames, or a frame with another dtype or shape.
    """
    _check_count(frames)
    frames = [_checked(frame_HWC, index) for index, frame_HWC in enumerate(frames)]
    levels_TSSC = np.empty((len(frames), config.image_size, config.image_size, 3), np.uint8)
    row_of: dict[int, int] = {}  # by id of the frame: a picture that is several frames is resized once
    for row, frame_HWC in enumerate(frames):
        first = row_of.setdefault(id(frame_HWC), row)
        levels_TSSC[row] = _resized(frame_HWC, config) if first == row else levels_TSSC[first]
    return levels_TSSC


def level_values(config: PreprocessorConfig) -> np.ndarray:
    """The second half of ``preprocess``: what each of the 256 levels becomes in each channel, float32 (3, 256)."""
    # float32 throughout and in this order: torchvision's ToTensor and Normalize, bit for bit.
    mean_C, std_C = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    scaled_V = np.arange(256, dtype=np.float32) / np.float32(255)
    normalised_CV: np.ndarray = (scaled_V - mean_C[:, None]) / std_C[:, None]
    return normalised_CV


class Preprocessing:
    """``preprocess`` that begins with the first frame, while others are still being decoded. A context manager.

    A picture that is several frames, as in a short clip, is resized once.
    """

    def __init__(self, config: PreprocessorConfig, num_frames: int, *, num_threads: int | None = None) -> None:
        """Prepares for clips of ``num_frames``, at least 1, with threads as ``preprocess`` counts them."""
        self._config = config
        self._values_CV = level_values(config)
        self._pixels_TCSS = np.empty((num_frames, 3, config.image_size, config.image_size), np.float32)
        self._begun: dict[int, tuple[np.ndarray, Future[None]]] = {}  # by id; the picture, so that none gets its id
        # Pillow resizes without the interpreter's lock.
        self._pool = ThreadPoolExecutor(num_threads or min(num_frames, os.cpu_count() or 1, _MOST_THREADS))

    def __enter__(self) -> Preprocessing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, frame_HWC: np.ndarray) -> None:
        """Starts to resize one of the frames, in another thread; in their order, so that nothing is moved later."""
        if id(frame_HWC) not in self._begun:
            row_CSS = self._pixels_TCSS[len(self._begun)]
            future = self._pool.submit(_fill, row_CSS, frame_HWC, self._config, self._values_CV)
            self._begun[id(frame_HWC)] = frame_HWC, future

    def pixels(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """What ``preprocess`` returns for the frames, all that were begun among them."""
        frames = [_checked(frame_HWC, index) for index, frame_HWC in enumerate(frames)]
        for frame_HWC in frames:
            self.begin(frame_HWC)
        for _, future in self._begun.values():
            future.result()
        row_of = {picture: row for row, picture in enumerate(self._begun)}
        rows = [row_of[id(frame_HWC)] for frame_HWC in frames]
        return self._pixels_TCSS if rows == list(range(len(frames))) else self._pixels_TCSS[rows]


def _check_count(frames: Sequence[np.ndarray]) -> None:
    if len(frames) == 0:
        raise UsageError("there are no frames to preprocess; at least 1 is needed")


def _checked(frame_HWC: np.ndarray, index: int) -> np.ndarray:
    shape, dtype = np.shape(frame_HWC), getattr(frame_HWC, "dtype", type(frame_HWC).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise UsageError(f"frame {index} is {dtype} {shape}; an RGB picture, uint8 (H, W, 3), is needed")
    return frame_HWC


def _fill(pixels_CSS: np.ndarray, frame_HWC: np.ndarray, config: PreprocessorConfig, values_CV: np.ndarray) -> None:
    resized_SSC = _resized(frame_HWC, config)
    for channel, values_V in enumerate(values_CV):
        np.take(values_V, resized_SSC[..., channel], out=pixels_CSS[channel], mode="clip")


def _resized(frame_HWC: np.ndarray, config: PreprocessorConfig) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    if config.resize_mode == "pad":
        image = _pad_to_square(image, config.image_mean)
    return np.asarray(image.resize((config.image_size, config.image_size), Image.Resampling.BICUBIC))


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
