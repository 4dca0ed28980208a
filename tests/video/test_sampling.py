"""The three sampling rules: the released script's numbers, and properties over all sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3v.errors import UsageError
from blip3v.video import SAMPLING_RULES, SamplingRule, sample_indices

COUNTS = st.integers(1, 5000)
WANTED = st.integers(1, 64)


def sample(num_source: int, num_frames: int, rule: SamplingRule, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed) if rule == "train" else None
    return sample_indices(num_source, num_frames, rule=rule, rng=rng).tolist()


@pytest.mark.parametrize(
    ("num_source", "expected"),
    [
        pytest.param(16, [4, 5, 6, 7, 8, 9, 10, 12], id="16"),
        pytest.param(100, [4, 17, 30, 43, 56, 69, 82, 96], id="100"),
        pytest.param(300, [4, 45, 87, 129, 170, 212, 254, 296], id="300"),
        pytest.param(8, [4] * 8, id="as-many-as-asked"),
        pytest.param(7, [0, 0, 1, 2, 3, 4, 5, 6], id="one-too-few"),
        pytest.param(1, [0] * 8, id="one-frame"),
    ],
)
def test_released_rule_gives_the_frames_of_the_released_script(num_source: int, expected: list[int]) -> None:
    assert sample(num_source, 8, "released") == expected


@pytest.mark.parametrize(
    ("num_source", "num_frames", "expected"),
    [(100, 4, [0, 33, 66, 99]), (3, 3, [0, 1, 2]), (2, 5, [0, 0, 0, 0, 1]), (9, 1, [0])],
)
def test_uniform_rule_spans_the_clip(num_source: int, num_frames: int, expected: list[int]) -> None:
    assert sample(num_source, num_frames, "uniform") == expected


@given(num_source=COUNTS, num_frames=WANTED, rule=st.sampled_from(SAMPLING_RULES), seed=st.integers(0, 99))
def test_indices_are_in_range_and_never_run_backwards(
    num_source: int, num_frames: int, rule: SamplingRule, seed: int
) -> None:
    rng = np.random.default_rng(seed) if rule == "train" else None
    indices = sample_indices(num_source, num_frames, rule=rule, rng=rng)
    assert indices.dtype == np.int64
    assert indices.shape == (num_frames,)
    assert indices.min() >= 0
    assert indices.max() < num_source
    assert (np.diff(indices) >= 0).all()


@given(num_frames=st.integers(2, 64), short=st.integers(1, 63), rule=st.sampled_from(SAMPLING_RULES))
def test_a_short_clip_shows_every_frame(num_frames: int, short: int, rule: SamplingRule) -> None:
    num_source = min(short, num_frames - 1)
    assert set(sample(num_source, num_frames, rule)) == set(range(num_source))


@given(num_frames=WANTED, extra=st.integers(0, 2000), seed=st.integers(0, 999))
def test_train_rule_has_one_stride(num_frames: int, extra: int, seed: int) -> None:
    num_source = num_frames + extra
    indices = np.array(sample(num_source, num_frames, "train", seed))
    assert (np.diff(indices) == num_source // num_frames).all()


def test_train_rule_reaches_the_first_and_the_last_frame() -> None:
    drawn = [sample(19, 4, "train", seed) for seed in range(100)]
    assert min(frames[0] for frames in drawn) == 0
    assert max(frames[-1] for frames in drawn) == 18


def test_train_rule_repeats_with_its_seed() -> None:
    assert sample(300, 8, "train", 5) == sample(300, 8, "train", 5)
    assert len({tuple(sample(300, 8, "train", seed)) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        pytest.param((0, 8), {}, "0 frames", id="empty"),
        pytest.param((9, 0), {}, "num_frames is 0", id="none-wanted"),
        pytest.param((9, 2), {"rule": "middle"}, "allowed: released, uniform, train", id="unknown-rule"),
        pytest.param((9, 2), {"rule": "train"}, "no rng", id="train-without-rng"),
        pytest.param((9, 2), {"rng": np.random.default_rng(0)}, "an rng", id="rng-without-train"),
    ],
)
def test_what_cannot_be_sampled_is_refused(arguments: tuple[int, int], options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sample_indices(*arguments, **options)
