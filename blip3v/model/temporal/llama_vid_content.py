"""LLaMA-VID's content token: the mean of each frame's patches, or a small square of means.

Li et al., LLaMA-VID, section 3.2. Their second token of a frame, the context token, attends to the question, which an
encoder does not see here: it is left out, and one clip's tokens serve every question.
"""

from __future__ import annotations

from blip3v.model.temporal.pllava import GridPooling, square_counts
from blip3v.model.temporal.spec import EncoderSpec, NoSettings
from blip3v.model.temporal.stored import weightless

__all__ = ["ENCODER"]

ENCODER = EncoderSpec(
    settings=NoSettings,
    module=GridPooling,
    token_counts=lambda settings, clip: square_counts(clip, usual_side=1),
    find=weightless,
    reads="patches",
)
