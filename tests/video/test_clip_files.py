"""Clips of intact files: the right frames, at the right times, as players show them."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from film_files import Film, numbered_picture, packets, read_number, reference_frames

from blip3v.errors import UsageError
from blip3v.video import Clip, PreprocessorConfig, VideoLimits, load_clip, load_pixels, preprocess, sample_indices
from blip3v.video_decoder import pick as pick_module
from blip3v.video_decoder import run as run_module
from blip3v.video_decoder.container import open_container, video_stream
from blip3v.video_decoder.walk import decode, walk_file

TURNS = {
    # name: (a, b, c, d) of the track's matrix, and what a player displays
    "quarter-right": ((0, 1, -1, 0), lambda picture: np.rot90(picture, -1)),
    "half": ((-1, 0, 0, -1), lambda picture: np.rot90(picture, 2)),
    "quarter-left": ((0, -1, 1, 0), lambda picture: np.rot90(picture, 1)),
    "mirror": ((-1, 0, 0, 1), lambda picture: picture[:, ::-1]),
    "mirror-and-quarter": ((0, 1, 1, 0), lambda picture: picture.transpose(1, 0, 2)),
}


def numbers(clip: Clip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def indices(clip: Clip) -> list[int]:
    return [sampled.index for sampled in clip.sampled]


def turned(path: Path, matrix: tuple[float, float, float, float], target: Path) -> Path:
    """A copy of an mp4 with another matrix in its track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("h264.mp4", {}, id="h264-mp4"),
        pytest.param("h264.mkv", {}, id="h264-mkv"),
        pytest.param("h264.avi", {}, id="h264-avi-without-true-times"),
        pytest.param("h264.ts", {}, id="h264-ts"),
        pytest.param("h264.h264", {"file_format": "h264"}, id="h264-without-times"),
        pytest.param("open.mp4", {"options": {"x264-params": "open-gop=1:bframes=3"}}, id="h264-open-gop"),
        pytest.param("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, id="fragments"),
        pytest.param("vp9.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "lag-in-frames": "8"}}, id="vp9"),
        pytest.param(
            "vp8.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}, id="vp8"
        ),
        pytest.param("mpeg4.avi", {"codec": "mpeg4"}, id="mpeg4-avi"),
        pytest.param("mpeg2.ts", {"codec": "mpeg2video"}, id="mpeg2"),
    ],
)
def test_the_sampled_frames_are_the_ones_that_come_back(film: Film, name: str, options: dict) -> None:
    path = film(name, 40, **options)
    clip = load_clip(path, num_frames=8)
    expected = sample_indices(40, 8).tolist()
    assert indices(clip) == expected
    assert numbers(clip) == expected
    assert clip.num_source_frames == 40
    assert clip.num_broken == 0
    assert [sampled.time_s for sampled in clip.sampled] == pytest.approx([index / 25 for index in expected], abs=2e-3)
    assert clip.duration_s == pytest.approx(40 / 25, abs=2e-3)
    assert clip.fps == pytest.approx(25, abs=0.05)
    reference = reference_frames(path)
    for index, frame in zip(expected, clip.frames, strict=True):
        np.testing.assert_array_equal(frame, reference[index])


def test_times_come_from_the_file_where_the_rate_varies(film: Film) -> None:
    pts = np.cumsum([0, *([1, 7, 2, 30] * 5)][:20]).tolist()
    clip = load_clip(film("variable.mp4", 20, pts=pts), num_frames=20, rule="uniform")
    assert numbers(clip) == list(range(20))
    assert [sampled.time_s for sampled in clip.sampled] == pytest.approx([value / 25 for value in pts])


@pytest.mark.parametrize(("matrix", "shown"), TURNS.values(), ids=TURNS)
def test_pictures_are_turned_as_players_do(plain: Path, tmp_path: Path, matrix: tuple, shown: object) -> None:
    path = turned(plain, matrix, tmp_path / "turned.mp4")
    clip = load_clip(path, num_frames=2)
    assert callable(shown)
    expected = shown(reference_frames(plain)[1])
    np.testing.assert_array_equal(clip.frames[0], expected)
    assert (clip.height, clip.width) == expected.shape[:2]


