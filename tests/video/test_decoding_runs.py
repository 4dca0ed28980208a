"""What is decoded of a file: only what the wanted frames may depend on, in several threads, and never a wrong frame."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from film_files import Film, packets, reference_frames

from blip3v.errors import CorruptVideoError
from blip3v.video import load_clip
from blip3v.video_decoder import __main__ as decoder
from blip3v.video_decoder import pick as pick_module
from blip3v.video_decoder import run as run_module
from blip3v.video_decoder.container import is_truncated, open_container, video_stream
from blip3v.video_decoder.h264 import Gap, pictures_of
from blip3v.video_decoder.limits import VideoLimits
from blip3v.video_decoder.pick import pick
from blip3v.video_decoder.shared_file import reader
from blip3v.video_decoder.walk import Walk, decode, walk_file

FORMS = {
    "pyramid.mp4": "bframes=5:b-adapt=0:b-pyramid=normal:scenecut=0",
    "strict.mkv": "bframes=7:b-adapt=0:b-pyramid=strict:ref=8",
    "open-gop.mp4": "open-gop=1:bframes=3:b-adapt=0",
    "start-codes.ts": "bframes=3:b-adapt=0",
    "slices.mp4": "bframes=3:b-adapt=0:slices=4:intra-refresh=1",
    "no-b.mp4": "bframes=0",
    "fields.mp4": "interlaced=1:bframes=3",
}
WANTED = ([0], [59], [3, 4, 5], [7, 20, 21, 40, 58], list(range(0, 60, 7)))


@pytest.fixture(params=FORMS)
def path(film: Film, request: pytest.FixtureRequest) -> Path:
    return film(f"runs-{request.param}", 60, gop=20, options={"x264-params": FORMS[request.param]})


def picked(path: Path, wanted: Sequence[int], num_threads: int = 1) -> tuple[list[int], list[np.ndarray], Walk]:
    """Indices and pictures of the frames, and the walk with what was found broken."""
    with open(path, "rb") as file:

        def opener() -> Any:
            container = open_container(file)
            return container, video_stream(container, VideoLimits())

        walk = walk_file(opener, VideoLimits(), truncated=is_truncated(file))
        found = [
            (index, frame.to_ndarray(format="rgb24"))
            for index, frame in pick(opener, walk, wanted, num_threads=num_threads)
        ]
    return [index for index, _ in found], [picture for _, picture in found], walk


def outcome(path: Path, wanted: Sequence[int], num_threads: int = 1) -> tuple[str, list[int], list[int]]:
    """The error, or what came back: sums of the pictures and the broken frames."""
    try:
        _, pictures, walk = picked(path, wanted, num_threads)
    except CorruptVideoError as error:
        return str(error), [], []
    return "", [int(picture.astype(np.int64).sum()) for picture in pictures], sorted(walk.broken)


def changed(path: Path, target: Path, change: Callable[[bytearray], None]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    target.write_bytes(data)
    return target


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every gap between wanted frames that holds a keyframe seek to it."""
    monkeypatch.setattr(pick_module, "_LEAST_SEEK_FRAMES", 1)
    monkeypatch.setattr(pick_module, "_SEEK_FRAMES", 1)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Fills with the packets that go to the decoder."""
    seen: list[object] = []

    def noted(packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            seen.append(packet)
            yield packet

    def listening(stream: Any, packets: Iterator[Any]) -> Iterator[Any]:
        return decode(stream, noted(packets))

    monkeypatch.setattr(run_module, "decode", listening)
    return seen


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("seeks", [False, True], ids=["one-run", "short-runs"])
def test_the_frames_are_those_of_a_decoder_that_is_given_everything(
    path: Path, num_threads: int, seeks: bool, request: pytest.FixtureRequest
) -> None:
    if seeks:
        request.getfixturevalue("short_runs")
    reference = reference_frames(path)
    for wanted in WANTED:
        indices, pictures, walk = picked(path, wanted, num_threads)
        assert indices == wanted
        np.testing.assert_array_equal(np.stack(pictures), np.stack([reference[index] for index in wanted]))
        assert walk.broken == set()


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("hevc.mp4", "libx265", {"x265-params": "keyint=20:bframes=3:log-level=none"}),
        ("vp9.webm", "libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
        ("mpeg2.mkv", "mpeg2video", {"bf": "2"}),
        ("av1.mp4", "libsvtav1", {"preset": "12"}),
        ("ffv1.mkv", "ffv1", {}),
    ],
    ids=["hevc", "vp9", "mpeg2", "av1", "ffv1"],
)
def test_other_codecs_are_decoded_in_threads_too(film: Film, name: str, codec: str, options: dict[str, str]) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    path = film(f"runs-{name}", 60, gop=20, codec=codec, options=options)
    reference = reference_frames(path)
    for wanted in WANTED:
        indices, pictures, walk = picked(path, wanted, 3)
        assert indices == wanted
        np.testing.assert_array_equal(np.stack(pictures), np.stack([reference[index] for index in wanted]))
        assert walk.broken == set()


def test_pictures_that_no_other_refers_to_are_left_out(film: Film, given: list[object]) -> None:
    """Three of four pictures are B frames, one of which the other two refer to."""
    path = film("runs-start-codes.ts", 60, gop=20, options={"x264-params": FORMS["start-codes.ts"]})
    picked(path, [39])
    assert len(given) < 0.7 * 40


def test_decoding_ends_with_the_last_packet_that_matters(film: Film, given: list[object]) -> None:
    path = film("runs-no-b.mp4", 60, gop=20, options={"x264-params": FORMS["no-b.mp4"]})
    picked(path, [5])
    assert len(given) == 7  # frames 0 to 5, and the end of the stream


def unreferenced(path: Path, *, after: int) -> tuple[int, slice]:
    """(display index, where its data lies in the file) of the first such picture in an mp4."""
    with av.open(str(path)) as container:
        pictures = pictures_of(container.streams.video[0].codec_context.extradata)
        assert pictures is not None
        flags = [pictures.is_unreferenced(bytes(p)) for p in container.demux(video=0) if p.size]
    listed = packets(path)
    place = next(n for n, flag in enumerate(flags) if flag and n > after)
    index, start, size, _ = listed[place]
    return index, slice(start + 10, start + size)


def test_a_picture_that_is_left_out_does_not_refuse_others(film: Film, tmp_path: Path) -> None:
    """Its data is damaged, which no other picture can show: they came back as "may depend on" an error before."""
    path = film("runs-pyramid.mp4", 60, gop=20, options={"x264-params": FORMS["pyramid.mp4"]})
    index, part = unreferenced(path, after=22)
    ones = b"\xff" * (part.stop - part.start)
    broken = changed(path, tmp_path / "broken.mp4", lambda data: data.__setitem__(part, ones))
    later = next(i for i, *_ in packets(path)[30:] if i > index + 3)
    _, (picture,), walk = picked(broken, [later])
    np.testing.assert_array_equal(picture, reference_frames(path)[later])
    assert walk.broken == set()  # it was not looked at, so that it does not count
    with pytest.raises(CorruptVideoError, match=f"frame {index} .* was sampled, but it cannot be decoded"):
        load_clip(broken, num_frames=1, rule="uniform", start_s=index / 25)


def test_a_reference_that_says_it_is_none_is_noticed(film: Film, tmp_path: Path) -> None:
    """One changed bit would have it left out, and what is predicted from it would come back with others' pixels."""
    path = film("runs-no-b.mp4", 60, gop=20, options={"x264-params": FORMS["no-b.mp4"]})
    at = packets(path)[30][1] + 4
    assert path.read_bytes()[at] & 0x60

    def change(data: bytearray) -> None:
        data[at] &= 0x9F

    with pytest.raises(CorruptVideoError, match=r"frame 35 .* may depend on frame 30"):
        picked(changed(path, tmp_path / "hidden.mp4", change), [35])


