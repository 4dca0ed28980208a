"""Limits on what one load of a video may cost, defined with the decoder process that enforces them."""

from blip3v.video_decoder.limits import VideoLimits

__all__ = ["VideoLimits"]
