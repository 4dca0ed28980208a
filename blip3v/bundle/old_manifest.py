"""Advice for a bundle whose manifest has an older schema: the command that exports it again, from what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["advice"]

_AGAIN = "run `blip3v export` again"
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # a manifest is not trusted: nothing else is printed


def advice(values: Mapping[str, Any], folder: Path) -> str:
    """The last part of the error that refuses a bundle.

    Args:
        values: the bundle's manifest, with schema 1 or any other.
        folder: the bundle's folder.
    """
    if values.get("schema_version") != 1:
        return _AGAIN
    try:
        source = values["source"]
        arguments = _arguments(values, source)
    except (TypeError, ValueError, KeyError):
        return _AGAIN
    if not arguments:
        return "delete it and run `blip3v bench`, which makes its own bundles"
    line = shlex.join(["blip3v", "export", *arguments, "-o", str(folder), "--force"])
    place = "" if "-m" not in arguments else f", with -m pointing to where the model folder {source['name']} is now"
    return f"export it again with `{line}`{place}"


def _arguments(values: Mapping[str, Any], source: Mapping[str, Any]) -> list[str]:
    """The options of ``blip3v export``; empty for a bundle that it did not make.

    Raises:
        KeyError, TypeError, ValueError: the manifest was not written by blip3v.
    """
    encoder, model, precision = (_word(values[name]) for name in ("encoder", "model", "precision"))
    frames = ["--frames", str(int(values["num_frames"]))]
    if source["random_init"]:
        tokens = ["--tokens", str(int(values["num_video_tokens"]))]
        return ["--preset", model, "--init", "random", "--encoder", encoder, *frames, *tokens, "--precision", precision]
    if not source["trained"]:
        return []
    name = _word(source["name"])
    # The models in the package are found by their encoder.
    weights = ["--encoder", encoder] if name == f"tiny-{encoder}" else ["-m", name]
    return [*weights, *frames, "--precision", precision]


def _word(value: object) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{value!r} is not a name")
    return value
