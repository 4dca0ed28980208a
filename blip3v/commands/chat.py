"""``blip3v chat``: a conversation about a video, on a terminal or from a pipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from blip3v.commands.answers import Printer, answers_kept, choose_printer, print_answer, report
from blip3v.commands.ctrl_c import cancelled_by_ctrl_c, interrupted_by_ctrl_c
from blip3v.commands.failure import as_typed
from blip3v.commands.local_models import download_option
from blip3v.commands.opening import check_form, check_questions, check_video, chosen_bundle, open_lm
from blip3v.commands.options import (
    OutputForm,
    clip_options,
    engine_options,
    generation_options,
    model_option,
    output_options,
    system_option,
    url_options,
)
from blip3v.commands.output import quiet_option, talk, talk_of_downloads
from blip3v.commands.program import command_line
from blip3v.commands.questions import Question, stdin_questions
from blip3v.errors import Blip3vError, CancelledError, RequestError, UsageError
from blip3v.runtime import Answer, CancelToken, Chat, GenerationOptions, VideoLimits, VideoLM, VideoTokens

__all__ = ["command"]

_PROMPT = "> "
_COMMANDS = {
    "/help": "show these lines",
    "/reset": "forget the conversation, keep the video",
    "/exit": "end the conversation, as Ctrl-D does",
}


class _Chat(click.Command):
    """Shows the line of ``ask`` where a question was typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed = list(args)
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            raise UsageError(
                "chat takes no question on the command line; type it at the prompt, pipe it in, or run: "
                + command_line("ask", *typed)
            )
        return rest


@click.command("chat", cls=_Chat, context_settings={"allow_extra_args": True}, short_help="Talk about a video.")
@click.argument("video", type=click.Path())
@model_option
@download_option
@output_options
@clip_options
@url_options
@system_option
@generation_options
@engine_options
@quiet_option
def command(
    video: str,
    model: Path | None,
    form: OutputForm,
    clip: dict[str, Any],
    limits: VideoLimits,
    system: str | None,
    options: GenerationOptions,
    engine: dict[str, Any],
) -> None:
    """Talk about VIDEO: a video or image file, a folder of images, or a URL with --allow-url.

    A question knows the earlier questions and answers. Questions come from the terminal, or from a pipe, one per line;
    empty lines are skipped. /help lists the commands, /reset forgets the conversation, /exit or Ctrl-D ends it, and
    Ctrl-C ends an answer and takes its question back. With --json the object is {"answers": [...]}. With --jsonl a line
    is a "delta" or an "answer", as its "type" says.

    \b
    Examples:
      blip3v chat examples/turn.mp4
      blip3v chat film.mp4 --system "Answer in one word." --start 10 --end 20
    """
    check_form(form, options)
    check_video(video, clip, limits)
    folder = chosen_bundle(model)
    check_questions(folder, [Question("?")], options, system)
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    printer = choose_printer(form, folder, stream=True, several=not (on_terminal and sys.stdout.isatty()))
    with open_lm(folder, engine, limits) as lm:
        with interrupted_by_ctrl_c() as cancel, talk_of_downloads():
            encoded = lm.encode(video, **clip, timeout_s=options.timeout_s, cancel=cancel)
        if on_terminal:
            talk("Ask about the video. /help lists the commands, Ctrl-D ends.")
        conversation = _Conversation(lm, encoded, printer, options=options, system=system, on_terminal=on_terminal)
        with answers_kept(printer):
            conversation.run(_typed() if on_terminal else stdin_questions())
    if conversation.answers:
        report(conversation.answers, folder)
    printer.end()


class _Conversation:
    """Answers question by question. On a terminal an answer that fails or is cancelled does not end it."""

    def __init__(
        self,
        lm: VideoLM,
        encoded: VideoTokens,
        printer: Printer,
        *,
        options: GenerationOptions,
        system: str | None,
        on_terminal: bool,
    ) -> None:
        self._lm = lm
        self._encoded = encoded
        self._printer = printer
        self._options = options
        self._system = system
        self._on_terminal = on_terminal
        self.answers: list[Answer] = []

    def run(self, questions: Iterator[Question]) -> None:
        """Answers until ``/exit`` or the last question."""
        going = True
        while going:
            with self._lm.chat(self._encoded, system=self._system) as chat:
                going = self._until_reset(chat, questions)

    def _until_reset(self, chat: Chat, questions: Iterator[Question]) -> bool:
        """Returns whether another conversation is wanted."""
        for question in questions:
            if question.text in ("/reset", "/exit"):
                return question.text == "/reset"
            if re.fullmatch("/[a-z]+", question.text):
                self._help(question)
            elif self._on_terminal:
                self._try(chat, question)
            else:
                with interrupted_by_ctrl_c() as cancel, question.named():
                    self._turn(chat, question, cancel)
        return False

    def _try(self, chat: Chat, question: Question) -> None:
        with cancelled_by_ctrl_c() as cancel:
            try:
                self._turn(chat, question, cancel)
            except CancelledError:
                talk("cancelled; the conversation is as it was before this question")
            except Blip3vError as error:
                click.echo(f"error: {as_typed(error)}", err=True)

    def _turn(self, chat: Chat, question: Question, cancel: CancelToken) -> None:
        self._printer.begin(question.text)
        pieces = chat.stream(question.text, options=self._options, cancel=cancel)
        encoded = None if self.answers else self._encoded
        self.answers.append(print_answer(self._printer, question.text, pieces, encoded=encoded))

    def _help(self, question: Question) -> None:
        if question.text not in _COMMANDS:
            message = f"unknown command {question.text}; allowed: {', '.join(_COMMANDS)}"
            if not self._on_terminal:
                with question.named():
                    raise RequestError(message)
            click.echo(f"error: {message}", err=True)
            return
        for name, effect in _COMMANDS.items():
            click.echo(f"{name:8}{effect}", err=True)


def _typed() -> Iterator[Question]:
    """Questions typed at a prompt, until Ctrl-D."""
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401 gives ``input`` a history and keys to edit the line
    while True:
        try:
            text = _read_line().strip()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(err=True)
            talk("Ctrl-D or /exit ends the conversation.")
            continue
        if text:
            yield Question(text)


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    click.echo(_PROMPT, nl=False, err=True)  # ``input`` would print it among the answers
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
