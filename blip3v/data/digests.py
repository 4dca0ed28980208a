"""What identifies data by its content: the texts of samples, and the bytes of their videos."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from blip3v.data.records import ClipSample

__all__ = ["digest_of_samples", "digest_of_videos"]

_BLOCK_BYTES = 1 << 20


def digest_of_samples(samples: Sequence[ClipSample]) -> str:
    """SHA-256 of the samples in their order: all that is in them, of videos the file names. No file is opened."""
    digest = hashlib.sha256()
    for one in samples:
        turns = [(turn.question, turn.answer) for turn in one.turns]
        record = (one.video.name, one.start_s, one.end_s, one.key, one.kind, turns, one.options, one.references)
        digest.update(json.dumps(record).encode() + b"\n")
    return digest.hexdigest()


def digest_of_videos(samples: Sequence[ClipSample]) -> str:
    """SHA-256 of the bytes of the samples' videos and of the ranges in them, in their order. Reads every file once.

    A file that cannot be read counts by that: it is another one as soon as it can.
    """
    digest, known = hashlib.sha256(), dict[Path, str]()
    for sample in samples:
        if sample.video not in known:
            known[sample.video] = _digest_of_video(sample.video)
        digest.update(repr((known[sample.video], sample.start_s, sample.end_s)).encode())
    return digest.hexdigest()


def _digest_of_video(video: Path) -> str:
    """Of a file, or of the files in a folder of frames with their names."""
    if not video.is_dir():
        return _digest_of_file(video)
    files = sorted(entry.name for entry in os.scandir(video) if entry.is_file())
    found = [(os.fsencode(name), _digest_of_file(video / name)) for name in files]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        return f"unreadable: {error.strerror}"
    return digest.hexdigest()
