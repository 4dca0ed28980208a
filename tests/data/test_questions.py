"""Questions: answered truly, evenly spread, and of no help to a model that does not look at the film."""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from blip3v.data.film import COLOURS, SHAPES, Film, make_film
from blip3v.data.questions import ANSWERS, KINDS, TIME_KINDS, Question, multiple_choice, questions, test_questions


def words(text: str) -> list[str]:
    return text.lower().strip("?").split()


BLIND_READERS: dict[str, Callable[[str], str]] = {
    "whole text": lambda text: text,
    "colour word": lambda text: next((word for word in words(text) if word in COLOURS), ""),
    "shape word": lambda text: next((word for word in words(text) if word in SHAPES), ""),
    "wording": lambda text: " ".join(word for word in words(text) if word not in COLOURS and word not in SHAPES),
}


@pytest.mark.parametrize("reader", BLIND_READERS.values(), ids=list(BLIND_READERS))
def test_a_blind_reader_gains_little(reader: Callable[[str], str], train_films: list[Film]) -> None:
    """On 2,000 films it learns the commonest answer to what it reads of a question; 1,000 others test it."""
    learned: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    common: dict[str, Counter[str]] = defaultdict(Counter)
    for film in train_films[:2000]:
        for question in questions(film):
            learned[question.kind, reader(question.text)][question.answer] += 1
            common[question.kind][question.answer] += 1
    right, plain, total = Counter[str](), Counter[str](), Counter[str]()
    for film in train_films[2000:]:
        for question in questions(film):
            guess = common[question.kind].most_common(1)[0][0]
            known = learned[question.kind, reader(question.text)]
            right[question.kind] += question.answer == (known.most_common(1)[0][0] if known else guess)
            plain[question.kind] += question.answer == guess
            total[question.kind] += 1
    assert set(total) == set(KINDS)
    for kind in KINDS:
        assert (right[kind] - plain[kind]) / total[kind] < 0.06, kind


def test_answers_are_spread_evenly(train_films: list[Film]) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for film in train_films:
        for question in questions(film):
            counts[question.kind][question.answer] += 1
    for kind in KINDS:
        total = sum(counts[kind].values())
        assert max(counts[kind].values()) / total < 2.2 / len(counts[kind]), kind
        if len(ANSWERS[kind]) < 48:
            assert set(counts[kind]) == set(ANSWERS[kind])
    assert len({answer for kind in KINDS for answer in counts[kind]}) >= 60


def test_no_question_names_its_answer(train_films: list[Film]) -> None:
    for film in train_films:
        for question in questions(film):
            if question.kind in ("colour", "shape", "order", "appear", "disappear", "speed"):
                assert not set(question.answer.split()) & set(words(question.text))
            elif question.kind == "size":
                assert ("small" in words(question.text)) == (
                    "large" in words(question.text)
                ) or "how large" in question.text.lower()
            else:
                assert question.answer not in question.text


def test_fields_follow_from_the_kind(train_films: list[Film]) -> None:
    for film in train_films[:300]:
        names = {item.name for item in film.objects}
        for question in questions(film):
            assert question.needs_time == (question.kind in TIME_KINDS)
            assert question.answer in ANSWERS[question.kind]
            assert question.answer == question.answer.lower()
            if question.rival is not None:
                assert {question.answer, question.rival} == names
        assert questions(film) == questions(make_film(film.seed, film.split))
        texts = [question.text for question in questions(film)]
        assert len(set(texts)) == len(texts)


def test_multiple_choice_has_one_right_option_anywhere(train_films: list[Film]) -> None:
    letters = Counter[str]()
    for film in train_films[:400]:
        for number, question in enumerate(questions(film)):
            choice = multiple_choice(question, film.seed * 50 + number)
            assert choice == multiple_choice(question, film.seed * 50 + number)
            text, *lines = choice.text.split("\n")
            options = dict(line.split(". ", 1) for line in lines)
            assert text == question.text
            assert list(options) == list("ABCDE")
            assert len(set(options.values())) == 5
            assert options[choice.answer] == question.answer
            letters[choice.answer] += 1
            if question.rival is not None:
                assert question.rival in options.values()
                # No two options share a word, so no word is a hint.
                assert len({word for option in options.values() for word in option.split()}) == 10
    assert all(0.17 < count / sum(letters.values()) < 0.23 for count in letters.values())


@pytest.fixture(scope="module")
def held_out() -> list[tuple[Film, Question]]:
    return test_questions()


def test_held_out_set_is_what_it_says(held_out: list[tuple[Film, Question]]) -> None:
    assert len(held_out) == 2000
    films = Counter(film.seed for film, _ in held_out)
    assert sorted(films) == list(range(500))
    assert set(films.values()) == {4}
    assert all(film.split == "test" for film, _ in held_out)
    assert sum(film.unseen for film, _ in held_out) == 500
    kinds = Counter(question.kind for _, question in held_out)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 80
    assert sum(kinds[kind] for kind in TIME_KINDS) > 1000
    assert len({question.answer for _, question in held_out}) >= 60
    assert len({(film.seed, question.text) for film, question in held_out}) == 2000
    assert all(question in questions(film) for film, question in held_out[::50])


def test_held_out_set_is_stable(held_out: list[tuple[Film, Question]]) -> None:
    assert test_questions(101) == held_out[:101]
    assert test_questions(0) == []
