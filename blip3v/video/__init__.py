"""Video in: open a file, sample frames, resize and normalise. Torch-free."""

from blip3v.video.preprocess import PreprocessorConfig, ResizeMode, preprocess
from blip3v.video.sampling import SAMPLING_RULES, SamplingRule, sample_indices

__all__ = ["SAMPLING_RULES", "PreprocessorConfig", "ResizeMode", "SamplingRule", "preprocess", "sample_indices"]
