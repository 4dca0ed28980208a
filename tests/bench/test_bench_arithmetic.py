"""What a stage has to do at least. The products of exported graphs are counted in test_bench_defaults.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip3v.bench.arithmetic import attended_positions, prefill_operations, step_bytes, video_encoder_operations
from blip3v.bench.temporal_arithmetic import temporal_multiply_adds
from blip3v.config import ModelConfig, preset
from blip3v.export.video_encoder_graph import VideoEncoderGraph
from blip3v.model.temporal import with_encoder
from blip3v.model.temporal.registry import BUILT_IN
from blip3v.model.weights import random_model


def _small(encoder: str) -> ModelConfig:
    tiny = preset("tiny")
    small = dataclasses.replace(
        tiny,
        num_frames=8,
        vision=dataclasses.replace(tiny.vision, image_size=16, num_layers=1),
        resampler=dataclasses.replace(tiny.resampler, depth=1),
        text=dataclasses.replace(tiny.text, num_layers=1),
    )
    return with_encoder(small, encoder)


@pytest.mark.parametrize("encoder", sorted(BUILT_IN))
def test_every_encoder_is_counted_as_pytorch_counts_it(encoder: str) -> None:
    config = _small(encoder)
    graph = VideoEncoderGraph(random_model(config), scan=False)
    frames = torch.zeros(1, config.num_frames, 3, config.vision.image_size, config.vision.image_size)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        graph(frames)
    assert video_encoder_operations(config) == counter.get_total_flops()


def test_an_encoder_of_another_package_has_no_count() -> None:
    tiny = preset("tiny")
    unknown = dataclasses.replace(tiny, temporal=dataclasses.replace(tiny.temporal, encoder="my-encoder"))
    assert temporal_multiply_adds(unknown) is None
    assert video_encoder_operations(unknown) is None


def test_a_window_bounds_what_is_attended_to_and_read() -> None:
    assert attended_positions(5, None) == 15
    assert attended_positions(5, 3) == 1 + 2 + 3 + 3 + 3
    assert attended_positions(2, 3) == 3
    assert step_bytes(1000, 10, num_tokens=50, window=None, batch_size=2) == 2000
    assert step_bytes(1000, 10, num_tokens=50, window=20) == 1200


def test_the_4b_model_costs_what_its_reference_says() -> None:
    """Prefill of 160 and 1152 tokens, and SigLIP on 8 frames, in TFLOP."""
    large = preset("xgen-mm-vid")
    assert prefill_operations(large.text, 160) == pytest.approx(1.16e12, rel=0.01)
    assert prefill_operations(large.text, 1152) == pytest.approx(8.35e12 + 0.26e12, rel=0.01)
    operations = video_encoder_operations(large)
    assert operations is not None
    assert 5.3e12 < operations < 6.6e12
