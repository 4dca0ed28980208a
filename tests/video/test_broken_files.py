"""Broken, truncated and hostile files: the right error, or the sampled frames and a count of the broken ones."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from film_files import Film, numbered_picture, packets, read_number, reference_frames

from blip3v.errors import (
    CorruptVideoError,
    UnsupportedVideoError,
    VideoError,
    VideoTooLargeError,
)
from blip3v.video import VideoLimits, load_clip

GOP = 12


def damaged(path: Path, target: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    target.write_bytes(data)
    return target


def zeroed(path: Path, target: Path, place: int, *, first: float = 0.0, last: float = 1.0) -> Path:
    """A copy with part of the packet at ``place`` in decode order set to zero."""
    _, start, size, _ = packets(path)[place]
    low, high = start + int(first * size), start + int(last * size)

    def change(data: bytearray) -> None:
        data[low:high] = bytes(high - low)

    return damaged(path, target, change)


def cut(path: Path, target: Path, place: int, *, extra: int = 0) -> Path:
    """A copy that ends before the packet at ``place`` in decode order, plus ``extra`` bytes."""
    end = packets(path)[place][1] + extra

    def change(data: bytearray) -> None:
        del data[end:]

    return damaged(path, target, change)


@pytest.fixture(scope="module")
def no_b_frames(film: Film) -> Path:
    """60 frames without B frames: display order is decode order."""
    return film(
        "no-b.mp4",
        60,
        gop=GOP,
        options={"x264-params": "bframes=0:scenecut=0"},
        container_options={"movflags": "faststart"},
    )


@pytest.mark.parametrize("part", [(0.0, 1.0), (0.5, 1.0)], ids=["whole-packet", "half-a-packet"])
def test_a_broken_frame_that_is_sampled_is_an_error(no_b_frames: Path, tmp_path: Path, part: tuple) -> None:
    broken = zeroed(no_b_frames, tmp_path / "broken.mp4", 30, first=part[0], last=part[1])
    with pytest.raises(CorruptVideoError, match=r"frame 30 at 1.200 s was sampled, but it cannot be decoded"):
        load_clip(broken, num_frames=1, rule="uniform", start_s=30 / 25)


def test_a_picture_with_concealed_errors_is_refused(no_b_frames: Path, tmp_path: Path) -> None:
    """A few bad bytes inside a packet: the decoder hides them with pixels of other frames and reports no error."""
    for tenth in range(2, 10):
        broken = zeroed(no_b_frames, tmp_path / "broken.mp4", 30, first=tenth / 10, last=tenth / 10 + 0.05)
        with av.open(str(broken)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            try:
                patched = [index for index, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]
            except av.InvalidDataError:
                continue
        if patched == [30]:
            break
    else:
        pytest.fail("no damage was found that the decoder hides")
    with pytest.raises(CorruptVideoError, match=r"frame 30 .* cannot be decoded"):
        load_clip(broken, num_frames=1, rule="uniform", start_s=30 / 25)


def test_a_frame_that_depends_on_a_broken_one_is_an_error(no_b_frames: Path, tmp_path: Path) -> None:
    broken = zeroed(no_b_frames, tmp_path / "broken.mp4", 30)
    with pytest.raises(CorruptVideoError, match=r"frame 33 at 1\.320 s was sampled, but it may depend on frame 30"):
        load_clip(broken, num_frames=1, rule="uniform", start_s=33 / 25)


def test_broken_frames_that_are_not_sampled_are_counted(no_b_frames: Path, tmp_path: Path) -> None:
    broken = zeroed(zeroed(no_b_frames, tmp_path / "1.mp4", 30), tmp_path / "2.mp4", 33)
    keys = [index for index, *_, is_key in packets(broken) if is_key]
    assert 36 in keys
    clip = load_clip(broken, num_frames=2, rule="uniform", start_s=29 / 25, end_s=37 / 25)
    assert [sampled.index for sampled in clip.sampled] == [29, 36]
    assert clip.num_broken == 2
    reference = reference_frames(no_b_frames)
    for frame, index in zip(clip.frames, (29, 36), strict=True):
        np.testing.assert_array_equal(frame, reference[index])


def test_a_broken_frame_is_noticed_after_the_frame_that_depends_on_it_was_displayed(film: Film, tmp_path: Path) -> None:
    """A B frame is displayed before a later frame from which it is predicted, which is the broken one here."""
    path = film("b-frames.mp4", 60, gop=60, options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
    order = [index for index, *_ in packets(path)]
    # In decode order a P frame comes before the B frames that are displayed before it.
    place = next(i for i in range(20, 40) if order[i] > order[i + 1])
    broken = zeroed(path, tmp_path / "broken.mp4", place)
    dependent = order[place + 1]
    with pytest.raises(CorruptVideoError, match=f"frame {dependent} .* may depend on frame {order[place]}"):
        load_clip(broken, num_frames=1, rule="uniform", start_s=dependent / 25)


@pytest.mark.parametrize("extra", [0, 20], ids=["between-packets", "inside-a-packet"])
def test_a_truncated_mp4_returns_only_what_it_contains(no_b_frames: Path, tmp_path: Path, extra: int) -> None:
    short = cut(no_b_frames, tmp_path / "cut.mp4", 40, extra=extra)
    with pytest.raises(CorruptVideoError, match=r"frame \d+ at \d.\d{3} s was sampled, but"):
        load_clip(short, num_frames=8)
    with pytest.raises(CorruptVideoError, match=r"frame 59 at 2\.360 s was sampled, but the file ends before it"):
        load_clip(short, num_frames=1, rule="uniform", start_s=59 / 25)
    clip = load_clip(short, num_frames=8, end_s=38 / 25)
    assert clip.num_source_frames == 38
    assert [read_number(frame) for frame in clip.frames] == [sampled.index for sampled in clip.sampled]
    assert clip.num_broken == 20


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("cut.mkv", {}, id="mkv"),
        pytest.param("cut.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}}, id="webm"),
        pytest.param("cut.avi", {"codec": "mpeg4"}, id="avi"),
        pytest.param("cut-h264.avi", {"options": {"bf": "0"}}, id="h264-avi"),
    ],
)
def test_other_containers_that_are_truncated(film: Film, tmp_path: Path, name: str, options: dict) -> None:
    short = cut(film(name, 60, **options), tmp_path / name, 40, extra=7)
    with pytest.raises(CorruptVideoError, match=r"was sampled, but"):
        load_clip(short, num_frames=8)
    clip = load_clip(short, num_frames=4, end_s=1.2)
    assert [read_number(frame) for frame in clip.frames] == [sampled.index for sampled in clip.sampled]
    # Near the cut B frames may be missing in between: those that are present count as broken too.
    assert 20 <= clip.num_broken <= 22


def test_a_truncated_fragmented_mp4_does_not_say_how_long_it_was(film: Film, tmp_path: Path) -> None:
    path = film("fragments-60.mp4", 60, container_options={"movflags": "frag_keyframe+empty_moov"})
    short = cut(path, tmp_path / "cut.mp4", 40)
    with pytest.raises(CorruptVideoError, match="ends too early"):
        load_clip(short, num_frames=2)


def test_an_mp4_without_one_whole_frame_ends_too_early(no_b_frames: Path, tmp_path: Path) -> None:
    """It said "none of the video's 1 frames can be decoded"."""
    short = cut(no_b_frames, tmp_path / "cut.mp4", 0, extra=100)
    with pytest.raises(CorruptVideoError, match="ends too early to hold one whole frame; get the whole file"):
        load_clip(short, num_frames=2)


def test_an_mp4_without_its_index_is_corrupt(film: Film, tmp_path: Path) -> None:
    path = film("index-at-end.mp4", 60)
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    said = r"starts like a video but ends too early, at \d+ bytes, before the list of its frames; get the whole"
    with pytest.raises(CorruptVideoError, match=said):
        load_clip(tmp_path / "cut.mp4", num_frames=2)


def test_garbage_after_the_last_chunk_is_ignored(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "tail.mp4").write_bytes(plain.read_bytes() + b"\0\1\2\3trailing")
    assert load_clip(tmp_path / "tail.mp4", num_frames=2).num_broken == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("empty.mp4", b"", "empty", id="zero-bytes"),
        pytest.param("text.mp4", b"this is no video\n" * 100, "not a video", id="text"),
        pytest.param("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "playlist", id="hls"),
        pytest.param("list.ffconcat", b"ffconcat version 1.0\nfile '/etc/passwd'\n", "playlist", id="concat"),
        pytest.param("list.mpd", b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash">', "playlist", id="dash"),
        pytest.param("script.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n", "not a video", id="sdp"),
        pytest.param("picture.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a video", id="svg"),
        pytest.param("zero.mp4", bytes(4096), "not a video", id="zeros"),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_what_is_not_a_video(tmp_path: Path, name: str, content: bytes, message: str, as_bytes: bool) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedVideoError, match=message):
        load_clip(content if as_bytes else tmp_path / name, num_frames=2)


def test_a_playlist_of_a_real_segment_is_refused_too(film: Film, tmp_path: Path) -> None:
    """ffmpeg itself would play this one; blip3v refuses it."""
    segment = film("plain.ts", 60)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{segment}\n#EXT-X-ENDLIST\n")
    with av.open(str(playlist)) as container:
        assert container.format.name == "hls"
    with pytest.raises(UnsupportedVideoError, match="playlist"):
        load_clip(playlist, num_frames=2)


def test_sound_alone_is_not_a_video(audio_only: Path) -> None:
    with pytest.raises(UnsupportedVideoError, match="the file holds sound but no video; give one with a video track"):
        load_clip(audio_only, num_frames=2)


def test_sound_with_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    """It was refused with "has no video stream (streams: audio, video)"."""
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(numbered_picture(3), format="rgb24")
        picture.pts = 0
        container.mux(cover.encode(picture))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(UnsupportedVideoError, match="the file holds sound and a cover picture but no video"):
        load_clip(path, num_frames=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("missing.mp4", "cannot be opened", id="missing"),
        pytest.param("nul\0byte.mp4", "cannot be opened", id="nul"),
        pytest.param("https://example.org/film.mp4", "is a URL", id="url"),
        pytest.param("/dev/zero", "neither a file nor a folder", id="device"),
        pytest.param("concat:a.mp4|b.mp4", "cannot be opened", id="protocol"),
    ],
)
def test_paths_that_are_not_a_local_file(name: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        load_clip(name, num_frames=2)


def test_an_mp4_that_names_another_file_for_its_data_is_not_followed(plain: Path, tmp_path: Path) -> None:
    """The data reference says "not in this file" but names no file: no frame may come from elsewhere."""

    def change(data: bytearray) -> None:
        at = data.index(b"url \0\0\0\1")
        data[at + 7] = 0

    path = damaged(plain, tmp_path / "reference.mp4", change)
    clip = load_clip(path, num_frames=2)
    assert [read_number(frame) for frame in clip.frames] == [1, 59]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        pytest.param(VideoLimits(max_bytes=1000), "max_bytes", id="bytes"),
        pytest.param(VideoLimits(max_pixels=96 * 64 - 1), "96x64 = 6144 pixels.*max_pixels", id="pixels"),
        pytest.param(VideoLimits(max_frames_walked=59), "more than 59 frames", id="frames"),
        pytest.param(VideoLimits(max_duration_s=2.0), "lasts 2.4 s", id="duration"),
    ],
)
@pytest.mark.parametrize("form", ["path", "bytes", "stream"])
def test_limits_refuse_with_both_numbers(plain: Path, limits: VideoLimits, message: str, form: str) -> None:
    with open(plain, "rb") as file:
        video = {"path": plain, "bytes": plain.read_bytes(), "stream": file}[form]
        with pytest.raises(VideoTooLargeError, match=message):
            load_clip(video, num_frames=2, limits=limits)  # type: ignore[arg-type]


def test_limits_let_through_what_is_at_them(plain: Path) -> None:
    limits = VideoLimits(max_bytes=plain.stat().st_size, max_pixels=96 * 64, max_frames_walked=60, max_duration_s=2.4)
    assert load_clip(plain, num_frames=2, limits=limits).num_source_frames == 60


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_gives_a_clip_or_an_error_of_ours(no_b_frames: Path, tmp_path: Path, seed: int) -> None:
    """Bytes changed at random, in every third file also those of its index."""
    rng = np.random.default_rng(seed)
    low = 0 if seed % 3 == 0 else packets(no_b_frames)[0][1]

    def change(data: bytearray) -> None:
        for at in rng.integers(low, len(data), 4):
            data[at] ^= int(rng.integers(1, 256))

    path = damaged(no_b_frames, tmp_path / "mutated.mp4", change)
    try:
        clip = load_clip(path, num_frames=4)
    except VideoError:
        return
    assert [frame.shape for frame in clip.frames] == [(clip.height, clip.width, 3)] * 4
    if low:
        # The index is intact, so the frames must be the sampled ones, whatever happened to others.
        assert [sampled.index for sampled in clip.sampled] == [2, 20, 39, 58]
