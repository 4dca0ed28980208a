"""Patch tokens of a frozen vision encoder, computed once and cached on disk for all later epochs and runs."""

# Shapes: N clips, T frames, P patches, D width, C clips of a chunk.

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from blip3v.errors import ConfigError
from blip3v.model import Blip3Video
from blip3v.publishing import new_folder, one_at_a_time
from blip3v.training.clip_pixels import ClipPixels, ReadableClips
from blip3v.training.loading import loaded_ahead
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Features", "feature_cache"]

_CHUNK = 16
_VALUES, _BROKEN = "features.npy", "broken.json"


@dataclass(frozen=True)
class Features:
    """A cache of features, which is opened where it is first used, so that it goes to other processes by its name."""

    folder: Path

    def __getitem__(self, clip: int) -> npt.NDArray[np.float16]:
        """Patch tokens of one clip, float16 (T, P, D)."""
        found: npt.NDArray[np.float16] = self._values[clip]
        return found

    @functools.cached_property
    def broken(self) -> dict[int, str]:
        """Why a clip could not be read, by its number; its features are zeros."""
        found: dict[str, str] = json.loads((self.folder / _BROKEN).read_text("utf-8"))
        return {int(clip): error for clip, error in found.items()}

    @functools.cached_property
    def _values(self) -> npt.NDArray[np.float16]:
        values: npt.NDArray[np.float16] = np.load(self.folder / _VALUES, mmap_mode="r")
        return values

    def __reduce__(self) -> tuple[type[Features], tuple[Path]]:
        return Features, (self.folder,)


def feature_cache(
    folder: Path,
    pixels: ClipPixels,
    model: Blip3Video,
    *,
    device: torch.device,
    progress: Callable[[int, int], None],
    workers: int = 0,
) -> Features:
    """The patch tokens of every clip at visit 0.

    The cache's name contains a hash of the clips' bytes, the preprocessing and the vision weights: edited data or
    another vision encoder never reads it. It gets this name once it is complete, so an interrupted run leaves no cache.
    Of several runs that need the same one at once, one computes it and the others wait.

    Args:
        folder: where the caches are.
        pixels: of the clips.
        model: the model whose vision encoder is used.
        device: where the vision encoder runs.
        progress: called with (clips done, clips in total).
        workers: processes that read clips ahead; 0: this one.

    Raises:
        ConfigError: none of the clips can be read.
    """
    path = folder / f"features-{_digest(pixels.source.key, model, pixels.preprocessor)}"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path):
        if not path.is_dir():
            with new_folder(path) as staging:
                _compute(staging, pixels, model, device, progress, workers)
    return Features(path)


def _compute(
    folder: Path,
    pixels: ClipPixels,
    model: Blip3Video,
    device: torch.device,
    progress: Callable[[int, int], None],
    workers: int,
) -> None:
    total, broken = len(pixels.source), dict[int, str]()
    out: np.memmap | None = None
    with loaded_ahead(ReadableClips(pixels), range(total), workers=workers) as clips:
        for chunk in _chunks(clips):
            broken |= {clip: found for clip, found in chunk if isinstance(found, str)}
            read = {clip: found for clip, found in chunk if not isinstance(found, str)}
            if read:
                with torch.inference_mode():
                    features_CTPD = model.features(pixels.batched(list(read.values())).to(device).pixels())
                if out is None:
                    out = _new_file(folder / _VALUES, (total, *features_CTPD.shape[1:]))
                out[list(read)] = features_CTPD.cpu().numpy()
            progress(chunk[-1][0] + 1, total)
    if out is None:
        raise ConfigError(f"none of the clips can be read; the first is {pixels.source.name(0)}: {broken[0]}")
    out.flush()
    (folder / _BROKEN).write_text(json.dumps(broken), "utf-8")


def _new_file(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A file in NumPy's format, full of zeros."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        offset = file.tell()
    return np.memmap(path, dtype="<f2", mode="r+", offset=offset, shape=shape)


_Found = npt.NDArray[np.uint8] | str


def _chunks(clips: Iterator[_Found]) -> Iterator[list[tuple[int, _Found]]]:
    """The clips with their numbers, some at a time."""
    chunk: list[tuple[int, _Found]] = []
    for clip, found in enumerate(clips):
        chunk.append((clip, found))
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _digest(key: str, model: Blip3Video, preprocessor: PreprocessorConfig) -> str:
    digest = hashlib.sha256(f"{key} {preprocessor}".encode())
    for name, tensor in sorted(model.vision_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
