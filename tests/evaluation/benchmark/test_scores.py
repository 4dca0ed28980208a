"""Scores against values by hand, the published formulas, and other people's programs where these are installed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from blip3v.evaluation.benchmark.choices import asked_choice, chosen_option, most_likely_option
from blip3v.evaluation.benchmark.cider import cider_scores, words
from blip3v.evaluation.benchmark.intervals import bootstrap_interval, wilson_interval
from blip3v.evaluation.benchmark.text_match import is_exact, is_normalized, normalized


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (5, 10), (10, 10), (77, 100), (1, 1)])
def test_wilson_bounds_solve_the_equation_that_defines_them(successes: int, trials: int):
    """Wilson's bounds are the shares p at which |successes/trials - p| is 1.96 standard deviations of p."""
    for bound in wilson_interval(successes, trials):
        distance = abs(successes / trials - bound)
        assert distance == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / trials), abs=1e-6)


def test_wilson_agrees_with_a_printed_example():
    """Newcombe (Statistics in Medicine 1998), table I: 81 of 263, and 15 of 148."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_values():
    values = np.random.default_rng(3).normal(2.0, 1.5, 1000)
    low, high = bootstrap_interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert bootstrap_interval(values.tolist()) == (low, high)
    assert bootstrap_interval(values.tolist(), seed=1) != (low, high)


def test_the_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_interval([3.0] * 7) == (3.0, 3.0)


def test_matches():
    assert is_exact(" dog\n", ["cat", "dog "])
    assert not is_exact("Dog", ["dog"])
    assert is_normalized("The Dog!", ["cat", "a dog"])
    assert not is_normalized("dogs", ["dog"])
    assert not is_normalized("The.", ["the"]), "nothing is said"
    assert normalized("  An  apple, the man's  ") == "apple mans"


OPTIONS = ("a dog runs", "the cat sleeps", "run", "nothing", "jump high")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(C)", 2),
        ("C.", 2),
        (" D: ", 3),
        ("B. The cat sleeps", 1),
        ("(e) jump", 4),
        ("E) jump high", 4),
        ("The answer is (D).", 3),
        ("the correct answer is b", 1),
        ("Answer: C", 2),
        ("I take option A.", 0),
        ("Jump high.", 4),
        ("a dog runs", 0),
        ("A dog jumps", None),
        ("A dog", None),
        ("The answer is a dog", None),
        ("G", None),
        ("", None),
        ("no idea", None),
    ],
)
def test_an_answer_names_an_option(text: str, index: int | None):
    assert chosen_option(text, OPTIONS) == index


def test_the_text_of_two_options_names_neither():
    assert chosen_option("run", ("run", "Run.", "sit")) is None


def test_the_likeliest_letter_is_taken():
    tokens = {"The": -0.1, "B": -3.0, "D": -2.5, "F": -0.2}
    assert most_likely_option(tokens, 5) == 3
    assert most_likely_option(tokens, 3) == 1
    assert most_likely_option({"The": -0.1}, 5) is None


def test_options_are_shown_under_their_letters():
    assert asked_choice("Why?", ("fun", "food")).splitlines()[:3] == ["Why?", "A. fun", "B. food"]


def test_words_of_a_caption():
    text = "A man's T-shirt, 3 dogs -- & café_au lait."
    assert words(text) == ["a", "man's", "t-shirt", "3", "dogs", "café", "au", "lait"]


def test_cider_of_two_clips_by_hand():
    """Words that occur in one of two clips weigh log 2, those of both nothing; so only "dog" and "runs" count.

    Clip 1: candidate "a dog", reference "a dog runs". n = 1: vectors (dog) and (dog, runs), each entry log 2: cosine
    1/sqrt(2). n = 2: (a dog) and (a dog, dog runs): the same. Longer ones: none. Length differs by one word.
    """
    scores = cider_scores(["a dog", "a cat"], [["a dog runs"], ["a cat"]])
    assert scores[0] == pytest.approx(10 * math.exp(-1 / 72) * 2 * (1 / math.sqrt(2)) / 4)
    assert scores[1] == pytest.approx(10 * 2 / 4)


def test_cider_clips_what_a_caption_repeats():
    """ "dog dog dog": n = 1 has (3) against (1, 1): 1 * 1 / (3 * sqrt(2)); two words of length apart is none here."""
    scores = cider_scores(["dog dog", "cat"], [["dog runs"], ["cat"]])
    assert scores[0] == pytest.approx(10 * (1 / (2 * math.sqrt(2))) / 4)


def test_one_clip_has_no_cider():
    assert cider_scores(["a dog"], [["a dog"]]) == [0.0]
    assert cider_scores([], []) == []
    assert cider_scores(["", "x"], [["a dog"], ["y"]]) == [0.0, 0.0]


VOCABULARY = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "cat",
    "runs",
    "jumps",
    "plays",
    "with",
    "on",
    "ball",
    "guitar",
    "red",
    "small",
    "park",
    "kitchen",
    "and",
    "is",
    "in",
]


def captions(seed: int, num_clips: int = 12) -> tuple[list[str], list[list[str]]]:
    """Captions that share runs of words with their references."""
    random = np.random.default_rng(seed)
    texts, references = [], []
    for _ in range(num_clips):
        text = list(random.choice(VOCABULARY, random.integers(5, 12)))
        edited = [[*text[:at], *random.choice(VOCABULARY, 2)] for at in random.integers(3, 12, random.integers(1, 5))]
        texts.append(" ".join(text))
        references.append([" ".join(one) for one in edited])
    return texts, references


def formula_cider(candidates: list[str], references: list[list[str]]) -> list[float]:
    """The paper's formula on dense vectors over all n-grams, written without a look at the module."""

    def grams(text: str, n: int) -> list[str]:
        tokens = text.split()
        return [" ".join(tokens[i : i + n]) for i in range(len(tokens) + 1 - n)]

    scores = np.zeros(len(candidates))
    for n in (1, 2, 3, 4):
        axes = sorted({g for texts in [candidates, *references] for text in texts for g in grams(text, n)})
        if not axes:
            continue
        df = np.array([sum(any(g in grams(t, n) for t in texts) for texts in references) for g in axes])
        idf = np.log(len(references)) - np.log(np.maximum(df, 1))
        all_texts = {text for texts in [candidates, *references] for text in texts}
        vector = {text: np.array([Counter(grams(text, n))[g] for g in axes]) * idf for text in all_texts}
        for clip, (candidate, texts) in enumerate(zip(candidates, references, strict=True)):
            for text in texts:
                c, r = vector[candidate], vector[text]
                norm = np.linalg.norm(c) * np.linalg.norm(r)
                length = len(candidate.split()) - len(text.split())
                if norm:
                    scores[clip] += 10 * np.exp(-(length**2) / 72) * np.minimum(c, r) @ r / norm / 4 / len(texts)
    return scores.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_cider_is_the_published_formula(seed: int):
    candidates, references = captions(seed)
    assert cider_scores(candidates, references) == pytest.approx(formula_cider(candidates, references))


