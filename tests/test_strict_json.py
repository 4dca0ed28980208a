"""What strict JSON refuses before anything is built from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip3v.errors import ConfigError
from blip3v.strict_json import read_json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a'"),
        ('{"a": NaN}', "NaN"),
        ('{"a": Infinity}', "Infinity"),
        (r'{"a": ["\ud800"]}', "surrogates not allowed"),
        (r'{"\udfff": 1}', "surrogates not allowed"),
        ("[]", "a JSON object is expected"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
    ids=["duplicate", "nan", "infinity", "lone-surrogate", "lone-surrogate-key", "list", "cut-off", "deep"],
)
def test_a_file_that_is_not_strict_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Found by fuzzing: a lone surrogate was read, and ended `convert` in a UnicodeEncodeError as it wrote."""
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        read_json(path)


def test_escaped_characters_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(r'{"a": "\u00e9 \ud83c\udfac"}', "utf-8")
    assert read_json(path) == {"a": "\u00e9 \U0001f3ac"}
