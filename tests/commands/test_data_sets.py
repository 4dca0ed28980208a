"""``blip3v data list`` and ``blip3v data check``, and what ``blip3v train`` tells of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published import lay_out

from blip3v import cli
from blip3v.data.readers import data_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out("msrvtt-qa", tmp_path_factory.mktemp("sets") / "msrvtt")


def test_list_shows_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["data", "list"]) == 0
    captured = capsys.readouterr()
    for name, known in data_sets().items():
        assert f"\n{name}: {known.about.title}\n" in f"\n{captured.out}"
        assert known.about.licence in captured.out
        assert all(line in captured.out for line in known.about.layout)
    assert captured.err.strip() == "next: blip3v data check NAME=FOLDER"


def test_list_shows_one_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["data", "list", "nextqa", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["data_sets"]
    assert (row["name"], row["splits"]) == ("nextqa", ["train", "val", "test"])
    assert cli._run(["data", "list", "nexqa"]) == 2
    assert "did you mean 'nextqa" in capsys.readouterr().err


def test_check_counts_what_is_there_and_names_what_is_not(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["data", "check", f"msrvtt-qa={root}"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"msrvtt-qa (train) in {root}: 1 record, 1 video; missing: 1 video with 1 record (video1)",
        f"msrvtt-qa (val) in {root}: 1 record, 1 video",
        f"msrvtt-qa (test) in {root}: 2 records, 1 video; missing: 1 video with 1 record (video7011)",
    ]
    assert captured.err == "error: 2 videos with 2 records are missing; a run leaves them out\n"


def test_check_of_what_is_complete(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["data", "check", f"msrvtt-qa:val={root}", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ok"]
    assert values["parts"][0]["num_records"] == 1
    assert "error" not in values


def test_check_names_splits_without_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_qa.json").write_text("[]")
    assert cli._run(["data", "check", f"msrvtt-qa={tmp_path}", "--json"]) == 2
    values = json.loads(capsys.readouterr().out)
    assert values["absent"] == [f"msrvtt-qa ({split}) in {tmp_path}" for split in ("train", "val")]
    assert values["error"]["message"] == f"msrvtt-qa (test) in {tmp_path} has no records; at least 1 is needed"


def test_check_of_a_folder_without_annotations_says_what_to_get(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(["data", "check", f"nextqa={tmp_path}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in (
        "contains no train.csv",
        "https://github.com/doc-doc/NExT-QA",
        "MIT",
        "\n  files:   train.csv\n           map_vid_vidorID.json and ",
    ):
        assert part in captured.err


def test_options_of_films_before_a_command_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["data", "--count", "3", "list"]) == 2
    assert capsys.readouterr().err == (
        "error: --count stands before list and has no effect there; leave it out, or put it after list\n"
    )


def test_train_tells_what_a_data_set_lacks(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'preset = "tiny"\nencoder = "tokenlearner"\nseed = 1\n[[stages]]\ntask = "instructions"\npairs_per_clip = 1\n'
        "learning_rate = 1e-3\nwarmup_steps = 0\nnum_epochs = 1\nbatch_size = 1\n"
    )
    arguments = ["train", "--recipe", str(recipe), "-o", str(tmp_path / "run"), "--dry-run"]
    words = ["--data", f"msrvtt-qa={root}", "--data", f"msrvtt-qa:test={root}", "--data", f"msrvtt-qa={tmp_path}"]
    assert cli._run([*arguments, *words]) == 2  # before PyTorch is imported
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        f"msrvtt-qa (train) in {root}: 1 record, 1 video; missing: 1 video with 1 record (video1)",
        f"msrvtt-qa (test) in {root}: 2 records, 1 video; missing: 1 video with 1 record (video7011)",
    ]
    assert lines[2] == (
        f"error: {tmp_path} contains no train_qa.json for the split train; get MSRVTT-QA into one folder"
    )
