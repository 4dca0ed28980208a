"""Finds the video of an id among the files of a data set, and counts the ids that have none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from blip3v.data.readers.annotations import Record
from blip3v.errors import ConfigError

__all__ = ["Videos"]

_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif", ".flv", ".m4v", ".mpg", ".mpeg")
_FRAME_SUFFIXES = (".jpg", ".jpeg")


class Videos:
    """The videos of a data set: files, or folders of jpeg frames, whose name is an id with or without a suffix.

    Args:
        root: the data set's folder.
        folders: where its videos may lie under ``root``, the first that has an id wins; ``""`` is the root itself.

    Nothing outside ``root`` is found unless a link there leads to it.
    """

    def __init__(self, root: Path, *folders: str) -> None:
        self._folders = tuple(root / folder for folder in folders)
        self._listed: dict[Path, dict[str, Path]] = {}
        self._missing: Counter[str] = Counter()

    @property
    def missing(self) -> Mapping[str, int]:
        """The ids that ``find`` did not find, each with its number of records, in the order of the annotations."""
        return dict(self._missing)

    def find(self, name: str, record: Record, *, also: str | None = None, num_records: int = 1) -> Path | None:
        """The video of an id.

        Args:
            name: the id; it may name subfolders with ``/``, and may end in a suffix, which may differ from the file's.
            record: that gives the id.
            also: another name of the same video, looked for first; None: it has none.
            num_records: that are about the video here.

        Returns:
            None if there is none, which is counted.

        Raises:
            ConfigError: the id would lead out of the folder.
        """
        video = self._look(also, record) if also is not None else None
        video = video or self._look(name, record)
        if video is None:
            self._missing[name] += num_records
        return video

    def _look(self, name: str, record: Record) -> Path | None:
        if not _stays_inside(name):
            raise ConfigError(
                f"{record.where} names the video {name!r}; a name inside the data set's folder is expected"
            )
        inner, _, last = name.rpartition("/")
        for folder in self._folders:
            files = self._files(folder / inner)
            video = files.get(last) or files.get(_without_suffix(last))
            if video is not None:
                return video
        return None

    def _files(self, folder: Path) -> dict[str, Path]:
        """The videos of one folder by name without suffix, listed once."""
        if folder not in self._listed:
            self._listed[folder] = _videos_in(folder)
        return self._listed[folder]


def _videos_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    videos: dict[str, Path] = {}
    for name, is_folder in found:
        if is_folder and _has_frames(folder / name):
            videos.setdefault(name, folder / name)
        elif not is_folder and name.lower().endswith(_SUFFIXES):
            videos.setdefault(_without_suffix(name), folder / name)
    return videos


def _has_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(_FRAME_SUFFIXES) for entry in entries)


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _SUFFIXES else name


def _stays_inside(name: str) -> bool:
    rooted = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)
    return bool(name) and "\0" not in name and not rooted and ".." not in name.replace("\\", "/").split("/")