def test_a_track_matrix_turns_the_ramp_the_right_way(plain: Path, tmp_path: Path) -> None:
    """Independent of how matrices are read: red is on the left, so a quarter turn to the right brings it to the top."""
    frame = load_clip(turned(plain, (0, 1, -1, 0), tmp_path / "right.mp4"), num_frames=1).frames[0]
    right_half = frame[:, frame.shape[1] * 3 // 4]
    assert right_half[2, 0] > 200
    assert right_half[-3, 0] < 60


@pytest.mark.parametrize(
    ("size", "codec", "pix_fmt"),
    [((97, 63), "libx264", "yuv444p"), ((101, 77), "mpeg4", "yuv420p"), ((1922, 6), "libx264", "yuv420p")],
    ids=["odd-444", "odd-420", "wide"],
)
def test_odd_sizes_keep_every_pixel(film: Film, size: tuple[int, int], codec: str, pix_fmt: str) -> None:
    path = film(f"odd-{size[0]}.mp4", 3, size=size, codec=codec, pix_fmt=pix_fmt)
    clip = load_clip(path, num_frames=3, rule="uniform")
    assert (clip.width, clip.height) == size
    np.testing.assert_array_equal(np.stack(clip.frames), np.stack(reference_frames(path)))


def test_one_frame_is_a_video(film: Film) -> None:
    clip = load_clip(film("one.mp4", 1), num_frames=8)
    assert indices(clip) == [0] * 8
    assert clip.num_source_frames == 1
    assert clip.duration_s == pytest.approx(1 / 25)
    assert all(frame is clip.frames[0] for frame in clip.frames)


def test_4k_decodes_within_the_default_limits(film: Film) -> None:
    path = film("4k.mp4", 2, size=(3840, 2160), options={"preset": "ultrafast"})
    clip = load_clip(path, num_frames=2, rule="uniform")
    assert (clip.width, clip.height) == (3840, 2160)
    assert numbers(clip) == [0, 1]


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        pytest.param(None, 0.4, range(10), id="end-is-left-out"),
        pytest.param(0.4, None, range(10, 60), id="start-is-kept"),
        pytest.param(0.41, 0.79, range(11, 20), id="between-frames"),
        pytest.param(2.36, 99.0, [59], id="last-frame"),
    ],
)
def test_a_part_of_the_video(plain: Path, start_s: float | None, end_s: float | None, expected: range) -> None:
    clip = load_clip(plain, num_frames=len(expected), rule="uniform", start_s=start_s, end_s=end_s)
    assert numbers(clip) == indices(clip) == list(expected)
    assert clip.num_source_frames == len(expected)
    assert clip.duration_s == pytest.approx(len(expected) / 25)


def test_times_count_from_the_first_frame_of_a_file_that_starts_late(film: Film) -> None:
    clip = load_clip(film("late.ts", 20, pts=range(500, 520)), num_frames=1, rule="uniform", start_s=0.2)
    assert clip.sampled[0].time_s == pytest.approx(0.2)
    assert numbers(clip) == [5]


