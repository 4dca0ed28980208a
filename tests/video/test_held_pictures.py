"""Pictures that a caller holds: PIL images, tensors, generators of frames."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pytest
import torch
from film_files import numbered_picture, read_number
from PIL import Image, ImageSequence

from blip3v.errors import (
    CancelledError,
    CorruptVideoError,
    RequestTimeoutError,
    UsageError,
    VideoTimeoutError,
    VideoTooLargeError,
)
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.video import Clip, VideoLimits, load_clip

COUNT = 20
VIDEO_THWC = np.stack([numbered_picture(number) for number in range(COUNT)])
EXPECTED = [2, 7, 12, 18]  # of 20 frames, by the released rule

_PICTURES = [Image.fromarray(frame) for frame in VIDEO_THWC]
_TENSOR = torch.from_numpy(VIDEO_THWC)


class _ArrayOnly:
    """What has the array protocol and no other, as tensors of some frameworks."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return VIDEO_THWC


class _OnDevice:
    def __init__(self, device: tuple[int, int]) -> None:
        self.device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __array__(self) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def numbers(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


FORMS: dict[str, Callable[[], Any]] = {
    "pil-list": lambda: list(_PICTURES),
    "pil-tuple": lambda: tuple(_PICTURES),
    "pil-generator": lambda: iter(_PICTURES),
    "array-generator": lambda: (frame for frame in VIDEO_THWC),
    "tensor": lambda: _TENSOR,
    "tensor-channels-first": lambda: _TENSOR.permute(0, 3, 1, 2).contiguous(),
    "array-channels-first": lambda: np.moveaxis(VIDEO_THWC, 3, 1),
    "tensor-list": lambda: list(_TENSOR),
    "tensor-generator-channels-first": lambda: (frame.permute(2, 0, 1) for frame in _TENSOR),
    "array-protocol": _ArrayOnly,
    "mixture": lambda: [*_PICTURES[:7], *VIDEO_THWC[7:12], *_TENSOR[12:]],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_frames(form: str) -> None:
    """PIL images, tensors and generators were refused, though pictures were promised."""
    clip = load_clip(FORMS[form](), num_frames=4)
    assert [sampled.index for sampled in clip.sampled] == numbers(clip) == EXPECTED
    assert [sampled.time_s for sampled in clip.sampled] == [None] * 4
    for index, frame in zip(EXPECTED, clip.frames, strict=True):
        np.testing.assert_array_equal(frame, VIDEO_THWC[index])
    timed = load_clip(FORMS[form](), num_frames=2, rule="uniform", fps=10.0, start_s=0.5, end_s=1.0)
    assert [(sampled.index, sampled.time_s) for sampled in timed.sampled] == [(5, 0.5), (9, 0.9)]


def test_a_tensor_is_not_copied() -> None:
    clip = load_clip(_TENSOR, num_frames=2)
    assert all(np.shares_memory(frame, VIDEO_THWC) for frame in clip.frames)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_one_pil_image_is_a_video_of_one_frame(mode: str) -> None:
    image = Image.fromarray(numbered_picture(9))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    clip = load_clip(image, num_frames=3)
    assert [sampled.index for sampled in clip.sampled] == [0, 0, 0]
    assert clip.frames[0].shape == (64, 96, 3)
    if mode != "I;16":
        assert numbers(clip) == [9, 9, 9]


def test_one_array_of_a_picture_is_a_video_of_one_frame() -> None:
    assert numbers(load_clip(numbered_picture(9), num_frames=2)) == [9, 9]


def test_a_pil_image_is_turned_as_its_file_would_be(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numbered_picture(9)).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        held = load_clip(image, num_frames=1).frames[0]
    np.testing.assert_array_equal(held, load_clip(tmp_path / "photo.png", num_frames=1).frames[0])


def test_exif_data_that_are_cut_off_are_an_error_of_ours() -> None:
    """It was a struct.error."""
    exif = Image.Exif()
    exif[0x112] = 6
    picture = Image.new("RGB", (8, 8))
    picture.info["exif"] = exif.tobytes()[:12]
    with pytest.raises(CorruptVideoError, match=r"picture 0 cannot be decoded \(.*replace or remove it"):
        load_clip(picture, num_frames=2)


def test_only_sampled_pil_images_are_decoded(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, picture in zip(paths, _PICTURES, strict=False):
        picture.save(path)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[: len(data) // 2])
    opened = [Image.open(path) for path in paths]
    assert numbers(load_clip(opened, num_frames=2, rule="uniform")) == [0, 2]
    with pytest.raises(CorruptVideoError, match="picture 1 cannot be decoded"):
        load_clip(opened, num_frames=3, rule="uniform")
    for image in opened:
        image.close()


def test_an_opened_animation_is_not_taken_for_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "film.gif"
    _PICTURES[0].save(path, save_all=True, append_images=_PICTURES[1:4], duration=40)
    with Image.open(path) as image:
        with pytest.raises(UsageError, match=r"is an animation.*ImageSequence\.Iterator"):
            load_clip(image, num_frames=2)
        assert numbers(load_clip(ImageSequence.Iterator(image), num_frames=4, rule="uniform")) == [0, 1, 2, 3]


def test_a_generator_may_reuse_its_memory() -> None:
    """As cameras and decoders do: each frame is written over the one before."""

    def frames() -> Iterator[np.ndarray]:
        buffer = np.empty_like(VIDEO_THWC[0])
        for frame in VIDEO_THWC:
            buffer[:] = frame
            yield buffer

    assert numbers(load_clip(frames(), num_frames=4)) == EXPECTED


def test_a_generator_of_paths(tmp_path: Path) -> None:
    for index, picture in enumerate(_PICTURES[:4]):
        picture.save(tmp_path / f"{index}.png")
    assert numbers(load_clip((tmp_path / f"{i}.png" for i in range(4)), num_frames=4, rule="uniform")) == [0, 1, 2, 3]


def endless(pause_s: float = 0.0) -> Iterator[np.ndarray]:
    while True:
        time.sleep(pause_s)
        yield np.zeros((1000, 1000, 3), np.uint8)


@pytest.mark.parametrize(
    ("limits", "kind", "message"),
    [
        pytest.param(VideoLimits(max_frames_walked=7), VideoTooLargeError, "more than 7 frames", id="count"),
        pytest.param(
            VideoLimits(max_memory_bytes=210 * 10**6),
            VideoTooLargeError,
            r"the first 71 frames take 213000000 bytes; the limit is 210000000 \(max_memory_bytes\)",
            id="bytes",
        ),
        pytest.param(VideoLimits(max_pixels=10**6 - 1), VideoTooLargeError, "1000x1000", id="pixels"),
        pytest.param(VideoLimits(timeout_s=0.1), VideoTimeoutError, "took longer than 0.1 s", id="time"),
    ],
)
def test_an_endless_generator_meets_a_limit(limits: VideoLimits, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_clip(endless(0.01 if limits.timeout_s < 1 else 0.0), num_frames=2, limits=limits)


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_reading_a_generator_can_be_ended_from_outside(how: str) -> None:
    token = CancelToken()
    deadline = Deadline(0.2, None) if how == "deadline" else Deadline(None, token)
    canceller = threading.Timer(0.2, token.cancel)
    canceller.start()
    with pytest.raises(RequestTimeoutError if how == "deadline" else CancelledError):
        load_clip(endless(0.01), num_frames=2, interrupting=deadline.interrupting)
    canceller.join()


class SlowFile:
    """A file object whose reading takes 3 s."""

    def __init__(self) -> None:
        self.num_left = 300

    def read(self, num_bytes: int) -> bytes:
        time.sleep(0.01)
        self.num_left -= 1
        return b"x" if self.num_left >= 0 else b""


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_reading_a_file_object_can_be_ended_from_outside(how: str) -> None:
    """It was read to its end first."""
    token, source = CancelToken(), SlowFile()
    deadline = Deadline(0.2, None) if how == "deadline" else Deadline(None, token)
    canceller = threading.Timer(0.2, token.cancel)
    canceller.start()
    with pytest.raises(RequestTimeoutError if how == "deadline" else CancelledError):
        load_clip(cast(BinaryIO, source), num_frames=2, interrupting=deadline.interrupting)
    canceller.join()
    assert source.num_left > 100


def test_a_slow_file_object_meets_the_limit_on_time() -> None:
    """The limit held for iterators of frames only."""
    with pytest.raises(VideoTimeoutError, match=r"reading \d+ bytes took longer than 0.1 s, the limit \(timeout_s\)"):
        load_clip(cast(BinaryIO, SlowFile()), num_frames=2, limits=VideoLimits(timeout_s=0.1))


def test_a_memoryview_is_measured_in_bytes() -> None:
    """Its items were counted, here 4, so that more than ``max_bytes`` were copied."""
    with pytest.raises(VideoTooLargeError, match="the video has 4000000 bytes; the limit is 1000"):
        load_clip(cast(Any, np.zeros((4, 1000, 1000), np.uint8).data), num_frames=2, limits=VideoLimits(max_bytes=1000))


def test_a_memoryview_with_gaps_is_refused() -> None:
    """It was a BufferError."""
    with pytest.raises(UsageError, match=r"skips bytes of its memory; give `bytes\(view\)`"):
        load_clip(cast(Any, memoryview(b"abcdef")[::2]), num_frames=2)


def test_an_error_of_the_generator_reaches_the_caller() -> None:
    def frames() -> Iterator[np.ndarray]:
        yield VIDEO_THWC[0]
        raise KeyError("camera unplugged")

    with pytest.raises(KeyError, match="camera unplugged"):
        load_clip(frames(), num_frames=2)


def test_frames_that_were_not_sampled_are_freed() -> None:
    collected: list[weakref.ref[np.ndarray]] = []

    def frames() -> Iterator[np.ndarray]:
        for frame in VIDEO_THWC:
            own = frame.copy()
            collected.append(weakref.ref(own))
            yield own

    clip = load_clip(frames(), num_frames=4)
    gc.collect()
    assert [ref() for ref in collected] == [None] * COUNT
    assert all(frame.base is None for frame in clip.frames)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        pytest.param(_TENSOR.float(), r"the array is float32 \(20, 64, 96, 3\)", id="float-tensor"),
        pytest.param(_TENSOR.to("meta"), "the torch Tensor cannot be read as an array", id="tensor-without-data"),
        pytest.param(_OnDevice((2, 0)), r"is on a device \(DLPack type 2\); copy it to the CPU first", id="cuda"),
        pytest.param(_OnDevice((1, 0)), "cannot be read as an array .*can't convert", id="no-conversion"),
        pytest.param(_TENSOR[:, :, :, :2], r"\(20, 64, 96, 2\)", id="two-colours"),
        pytest.param([_TENSOR], r"picture 0 is uint8 \(20, 64, 96, 3\)", id="video-in-a-list"),
        pytest.param([numbered_picture(0)[..., :1]], r"picture 0 is uint8 \(64, 96, 1\)", id="grey"),
        pytest.param([b"bytes"], "picture 0 has type bytes", id="bytes-in-a-list"),
        pytest.param(iter([numbered_picture(0), None]), "picture 1 has type NoneType", id="none-in-a-generator"),
    ],
)
def test_what_is_no_picture_is_refused(video: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_clip(video, num_frames=2)
