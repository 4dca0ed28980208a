"""The PyTorch reference of BLIP-3-Video: one component per file, one temporal encoder per file.

Names are imported on first use, so that the command line can show its help without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip3v.model.blip3_video import IGNORE_INDEX, Blip3Video, splice

__all__ = ["IGNORE_INDEX", "Blip3Video", "splice"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'blip3v.model' has no attribute {name!r}")
    return getattr(importlib.import_module("blip3v.model.blip3_video"), name)
