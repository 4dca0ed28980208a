"""The words that name data: lists, data sets and mixture files, and how many of their records are taken."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from published import lay_out

from blip3v.data.mixture import check_parts, open_data, parts_of, read_part
from blip3v.data.mixture_file import Weight, read_mixture
from blip3v.errors import ConfigError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a list of ten clips beside it."""
    folder = tmp_path_factory.mktemp("mixture")
    lay_out("msrvtt-qa", folder / "msrvtt")
    records = [
        {
            "path": "msrvtt/video/video0.mp4",
            "conversations": [{"from": "human", "value": f"<image>\n{number}?"}, {"from": "gpt", "value": str(number)}],
        }
        for number in range(10)
    ]
    (folder / "clips.json").write_text(json.dumps(records))
    return folder


def mixture(folder: Path, text: str) -> str:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return str(path)


def answers(words: list[str]) -> list[str]:
    return [sample.turns[0].answer for sample in open_data(words, num_frames=2, seed=0).samples]


def test_a_list_and_a_data_set_stand_beside_each_other(folder: Path) -> None:
    words = [str(folder / "clips.json"), f"msrvtt-qa:test={folder / 'msrvtt'}"]
    assert answers(words) == [*map(str, range(10)), "circle", "circle"]
    one, other = parts_of(words)
    assert (one.data_set, other.data_set and other.data_set.name, other.split) == (None, "msrvtt-qa", "test")
    held = read_part(other)
    assert (held.num_records, held.num_videos, held.missing, held.num_missing_records) == (2, 1, {"video7011": 1}, 1)


def test_the_split_of_training_is_the_one_that_is_meant(folder: Path) -> None:
    assert [part.split for part in parts_of([f"msrvtt-qa={folder / 'msrvtt'}"])] == ["train"]


def test_a_mixture_of_the_authors_is_shuffled_and_truncated_as_in_their_code(folder: Path) -> None:
    expected = list(map(str, range(10)))
    random.Random(42).shuffle(expected)
    assert answers([mixture(folder, "data_path: {\n  'clips.json': 4,\n}\n")]) == expected[:4]
    assert answers([mixture(folder, "data_path: {'clips.json': 1254361}")]) == expected


def test_a_mixture_weighs_data_sets_too(folder: Path) -> None:
    text = "clips.json: 0.5x\nmsrvtt-qa:test=msrvtt: all\nmsrvtt-qa:val=msrvtt: 2.0x\n"
    assert answers([mixture(folder, text)])[5:] == ["circle"] * 4


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(Weight(), 10), (Weight(count=3), 3), (Weight(multiple=0.25), 2), (Weight(multiple=2.5), 25)],
)
def test_a_weight_says_how_many_are_taken(weight: Weight, expected: int) -> None:
    taken = weight.take(range(10))
    assert len(taken) == expected
    assert max(taken.count(number) for number in range(10)) - min(taken.count(number) for number in range(10)) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a map"),
        ("- clips.json", "is not a map"),
        ("data_path:\n", "is not a map"),
        ("a: [", "cannot be read as YAML"),
        ("clips.json: many", "line 1 takes 'many'; a number of records such as 1000, all, or a multiple"),
        ("clips.json: -1", "line 1 takes '-1'"),
        ("clips.json: 0x", "line 1 takes '0x'"),
        ("clips.json: 1\nclips.json: 2", "line 2 names 'clips.json' a second time"),
        ("[a]: 1", "line 1 has no name before its colon"),
        ("other.yaml: 1", "names the mixture file other.yaml; only JSON lists and data sets"),
    ],
    ids=str,
)
def test_a_mixture_file_that_is_none(text: str, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parts_of([mixture(folder, text)])
    assert "mixture.yaml" in str(caught.value)


def test_the_order_of_a_mixture_is_kept(folder: Path) -> None:
    path = Path(mixture(folder, "b.json: 2\na.json: 1_000\n"))
    assert read_mixture(path) == {"b.json": Weight(count=2), "a.json": Weight(count=1000)}


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("msrvt-qa=/data", UsageError, "data set 'msrvt-qa' is unknown; did you mean 'msrvtt-qa'?"),
        ("MSRVTT-QA=/data", UsageError, "data set 'MSRVTT-QA' is unknown"),
        ("tgif-qa:dev=/data", UsageError, "tgif-qa has no split 'dev'; allowed: train, test, train-action"),
        ("msrvtt-qa=none", UsageError, "none is not a folder; get MSRVTT-QA into one folder\n  from:    Xu et al."),
        ("none.json", ConfigError, "none.json does not exist; the JSON list of your clips is expected"),
        ("none.yaml", ConfigError, "none.yaml cannot be read as YAML"),
    ],
)
def test_a_word_that_names_nothing(word: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        check_parts(parts_of([word]))


def test_a_file_may_be_called_like_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "msrvtt-qa=mine.json").write_text("[]")
    assert [part.data_set for part in parts_of(["msrvtt-qa=mine.json"])] == [None]
    with pytest.raises(ConfigError, match=r"msrvtt-qa=mine\.json has no samples; at least 1 is needed"):
        open_data(["msrvtt-qa=mine.json"], num_frames=2, seed=0)
