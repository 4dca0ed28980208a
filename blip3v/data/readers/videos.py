"""Finds the video of an id among the files of a data set, and counts the ids that have none."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from blip3v.data.readers.annotations import Record
from blip3v.errors import ConfigError

__all__ = ["Videos"]

_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif", ".flv", ".m4v", ".mpg", ".mpeg")
_FRAME_SUFFIXES = (".jpg", ".jpeg")
# Absolute paths of any system, steps to the folder above, and what no file name holds.
_LEADS_OUT = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|\0")


class Videos:
    """The videos of a data set: files, or folders of jpeg frames, whose name is an id with or without a suffix.

    Args:
        root: the data set's folder.
        folders: where its videos may lie under ``root``, the first that has an id wins; ``""`` is the root itself.

    Nothing outside ``root`` is found unless a link there leads to it.
    """

    def __init__(self, root: Path, *folders: str) -> None:
        self._folders = tuple(root / folder for folder in folders)
        self._listed: dict[str, list[dict[str, Path]]] = {}
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
        if not name or _LEADS_OUT.search(name):
            raise ConfigError(
                f"{record.where} names the video {name!r}; a name inside the data set's folder is expected"
            )
        inner, _, last = name.rpartition("/")
        stem = _without_suffix(last)
        for files in self._files(inner):
            video = files.get(last) or files.get(stem)
            if video is not None:
                return video
        return None

    def _files(self, inner: str) -> list[dict[str, Path]]:
        """The videos in a subfolder of each folder by name without suffix, listed once."""
        if inner not in self._listed:
            self._listed[inner] = [_videos_in(folder / inner) for folder in self._folders]
        return self._listed[inner]


def _videos_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in entries)
    videos: dict[str, Path] = {}
    for name, is_folder, is_file in found:  # a link that leads nowhere is neither
        if is_folder and _has_frames(folder / name):
            videos.setdefault(name, folder / name)
        elif is_file and name.lower().endswith(_SUFFIXES):
            videos.setdefault(_without_suffix(name), folder / name)
    return videos


def _has_frames(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(_FRAME_SUFFIXES) for entry in entries)


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _SUFFIXES else name
