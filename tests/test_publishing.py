"""A file or folder is replaced completely or stays as it was."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from blip3v.publishing import new_folder, write_file


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    value = getattr(request, "param", 0o022)
    before = os.umask(value)
    yield value
    os.umask(before)


def test_it_appears_at_the_end_of_the_block_and_replaces_what_was_there(tmp_path: Path, umask: int) -> None:
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


def test_what_was_there_is_restored_if_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], indirect=True, ids=oct)
def test_what_is_published_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors makes its files private: one user could not read a bundle that another exported."""
    with new_folder(tmp_path / "made") as staging:
        (staging / "inner").mkdir()
        save_file({"a": np.zeros(1)}, staging / "inner" / "a.safetensors")
    write_file(tmp_path / "report.json", "{}")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {"made": folder, "inner": folder, "a.safetensors": file, "report.json": file}


@pytest.mark.parametrize("content", ["\u00e4\n", b"\xe4\r\n"], ids=["text", "bytes"])
def test_a_file_is_replaced_atomically(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write_file(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_stays_as_it_was_if_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(_: int) -> None:
        raise OSError("the disk refuses")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="the disk refuses"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
