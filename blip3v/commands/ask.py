"""``blip3v ask``: answers on stdout, frames and timings on stderr."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from blip3v.commands.answers import Printer, answers_kept, choose_printer, print_answer, report
from blip3v.commands.ctrl_c import interrupted_by_ctrl_c
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
from blip3v.commands.output import quiet_option, talk_of_downloads
from blip3v.commands.program import command_line
from blip3v.commands.questions import Question, from_stdin, questions_of
from blip3v.errors import UsageError
from blip3v.runtime import Answer, GenerationOptions, VideoLimits, VideoLM, VideoTokens

__all__ = ["command"]


class _Ask(click.Command):
    """Shows the right line where a question was typed before the video."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed = list(args)
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            _check_order(ctx.params["video"], ctx.params["questions"], typed)
        return rest


@click.command("ask", cls=_Ask, short_help="Answer questions about a video.")
@click.argument("video", type=click.Path())
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@model_option
@download_option
@click.option("--stream", is_flag=True, help="Print the answer as it is generated.")
@output_options
@clip_options
@url_options
@system_option
@generation_options
@engine_options
@quiet_option
def command(
    video: str,
    questions: tuple[str, ...],
    model: Path | None,
    stream: bool,
    form: OutputForm,
    clip: dict[str, Any],
    limits: VideoLimits,
    system: str | None,
    options: GenerationOptions,
    engine: dict[str, Any],
) -> None:
    """Answer each QUESTION about VIDEO: a video or image file, a folder of images, or a URL with --allow-url.

    The answer goes to stdout; the frames that the model saw and the timings go to stderr.

    The video is encoded once for several questions, and each is answered on its own: `blip3v chat` is a conversation.
    A single - as QUESTION takes them from stdin, one per line. With several questions, or with -, each answer stands
    under its question, and --json prints {"answers": [...]}. With --jsonl a line is a "delta" or an "answer", as its
    "type" says. With one question typed, --timeout is the limit of the video and the answer together.

    \b
    Examples:
      blip3v ask examples/turn.mp4 "Which way does the red circle turn?"
      blip3v ask film.mp4 "What happens first?" "What happens last?" --system "Answer in one word."
      blip3v ask film.mp4 - --jsonl
      blip3v ask film.mp4 "What happens last?" -m my-bundle --start 10 --end 20 --json
      blip3v ask film.mp4 "What happens last?" --backend video_encoder=openvino,decoder=onnxruntime
    """
    if stream and form != "text":
        raise UsageError(f"--stream has no effect with --{form}; leave one out")
    check_form(form, options)
    check_video(video, clip, limits)
    asked = questions_of(questions)
    folder = chosen_bundle(model)
    check_questions(folder, asked, options, system)
    printer = choose_printer(form, folder, stream=stream, several=len(asked) > 1 or from_stdin(questions))
    with (
        open_lm(folder, engine, limits, decoder_ahead=not os.path.isdir(video)) as lm,
        answers_kept(printer),
        interrupted_by_ctrl_c() as cancel,
        talk_of_downloads(),
    ):
        answers = _answer(lm, video, clip, asked, printer, options=options, system=system, cancel=cancel)
    report(answers, folder)
    printer.end()


def _answer(
    lm: VideoLM, video: str, clip: Mapping[str, Any], questions: Sequence[Question], printer: Printer, **how: Any
) -> list[Answer]:
    """Answers the questions one after another; ``how`` goes to ``VideoLM.stream``. Several share one encoding."""
    encoded: VideoTokens | None = None
    if len(questions) > 1:
        encoded = lm.encode(video, **clip, timeout_s=how["options"].timeout_s, cancel=how["cancel"])
        clip = {}
    answers: list[Answer] = []
    for question in questions:
        printer.begin(question.text)
        with question.named():
            pieces = lm.stream(video if encoded is None else encoded, question.text, **clip, **how)
            answers.append(print_answer(printer, question.text, pieces, encoded=None if answers else encoded))
    return answers


def _check_order(video: str, questions: Sequence[str], typed: list[str]) -> None:
    """Refuses a question before the video, where nothing else can be meant.

    Raises:
        UsageError: shows the line with the two exchanged.
    """
    found = next((text for text in questions if os.path.exists(text)), None)
    if found is None or os.path.exists(video):
        return
    first, later = typed.index(video), len(typed) - 1 - typed[::-1].index(found)
    typed[first], typed[later] = found, video
    raise UsageError(
        f"{video!r} is not a file or folder, and {found!r} is one: the video comes first; "
        f"run: {command_line('ask', *typed)}"
    )
