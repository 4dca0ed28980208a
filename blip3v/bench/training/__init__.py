"""Samples per second of training steps, as the paper measured them; needs PyTorch.

A step is what one device does in the paper's stages 2 and 3, and it is the trainer's own (``train_step``): the frozen
vision encoder, forward and backward of resampler, temporal encoder and language model, gradient clipping, AdamW. Not
here: loading data, and communication between devices.
"""

from blip3v.bench.training.rows import BASELINE, PAPER_SAMPLES_PER_S, ROWS, Row

__all__ = ["BASELINE", "PAPER_SAMPLES_PER_S", "ROWS", "Row"]
