"""Finding the video of an id."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3v.data.readers.annotations import Record
from blip3v.data.readers.videos import Videos
from blip3v.errors import ConfigError

RECORD = Record({}, "list.json: record 0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file in ("videos/a.mp4", "videos/a.txt", "videos/b.AVI", "other/a.mkv", "other/c.d.webm", "videos/deep/e.mp4"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "videos" / "frames").mkdir()
    (tmp_path / "videos" / "frames" / "1.JPEG").touch()
    (tmp_path / "videos" / "empty").mkdir()
    (tmp_path / "videos" / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", "videos/a.mp4"),
        ("a.mp4", "videos/a.mp4"),
        ("a.avi", "videos/a.mp4"),
        ("b", "videos/b.AVI"),
        ("c.d", "other/c.d.webm"),
        ("deep/e", "videos/deep/e.mp4"),
        ("frames", "videos/frames"),
        ("empty", None),
        ("nowhere", None),
        ("e", None),
        ("a.txt", None),
    ],
)
def test_the_first_folder_that_has_it_under_any_suffix(name: str, found: str | None, root: Path) -> None:
    videos = Videos(root, "videos", "other", "none")
    assert videos.find(name, RECORD) == (root / found if found else None)
    assert videos.missing == ({} if found else {name: 1})


def test_another_name_comes_first_and_the_missing_are_counted(root: Path) -> None:
    videos = Videos(root, "videos", "other")
    assert videos.find("a", RECORD, also="b") == root / "videos" / "b.AVI"
    assert videos.find("a", RECORD, also="x") == root / "videos" / "a.mp4"
    for count in (2, 3):
        assert videos.find("x", RECORD, also="y", num_records=count) is None
    assert videos.missing == {"x": 5}


@pytest.mark.parametrize(
    "name", ["../a", "deep/../../a", "/etc/passwd", "C:\\a", "deep\\..\\..\\a", "", "a\0b", "\\\\host\\a"]
)
def test_no_name_leads_out_of_the_folder(name: str, root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"list\.json: record 0 names the video .*; a name inside the data set's folder"
    ):
        Videos(root, "videos").find(name, RECORD)
