"""The benchmark of films: a folder that the reader of one's own data takes, with the held-out questions."""

from __future__ import annotations

from pathlib import Path

from blip3v.data.questions import test_questions
from blip3v.data.readers import data_set
from scripts.film_benchmark import write_benchmark


def test_the_folder_holds_the_held_out_questions_and_their_films(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "films", num_questions=6)
    found = data_set("huggingface").read(tmp_path / "films", "test")
    assert not found.missing
    asked = test_questions(6)
    assert [(one.turns[0].question, one.turns[0].answer) for one in found.samples] == [
        (question.text, question.answer) for _, question in asked
    ]
    assert [one.video.name for one in found.samples] == [f"{film.seed:05d}.mp4" for film, _ in asked]
