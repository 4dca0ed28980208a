"""Video input: open a file, sample frames, resize and normalise. Torch-free.

``load_pixels`` goes from a video to the model's input; the other names are its steps.
"""

from blip3v.video.clip import Clip, SampledFrame, load_clip, load_pixels
from blip3v.video.limits import VideoLimits
from blip3v.video.preprocess import PreprocessorConfig, ResizeMode, preprocess
from blip3v.video.sampling import SAMPLING_RULES, SamplingRule, sample_indices
from blip3v.video.source import IMAGE_SUFFIXES, VideoInput
from blip3v.video.spare_decoder import SpareDecoder

__all__ = [
    "IMAGE_SUFFIXES",
    "SAMPLING_RULES",
    "Clip",
    "PreprocessorConfig",
    "ResizeMode",
    "SampledFrame",
    "SamplingRule",
    "SpareDecoder",
    "VideoInput",
    "VideoLimits",
    "load_clip",
    "load_pixels",
    "preprocess",
    "sample_indices",
]
