"""What to do with a bundle whose manifest is of an older schema: the command that makes it again, from what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["advice"]

_AGAIN = "run `blip3v export` again"
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # a manifest is not to be trusted: nothing else is printed


def advice(values: Mapping[str, Any], folder: Path) -> str:
    """The sentence that ends the refusal of a bundle.

    Args:
        values: its manifest, of schema 1 or of any other.
        folder: where it lies.
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
    place = "" if "-m" not in arguments else f", with -m naming the model folder {source['name']} where it lies now"
    return f"make it again with `{line}`{place}"


def _arguments(values: Mapping[str, Any], source: Mapping[str, Any]) -> list[str]:
    """The options of ``blip3v export``; none for a bundle that it did not make.

    Raises:
        KeyError, TypeError, ValueError: a manifest that no blip3v wrote.
    """
    encoder, model, precision = (_word(values[name]) for name in ("encoder", "model", "precision"))
    frames = ["--frames", str(int(values["num_frames"]))]
    if source["random_init"]:
        tokens = ["--tokens", str(int(values["num_video_tokens"]))]
        return ["--preset", model, "--init", "random", "--encoder", encoder, *frames, *tokens, "--precision", precision]
    if not source["trained"]:
        return []
    name = _word(source["name"])
    # The package's own models are found by their encoder.
    weights = ["--encoder", encoder] if name == f"tiny-{encoder}" else ["-m", name]
    return [*weights, *frames, "--precision", precision]


def _word(value: object) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ValueError(f"{value!r} is not a name")
    return value
