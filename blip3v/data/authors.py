r"""A user's own clips as training samples: the JSON list of the authors' code.

    [{"path": "clips/cat.mp4",
      "conversations": [{"from": "human", "value": "<image>\nWhat does the cat do?"},
                        {"from": "gpt", "value": "It jumps onto the table."}],
      "clip_timestamps": ["00:00:02.000", "00:00:05.500"]}]

``path`` is a video file, or a folder of jpeg frames, relative to the JSON file. To use a part of the file, give either
``clip_timestamps`` or ``start_time`` and ``end_time`` (seconds, or "HH:MM:SS.sss"). A record may have an ``id``, which
is not used. Object masks (``annotation``) and mixture files are not supported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blip3v.data.digests import digest_of_samples, digest_of_videos
from blip3v.data.records import ClipSample, Turn
from blip3v.data.samples import Conversation, Frames, Pair
from blip3v.errors import ConfigError
from blip3v.strict_json import read_json_value
from blip3v.video import VideoLimits
from blip3v.video.pixel_reader import ClipRequest

__all__ = ["ClipSource", "open_clips", "read_samples"]

_IMAGE = "<image>"
_CLOCK = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d(?:\.\d{1,9})?)")
_FRAME_SUFFIXES = (".jpg", ".jpeg")
_REQUIRED = ("path", "conversations")
_OPTIONAL = ("clip_timestamps", "start_time", "end_time", "id")


def read_samples(path: str | Path) -> list[ClipSample]:
    """All records of the JSON list at ``path``.

    Raises:
        ConfigError: the file is not such a list; the message names the record's index (from 0) and the field.
    """
    path = Path(path)
    records = read_json_value(path)
    if not isinstance(records, list):
        raise ConfigError(f"{path} is {_json_type(records)}; a list of records with path and conversations is expected")
    return [_sample(record, f"{path}: record {index}", path.parent) for index, record in enumerate(records)]


@dataclass(frozen=True)
class ClipSource:
    """A user's own clips: the authors' JSON list.

    Attributes:
        samples: from ``read_samples``.
        num_frames: frames of a clip.
        seed: of the random start of the ``train`` sampling rule.
    """

    samples: tuple[ClipSample, ...]
    num_frames: int
    seed: int

    @property
    def key(self) -> str:
        """Identifies the bytes of the videos, the ranges in them, and the seed of the sampling."""
        return f"clips-{self.num_frames}-seed{self.seed}-{digest_of_videos(self.samples)}"

    @property
    def content(self) -> str:
        """Identifies the samples by their texts, ranges and the names of their videos, not by where these lie."""
        return digest_of_samples(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The path of the video."""
        return str(self.samples[index].video)

    def request(self, index: int, visit: int) -> ClipRequest:
        """Frames by the ``train`` sampling rule, sampled again at every visit."""
        sample = self.samples[index]
        return ClipRequest(
            video=str(sample.video),
            num_frames=self.num_frames,
            rule="train",
            start_s=sample.start_s,
            end_s=sample.end_s,
            seed=int(np.random.SeedSequence((self.seed, index, visit)).generate_state(1)[0]),
        )

    def frames(self, index: int, visit: int) -> list[Frames]:
        """The frames of ``request``."""
        return list(self.request(index, visit).load(VideoLimits()).frames)

    def conversations(self, index: int, visit: int) -> tuple[Conversation, ...]:
        """The whole conversation, at every visit."""
        return (tuple(Pair(turn.question, turn.answer) for turn in self.samples[index].turns),)


def open_clips(path: str, *, num_frames: int, seed: int) -> ClipSource:
    """Opens the authors' JSON list as a source.

    Raises:
        ConfigError: the file is not such a list, or is empty.
    """
    samples = tuple(read_samples(path))
    if not samples:
        raise ConfigError(f"{path} has no samples; at least 1 is needed")
    return ClipSource(samples, num_frames, seed)


def _sample(record: object, where: str, folder: Path) -> ClipSample:
    values = _fields(record, where, _REQUIRED, _OPTIONAL)
    video = _video(values["path"], f"{where}: path", folder)
    turns = _turns(values["conversations"], f"{where}: conversations")
    start_s, end_s = _range(values, where)
    if video.is_dir() and (start_s, end_s) != (None, None):
        raise ConfigError(f"{where} gives a time range for a folder of frames, which has no times; leave the range out")
    return ClipSample(video, turns, start_s, end_s)


