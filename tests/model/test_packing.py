"""Several questions packed into one row have the same loss and gradients as separate rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from blip3v.config import preset
from blip3v.model import IGNORE_INDEX, Blip3Video
from blip3v.model.packing import positions_and_mask
from blip3v.training.batch import make_batch
from blip3v.training.chat_rows import Row

SHARED = [7, 610, 608]


def one_answer(ids: list[int], num_prompt_tokens: int) -> Row:
    return Row(ids, [IGNORE_INDEX] * num_prompt_tokens + ids[num_prompt_tokens:], image_position=2)


ROWS = [
    [one_answer([*SHARED, 20, 21, 22, 30, 607], 6), one_answer([*SHARED, 23, 31, 32, 607], 4)],
    [one_answer([*SHARED, 24, 25, 33, 607], 5)],
]


def test_positions_and_mask_of_two_questions() -> None:
    positions, mask = positions_and_mask(torch.tensor([[0, 0, 1, 1, 2]]), window=None)
    assert positions.tolist() == [[0, 1, 2, 3, 2]]
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("window", [None, 4], ids=["full", "window-4"])
def test_packed_questions_equal_separate_rows(window: int | None) -> None:
    torch.manual_seed(2)
    tiny = preset("tiny")
    model = Blip3Video(dataclasses.replace(tiny, text=dataclasses.replace(tiny.text, sliding_window=window))).eval()
    video = torch.randn(2, 5, 128)
    batch = make_batch(ROWS, pad_id=600)

    def gradient() -> torch.Tensor:
        weight = model.lang_model.get_parameter("model.layers.0.self_attn.qkv_proj.weight")
        assert weight.grad is not None
        found = weight.grad.clone()
        model.zero_grad()
        return found

    loss, count = model.loss(batch.ids_CL, batch.labels_CL, batch.image_position_C, video, batch.question_CL)
    loss.backward()
    packed = gradient()
    separate, counted = torch.tensor(0.0), 0
    for clip, rows in enumerate(ROWS):
        for row in rows:
            ids = torch.tensor([row.ids])
            one, num = model.loss(
                ids, torch.tensor([row.labels]), torch.tensor([row.image_position]), video[clip : clip + 1]
            )
            separate, counted = separate + one, counted + int(num)
    separate.backward()
    assert count == counted == 7
    torch.testing.assert_close(loss, separate, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed, gradient(), rtol=1e-4, atol=1e-6)
