"""The data that a run names, in words, and the samples behind them.

A word is one of

- ``clips.json``: a JSON list of the user's own clips (``authors.py``);
- ``msrvtt-qa=/data/msrvtt``: a data set of ``readers/`` by name, and its folder; ``tgif-qa:train-action=/data/tgif``
  is another split than ``train``;
- ``mixture.yaml``: several of these with weights (``mixture_file.py``); paths in it are relative to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip3v.data.authors import ClipSource, read_samples
from blip3v.data.mixture_file import ALL, SUFFIXES, Weight, read_mixture
from blip3v.data.readers import data_set
from blip3v.data.readers.annotations import check_root, check_split
from blip3v.data.records import ClipSample, DataSet, Found
from blip3v.errors import ConfigError

__all__ = ["Held", "Part", "PartReader", "check_parts", "open_data", "parts_of", "read_part"]

_NAMED = re.compile(r"([\w-]+)(?::([\w-]+))?=(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Part:
    """One list of records.

    Attributes:
        word: that names it.
        path: the JSON list, or the folder of the data set.
        data_set: None: the JSON list.
        split: of the data set.
        weight: how many of its records are taken.
    """

    word: str
    path: Path
    data_set: DataSet | None = None
    split: str = "train"
    weight: Weight = ALL


@dataclass(frozen=True)
class Held:
    """What a part holds.

    Attributes:
        part: what was read.
        num_records: whose video is there.
        samples: those that are taken.
        missing: the videos that are not there, each with its number of records.
    """

    part: Part
    num_records: int
    samples: tuple[ClipSample, ...]
    missing: Mapping[str, int]

    @property
    def num_videos(self) -> int:
        """Number of videos that are there and taken."""
        return len({sample.video for sample in self.samples})

    @property
    def num_missing_records(self) -> int:
        """Number of records without a video."""
        return sum(self.missing.values())


def parts_of(words: Sequence[str]) -> list[Part]:
    """The parts that words name, in their order.

    Raises:
        UsageError: a data set is unknown, or has no such split.
        ConfigError: a mixture file cannot be read, or names another one.
    """
    return [part for word in words for part in _parts(word)]


def check_parts(parts: Sequence[Part]) -> None:
    """Checks that the files and folders exist, without reading them.

    Raises:
        UsageError: the folder of a data set does not; the message says what to get and from whom.
        ConfigError: a JSON list does not.
    """
    for part in parts:
        if part.data_set is None and not part.path.is_file():
            raise ConfigError(f"{part.path} does not exist; the JSON list of your clips is expected, or NAME=FOLDER")
        if part.data_set is not None:
            check_root(part.data_set, part.path, part.split)


def read_part(part: Part) -> Held:
    """Reads a part.

    Raises:
        UsageError: the annotations are not there; the message says what to get and from whom.
        ConfigError: they are not in the published form, or the JSON list is not valid.
    """
    if part.data_set is None:
        found = Found(samples=tuple(read_samples(part.path)))
    else:
        found = part.data_set.read(part.path, part.split)
    return Held(part, len(found.samples), part.weight.take(found.samples), found.missing)


PartReader = Callable[[Part], Held]


def open_data(words: Sequence[str], *, num_frames: int, seed: int, read: PartReader = read_part) -> ClipSource:
    """Opens the data that words name as one source.

    Args:
        words: as above, at least one.
        num_frames: frames of a clip.
        seed: of the random start of the ``train`` sampling rule.
        read: reads a part; one that remembers what it has read reads it once for a whole run.

    Raises:
        UsageError, ConfigError: as ``parts_of`` and ``read_part``, or there is no sample at all.
    """
    samples = tuple(sample for part in parts_of(words) for sample in read(part).samples)
    if not samples:
        raise ConfigError(f"{', '.join(words)} has no samples; at least 1 is needed")
    return ClipSource(samples, num_frames, seed)


def _parts(word: str) -> list[Part]:
    path = Path(word)
    if path.suffix.lower() not in SUFFIXES or _NAMED.fullmatch(word):
        return [_part(word, Path())]
    weights = read_mixture(path)
    for entry in weights:
        if Path(entry).suffix.lower() in SUFFIXES and not _NAMED.fullmatch(entry):
            raise ConfigError(f"{path} names the mixture file {entry}; only JSON lists and data sets are allowed there")
    return [_part(entry, path.parent, weight) for entry, weight in weights.items()]


def _part(word: str, folder: Path, weight: Weight = ALL) -> Part:
    named = _NAMED.fullmatch(word)
    if named is None or (folder / word).exists():
        return Part(word, folder / word, weight=weight)
    name, split, root = named.groups()
    known = data_set(name)
    check_split(known, split or "train")
    return Part(word, folder / Path(root).expanduser(), known, split or "train", weight)
