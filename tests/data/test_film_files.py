"""Film files: they show what was drawn, folders are written atomically, and the committed examples are as scripted."""

import importlib.util
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest

from blip3v.data import mp4
from blip3v.data.film import Film, make_film
from blip3v.data.film_files import QUESTIONS_FILE, describe, read_film_set, write_films
from blip3v.data.mp4 import FILE_SIZES, write_mp4
from blip3v.data.render import render
from blip3v.errors import ConfigError, UsageError, VideoError

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = 98  # 4.0 s
ANOTHER = 234


@pytest.fixture(scope="module")
def short_film() -> Film:
    return make_film(SHORT, "test")


@pytest.mark.parametrize("height", FILE_SIZES)
def test_file_holds_the_film(height: int, short_film: Film, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_mp4(short_film, path, height=height)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (FILE_SIZES[height], height)
        assert stream.average_rate == short_film.fps
        assert stream.frames == short_film.num_frames
        assert stream.duration is not None
        assert stream.time_base is not None
        assert float(stream.duration * stream.time_base) == pytest.approx(short_film.duration_s)
        for number, frame in enumerate(container.decode(stream)):
            assert frame.time == pytest.approx(number / short_film.fps)
            if number % 16 == 0:
                drawn = render(short_film, np.array([number / short_film.num_frames]), height, FILE_SIZES[height])[0]
                apart = np.abs(frame.to_ndarray(format="rgb24").astype(float) - drawn)
                assert apart.mean() < 2.5
                # yuv420p's half colour resolution blurs outlines, and nothing else.
                assert (apart.max(axis=-1) > 24).mean() < 0.02
    assert number == short_film.num_frames - 1


def test_same_film_gives_the_same_bytes(short_film: Film, tmp_path: Path) -> None:
    for name in ("one.mp4", "two.mp4"):
        write_mp4(short_film, tmp_path / name, height=240)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_other_height_is_refused(short_film: Film, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="height is 1080; allowed: 240, 480, 720"):
        write_mp4(short_film, tmp_path / "film.mp4", height=1080)


def test_missing_encoder_is_named(short_film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4, "_CODEC", "libnone")
    with pytest.raises(VideoError, match="has no libnone encoder"):
        write_mp4(short_film, tmp_path / "film.mp4")


def test_missing_folder_is_a_video_error(short_film: Film, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cannot be written"):
        write_mp4(short_film, tmp_path / "none" / "film.mp4", height=240)


def test_folder_is_whole_or_absent(short_film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VideoError("the disk is full")

    monkeypatch.setattr("blip3v.data.film_files.write_mp4", fail)
    with pytest.raises(VideoError):
        write_films(tmp_path / "films", {"a.mp4": short_film}, height=240)
    assert list(tmp_path.iterdir()) == []


def test_force_keeps_the_old_folder_when_it_fails(
    short_film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "films"
    write_films(folder, {"a.mp4": short_film}, height=240)
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise VideoError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("blip3v.data.film_files.write_mp4", fail)
        with pytest.raises(VideoError):
            write_films(folder, {"b.mp4": short_film}, height=240, force=True)
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
    write_films(folder, {"b.mp4": short_film}, height=240, force=True)
    assert sorted(entry.name for entry in folder.iterdir()) == ["b.mp4", QUESTIONS_FILE]
    assert list(tmp_path.iterdir()) == [folder]


def test_force_never_removes_other_files(short_film: Film, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match=r"contains thesis\.txt, which is not a film file"):
        write_films(folder, {"a.mp4": short_film}, height=240, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        write_films(tmp_path / "file", {"a.mp4": short_film}, height=240, force=True)
    with pytest.raises(UsageError, match="create it first: mkdir -p"):
        write_films(tmp_path / "no" / "films", {"a.mp4": short_film}, height=240)


def test_film_set_reads_back(short_film: Film, tmp_path: Path) -> None:
    written = write_films(tmp_path / "films", {"a.mp4": short_film}, height=240)
    path = tmp_path / "films" / QUESTIONS_FILE
    assert read_film_set(path) == written == describe({"a.mp4": short_film}, height=240)
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    with pytest.raises(ConfigError, match="schema_version 9; only 1 is supported"):
        read_film_set(path)


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_make", EXAMPLES / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_examples_are_what_the_script_makes(make: ModuleType) -> None:
    films = {file: make_film(seed, "test") for file, seed in make.FILMS.items()}
    assert read_film_set(EXAMPLES / QUESTIONS_FILE) == describe(films, height=make.HEIGHT)
    assert {path.name for path in EXAMPLES.glob("*.mp4")} == set(films)


def test_examples_are_short_small_and_show_their_names(make: ModuleType) -> None:
    shows = {
        "turn.mp4": "turn",
        "bounces.mp4": "bounces",
        "order.mp4": "order",
        "appear.mp4": "appear",
        "speed.mp4": "speed",
    }
    for clip in read_film_set(EXAMPLES / QUESTIONS_FILE).clips:
        assert shows[clip.file] in {question.kind for question in clip.questions}
        assert 3 <= clip.duration_s <= 6
        assert not clip.unseen_pair
        assert (EXAMPLES / clip.file).stat().st_size < 100_000


@pytest.mark.parametrize("name", ["turn", "bounces", "order", "appear", "speed"])
def test_example_files_show_their_films(name: str, make: ModuleType) -> None:
    film = make_film(make.FILMS[f"{name}.mp4"], "test")
    with av.open(str(EXAMPLES / f"{name}.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == film.num_frames
    for number in (0, film.num_frames // 2, film.num_frames - 1):
        drawn = render(film, np.array([number / film.num_frames]), 480, 640)[0]
        assert np.abs(frames[number].astype(float) - drawn).mean() < 2.5
