"""Patch tokens of a frozen vision encoder, computed once and cached on disk for all later epochs and runs."""

# Shapes: N clips, T frames, P patches, D width, C clips of a chunk.

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from blip3v.data.samples import Source
from blip3v.model import Blip3Video
from blip3v.publishing import replace_file
from blip3v.video.preprocess import PreprocessorConfig, preprocess

__all__ = ["clip_pixels", "feature_cache"]

_CHUNK = 16


def clip_pixels(source: Source, index: int, visit: int, preprocessor: PreprocessorConfig) -> npt.NDArray[np.float32]:
    """Pixels of one clip, float32 (T, 3, S, S) in [-1, 1]."""
    return preprocess(source.frames(index, visit), preprocessor)


def feature_cache(
    folder: Path,
    source: Source,
    model: Blip3Video,
    preprocessor: PreprocessorConfig,
    *,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> npt.NDArray[np.float16]:
    """Returns the patch tokens of every clip of ``source`` at visit 0: memory-mapped float16 (N, T, P, D).

    The file name contains a hash of the source, the preprocessing and the vision weights, so another vision encoder
    never reads it. The file gets this name once it is complete, so an interrupted run leaves no cache.

    Args:
        folder: where the cache files are.
        source: the clips.
        model: the model whose vision encoder is used.
        preprocessor: how frames become pixels.
        device: where the vision encoder runs.
        progress: called with (clips done, clips in total).
    """
    path = folder / f"features-{_digest(source, model, preprocessor)}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        _compute(part, source, model, preprocessor, device, progress)
        replace_file(part, path)
    cached: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    return cached


def _compute(
    path: Path,
    source: Source,
    model: Blip3Video,
    preprocessor: PreprocessorConfig,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> None:
    vision, total = model.config.vision, len(source)
    out: np.memmap | None = None
    for first in range(0, total, _CHUNK):
        chunk = range(first, min(first + _CHUNK, total))
        pixels = np.stack([clip_pixels(source, index, 0, preprocessor) for index in chunk])
        with torch.inference_mode():
            features_CTPD = model.features(torch.from_numpy(pixels).to(device))
        if out is None:
            shape = (total, pixels.shape[1], vision.num_patches, vision.hidden_size)
            with path.open("wb") as file:
                np.lib.format.write_array_header_2_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
                offset = file.tell()
            out = np.memmap(path, dtype="<f2", mode="r+", offset=offset, shape=shape)
        out[first : first + len(chunk)] = features_CTPD.cpu().numpy()
        progress(first + len(chunk), total)
    assert out is not None, "a source has at least one clip"
    out.flush()


def _digest(source: Source, model: Blip3Video, preprocessor: PreprocessorConfig) -> str:
    digest = hashlib.sha256(f"{source.key} {preprocessor}".encode())
    for name, tensor in sorted(model.vision_encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
