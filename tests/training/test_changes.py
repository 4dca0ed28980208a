"""Options that change a recipe say which stage they meet."""

from __future__ import annotations

import dataclasses

import pytest
from clip_files import recipe

from blip3v.errors import UsageError
from blip3v.training.changes import changed

ONE = recipe()
TWO = dataclasses.replace(ONE, stages=(ONE.stages[0], dataclasses.replace(ONE.stages[0], task="instructions")))


def test_changes_meet_the_only_stage() -> None:
    given = {"learning_rate": ["1e-5"], "batch_size_per_device": ["4"], "steps": ["9"]}
    new, lines = changed(ONE, given)
    (stage,) = new.stages
    assert (stage.learning_rate, stage.batch_size, stage.batch_size_per_device, stage.num_steps) == (1e-5, None, 4, 9)
    assert lines == [
        "stage 1: video-captions: learning_rate 1e-05 instead of learning_rate 0.001",
        "stage 1: video-captions: batch_size_per_device 4 instead of batch_size 2",
        "stage 1: video-captions: num_steps 9 instead of num_steps 6",
    ]


def test_one_of_several_stages_is_named() -> None:
    new, lines = changed(TWO, {"steps": ["2=7"]})
    assert [stage.num_steps for stage in new.stages] == [6, 7]
    assert lines == ["stage 2: instructions: num_steps 7 instead of num_steps 6"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "steps",
            "7",
            "2 stages: 1 video-captions, 2 instructions; steps meets one of them; say which: `steps='2=7'`",
        ),
        ("steps", "3=7", "steps is '3=7', but the recipe's stages are 1 video-captions, 2 instructions"),
        ("steps", "1=0", "steps is '0'; a whole number from 1 is needed"),
        ("learning_rate", "1=fast", "learning_rate is 'fast'; a number above 0"),
    ],
)
def test_a_change_that_cannot_be_made_says_why(name: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as found:
        changed(TWO, {name: [value]})
    assert message in str(found.value)
