"""The cache of features: edited data is seen, broken clips are known, and two runs at once share one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_files import BROKEN, NUM_CLIPS, write_clip, write_list

from blip3v.config import preset
from blip3v.data.authors import open_clips
from blip3v.errors import ConfigError
from blip3v.model import Blip3Video
from blip3v.model.weights import random_model
from blip3v.training.clip_pixels import ClipPixels
from blip3v.training.features import Features, feature_cache
from blip3v.video.preprocess import PreprocessorConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Blip3Video:
    return random_model(preset("tiny")).eval()


def cached(folder: Path, listed: Path, model: Blip3Video, computed: list[int] | None = None) -> Features:
    source = open_clips(str(listed), num_frames=2, seed=1)
    pixels = ClipPixels(source, PreprocessorConfig(image_size=model.config.vision.image_size))
    done = [] if computed is None else computed
    return feature_cache(folder, pixels, model, device=CPU, progress=lambda count, _: done.append(count))


def test_broken_clips_are_known_and_edited_ones_seen(tmp_path: Path, model: Blip3Video) -> None:
    """The edited file has the size and the time of the one before."""
    listed = write_list(tmp_path)
    first = cached(tmp_path / "cache", listed, model)
    assert first.broken.keys() == set(BROKEN)
    assert not first[BROKEN[0]].any()
    assert first[0].any()
    computed: list[int] = []
    assert cached(tmp_path / "cache", listed, model, computed).folder == first.folder
    assert computed == []
    broken, status = tmp_path / f"{BROKEN[0]}.mp4", (tmp_path / f"{BROKEN[0]}.mp4").stat()
    broken.write_bytes(broken.read_bytes()[::-1])
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = cached(tmp_path / "cache", listed, model)
    assert second.folder != first.folder
    write_clip(broken, BROKEN[0])
    assert cached(tmp_path / "cache", listed, model).broken.keys() == set(BROKEN[1:])


def test_two_runs_at_once_compute_one_cache(tmp_path: Path, model: Blip3Video) -> None:
    listed, computed, found = write_list(tmp_path), list[int](), list[Features]()

    def run() -> None:
        found.append(cached(tmp_path / "cache", listed, model, computed))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert computed == [NUM_CLIPS]
    assert np.array_equal(found[0][1], found[1][1])
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert folder == found[0].folder


def test_data_without_a_readable_clip_have_no_features(tmp_path: Path, model: Blip3Video) -> None:
    listed = write_list(tmp_path, broken=tuple(range(NUM_CLIPS)))
    with pytest.raises(ConfigError, match=r"none of the clips can be read; the first is .*0.mp4: "):
        cached(tmp_path / "cache", listed, model)
    assert not any(path.is_dir() for path in (tmp_path / "cache").iterdir())
