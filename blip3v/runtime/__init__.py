"""The runtime: open a bundle and ask questions about videos, without PyTorch.

Example:
    with VideoLM.open("blip3v-tiny-tokenlearner-32tok-fp16") as lm:
        print(lm.ask("clip.mp4", "Which way does the red circle turn?").text)

Files are decoded in a process of their own, which needs a Python to run. A program that embeds Python has none in
``sys.executable``: it sets the environment variable ``BLIP3V_PYTHON`` to the Python of its environment.
"""

from blip3v.runtime.backends import Execution
from blip3v.runtime.cancellation import CancelToken
from blip3v.runtime.chat import Chat
from blip3v.runtime.estimate import DeviceNeed, OpenEstimate
from blip3v.runtime.generation import AnswerStream
from blip3v.runtime.request import GenerationOptions
from blip3v.runtime.types import (
    Answer,
    BackendReport,
    Delta,
    FinishReason,
    Frame,
    Timings,
    TokenLogprob,
    Usage,
    VideoTokens,
)
from blip3v.runtime.video_lm import VideoLM
from blip3v.video.limits import VideoLimits

__all__ = [
    "Answer",
    "AnswerStream",
    "BackendReport",
    "CancelToken",
    "Chat",
    "Delta",
    "DeviceNeed",
    "Execution",
    "FinishReason",
    "Frame",
    "GenerationOptions",
    "OpenEstimate",
    "Timings",
    "TokenLogprob",
    "Usage",
    "VideoLM",
    "VideoLimits",
    "VideoTokens",
]
