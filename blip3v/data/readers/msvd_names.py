"""The two names of a clip of MSVD: vid1203, by which MSVD-QA and the usual split count, and that of its file.

``youtube_mapping.txt``, which MSVD-QA comes with, has a clip a line: ``-4wsuPCjDBc_5_15 vid1``. The first name is the
YouTube id with the first and last second, as in MSVD's own archive (``YouTubeClips/-4wsuPCjDBc_5_15.avi``) and
captions.
"""

from __future__ import annotations

import re
from pathlib import Path

from blip3v.data.readers.annotations import text_lines
from blip3v.errors import ConfigError

__all__ = ["NAMES_FILE", "read_names"]

NAMES_FILE = "youtube_mapping.txt"
_NUMBERED = re.compile(r"vid[1-9][0-9]*")


def read_names(path: Path) -> dict[str, str]:
    """The file's name of every clip by its number: ``{"vid1": "-4wsuPCjDBc_5_15"}``.

    Raises:
        ConfigError: a line is not two such names.
    """
    names: dict[str, str] = {}
    for line, where in text_lines(path):
        words = line.split()
        if len(words) != 2 or not _NUMBERED.fullmatch(words[1]):
            raise ConfigError(f"{where} is {line!r}; a clip's name and its number, such as vid1, are expected")
        names[words[1]] = words[0]
    return names
