"""Turns frames into pixels as the released processor does, with PIL and numpy.

Squash (the released inference script) or pad to a square (the authors' training), PIL's bicubic resize, then
(x / 255 - mean) / std. Not here: which frames are sampled (``sampling.py``) and how they are decoded (``clip.py``).

Letters: T frames, H height, W width, C channels (3), S side of the model's image, V values of a channel (256).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from blip3v import strict_json
from blip3v.errors import ConfigError, UsageError
from blip3v.video.sampling import SamplingRule

__all__ = ["PreprocessorConfig", "ResizeMode", "preprocess"]

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


def preprocess(frames: Sequence[np.ndarray], config: PreprocessorConfig) -> np.ndarray:
    """Resizes and normalises frames as the released processor does.

    Args:
        frames: RGB pictures, each uint8 (H, W, 3); their sizes may differ. A uint8 (T, H, W, 3) array is fine too.
        config: size, resize mode, mean and std.

    Returns:
        float32 (T, 3, S, S); in [-1, 1] with the released mean and std.

    Raises:
        UsageError: no frames, or a frame with another dtype or shape.
    """
    if len(frames) == 0:
        raise UsageError("there are no frames to preprocess; at least 1 is needed")
    pixels_TCSS = np.empty((len(frames), 3, config.image_size, config.image_size), np.float32)
    # A short clip repeats frames, always consecutively: each is resized once.
    is_new = [index == 0 or frame_HWC is not frames[index - 1] for index, frame_HWC in enumerate(frames)]
    new = [index for index, is_first in enumerate(is_new) if is_first]
    values_CV = _values(config)

    def fill(index: int) -> None:
        _fill(pixels_TCSS[index], _checked(frames[index], index), config, values_CV)

    # Pillow resizes without the interpreter's lock.
    with ThreadPoolExecutor(min(len(new), os.cpu_count() or 1, _MOST_THREADS)) as pool:
        list(pool.map(fill, new))
    for index, is_first in enumerate(is_new):
        if not is_first:
            pixels_TCSS[index] = pixels_TCSS[index - 1]
    return pixels_TCSS


def _checked(frame_HWC: np.ndarray, index: int) -> np.ndarray:
    shape, dtype = np.shape(frame_HWC), getattr(frame_HWC, "dtype", type(frame_HWC).__name__)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise UsageError(f"frame {index} is {dtype} {shape}; an RGB picture, uint8 (H, W, 3), is needed")
    return frame_HWC


def _fill(pixels_CSS: np.ndarray, frame_HWC: np.ndarray, config: PreprocessorConfig, values_CV: np.ndarray) -> None:
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    if config.resize_mode == "pad":
        image = _pad_to_square(image, config.image_mean)
    image = image.resize((config.image_size, config.image_size), Image.Resampling.BICUBIC)
    resized_SSC = np.asarray(image)
    for channel, values_V in enumerate(values_CV):
        np.take(values_V, resized_SSC[..., channel], out=pixels_CSS[channel], mode="clip")


def _values(config: PreprocessorConfig) -> np.ndarray:
    """What each of the 256 levels becomes in each channel, float32 (3, 256)."""
    # float32 throughout and in this order: torchvision's ToTensor and Normalize, bit for bit.
    mean_C, std_C = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    scaled_V = np.arange(256, dtype=np.float32) / np.float32(255)
    normalised_CV: np.ndarray = (scaled_V - mean_C[:, None]) / std_C[:, None]
    return normalised_CV


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    red, green, blue = (int(value * 255) for value in mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