def test_cider_agrees_with_the_authors_program():
    """Where pycocoevalcap is installed, which is the authors' program for Python 3."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    candidates, references = captions(7, 40)
    _, scores = cider.Cider().compute_score(dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)})
    assert cider_scores(candidates, references) == pytest.approx(scores.tolist())


def plain_lcs(a: list[str], b: list[str]) -> int:
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def plain_bleu4(candidates: list[str], references: list[list[str]]) -> float:
    """BLEU of the whole set (Papineni et al., 2002): closest reference length, clipped counts."""
    matched, total, length, closest = [0] * 4, [0] * 4, 0, 0
    for candidate, texts in zip(candidates, references, strict=True):
        tokens = candidate.split()
        length += len(tokens)
        closest += min((len(t.split()) for t in texts), key=lambda n: (abs(n - len(tokens)), n))
        for n in range(1, 5):
            count, *others = [
                Counter(zip(*(t.split()[i:] for i in range(n)), strict=False)) for t in [candidate, *texts]
            ]
            most: Counter = Counter()
            for of_reference in others:
                most |= of_reference
            matched[n - 1] += sum((count & most).values())
            total[n - 1] += sum(count.values())
    mean = sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4
    return 100 * min(1.0, math.exp(1 - closest / length)) * math.exp(mean)


def test_bleu_and_rouge_are_the_published_formulas():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    from blip3v.evaluation.benchmark.captions import caption_scores

    candidates, references = captions(2, 60)
    scores = caption_scores(candidates, references)
    assert scores.bleu4 == pytest.approx(plain_bleu4(candidates, references))
    for candidate, texts, score in zip(candidates, references, scores.rouge_l, strict=True):
        common = [(plain_lcs(candidate.split(), t.split()), len(candidate.split()), len(t.split())) for t in texts]
        assert score == pytest.approx(max(2 * lcs / (a + b) for lcs, a, b in common))
    assert scores.cider == pytest.approx(cider_scores(candidates, references))
    assert "nrefs:var|case:lc|eff:no|tok:13a" in scores.settings["bleu4"]
    assert caption_scores(
        ["A red dog runs in the park."] * 2, [["a red dog runs in the park ."]] * 2
    ).bleu4 == pytest.approx(100)
