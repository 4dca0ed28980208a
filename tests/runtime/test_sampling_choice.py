"""Each rule of sampling against a plain formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3v.errors import BackendError
from blip3v.runtime.generation import Sampler, log_softmax, penalise, probabilities
from blip3v.runtime.request import GenerationOptions

_LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda v: np.array(v, np.float32))


def _softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    shares = [float(np.exp(score - top)) for score in scores]
    return [share / sum(shares) for share in shares]


@given(_LOGITS)
@settings(deadline=None)
def test_log_softmax_is_the_logarithm_of_the_softmax(logits: np.ndarray) -> None:
    assert np.allclose(np.exp(log_softmax(logits)), _softmax(logits.astype(float).tolist()), atol=1e-12)


def test_log_softmax_of_huge_logits_is_finite() -> None:
    assert np.allclose(log_softmax(np.array([1e30, 1e30], np.float32)), np.log(0.5))


# Distinct logits: where two are equal, which one a filter keeps is a matter of taste.
_DISTINCT = st.lists(st.integers(-80, 80), min_size=1, max_size=40, unique=True).map(
    lambda values: np.array(values, np.float32) / 8
)


@given(_DISTINCT, st.floats(0.05, 5), st.integers(0, 50), st.floats(0.01, 1))
@settings(max_examples=200, deadline=None)
def test_filters_equal_the_plain_formula(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> None:
    shares = _softmax([float(value) / temperature for value in logits])
    kept = sorted(range(len(shares)), key=lambda i: -shares[i])[: top_k or len(shares)]
    total, nucleus, reached = sum(shares[i] for i in kept), list[float](), 0.0
    for i in kept:
        if nucleus and top_p < 1 and reached >= top_p * total:
            break
        nucleus.append(i)
        reached += shares[i]
    expected = [shares[i] / reached if i in nucleus else 0.0 for i in range(len(shares))]
    assert np.allclose(probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p), expected, atol=1e-9)


def test_top_k_one_is_greedy() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)
    sampler = Sampler(GenerationOptions(temperature=5.0, top_k=1))
    assert [sampler.choose(logits, []) for _ in range(20)] == [int(logits.argmax())] * 20


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_once_a_token() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    assert penalise(logits, [0, 1, 0, 0], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert penalise(logits, [], 2.0).tolist() == logits.tolist()


def test_repetition_penalty_changes_the_greedy_choice() -> None:
    logits = np.array([2.0, 1.5], np.float32)
    sampler = Sampler(GenerationOptions(repetition_penalty=2.0))
    assert [sampler.choose(logits, []), sampler.choose(logits, [0])] == [0, 1]


def test_drawn_shares_are_the_models_shares() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(GenerationOptions(temperature=1.0, seed=7))
    counts = np.bincount([sampler.choose(logits, []) for _ in range(8000)], minlength=4) / 8000
    assert np.abs(counts - [0.5, 0.3, 0.15, 0.05]).max() < 0.02


def test_the_seed_decides_the_draws() -> None:
    logits = np.zeros(1000, np.float32)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=seed))
        return [sampler.choose(logits, []) for _ in range(10)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_logprobs_are_those_of_the_model_not_of_the_filters() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    sampler = Sampler(GenerationOptions(temperature=0.1, top_k=1, repetition_penalty=3.0, logprobs=2))
    found = sampler.logprob(logits, 0)
    exact = np.log(_softmax([1.0, 3.0, 2.0]))
    assert found is not None
    assert found.logprob == pytest.approx(exact[0])
    assert [token for token, _ in found.top] == [1, 2]
    assert [value for _, value in found.top] == pytest.approx([exact[1], exact[2]])


def test_no_logprobs_unless_asked_for() -> None:
    assert Sampler(GenerationOptions()).logprob(np.zeros(3, np.float32), 0) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus-inf"])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(BackendError, match="not finite"):
        Sampler(GenerationOptions()).choose(np.array([0.0, bad], np.float32), [])


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
def test_a_temperature_near_zero_takes_the_most_likely_token(temperature: float) -> None:
    """The scores overflowed, and an id beyond the vocabulary was drawn."""
    sampler = Sampler(GenerationOptions(temperature=temperature))
    assert sampler.choose(np.array([1.0, 30.0, -20.0, 29.0], np.float32), []) == 1
