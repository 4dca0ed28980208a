"""The PyTorch reference of BLIP-3-Video: one component a file, one temporal encoder a file."""

from __future__ import annotations

from blip3v.model.blip3_video import IGNORE, Blip3Video, splice

__all__ = ["IGNORE", "Blip3Video", "splice"]
