"""An answer while it is written."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType

from blip3v.errors import RequestError
from blip3v.runtime.types import Answer, Delta

__all__ = ["AnswerStream"]


class AnswerStream:
    """Yields the pieces of an answer; nothing is computed between two calls of ``next``.

    Closing it, or leaving its ``with`` block, ends the answer at once and gives its memory back.
    """

    def __init__(self, pieces: Generator[Delta, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> Delta:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._answer = end.value
            raise

    @property
    def answer(self) -> Answer:
        """The complete answer.

        Raises:
            RequestError: the stream was not read to its end.
        """
        if self._answer is None:
            raise RequestError("the answer is not complete; read the stream to its end first")
        return self._answer

    def read(self) -> Answer:
        """Reads what is left and gives the complete answer."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Ends the answer here. May be called more than once."""
        self._pieces.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
