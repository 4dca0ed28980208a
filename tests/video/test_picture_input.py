"""Folders and sequences of images, and arrays."""

import os
from pathlib import Path

import numpy as np
import pytest
from film_files import numbered_picture, read_number
from PIL import Image

from blip3v.errors import CorruptVideoError, UnsupportedVideoError, UsageError, VideoError, VideoTooLargeError
from blip3v.video import Clip, PreprocessorConfig, VideoLimits, load_clip, load_pixels


def folder_of_images(folder: Path, count: int, suffix: str = "png") -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(numbered_picture(number)).save(folder / f"frame{number}.{suffix}")
    return folder


def numbers(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "BMP", "tiff"])
def test_a_folder_is_read_in_natural_order(tmp_path: Path, suffix: str) -> None:
    folder = folder_of_images(tmp_path / "film", 12, suffix)
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_text("not a frame")
    clip = load_clip(folder, num_frames=12, rule="uniform")
    assert numbers(clip) == list(range(12))
    assert clip.num_source_frames == 12
    assert (clip.width, clip.height) == (96, 64)


def test_pictures_have_no_times_unless_told(tmp_path: Path) -> None:
    """Folders and arrays were shown as one frame a second, which nobody had said."""
    folder = folder_of_images(tmp_path / "film", 10)
    clip = load_clip(str(folder), num_frames=2, rule="uniform")
    assert [(sampled.index, sampled.time_s) for sampled in clip.sampled] == [(0, None), (9, None)]
    assert (clip.fps, clip.duration_s) == (None, None)
    with pytest.raises(UsageError, match=r"start is 1 s, but pictures have no times; .* `fps=25`"):
        load_clip(folder, num_frames=2, start_s=1.0)
    with pytest.raises(UsageError, match=r"end is 1 s, but pictures have no times; .* `fps=25`"):
        load_clip(folder, num_frames=2, end_s=1.0)
    clip = load_clip(folder, num_frames=2, rule="uniform", fps=4.0, start_s=0.5, end_s=2.0)
    assert [(sampled.index, sampled.time_s) for sampled in clip.sampled] == [(2, 0.5), (7, 1.75)]
    assert (clip.fps, clip.duration_s, clip.num_source_frames) == (4.0, 1.5, 6)


def test_paths_and_arrays_mix_and_sizes_differ(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "film", 2)
    large = numbered_picture(7, 200, 100)
    clip = load_clip([folder / "frame1.png", large, str(folder / "frame0.png")], num_frames=3, rule="uniform")
    assert numbers(clip) == [1, 7, 0]
    assert [frame.shape for frame in clip.frames] == [(64, 96, 3), (100, 200, 3), (64, 96, 3)]
    pixels, _ = load_pixels([large, folder / "frame1.png"], num_frames=2, config=PreprocessorConfig(image_size=16))
    assert pixels.shape == (2, 3, 16, 16)


def test_an_array_is_a_video() -> None:
    video = np.stack([numbered_picture(number) for number in range(20)])
    clip = load_clip(video, num_frames=4)
    assert [sampled.index for sampled in clip.sampled] == numbers(clip) == [2, 7, 12, 18]
    assert np.shares_memory(clip.frames[0], video)


def test_only_sampled_images_are_opened(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "film", 5)
    (folder / "frame2.png").write_bytes(b"broken")
    assert numbers(load_clip(folder, num_frames=2, rule="uniform")) == [0, 4]
    with pytest.raises(CorruptVideoError, match=r"frame2\.png is not an image"):
        load_clip(folder, num_frames=5, rule="uniform")