class Watched:
    """A stream that may be read only while its container is open."""

    def __init__(self, stream: Any, is_open: Callable[[], bool]) -> None:
        self._stream, self._is_open = stream, is_open

    def __getattr__(self, name: str) -> Any:
        assert self._is_open(), f"{name} of a stream was read after its container was closed"
        return getattr(self._stream, name)


class WatchedContainer:
    """A container that knows whether it was closed."""

    def __init__(self, container: Any) -> None:
        self._container, self.is_open = container, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def __enter__(self) -> "WatchedContainer":
        return self

    def __exit__(self, *error: object) -> None:
        self.is_open = False
        self._container.close()

    def demux(self, stream: Watched) -> Iterator[Any]:
        packets: Iterator[Any] = self._container.demux(stream._stream)
        return packets


@pytest.mark.parametrize("suffix", ["avi", "h264", "mp4"])
def test_nothing_of_a_stream_is_read_after_its_container_was_closed(film: Film, suffix: str) -> None:
    """It lies in freed memory then: now and then a damaged file lasted 33 million seconds."""
    path = film(f"runs-watched.{suffix}", 20, file_format=suffix)
    with open(path, "rb") as file:

        def opener() -> Any:
            container = WatchedContainer(open_container(file))
            stream = video_stream(container._container, VideoLimits())
            return container, Watched(stream, lambda: container.is_open)

        walk = walk_file(opener, VideoLimits(), truncated=False)
        assert [index for index, _ in pick(opener, walk, [3, 12])] == [3, 12]


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("kind", ["changed", "zeroed", "cut"])
def test_damaged_files_end_alike_in_any_number_of_threads(film: Film, tmp_path: Path, kind: str) -> None:
    fast = {"movflags": "faststart"}
    path = film("runs-fast.mp4", 60, gop=20, options={"x264-params": FORMS["pyramid.mp4"]}, container_options=fast)
    for seed in range(4):
        rng = random.Random(f"{kind} {seed}")
        _, start, size, _ = rng.choice(packets(path))

        def change(data: bytearray, rng: random.Random = rng, start: int = start, size: int = size) -> None:
            if kind == "changed":
                data[start + rng.randrange(size)] ^= 1 << rng.randrange(8)
            elif kind == "zeroed":
                data[start : start + size] = bytes(size)
            else:
                del data[start + size // 2 :]

        broken = changed(path, tmp_path / "broken.mp4", change)
        for wanted in ([5, 22, 41, 55], [2, 3], [47]):
            assert outcome(broken, wanted, 1) == outcome(broken, wanted, 4)


def test_a_truncated_file_gives_what_it_holds(film: Film, tmp_path: Path) -> None:
    fast = {"movflags": "faststart"}
    path = film("runs-fast.mp4", 60, gop=20, options={"x264-params": FORMS["pyramid.mp4"]}, container_options=fast)
    end = packets(path)[33][1]
    short = changed(path, tmp_path / "short.mp4", lambda data: data.__delitem__(slice(end, None)))
    _, pictures, walk = picked(short, [3, 22, 25])
    reference = reference_frames(path)
    np.testing.assert_array_equal(np.stack(pictures), np.stack([reference[index] for index in (3, 22, 25)]))
    assert len(walk.broken) >= 60 - 33
    with pytest.raises(CorruptVideoError, match="the file ends before it"):
        picked(short, [3, 50])


def test_an_error_in_a_thread_is_raised_in_its_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the decoder process needs it to tell a lack of memory from damage."""

    def fail(*arguments: object) -> Iterator[Any]:
        raise MemoryError

    monkeypatch.setattr(run_module, "decode", fail)
    with pytest.raises(MemoryError):
        picked(path, [3, 50], 4)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("num_allowed", [0, 1])
def test_a_system_that_starts_no_more_threads(film: Film, monkeypatch: pytest.MonkeyPatch, num_allowed: int) -> None:
    """A user may have as many as allowed: that is no fault of the file."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refusing(thread: threading.Thread) -> None:
        if len(started) == num_allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    path = film("runs-no-b.mp4", 60, gop=20, options={"x264-params": FORMS["no-b.mp4"]})
    assert picked(path, [3, 25, 50], 4)[0] == [3, 25, 50]


@pytest.mark.parametrize(
    ("size", "memory_mib", "expected"),
    [((1280, 720), 2048, 8), ((3840, 2160), 2048, 3), ((7680, 4320), 2048, 1), ((1280, 720), 192, 1)],
    ids=["720p", "4k", "8k", "720p-in-little-memory"],
)
def test_decoders_at_once_fit_into_half_of_the_memory(
    film: Film, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], memory_mib: int, expected: int
) -> None:
    monkeypatch.setattr(decoder, "_num_cpus", lambda: 8)
    monkeypatch.setattr(decoder, "_status_bytes", lambda name: 180 * 2**20)
    *_, walk = picked(film("runs-no-b.mp4", 60, gop=20, options={"x264-params": FORMS["no-b.mp4"]}), [0])
    walk.picture_bytes = size[0] * size[1] * 3 // 2
    assert decoder._num_threads(walk, 8, VideoLimits(max_memory_bytes=memory_mib * 2**20)) == expected


