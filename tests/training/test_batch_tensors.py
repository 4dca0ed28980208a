"""Batches on their way to the device: what their pixels are, and that no tensor is left behind or unpinned."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from batch_tensors import tensors_of
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from blip3v.training.batch import Pictures, make_batch
from blip3v.training.broken import Notes
from blip3v.training.chat_rows import Row
from blip3v.training.labels import LabelBatch
from blip3v.training.loop import StepBatch, _Meter
from blip3v.training.objects import ObjectBatch
from blip3v.training.patches import PatchBatch
from blip3v.training.tensors import Tensors
from blip3v.video.preprocess import PreprocessorConfig, level_values, preprocess, resize

ROWS = [[Row([1, 2, 3], [-100, -100, 3], 1)]] * 2
NOTES = Notes((), 3)


def clips() -> np.ndarray:
    """Two clips of three frames, (2, 3, 20, 30, 3)."""
    return np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30, 3), np.uint8)


def pictures(config: PreprocessorConfig) -> Pictures:
    levels = np.stack([resize(clip, config) for clip in clips()])
    return Pictures(torch.from_numpy(levels), torch.from_numpy(level_values(config)))


def labels() -> LabelBatch:
    return LabelBatch(torch.zeros(2, 4, 1, dtype=torch.int64), torch.zeros(2, 4, 2))


def batches() -> list[Tensors]:
    """One of each kind."""
    return [
        make_batch(ROWS, pad_id=0, pictures=pictures(PreprocessorConfig(image_size=8)), notes=NOTES),
        make_batch(ROWS, pad_id=0, features=np.zeros((2, 3, 4, 5), np.float16), notes=NOTES),
        PatchBatch(torch.zeros(2, 1, 3, 8, 8), labels(), NOTES),
        ObjectBatch(torch.zeros(2, 3, 4, 5), labels(), labels(), NOTES),
    ]


def kind(batch: Tensors) -> str:
    return f"{type(batch).__name__}, {len(tensors_of(batch))} tensors"


def test_pixels_are_those_of_the_one_preprocessor() -> None:
    """Bit for bit: what is trained on is what export, runtime and server compute."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for config in (PreprocessorConfig(image_size=16), PreprocessorConfig(image_size=9, image_mean=mean, image_std=std)):
        expected = np.stack([preprocess(clip, config) for clip in clips()])
        found = pictures(config).pixels()
        assert found.is_contiguous()
        np.testing.assert_array_equal(found.numpy(), expected)


def test_pixels_have_the_dtype_of_their_values() -> None:
    full = pictures(PreprocessorConfig(image_size=8))
    half = Pictures(full.levels_CTHWK, full.values_KV.bfloat16())
    assert torch.equal(half.pixels(), full.pixels().bfloat16())


@pytest.mark.parametrize("batch", batches(), ids=kind)
def test_every_tensor_is_pinned(batch: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing can be pinned: ``Tensor.pin_memory`` is a fake here, which marks a copy by its place.

    The function that calls it is the one that runs in the thread of torch's ``DataLoader``.
    """
    pinned: set[int] = set()

    def pin(tensor: Tensor, *_: object) -> Tensor:
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    found = pin_memory(batch)
    assert type(found) is type(batch)
    assert [tensor.data_ptr() in pinned for tensor in tensors_of(found)] == [True] * len(tensors_of(batch))
    assert all(torch.equal(x, y) for x, y in zip(tensors_of(found), tensors_of(batch), strict=True))


@pytest.mark.parametrize("batch", batches(), ids=kind)
def test_every_tensor_goes_to_the_device(batch: Tensors) -> None:
    """The device "meta" stands for a GPU."""
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_of(moved)} == {"meta"}
    assert [tensor.shape for tensor in tensors_of(moved)] == [tensor.shape for tensor in tensors_of(batch)]
    assert moved.notes == NOTES  # type: ignore[attr-defined]


def test_the_log_says_how_long_a_step_waited_for_its_data() -> None:
    """And not what the step itself takes."""
    meter = _Meter()

    def load() -> list[StepBatch]:
        time.sleep(0.1)
        return []

    for _ in range(2):
        meter.waited(load)
        time.sleep(0.1)
        meter.losses.append(1.0)
    _, step_s, data_s = meter.read(0)
    assert 0.1 <= data_s <= step_s - 0.1
