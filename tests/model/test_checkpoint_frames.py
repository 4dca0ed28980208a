"""How many frames a clip has: stated by the name of a release or its model card, and told where it came from.

A released 16-frame checkpoint exported as 8 frames: nothing but `--frames` was read, and no test had another release.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_checkpoint import state, write_small

from blip3v.cli import group
from blip3v.errors import UsageError
from blip3v.export.source import folder_source
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.convert import convert
from blip3v.model.released import frames_in_training

RELEASE = "xgen-mm-vid-phi3-mini-r-v1.5-128tokens"
CARD = "In principle, it is able to take any number of frames, but it was trained with {}-frame videos.\n"


@pytest.mark.parametrize(
    ("folder", "card", "expected", "says"),
    [
        (f"{RELEASE}-16frames", None, 16, "its name"),
        (f"{RELEASE}-16frames", CARD.format(16), 16, "its name"),
        (f"models--Salesforce--{RELEASE}-16frames/snapshots/b072331a4279", None, 16, f"{RELEASE}-16frames"),
        ("mine", CARD.format(16), 16, "its model card, README.md"),
        ("mine", "# My model, see also 128tokens-16frames\n", 8, "the usual count"),
        ("mine", CARD.format(8) + CARD.format(16), 8, "the usual count"),
        ("mine-0frames", None, 8, "the usual count"),
        ("8frames-to-16frames", None, 8, "the usual count"),
        ("keyframes", None, 8, "the usual count"),
    ],
)
def test_the_name_or_the_model_card_says_how_many(
    tmp_path: Path, folder: str, card: str | None, expected: int, says: str
) -> None:
    path = tmp_path / folder
    path.mkdir(parents=True)
    if card is not None:
        (path / "README.md").write_text(card)
    count, source = frames_in_training(path)
    assert count == expected
    assert says in source


def test_sources_that_disagree_are_an_error_until_one_is_chosen(small_preset: None, tmp_path: Path) -> None:
    path = write_small(tmp_path / f"{RELEASE}-16frames")
    (path / "README.md").write_text(CARD.format(8))
    with pytest.raises(UsageError, match=r"16 in its name, .*16frames and 8 in its model card.*`num_frames`"):
        open_checkpoint(path)
    assert open_checkpoint(path, num_frames=8).config.num_frames == 8
    assert folder_source(path, num_frames=12).config.num_frames == 12


def test_convert_and_export_use_it_and_say_where_it_came_from(small_preset: None, tmp_path: Path) -> None:
    path = write_small(tmp_path / f"{RELEASE}-16frames")
    checkpoint = open_checkpoint(path)
    assert (checkpoint.config.num_frames, checkpoint.frames_from) == (16, f"its name, {path.name}")
    runner = CliRunner()
    done = runner.invoke(group, ["convert", str(path), "-o", str(tmp_path / "converted")])
    assert f"frames per clip: 16 (its name, {path.name})" in done.stderr
    assert open_checkpoint(tmp_path / "converted").frames_from == "config.json"
    for options, frames in ((), f"16 (its name, {path.name})"), (("--frames", "12"), "12 (as asked)"):
        done = runner.invoke(group, ["export", "-m", str(path), "--dry-run", *options])
        assert f"frames per clip: {frames}\n" in done.stdout, done.output
    own = runner.invoke(group, ["export", "-m", str(tmp_path / "converted"), "--dry-run"])
    assert "frames per clip" not in own.stdout
    assert "16 frames to 128 tokens" in own.stdout


def test_a_pt_file_states_its_own_count_and_not_that_of_its_tokenizer(small_preset: None, tmp_path: Path) -> None:
    tokenizer = write_small(tmp_path / f"{RELEASE}-16frames")
    torch.save(state(), tmp_path / "mine.pt")
    assert open_checkpoint(tmp_path / "mine.pt", tokenizer=tokenizer).config.num_frames == 8
    torch.save(state(), tmp_path / "mine-32frames.pt")
    opened = open_checkpoint(tmp_path / "mine-32frames.pt", tokenizer=tokenizer)
    assert opened.config.num_frames == 32
    assert convert(opened, tmp_path / "converted").path.is_dir()