def test_a_truncated_image_names_its_file(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "film", 2, "jpg")
    data = (folder / "frame1.jpg").read_bytes()
    (folder / "frame1.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptVideoError, match=r"frame1\.jpg cannot be read as an image .*[Tt]runcated"):
        load_clip(folder, num_frames=2, rule="uniform")


@pytest.mark.skipif(os.name == "nt", reason="a folder is opened there with another error")
def test_an_image_of_a_list_that_is_not_there(tmp_path: Path) -> None:
    """It was an image that cannot be read ([Errno 2] No such file or directory: and the path again)."""
    missing, folder = tmp_path / "nope.png", tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(CorruptVideoError) as caught:
        load_clip([missing], num_frames=2)
    assert str(caught.value) == f"{missing} does not exist; check the path of each image"
    with pytest.raises(CorruptVideoError, match=r"folder\.png cannot be read as an image \(Is a directory\)"):
        load_clip([folder], num_frames=2)


def test_grey_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(numbered_picture(5))
    paths = []
    for mode in ("L", "P", "RGBA", "1"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
        paths.append(tmp_path / f"{mode}.png")
    clip = load_clip(paths, num_frames=4, rule="uniform")
    assert numbers(clip) == [5] * 4
    assert all(frame.shape == (64, 96, 3) for frame in clip.frames)


def test_a_photo_is_turned_as_its_exif_data_says(tmp_path: Path) -> None:
    picture = Image.fromarray(numbered_picture(9))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: a viewer turns it a quarter clockwise
    picture.save(tmp_path / "photo.png", exif=exif)
    clip = load_clip([tmp_path / "photo.png"], num_frames=1)
    np.testing.assert_array_equal(clip.frames[0], np.rot90(numbered_picture(9), -1))


def test_a_picture_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(VideoTooLargeError, match=r"20000x20000 = 400000000 pixels.*max_pixels"):
        load_clip([bomb], num_frames=1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param(VideoLimits(max_frames_walked=4), "5 pictures", id="count"),
        pytest.param(VideoLimits(max_pixels=63), "8x8 = 64 pixels", id="pixels"),
        pytest.param(VideoLimits(max_duration_s=4), "lasts 5.0 s", id="duration"),
    ],
)
def test_limits_hold_for_arrays(limits: VideoLimits, message: str) -> None:
    with pytest.raises(VideoTooLargeError, match=message):
        load_clip(np.zeros((5, 8, 8, 3), np.uint8), num_frames=2, limits=limits, fps=1.0)


def test_an_image_file_over_its_size_is_refused(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "film", 1)
    with pytest.raises(VideoTooLargeError, match="max_bytes"):
        load_clip(folder, num_frames=1, limits=VideoLimits(max_bytes=50))


@pytest.mark.parametrize(
    ("video", "message"),
    [
        pytest.param(np.zeros((4, 8, 8, 3), np.float32), "float32", id="dtype"),
        pytest.param(np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)", id="one-picture-or-three-grey-ones"),
        pytest.param(np.zeros((4, 3, 8, 3), np.uint8), r"\(4, 3, 8, 3\), in which colours may", id="first-or-last"),
        pytest.param(np.zeros((4, 8, 8, 4), np.uint8), r"\(4, 8, 8, 4\)", id="alpha"),
        pytest.param(np.zeros((0, 8, 8, 3), np.uint8), r"\(0, 8, 8, 3\)", id="no-frames"),
        pytest.param([], "no pictures", id="empty"),
        pytest.param(iter([]), "no pictures", id="empty-iterator"),
        pytest.param({1, 2}, "set is not a video", id="set"),
        pytest.param([np.zeros((8, 8), np.uint8)], "picture 0 is uint8", id="grey"),
        pytest.param(["a.png", 5], "picture 1 has type int", id="number-in-a-list"),
        pytest.param(5, "int is not a video", id="number"),
        pytest.param(None, "NoneType is not a video", id="none"),
    ],
)
def test_what_is_not_a_video_input(video: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_clip(video, num_frames=2)  # type: ignore[arg-type]


def test_a_url_in_a_list_is_refused() -> None:
    with pytest.raises(UnsupportedVideoError, match=r"picture 0 is the URL https://example\.org/a\.png"):
        load_clip(["https://example.org/a.png"], num_frames=2)


def test_a_text_stream_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with open(tmp_path / "text") as file, pytest.raises(UsageError, match="'rb'"):
        load_clip(file, num_frames=2)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVideoError, match="contains no images"):
        load_clip(tmp_path, num_frames=2)


def test_a_folder_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came out as a bare OSError."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VideoError, match=r"the folder .* cannot be read \(Permission denied\); check its permissions"):
        load_clip(tmp_path, num_frames=2)


def test_a_part_without_pictures_is_refused() -> None:
    with pytest.raises(UsageError, match=r"start is 7 s, and the video is 5\.000 s long"):
        load_clip(np.zeros((5, 8, 8, 3), np.uint8), num_frames=2, start_s=7.0, fps=1.0)


@pytest.mark.parametrize("fps", [0.0, -1, float("nan"), float("inf"), "25", True])
def test_fps_must_be_a_rate(fps: float) -> None:
    with pytest.raises(UsageError, match=f"fps is {fps!r}"):
        load_clip(np.zeros((5, 8, 8, 3), np.uint8), num_frames=2, fps=fps)
