"""What one load of a video may cost; the decoder process, which keeps to it, holds the definition."""

from blip3v.video_decoder.limits import VideoLimits

__all__ = ["VideoLimits"]