def _fields(record: object, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ConfigError(f"{where} is {_json_type(record)}; an object with {' and '.join(required)} is expected")
    for key in required:
        if key not in record:
            raise ConfigError(f"{where} lacks the field {key!r}")
    for key in record:
        if key not in required + optional:
            raise ConfigError(
                f"{where} has the field {key!r}, which is not supported; allowed: {', '.join(required + optional)}"
            )
    return dict(record)


def _video(value: object, where: str, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{where} is {value!r}; the name of a video file or of a folder of jpeg frames is expected")
    video = folder / value
    if video.is_dir():
        if not any(entry.suffix.lower() in _FRAME_SUFFIXES for entry in video.iterdir()):
            raise ConfigError(f"{where} is the folder {video}, which contains no {' or '.join(_FRAME_SUFFIXES)} file")
    elif not video.is_file():
        raise ConfigError(f"{where} is {value!r}, but {video} does not exist; paths are relative to the JSON file")
    return video


def _turns(value: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value or len(value) % 2:
        shown = f"a list of {len(value)}" if isinstance(value, list) else _json_type(value)
        raise ConfigError(f"{where} is {shown}; one or more pairs of a human and a gpt message are expected")
    texts = [_message(message, f"{where}[{at}]", ("human", "gpt")[at % 2]) for at, message in enumerate(value)]
    texts[0] = _without_image(texts[0], f"{where}[0]: value")
    for at, text in enumerate(texts):
        if at and _IMAGE in text:
            raise ConfigError(f"{where}[{at}]: value contains {_IMAGE}; only the first human message may, once")
        if not text.strip():
            raise ConfigError(f"{where}[{at}]: value contains no text")
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return tuple(Turn(question.strip(), answer.strip()) for question, answer in pairs)


def _message(message: object, where: str, speaker: str) -> str:
    values = _fields(message, where, ("from", "value"))
    if values["from"] != speaker:
        raise ConfigError(f"{where}: from is {values['from']!r}; {speaker!r} is expected: human and gpt alternate")
    if not isinstance(values["value"], str):
        raise ConfigError(f"{where}: value is {_json_type(values['value'])}; a string is expected")
    return values["value"]


def _without_image(text: str, where: str) -> str:
    count = text.count(_IMAGE)
    if count != 1:
        raise ConfigError(f"{where} contains {_IMAGE} {count} times; exactly one is expected: a sample has one video")
    before, after = text.split(_IMAGE)
    if before.strip() and after.strip():
        raise ConfigError(f"{where} contains {_IMAGE} inside the text; it belongs at the start or at the end")
    return before + after


def _range(values: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    start, end = values.get("start_time"), values.get("end_time")
    names = ("start_time", "end_time")
    stamps = values.get("clip_timestamps")
    if stamps is not None:
        if start is not None or end is not None:
            raise ConfigError(f"{where} has both clip_timestamps and start_time or end_time; give only one of them")
        if not isinstance(stamps, list) or len(stamps) != 2:
            raise ConfigError(f'{where}: clip_timestamps is {stamps!r}; [start, end] as "HH:MM:SS.sss" is expected')
        start, end = stamps
        names = ("clip_timestamps[0]", "clip_timestamps[1]")
        if not (isinstance(start, str) and isinstance(end, str)):
            raise ConfigError(f'{where}: clip_timestamps is {stamps!r}; [start, end] as "HH:MM:SS.sss" is expected')
    start_s, end_s = (
        None if time is None else _seconds(time, f"{where}: {name}")
        for name, time in zip(names, (start, end), strict=True)
    )
    if end_s is not None and end_s <= (start_s or 0.0):
        raise ConfigError(
            f"{where}: {names[1]} is {end!r}, which is not after {start_s or 0.0:g} s, where the clip starts"
        )
    return start_s, end_s


def _seconds(value: object, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    clock = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if clock is None:
        raise ConfigError(f'{where} is {value!r}; seconds from 0 or "HH:MM:SS.sss" is expected')
    hours, minutes, seconds = clock.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _json_type(value: object) -> str:
    """JSON's name for the type of ``value``, since the value itself may be long."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
