"""A folder that is written anew stands whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3v.publishing import new_folder


def test_it_appears_at_the_end_of_the_block_and_replaces_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "made"
    for text in ("first", "second"):
        with new_folder(path) as staging:
            (staging / text).write_text(text)
            assert not (path / text).exists()
        assert [entry.name for entry in path.iterdir()] == [text]
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), new_folder(path) as staging:
        (staging / "nowhere" / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_stood_there_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made"
    path.mkdir()
    (path / "old").touch()
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError("the disk refuses")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="the disk refuses"), new_folder(path) as staging:
        (staging / "new").touch()
    assert [entry.name for entry in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
