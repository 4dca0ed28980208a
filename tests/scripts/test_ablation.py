"""The ablations: what is done is not done again, tables come from the answers, and one model goes all the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blip3v.data.questions import TIME_KINDS, test_questions
from blip3v.model.temporal import encoder_names
from blip3v.training.recipe import load_recipe
from scripts import ablation, plot_ablation
from scripts.page_tables import END, start_marker
from scripts.plot_ablation import Scores

NUM_QUESTIONS = 40
PAPER = json.loads(plot_ablation.PAPER.read_text("utf-8"))["tables"]


def step(name: str, right: str, **values: Any) -> dict[str, Any]:
    return {"name": name, "right": right, "num_video_tokens": 32, **values}


def report(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"schema_version": 1, "num_questions": NUM_QUESTIONS, "steps": list(steps)}


def test_the_arms_are_the_rows_of_the_tables() -> None:
    assert {arm.name for arm in ablation.ARMS} == {name for table in PAPER.values() for name in table["rows"]}
    assert {arm.encoder for arm in ablation.ARMS} <= set(encoder_names())
    recipe = load_recipe(str(ablation.RECIPE))
    assert {"vision_encoder"} == set(recipe.stages[0].freeze), "features are cached, and the paper trains the rest"


def test_a_score_is_the_share_of_right_answers_and_a_mean_over_seeds() -> None:
    time = [question.kind in TIME_KINDS for _, question in test_questions(NUM_QUESTIONS)]
    of_time = "".join("1" if x else "0" for x in time)
    scores = Scores(
        report(step("a 32, seed 1", "1" * 40), step("a 32, seed 2", "0" * 40), step("b 32, seed 1", of_time))
    )
    assert scores.num_seeds == {"a 32": 2, "b 32": 1}
    assert scores.score("a 32", time=False) == (50.0, 50.0, 50.0)
    assert scores.score("b 32", time=True) == (100.0, 100.0, 100.0)
    found = scores.score("b 32", time=False)
    assert found.value == pytest.approx(100 * sum(time) / 40)
    assert found.low < found.value < found.high
    assert scores.difference("b 32", "a 32", time=True) == (50.0, 50.0, 50.0)


def test_questions_about_one_film_count_as_one_draw() -> None:
    """Ten films whose four questions agree leave a wider interval than forty questions that do not."""
    together, apart = (Scores(report(step("a 32, seed 1", x))) for x in ("11110000" * 5, "1010" * 10))
    wide, narrow = (scores.score("a 32", time=False) for scores in (together, apart))
    assert wide.value == narrow.value == 50
    assert wide.high - wide.low > narrow.high - narrow.low


def test_a_row_without_a_result_says_so() -> None:
    table = plot_ablation.tables(report(step("gttm 128, seed 1", "1" * 40)))["5"]
    assert "| `gttm` | 16 | 76.2 | 76.2 | 75.8 | not run | not run | not run |" in table
    assert "| `gttm` | 128 | 77.3 | 77.1 | 77.1 | 100.0 (100.0 to 100.0) | 100.0 (100.0 to 100.0) |  |" in table


def test_the_page_and_the_picture_are_written(tmp_path: Path) -> None:
    result, page, picture = (tmp_path / name for name in ("a.json", "study.md", "a.png"))
    result.write_text(json.dumps(report(step("gttm 128, seed 1", "10" * 20), step("base", "1" * 40))), "utf-8")
    markers = [start_marker(plot_ablation.marker(table)) for table in (*PAPER, "base")]
    page.write_text("".join(f"{marker}\nold\n{END}\n" for marker in markers), "utf-8")
    plot_ablation.main(result, page, picture)
    assert "old" not in page.read_text("utf-8")
    assert picture.stat().st_size > 1000


def test_what_is_in_the_json_is_not_trained_again(tmp_path: Path) -> None:
    names = [f"{arm.name}, seed 1" for arm in ablation.ARMS]
    output = tmp_path / "a.json"
    held = report(*(step(name, "1") for name in (*names, "base")))
    output.write_text(json.dumps(held | {"recipe": load_recipe(str(ablation.RECIPE)).to_dict()}), "utf-8")
    ablation.main([str(tmp_path / "work"), str(output)])
    assert not list((tmp_path / "work").iterdir())
    with pytest.raises(SystemExit, match="results of another recipe"):
        ablation.main([str(tmp_path / "work"), str(output), "--epochs", "4"])


@pytest.mark.slow
def test_a_model_goes_from_the_base_to_its_score(tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    text = ablation.RECIPE.read_text("utf-8")
    recipe.write_text(
        text.replace("num_films = 4000", "num_films = 16").replace("warmup_steps = 50", "warmup_steps = 1")
    )
    words = [str(tmp_path / "work"), str(tmp_path / "a.json"), "--only", "llama-vid-content"]
    ablation.main([*words, "--recipe", str(recipe), "--questions", "20", "--seeds", "1", "2"])
    steps = json.loads((tmp_path / "a.json").read_text("utf-8"))["steps"]
    assert [x["name"] for x in steps] == [f"llama-vid-content 8, seed {seed}" for seed in (1, 2)]
    for x in steps:
        assert len(x["right"]) == 20
        assert x["right"].count("1") / 20 == x["evaluation"]["exact_match"]
    assert steps[0]["loss"][-1][0] == 2, "two steps of eight films"