def test_readers_of_one_file_have_positions_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with open(tmp_path / "file", "rb") as file:
        first, second = reader(file), reader(file)
        assert (first.read(3), second.read(2), first.read(2)) == (b"\0\1\2", b"\0\1", b"\3\4")
        assert (first.seek(-2, 2), first.read(9), first.read(9)) == (98, b"bc", b"")
        assert (first.seek(10), first.seek(5, 1), first.tell(), second.tell()) == (10, 15, 15, 2)
        with pytest.raises(ValueError, match="before the start"):
            first.seek(-1)


def extradata(path: Path) -> bytes:
    with av.open(str(path)) as container:
        found = container.streams.video[0].codec_context.extradata
    assert found is not None
    return found


def test_streams_whose_pictures_cannot_be_told_apart(film: Film) -> None:
    """Fields: two packets may hold one frame."""
    fields = film("runs-fields.mp4", 60, gop=20, options={"x264-params": FORMS["fields.mp4"]})
    plain = extradata(film("runs-no-b.mp4", 60, gop=20, options={"x264-params": FORMS["no-b.mp4"]}))
    assert pictures_of(plain) is not None
    assert pictures_of(extradata(fields)) is None
    assert pictures_of(None) is pictures_of(b"") is None
    end = 8 + plain[7]
    other = plain[6:11] + b"\1" + plain[12:end]  # of another level
    assert pictures_of(plain[:5] + b"\xe2" + plain[6:end] + plain[6:]) is not None
    assert pictures_of(plain[:5] + b"\xe2" + plain[6:end] + other + plain[end:]) is None
    assert pictures_of(plain[:5] + b"\xe2" + plain[6:end]) is None


def test_damaged_headers_are_no_crash(film: Film) -> None:
    path = film("runs-pyramid.mp4", 60, gop=20, options={"x264-params": FORMS["pyramid.mp4"]})
    with av.open(str(path)) as container:
        data = [bytes(packet) for packet in container.demux(video=0) if packet.size][:12]
    sets, rng = extradata(path), random.Random(5)
    for _ in range(500):
        damaged = bytearray(sets)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        pictures_of(bytes(damaged[: rng.randrange(len(damaged))]))
        pictures = pictures_of(bytes(damaged)) or pictures_of(sets)
        assert pictures is not None
        for packet in data:
            changed_packet = bytearray(packet)
            changed_packet[rng.randrange(min(12, len(packet)))] ^= 1 << rng.randrange(8)
            try:
                pictures.is_unreferenced(bytes(changed_packet[: rng.randrange(len(packet) + 1)]))
            except Gap:
                break
