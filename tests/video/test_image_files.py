"""One image file as a video: still pictures, animations with their own times, and files with several pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from film_files import numbered_picture, read_number, write_film
from PIL import Image, ImageSequence

from blip3v.errors import UsageError, VideoError, VideoTooLargeError
from blip3v.video import Clip, VideoLimits, load_clip

DURATIONS_MS = [100, 200, 50, 400, 20, 300]
TIMES_S = [0.0, 0.1, 0.3, 0.35, 0.75, 0.77]


def images(count: int) -> list[Image.Image]:
    return [Image.fromarray(numbered_picture(number)) for number in range(count)]


def animation(path: Path, durations_ms: Sequence[int] = DURATIONS_MS, **options: Any) -> Path:
    first, *others = images(len(durations_ms))
    first.save(path, save_all=True, append_images=others, duration=list(durations_ms), loop=0, **options)
    return path


def numbers(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def times(clip: Clip) -> list[float | None]:
    return [sampled.time_s for sampled in clip.sampled]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_a_still_picture_is_one_frame_without_a_time(tmp_path: Path, suffix: str, as_bytes: bool) -> None:
    """It was refused: "not a video in a supported format"."""
    path = tmp_path / f"still.{suffix}"
    images(6)[5].save(path)
    video = path.read_bytes() if as_bytes else path
    clip = load_clip(video, num_frames=4)
    assert numbers(clip) == [5] * 4
    assert [(sampled.index, sampled.time_s) for sampled in clip.sampled] == [(0, None)] * 4
    assert (clip.num_source_frames, clip.duration_s, clip.fps, clip.num_broken) == (1, None, None, 0)
    np.testing.assert_array_equal(clip.frames[0], np.asarray(Image.open(path).convert("RGB")))
    assert times(load_clip(video, num_frames=1, fps=2.0, end_s=0.5)) == [0.0]
    with pytest.raises(UsageError, match="start is 0 s, but pictures have no times"):
        load_clip(video, num_frames=1, start_s=0.0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("film.gif", {}),
        ("film.png", {}),
        ("film.webp", {"lossless": True}),
        ("film-small-changes.webp", {"minimize_size": True, "quality": 95}),
    ],
)
def test_an_animation_has_its_own_times(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Animated WebP was refused as a broken video."""
    path = animation(tmp_path / name, **options)
    clip = load_clip(path, num_frames=6, rule="uniform")
    assert numbers(clip) == list(range(6))
    assert times(clip) == (TIMES_S if path.suffix == ".webp" else pytest.approx(TIMES_S))
    assert clip.duration_s == pytest.approx(1.07)
    assert clip.fps == pytest.approx(6 / 1.07)
    part = load_clip(path.read_bytes(), num_frames=3, rule="uniform", start_s=0.3, end_s=0.77)
    assert numbers(part) == [2, 3, 4]
    assert part.duration_s == pytest.approx(0.47)
    with pytest.raises(UsageError, match="its own timestamps"):
        load_clip(path, num_frames=2, fps=5.0)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_pictures_that_are_shown_for_no_time_take_a_tenth_of_a_second(tmp_path: Path, suffix: str) -> None:
    clip = load_clip(animation(tmp_path / f"film.{suffix}", [0, 0, 0]), num_frames=3, rule="uniform")
    assert times(clip) == pytest.approx([0.0, 0.1, 0.2])


def test_every_picture_of_a_webp_is_what_pillow_shows(tmp_path: Path) -> None:
    """With transparency and pictures that replace a part of the one before."""
    frames = []
    for number in range(5):
        frame = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        frame.paste((50 * number, 200, 10, 255), (4 * number, 2 * number, 4 * number + 10, 2 * number + 10))
        frames.append(frame)
    path = tmp_path / "sprite.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, lossless=True)
    clip = load_clip(path, num_frames=5, rule="uniform")
    with Image.open(path) as image:
        expected = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    np.testing.assert_array_equal(np.stack(clip.frames), np.stack(expected))


def test_pages_of_a_tiff_are_pictures_without_times(tmp_path: Path) -> None:
    first, *others = images(4)
    first.save(tmp_path / "pages.tiff", save_all=True, append_images=others)
    clip = load_clip(tmp_path / "pages.tiff", num_frames=4, rule="uniform")
    assert numbers(clip) == [0, 1, 2, 3]
    assert times(clip) == [None] * 4
    assert times(load_clip(tmp_path / "pages.tiff", num_frames=2, rule="uniform", fps=2.0)) == [0.0, 1.5]


def test_a_photo_with_a_second_picture_in_it_is_one_picture(tmp_path: Path) -> None:
    """Cameras append a preview or a depth map: it was taken for a video of two frames at 25 fps."""
    first, second, *_ = images(3)
    first.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[second])
    clip = load_clip(tmp_path / "photo.jpg", num_frames=2, rule="uniform")
    assert numbers(clip) == [0, 0]
    assert times(clip) == [None, None]


def test_a_photo_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images(1)[0].save(tmp_path / "photo.webp", exif=exif, lossless=True)
    frame = load_clip(tmp_path / "photo.webp", num_frames=1).frames[0]
    np.testing.assert_array_equal(frame, np.rot90(numbered_picture(0), -1))


def test_jpegs_one_after_the_other_stay_a_video(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mjpeg", 6, codec="mjpeg", pix_fmt="yuvj420p", file_format="mjpeg")
    clip = load_clip(path, num_frames=6, rule="uniform")
    assert numbers(clip) == list(range(6))
    assert times(clip)[1] == pytest.approx(0.04)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("name", ["film.webp", "still.png", "still.jpg", "still.webp", "still.tiff", "still.bmp"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    if name == "film.webp":
        animation(path)
    else:
        images(1)[0].save(path)
    data = path.read_bytes()
    with pytest.raises(VideoError):
        load_clip(data[: int(len(data) * keep)], num_frames=2)


def test_garbage_after_the_end_of_a_webp_is_ignored(tmp_path: Path) -> None:
    data = animation(tmp_path / "film.webp", lossless=True).read_bytes()
    chunk = data[data.index(b"ANMF") :]
    assert times(load_clip(data + chunk, num_frames=6, rule="uniform")) == pytest.approx(TIMES_S)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param(VideoLimits(max_bytes=300), "max_bytes", id="bytes"),
        pytest.param(VideoLimits(max_pixels=96 * 64 - 1), "96x64 = 6144 pixels", id="pixels"),
        pytest.param(VideoLimits(max_frames_walked=5), r"6 pictures; the limit is 5 \(max_frames_walked\)", id="count"),
        pytest.param(VideoLimits(max_duration_s=1.0), "lasts 1.1 s", id="duration"),
    ],
)
def test_limits_hold_for_an_animation(tmp_path: Path, limits: VideoLimits, message: str) -> None:
    with pytest.raises(VideoTooLargeError, match=message):
        load_clip(animation(tmp_path / "film.webp"), num_frames=2, limits=limits)


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tiff", {"compression": "group4"})])
def test_a_picture_bomb_is_refused_before_it_is_unpacked(suffix: str, options: dict[str, Any]) -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, suffix, **options)
    with pytest.raises(VideoTooLargeError, match=r"20000x20000 = 400000000 pixels.*max_pixels"):
        load_clip(stream.getvalue(), num_frames=1)


def test_damage_gives_a_clip_or_an_error_of_ours(tmp_path: Path) -> None:
    data = animation(tmp_path / "film.webp").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(12):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 4):
            changed[at] ^= int(rng.integers(1, 256))
        try:
            load_clip(bytes(changed), num_frames=4)
        except VideoError:
            continue
