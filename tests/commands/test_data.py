"""``blip3v data``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from blip3v import cli
from blip3v.commands.data import command
from blip3v.data.film_files import QUESTIONS_FILE, read_film_set
from blip3v.errors import UsageError

SHORT = 98  # a film of 4.0 s


def test_the_command_writes_reports_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no bundle yet
    folder = tmp_path / "films"
    arguments = ["-o", str(folder), "--count", "2", "--seed", str(SHORT), "--height", "240"]
    shown = CliRunner().invoke(command, arguments)
    assert shown.exit_code == 0
    assert f"{folder}: 2 clips" in shown.stdout
    assert re.fullmatch(
        rf"next: blip3v export && blip3v ask {folder}/test-00098\.mp4 '.*' -m blip3v-\S*\n", shown.stderr
    )
    clips = read_film_set(folder / QUESTIONS_FILE).clips
    assert [clip.file for clip in clips] == ["test-00098.mp4", "test-00099.mp4"]
    assert all((folder / clip.file).is_file() for clip in clips)
    again = CliRunner().invoke(command, arguments)
    assert isinstance(again.exception, UsageError)
    assert cli._run(["data", *arguments]) == 2
    assert capsys.readouterr().err.endswith("already exists; choose another --output, or replace it with --force\n")
    forced = CliRunner().invoke(command, [*arguments[:3], "1", *arguments[4:], "--force", "--json"])
    summary = json.loads(forced.stdout)
    assert summary["num_clips"] == 1
    assert summary["size_bytes"] == sum(entry.stat().st_size for entry in folder.iterdir())


def test_the_command_names_the_folder_after_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["--count", "1", "--split", "train", "--seed", "4", "--height", "240"])
    assert done.exit_code == 0
    assert sorted(entry.name for entry in (tmp_path / "films-train-4").iterdir()) == [QUESTIONS_FILE, "train-00004.mp4"]
