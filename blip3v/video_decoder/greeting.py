"""What the decoder process says first, so that its caller knows whether it started the right thing."""

from __future__ import annotations

import sys

import blip3v

__all__ = ["greeting"]


def greeting() -> dict[str, str]:
    """Versions of blip3v and Python: compiled packages are shared with the caller, so both must be the same."""
    return {"blip3v": f"blip3v {blip3v.__version__}", "python": str(sys.implementation.cache_tag)}
