"""The questions of a call: from its arguments, or one on each line of stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from blip3v.errors import RequestError, UsageError

__all__ = ["Question", "from_stdin", "questions_of", "stdin_questions"]

_STDIN = "-"
_MAX_QUESTIONS = 1000
_MAX_LINE_BYTES = 2**16


@dataclass(frozen=True)
class Question:
    """A question, and what errors call it."""

    text: str
    name: str = ""  # for example "line 3 of stdin"; empty: it is the only one

    @contextmanager
    def named(self) -> Iterator[None]:
        """Puts the name before the message of a ``RequestError`` that the block raises."""
        try:
            yield
        except RequestError as error:
            if self.name:
                error.message = f"{self.name}: {error.message}"
            raise


def from_stdin(arguments: Sequence[str]) -> bool:
    """Whether the questions come from stdin, as many as it holds."""
    return list(arguments) == [_STDIN]


def questions_of(arguments: Sequence[str]) -> list[Question]:
    """The questions that were typed; ``-`` stands for those on stdin, which is read to its end.

    Raises:
        UsageError: the words of a question without quotes around it, or no question on stdin.
        RequestError: an empty question, a line that cannot be read, or more than 1000 questions.
    """
    if from_stdin(arguments):
        questions = _all_of_stdin()
    elif _STDIN in arguments:
        raise UsageError("- takes all questions from stdin, one per line; give it alone, or leave it out")
    elif len(arguments) == 1:
        questions = [Question(arguments[0])]
    else:
        _check_quoted(arguments)
        questions = [Question(text, f"question {number}") for number, text in enumerate(arguments, 1)]
    for question in questions:
        if not question.text.strip():
            with question.named():
                raise RequestError("the question is empty; ask something about the video")
    return questions


def stdin_questions() -> Iterator[Question]:
    """The lines of stdin as they come, without empty ones.

    Raises:
        UsageError: stdin is closed, or ends without a question.
        RequestError: a line that is too long or not UTF-8.
    """
    if sys.stdin is None:
        raise UsageError("stdin is closed; open it, or give questions as arguments of `blip3v ask`")
    stdin = sys.stdin.buffer
    number = num_questions = 0
    while line := stdin.readline(_MAX_LINE_BYTES + 1):
        number += 1
        question = Question(_decoded(line, number), f"line {number} of stdin")
        if question.text:
            num_questions += 1
            yield question
    if not num_questions:
        raise UsageError("stdin has no question; write one per line, or give questions as arguments of `blip3v ask`")


def _all_of_stdin() -> list[Question]:
    questions: list[Question] = []
    for question in stdin_questions():
        if len(questions) == _MAX_QUESTIONS:
            raise RequestError(f"stdin has more than {_MAX_QUESTIONS} questions; ask them in several calls")
        questions.append(question)
    return questions


def _decoded(line: bytes, number: int) -> str:
    if len(line) > _MAX_LINE_BYTES:
        raise RequestError(f"line {number} of stdin is longer than {_MAX_LINE_BYTES} bytes; ask a shorter question")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise RequestError(f"line {number} of stdin is not UTF-8 ({error}); write the questions in UTF-8") from error


def _check_quoted(arguments: Sequence[str]) -> None:
    """Refuses `What happens?` without quotes, which would be asked as two questions."""
    words = [text for text in arguments if text.isascii() and len(text.split()) == 1]
    if len(words) == len(arguments) and not all(text.endswith("?") for text in words):
        raise UsageError(
            f"each of the {len(words)} questions is one word; put quotes around a question: "
            f'"{" ".join(words)}", or give one-word questions on stdin with -'
        )
