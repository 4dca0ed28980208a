"""Pixels from one long-lived process: those of ``load_clip``, whatever happens to the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3v.errors import VideoError
from blip3v.video import VideoLimits, pixel_reader
from blip3v.video.pixel_reader import ClipRequest, PixelReader
from blip3v.video.preprocess import PreprocessorConfig, resize

CONFIG = PreprocessorConfig(image_size=32)


def request(path: Path, seed: int = 1) -> ClipRequest:
    return ClipRequest(video=str(path), num_frames=4, rule="train", seed=seed)


def expected(path: Path, seed: int = 1) -> np.ndarray:
    return resize(request(path, seed).load(VideoLimits()).frames, CONFIG)


def pid(reader: PixelReader) -> int:
    assert reader._held.process is not None
    return reader._held.process.pid


@pytest.fixture(scope="module")
def reader() -> Iterator[PixelReader]:
    with PixelReader(VideoLimits(timeout_s=4)) as reader:
        yield reader


def test_one_process_reads_videos_and_folders_as_load_clip_does(
    reader: PixelReader, plain: Path, tmp_path: Path
) -> None:
    for number in range(5):
        Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)).save(tmp_path / f"{number}.png")
    assert np.array_equal(reader.pictures(request(plain), CONFIG), expected(plain))
    first = pid(reader)
    assert np.array_equal(reader.pictures(request(tmp_path), CONFIG), expected(tmp_path))
    part = ClipRequest(video=str(plain), num_frames=2, rule="train", seed=3, start_s=1.0, end_s=2.0)
    assert np.array_equal(reader.pictures(part, CONFIG), resize(part.load(VideoLimits()).frames, CONFIG))
    assert pid(reader) == first


def test_what_a_video_cannot_be_is_said_as_load_clip_says_it(reader: PixelReader, plain: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(plain.read_bytes()[:3000])
    with pytest.raises(VideoError) as found:
        reader.pictures(request(broken), CONFIG)
    with pytest.raises(VideoError) as wanted:
        request(broken).load(VideoLimits())
    assert (type(found.value), str(found.value)) == (type(wanted.value), str(wanted.value))


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="dead"),
        pytest.param(signal.SIGSTOP, id="hanging", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_or_hangs_is_replaced(reader: PixelReader, plain: Path, number: int) -> None:
    reader._limits = VideoLimits(timeout_s=2)
    reader.pictures(request(plain), CONFIG)
    first = pid(reader)
    os.kill(first, number)
    assert np.array_equal(reader.pictures(request(plain, seed=2), CONFIG), expected(plain, seed=2))
    assert np.array_equal(reader.pictures(request(plain, seed=3), CONFIG), expected(plain, seed=3))
    assert pid(reader) != first


def test_a_process_that_never_starts_is_not_needed(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_reader, "code_arguments", lambda code: ("-c", "raise SystemExit(3)"))
    with PixelReader(VideoLimits()) as reader:
        assert np.array_equal(reader.pictures(request(plain), CONFIG), expected(plain))
