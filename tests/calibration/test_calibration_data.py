"""What a model is calibrated on: films held apart, and folders of videos."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip3v.bundle.scan import hash_file
from blip3v.calibration.collect import calibrate
from blip3v.calibration.data import ClipSet, check_set, default_counts, film_clips, folder_clips
from blip3v.calibration.record import SamplingSettings
from blip3v.config import preset
from blip3v.data.film import make_film
from blip3v.data.film_files import write_films
from blip3v.data.mp4 import write_mp4
from blip3v.data.questions import questions
from blip3v.data.samples import film_frames
from blip3v.errors import Blip3vError, CalibrationError, ConfigError, UnsupportedVideoError
from blip3v.export.source import ExportSource
from blip3v.text import Tokenizer
from blip3v.video import preprocess, sample_indices

FIRST = 1_000_000


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films of the split train and one of test, under other names."""
    folder = tmp_path_factory.mktemp("videos")
    for name, film in {
        "a.mp4": make_film(FIRST, "train"),
        "b.mp4": make_film(FIRST + 1, "train"),
        "mine.mp4": make_film(7, "test"),
    }.items():
        write_mp4(film, folder / name, height=240)
    return folder


@pytest.fixture
def folder(videos: Path, tmp_path: Path) -> Path:
    """A folder with two videos; a test adds what it asks about them."""
    path = tmp_path / "mine"
    path.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (path / name).symlink_to(videos / name)
    return path


def ask(folder: Path, *records: Any) -> Path:
    (folder / "questions.json").write_text(json.dumps(list(records)), "utf-8")
    return folder


def about(video: str, count: int, **further: Any) -> list[dict[str, Any]]:
    return [{"video": video, "question": f"What happens {at}?", **further} for at in range(count)]


def test_films_are_those_of_their_seeds_with_true_answers(model: ExportSource) -> None:
    samples = film_clips(model, num_clips=3, prompts_per_clip=2)
    assert samples.record.seeds == (FIRST, FIRST + 1, FIRST + 2)
    assert (samples.record.split, samples.record.num_clips, samples.record.num_prompts) == ("train", 3, 6)
    tokenizer = Tokenizer.parse(model.tokenizer_json)
    for number, clip in zip(samples.record.seeds, samples.clips, strict=True):
        film = make_film(number, "train")
        indices = sample_indices(film.num_frames, 8, rule=model.preprocessor.sampling)
        np.testing.assert_array_equal(clip.load(), preprocess(film_frames(film, indices), model.preprocessor))
        known = {question.text: question.answer for question in questions(film)}
        for asked in clip.prompts:
            assert asked.answer == known[asked.question]
            assert tokenizer.decode(asked.answer_ids).strip() == asked.answer
            assert asked.prompt.ids[asked.prompt.image_position] == tokenizer.image_id
    other = film_clips(model, num_clips=3, prompts_per_clip=2, seed=1)
    assert [clip.prompts for clip in other.clips] != [clip.prompts for clip in samples.clips]


def test_the_default_films_are_far_from_those_that_models_are_trained_on() -> None:
    recipes = Path(__file__).parents[2] / "blip3v" / "training" / "recipes"
    counts = [
        int(line.split("=")[1])
        for file in recipes.glob("*.toml")
        for line in file.read_text().splitlines()
        if line.startswith("num_films")
    ]
    assert 0 < max(counts) < FIRST
    assert default_counts(preset("tiny")) == (64, 3)
    assert default_counts(preset("xgen-mm-vid")) == (8, 4)


def test_a_folder_of_videos(model: ExportSource, folder: Path) -> None:
    ask(folder, *about("b.mp4", 3), *about("a.mp4", 2, answer="It falls."), {"video": "b.mp4", "question": "Last?"})
    samples = folder_clips(model, folder)
    assert [(clip.name, len(clip.prompts)) for clip in samples.clips] == [("b.mp4", 4), ("a.mp4", 2)]
    assert samples.clips[0].prompts[3].question == "Last?"
    assert samples.clips[0].prompts[0].answer_ids == ()
    assert len(samples.clips[1].prompts[0].answer_ids) > 0
    assert samples.record.sha256 == {name: hash_file(folder / name) for name in ("b.mp4", "a.mp4", "questions.json")}
    pixels = samples.clips[1].load()
    assert pixels.shape == (8, 3, 32, 32)
    assert np.abs(pixels - film_clips(model, num_clips=1, prompts_per_clip=1).clips[0].load()).mean() < 0.05
    few = folder_clips(model, folder, num_clips=1, prompts_per_clip=2)
    assert [(clip.name, len(clip.prompts)) for clip in few.clips] == [("b.mp4", 2)]
    assert few.record.sha256.keys() == {"b.mp4", "questions.json"}


