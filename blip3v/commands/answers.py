"""How answers are printed: as text, as one JSON object, or as lines of JSON; and what is said about them on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click

from blip3v.commands.failure import print_json, with_error
from blip3v.commands.options import OutputForm
from blip3v.commands.output import talk
from blip3v.errors import Blip3vError
from blip3v.runtime import Answer, AnswerStream, Delta, Timings, VideoTokens
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.units import format_bytes, format_count, format_duration, format_frame
from blip3v.video.decoder_process import DecoderProcess

__all__ = ["Printer", "answers_kept", "choose_printer", "print_answer", "report"]

# Stages of an answer's timings, and what people call them; a step's time is given per token instead.
_STAGES = {
    "file_decode_s": "file",
    "preprocess_s": "preprocess",
    "encode_s": "video encoder",
    "prefill_s": "prefill",
    "steps_s": "",
}
# Control characters but tab and newline, each to the replacement character.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}, "\ufffd")


class Printer(Protocol):
    """Prints questions and answers to stdout as they come."""

    def begin(self, question: str) -> None:
        """Before an answer."""
        ...

    def piece(self, delta: Delta) -> None:
        """A piece of it."""
        ...

    def answer(self, question: str, answer: Answer) -> None:
        """The complete answer."""
        ...

    def stop(self) -> None:
        """In place of ``answer``: the answer was ended before it was complete."""
        ...

    def end(self) -> None:
        """After the last answer."""
        ...

    def fail(self, error: Blip3vError | KeyboardInterrupt) -> None:
        """In place of ``end``: an error ends the command, after any number of answers."""
        ...


class TextPrinter:
    """Text for people.

    Args:
        stream: print the pieces as they come.
        several: print each question above its answer, and an empty line between two of them; else the only answer, if
            it is not streamed, comes last of all.
    """

    def __init__(self, *, stream: bool, several: bool) -> None:
        self._stream = stream
        self._several = several
        self._num_begun = 0
        self._in_line = False
        self._last: str | None = None

    def begin(self, question: str) -> None:
        """Prints the question."""
        if self._several:
            click.echo(f"\n{question}" if self._num_begun else question)
        self._num_begun += 1

    def piece(self, delta: Delta) -> None:
        """Prints the piece."""
        if self._stream and delta.text:
            click.echo(_harmless(delta.text), nl=False)
            self._in_line = True

    def answer(self, question: str, answer: Answer) -> None:
        """Prints the answer, or ends the line of its pieces."""
        if self._stream or self._several:
            click.echo("" if self._stream else _harmless(answer.text))
        else:
            self._last = answer.text
        self._in_line = False

    def stop(self) -> None:
        """Ends a line that has begun."""
        if self._in_line:
            click.echo()
        self._in_line = False

    def end(self) -> None:
        """Prints the only answer."""
        if self._last is not None:
            click.echo(_harmless(self._last))

    def fail(self, error: Blip3vError | KeyboardInterrupt) -> None:
        """Prints nothing: the answers stand there already."""


class JsonPrinter:
    """One object at the end: the only answer, or {"answers": [...]} with one for each question.

    Args:
        model: the bundle.
        several: whether there may be more than one answer.
    """

    def __init__(self, model: Path, *, several: bool) -> None:
        self._model = model
        self._several = several
        self._answers: list[dict[str, Any]] = []

    def begin(self, question: str) -> None:
        """Waits for the answer."""

    def piece(self, delta: Delta) -> None:
        """Waits for the answer."""

    def answer(self, question: str, answer: Answer) -> None:
        """Keeps it."""
        self._answers.append(_as_dict(self._model, question, answer))

    def stop(self) -> None:
        """Prints nothing."""

    def end(self) -> None:
        """Prints the object."""
        print_json(_json({"answers": self._answers} if self._several else self._answers[0]))

    def fail(self, error: Blip3vError | KeyboardInterrupt) -> None:
        """Prints the answers that there are, with the error among them; without any, an error is printed as always."""
        if self._answers:
            print_json(_json(with_error({"answers": self._answers}, error)))


class JsonLinesPrinter:
    """One object a line, as soon as it is known; its "type" is "delta" or "answer".

    Args:
        model: the bundle.
    """

    def __init__(self, model: Path) -> None:
        self._model = model

    def begin(self, question: str) -> None:
        """Prints nothing; the answer names its question."""

    def piece(self, delta: Delta) -> None:
        """Prints a "delta", unless it carries neither text nor a token, as the one of a stop token does."""
        if not delta.text and delta.token_id is None:
            return
        click.echo(_json({"type": "delta", **dataclasses.asdict(delta)}))

    def answer(self, question: str, answer: Answer) -> None:
        """Prints an "answer"."""
        click.echo(_json({"type": "answer", **_as_dict(self._model, question, answer)}))

    def stop(self) -> None:
        """Prints nothing."""

    def end(self) -> None:
        """Prints nothing."""

    def fail(self, error: Blip3vError | KeyboardInterrupt) -> None:
        """Prints nothing: the error becomes the last line."""


def choose_printer(form: OutputForm, model: Path, *, stream: bool, several: bool) -> Printer:
    """The printer for a form of output."""
    if form == "json":
        return JsonPrinter(model, several=several)
    if form == "jsonl":
        return JsonLinesPrinter(model)
    return TextPrinter(stream=stream, several=several)


@contextmanager
def answers_kept(printer: Printer) -> Iterator[None]:
    """Has an error that ends the block print the answers that were given before it."""
    try:
        yield
    except (Blip3vError, KeyboardInterrupt) as error:
        printer.fail(error)
        raise


def print_answer(
    printer: Printer, question: str, pieces: AnswerStream, *, encoded: VideoTokens | None = None
) -> Answer:
    """Reads a stream to its end and prints it, as pieces and as a whole.

    Args:
        printer: where to.
        question: the question.
        pieces: its answer.
        encoded: what the answer's video was encoded to for this answer, whose timings then count to it.
    """
    try:
        with pieces:
            for piece in pieces:
                printer.piece(piece)
    except BaseException:
        printer.stop()
        raise
    answer = pieces.answer
    if encoded is not None:
        stages = {name: getattr(encoded, name) for name in ("file_decode_s", "preprocess_s", "encode_s")}
        answer = dataclasses.replace(answer, timings=dataclasses.replace(answer.timings, **stages))
    printer.answer(question, answer)
    return answer


def report(answers: Sequence[Answer], model: Path) -> None:
    """Says on stderr what made the answers (at least one): bundle, frames, tokens, times and memory, all together."""
    talk(f"model: {model} ({answers[0].backend})")
    _report_frames(answers[0])
    talk(f"tokens: {_tokens(answers)}")
    num_drafted = sum(answer.timings.num_draft_tokens for answer in answers)
    if num_drafted:
        num_accepted = sum(answer.timings.num_accepted_tokens for answer in answers)
        talk(f"speculation: {format_count(num_drafted, 'token')} guessed, {num_accepted} of them right")
    talk(f"time: {_times([answer.timings for answer in answers])}")
    own, decoder = _peaks()
    if own is not None:
        of_decoder = "" if decoder is None else f", and {format_bytes(decoder)} in the process that decodes the video"
        talk(f"memory: {format_bytes(own)} at the peak{of_decoder}")


def _report_frames(answer: Answer) -> None:
    frames, different = answer.frames, answer.num_different_frames
    # Of several pictures the first alone is never chosen.
    if len(frames) > 1 and set(frames) == {(0, None)}:
        talk(f"frames: one picture, shown {len(frames)} times")
        return
    talk("frames: " + ", ".join(format_frame(index, time_s) for index, time_s in frames))
    if different < len(frames):
        talk(
            f"different frames: {different} of {len(frames)}, because the clip is short; "
            "a longer one shows the model more (docs/frames.md)"
        )


def _tokens(answers: Sequence[Answer]) -> str:
    num_new = sum(answer.usage.num_new_tokens for answer in answers)
    if len(answers) > 1:
        return f"{num_new} new in {len(answers)} answers; the video has {answers[0].usage.num_video_tokens}"
    usage = answers[0].usage
    return (
        f"{usage.num_prompt_tokens} in the prompt ({usage.num_video_tokens} of them video), "
        f"{num_new} new, ended by {answers[0].finish_reason}"
    )


def _times(timings: Sequence[Timings]) -> str:
    seconds = {name: sum(getattr(each, name) for each in timings) for name in _STAGES}
    num_tokens = sum(each.num_steps + each.num_accepted_tokens for each in timings)
    per_token_s = seconds["steps_s"] / num_tokens if num_tokens else 0.0
    stages = ", ".join(f"{label} {format_duration(seconds[name])}" for name, label in _STAGES.items() if label)
    return f"{stages}, {format_duration(per_token_s)} per token"


def _as_dict(model: Path, question: str, answer: Answer) -> dict[str, Any]:
    """An answer for JSON: with its question, frames as objects, the time per token and the peak memory."""
    values = {"model": str(model), "question": question, **dataclasses.asdict(answer)}
    values["frames"] = [{"index": index, "time_s": time_s} for index, time_s in answer.frames]
    values["num_different_frames"] = answer.num_different_frames
    values["timings"]["per_token_s"] = answer.timings.per_token_s
    values["peak_rss_bytes"], values["video_decoder_peak_rss_bytes"] = _peaks()
    return values


def _peaks() -> tuple[int | None, int | None]:
    """Peak memory of this process and of the one that decodes the video, in bytes; None if it is not known."""
    return peak_rss_bytes(), DecoderProcess.peak_rss_bytes()


def _harmless(text: str) -> str:
    """The text of a model without the control characters with which it could control a terminal; files get them."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)