@pytest.mark.parametrize("form", ["bytes", "bytearray", "stream", "file", "file-at-its-middle"])
def test_bytes_and_file_objects(plain: Path, form: str) -> None:
    data = plain.read_bytes()
    expected = [4, 11, 18, 26, 33, 41, 48, 56]
    if form.startswith("file"):
        with open(plain, "rb") as file:
            file.seek(0 if form == "file" else 8)
            if form == "file-at-its-middle":
                # It is read from its current position: without its first bytes this is not an mp4.
                with pytest.raises(Exception, match="video"):
                    load_clip(file, num_frames=8)
                return
            assert numbers(load_clip(file, num_frames=8)) == expected
        return
    video = {"bytes": data, "bytearray": bytearray(data), "stream": io.BytesIO(data)}[form]
    assert numbers(load_clip(video, num_frames=8)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"x264-params": "open-gop=1:bframes=3"}], ids=["closed-gop", "open-gop"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_seeks_in_a_long_file_return_the_same_frames(film: Film, suffix: str, options: dict) -> None:
    """Frames far apart are reached by seeking to a keyframe: 4 wanted ones of 900, next to and on keyframes."""
    path = film(f"long-{len(options)}.{suffix}", 900, gop=30, options=options)
    reference = reference_frames(path)
    keys = sorted(index for index, *_, is_key in packets(path) if is_key)
    for start in (keys[7], keys[7] - 1, keys[7] + 1):
        clip = load_clip(path, num_frames=4, rule="uniform", start_s=start / 25)
        assert indices(clip)[0] == start
        assert np.diff(indices(clip)).min() > 200
        for index, frame in zip(indices(clip), clip.frames, strict=True):
            np.testing.assert_array_equal(frame, reference[index])


def test_only_what_is_needed_is_decoded_in_a_long_file(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    path = film("long-0.mp4", 900, gop=30, options={})
    num_decoded = 0

    def counting(*arguments: Any) -> Iterator[Any]:
        nonlocal num_decoded
        for frame in decode(*arguments):
            num_decoded += 1
            yield frame

    with open(path, "rb") as file:

        def opener() -> Any:
            container = open_container(file)
            return container, video_stream(container, VideoLimits())

        found = walk_file(opener, VideoLimits(), truncated=False)
        monkeypatch.setattr(run_module, "decode", counting)
        picked = [index for index, _ in pick_module.pick(opener, found, [10, 400, 410, 899])]
    assert picked == [10, 400, 410, 899]
    assert found.broken == set()
    # Three stretches, each from a keyframe to a little past the wanted frame.
    assert num_decoded < 3 * (30 + 30)


def test_frames_that_an_edit_list_hides_are_not_counted(film: Film, tmp_path: Path) -> None:
    """A copy that starts 5 frames into its material, as editing tools write it without encoding again."""
    path = tmp_path / "edited.mp4"
    with av.open(str(film("plain.mp4", 60))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                shift = round(5 / 25 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                target.mux(packet)
    clip = load_clip(path, num_frames=55, rule="uniform")
    assert numbers(clip) == list(range(5, 60))
    assert clip.sampled[1].time_s == pytest.approx(1 / 25)


def test_frames_before_the_first_keyframe_are_not_counted(film: Film, tmp_path: Path) -> None:
    """A recording that begins in the middle of a broadcast: no player can show frames before the first keyframe."""
    source = film("plain.ts", 60)
    second_key = [place for place, packet in enumerate(packets(source)) if packet[3]][1]
    path = tmp_path / "joined-late.ts"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        kept = [packet for packet in old.demux(video=0) if packet.size][second_key - 3 :]
        for packet in kept:
            packet.stream = stream
            new.mux(packet)
    first = packets(source)[second_key][0]
    clip = load_clip(path, num_frames=60 - first, rule="uniform")
    assert numbers(clip) == list(range(first, 60))
    assert clip.sampled[0].time_s == 0


def test_train_rule_depends_on_its_seed(plain: Path) -> None:
    first, again = (load_clip(plain, num_frames=4, rule="train", seed=3) for _ in range(2))
    assert indices(first) == indices(again) == numbers(first)
    assert {tuple(indices(load_clip(plain, num_frames=7, rule="train", seed=seed))) for seed in range(5)} != {
        tuple(indices(first))
    }


@pytest.mark.parametrize("num_frames", [4, 60, 100])
def test_pictures_are_told_of_as_they_come(plain: Path, num_frames: int) -> None:
    told: list[np.ndarray] = []
    clip = load_clip(plain, num_frames=num_frames, on_picture=told.append)
    assert [id(picture) for picture in told] == list(dict.fromkeys(id(frame) for frame in clip.frames))


def test_pixels_are_the_clip_preprocessed(plain: Path) -> None:
    config = PreprocessorConfig(image_size=32, resize_mode="pad", sampling="uniform")
    pixels, clip = load_pixels(plain, num_frames=4, config=config)
    assert indices(clip) == [0, 19, 39, 59]
    assert pixels.shape == (4, 3, 32, 32)
    np.testing.assert_array_equal(pixels, preprocess([reference_frames(plain)[i] for i in (0, 19, 39, 59)], config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"start_s": 99.0}, "start is 99 s, and the video is 2.400 s long", id="past-the-end"),
        pytest.param({"start_s": 0.001, "end_s": 0.002}, "60 frames from 0 to 2.400 s", id="between-frames"),
        pytest.param({"start_s": -1.0}, "start is -1.0 s", id="negative"),
        pytest.param({"start_s": 1.0, "end_s": 1.0}, "not after start", id="backwards"),
        pytest.param({"end_s": float("nan")}, "end is nan", id="nan"),
        pytest.param({"fps": 5.0}, "its own timestamps", id="fps-of-a-file"),
        pytest.param({"seed": 5}, "is not random", id="seed-of-a-fixed-rule"),
        pytest.param({"rule": "best"}, "unknown", id="rule"),
        pytest.param({"num_frames": 0}, "at least 1", id="no-frames"),
    ],
)
def test_arguments_that_cannot_be_used(plain: Path, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_clip(plain, **{"num_frames": 4} | options)


def test_numbered_pictures_can_be_read_back() -> None:
    assert [read_number(numbered_picture(number)) for number in (0, 1, 513, 1023)] == [0, 1, 513, 1023]