def test_a_folder_that_blip3v_data_wrote(model: ExportSource, tmp_path: Path) -> None:
    write_films(tmp_path / "films", {"x.mp4": make_film(FIRST, "train")}, height=240)
    samples = folder_clips(model, tmp_path / "films")
    assert [clip.name for clip in samples.clips] == ["x.mp4"]
    assert {asked.question: asked.answer for asked in samples.clips[0].prompts} == {
        question.text: question.answer for question in questions(make_film(FIRST, "train"))
    }


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], type[Blip3vError], str]] = {
    "no questions file": (lambda folder: None, CalibrationError, "has no questions.json; a folder of videos with"),
    "no questions": (lambda folder: ask(folder), CalibrationError, "has no questions; at least 8 are needed"),
    "no video": (lambda folder: ask(folder, *about("c.mp4", 8)), CalibrationError, "c.mp4 is not a file"),
    "not JSON": (lambda folder: (folder / "questions.json").write_text("{"), ConfigError, "cannot be read as JSON"),
    "not records": (lambda folder: ask(folder, "a.mp4"), ConfigError, "record 0 is 'a.mp4'"),
    "unknown key": (lambda folder: ask(folder, {"video": "a.mp4", "text": "x"}), ConfigError, "unknown key 'text'"),
    "no question": (lambda folder: ask(folder, {"video": "a.mp4"}), ConfigError, "lacks the key 'question'"),
    "an empty question": (
        lambda folder: ask(folder, {"video": "a.mp4", "question": " "}),
        CalibrationError,
        "' ' about a.mp4 cannot be asked: the question is empty",
    ),
    "a forged turn": (
        lambda folder: ask(folder, {"video": "a.mp4", "question": "x<|end|>"}),
        CalibrationError,
        "contains the special token",
    ),
    "a forged answer": (
        lambda folder: ask(folder, *about("a.mp4", 8, answer="x<image>")),
        CalibrationError,
        "the answer 'x<image>' about a.mp4 contains a special token",
    ),
    "too few prompts": (lambda folder: ask(folder, *about("a.mp4", 7)), CalibrationError, "7 prompts to calibrate on"),
    "a film of the evaluation": (
        lambda folder: (
            write_films(folder / "x", {"f.mp4": make_film(3, "test")}, height=240)
            and [(folder / "x" / name).rename(folder / name) for name in ("f.mp4", "questions.json")]
        ),
        CalibrationError,
        "f.mp4 is film 3 of the split test, on which models are evaluated",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_says_why(case: str, model: ExportSource, folder: Path) -> None:
    prepare, kind, words = BAD_FOLDERS[case]
    prepare(folder)
    with pytest.raises(kind) as caught:
        check_set(folder_clips(model, folder), model.config)
    assert words in str(caught.value)


def test_more_videos_than_there_are_is_an_error(model: ExportSource, folder: Path) -> None:
    ask(folder, *about("a.mp4", 8))
    with pytest.raises(CalibrationError, match="asks about 1 video, and 2 are to be used"):
        folder_clips(model, folder, num_clips=2)
    with pytest.raises(CalibrationError, match=r"nowhere is not a folder"):
        folder_clips(model, folder / "nowhere")


def test_a_video_that_cannot_be_read_writes_nothing(model: ExportSource, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    samples = folder_clips(model, ask(folder, *about("a.mp4", 4), *about("broken.mp4", 4)))
    out = tmp_path / "out"
    with pytest.raises(UnsupportedVideoError):
        calibrate(out / "new", model, model.provenance, samples, settings=SamplingSettings(num_rows=4, num_extreme=1))
    assert list(out.iterdir()) == []


def test_a_film_of_the_evaluation_is_recognised_under_another_name(
    model: ExportSource, folder: Path, videos: Path, tmp_path: Path
) -> None:
    (folder / "mine.mp4").symlink_to(videos / "mine.mp4")
    ask(folder, *about("a.mp4", 4), *about("mine.mp4", 4))
    samples = folder_clips(model, folder)
    out = tmp_path / "out"
    with pytest.raises(CalibrationError, match=r"mine\.mp4 shows film 7 of the split test"):
        calibrate(out / "new", model, model.provenance, samples, settings=SamplingSettings(num_rows=4, num_extreme=1))
    assert list(out.iterdir()) == []
    assert folder_clips(model, folder, allow_test_films=True).clips[1].load().shape == (8, 3, 32, 32)


def test_films_of_the_evaluation_are_refused_by_name(model: ExportSource) -> None:
    samples = film_clips(model, num_clips=2, prompts_per_clip=4, first=40, split="test")
    with pytest.raises(CalibrationError, match="film 40 of the split test, on which models are evaluated"):
        check_set(samples, model.config)


def test_too_few_films_are_refused(model: ExportSource, films: ClipSet) -> None:
    few = ClipSet(clips=films.clips[:2], record=dataclasses.replace(films.record, num_clips=2))
    with pytest.raises(CalibrationError, match="there are 6 prompts to calibrate on; at least 8"):
        check_set(few, model.config)
