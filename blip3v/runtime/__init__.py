"""The runtime: open a bundle and ask questions about videos, without PyTorch.

Example:
    with VideoLM.open("blip3v-tiny-tokenlearner-32tok-fp16") as lm:
        print(lm.ask("clip.mp4", "Which way does the red circle turn?").text)
"""

from blip3v.runtime.chat import Chat
from blip3v.runtime.loading import OpenEstimate
from blip3v.runtime.options import CancelToken, GenerationOptions
from blip3v.runtime.sampling import TokenLogprob
from blip3v.runtime.stream import AnswerStream
from blip3v.runtime.types import Answer, Delta, FinishReason, Frame, Timings, Usage, VideoTokens
from blip3v.runtime.video_lm import VideoLM

__all__ = [
    "Answer",
    "AnswerStream",
    "CancelToken",
    "Chat",
    "Delta",
    "FinishReason",
    "Frame",
    "GenerationOptions",
    "OpenEstimate",
    "Timings",
    "TokenLogprob",
    "Usage",
    "VideoLM",
    "VideoTokens",
]
