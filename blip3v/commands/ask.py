"""``blip3v ask``: the answer on stdout, frames and timings on stderr."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from blip3v.commands.options import backend_option, video_options
from blip3v.commands.output import talk, talk_log
from blip3v.errors import UsageError
from blip3v.runtime import Answer, GenerationOptions, OpenEstimate, VideoLimits, VideoLM
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.units import format_bytes, format_duration, format_frame

__all__ = ["command"]

_EXPORT = "blip3v export --encoder tokenlearner --precision fp16"


@click.command("ask", short_help="Answer a question about a video.")
@click.argument("video", type=click.Path())
@click.argument("question")
@click.option(
    "-m", "--model", type=click.Path(path_type=Path), help="Bundle.  [default: the only one in the current folder]"
)
@click.option("--stream", is_flag=True, help="Print the answer as it is generated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens, frames and timings.")
@click.option("--start", type=float, help="Start of the clip in the video, in seconds.")
@click.option("--end", type=float, help="End of the clip in the video, in seconds.")
@video_options
@click.option("--max-new-tokens", type=int, help="Maximum tokens of the answer.  [default: the bundle's own limit]")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 picks the most likely token.")
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Sample from the most likely tokens that add up to this.",
)
@click.option(
    "--top-k", type=int, default=0, show_default=True, help="Sample from the K most likely tokens; 0: from all."
)
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--stop", multiple=True, help="End the answer before this text; can be given several times.")
@click.option("--seed", type=int, default=0, show_default=True, help="Sampling seed; needs a temperature above 0.")
@click.option("--logprobs", type=int, help="With --json: log-probabilities, with this many alternatives per token.")
@click.option("--timeout", "timeout_s", type=float, help="Time limit for the answer, in seconds.")
@backend_option
@click.option("--device", default="auto", show_default=True, help="auto (the CPU) or cpu.")
@click.option("--threads", type=int, help="Threads per operator.  [default: one per physical core]")
@click.option("--max-context", type=int, help="Maximum tokens of prompt and answer.  [default: the model's own]")
@click.option("--allow-random", is_flag=True, help="Run even a bundle with random weights; its answers mean nothing.")
def command(
    video: str,
    question: str,
    model: Path | None,
    stream: bool,
    as_json: bool,
    start: float | None,
    end: float | None,
    fps: float | None,
    allow_url: bool,
    allow_private_url: bool,
    backend: str,
    device: str,
    threads: int | None,
    max_context: int | None,
    allow_random: bool,
    **generation: Any,
) -> None:
    """Answer QUESTION about VIDEO: a video or image file, a folder of images, or a URL with --allow-url.

    The answer goes to stdout; the frames that the model saw and the timings go to stderr.

    \b
    Examples:
      blip3v ask examples/turn.mp4 "Which way does the red circle turn?"
      blip3v ask film.mp4 "What happens last?" -m my-bundle --start 10 --end 20 --json
      blip3v ask film.mp4 "What happens last?" --backend video_encoder=openvino,decoder=onnxruntime
    """
    if stream and as_json:
        raise UsageError("--stream and --json exclude each other: --json prints one object at the end")
    if generation["logprobs"] is not None and not as_json:
        raise UsageError("--logprobs has no effect without --json")
    options = GenerationOptions(**generation)
    limits = VideoLimits(allow_url=allow_url, allow_private_url=allow_private_url)
    folder = default_bundle(Path.cwd()) if model is None else model

    def announce(needed: OpenEstimate) -> None:
        if needed.is_large:
            click.echo(f"opening {folder}: {needed}", err=True)

    opened = VideoLM.open(
        folder,
        backend=backend,
        device=device,
        threads=threads,
        max_context=max_context,
        limits=limits,
        allow_random=allow_random,
        on_estimate=announce,
    )
    with opened as lm:
        with (
            talk_log("blip3v.video.download"),
            lm.stream(video, question, options=options, start=start, end=end, fps=fps) as pieces,
        ):
            for piece in pieces:
                if stream:
                    click.echo(piece.text, nl=False)
        answer = pieces.answer
    _report(answer, folder)
    if as_json:
        click.echo(json.dumps({"model": str(folder), **_as_dict(answer)}, ensure_ascii=False))
    else:
        click.echo("" if stream else answer.text)


def default_bundle(folder: Path) -> Path:
    """The one bundle in ``folder``: a folder named ``blip3v-*`` with a manifest.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = sorted(path for path in folder.glob("blip3v-*") if (path / "manifest.json").is_file())
    if not found:
        raise UsageError(f"there is no bundle (blip3v-*) in {folder}; make one with `{_EXPORT}`, or name one with -m")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"there are {len(found)} bundles in {folder}: {names}; name one with -m")
    return found[0].relative_to(folder)


def _report(answer: Answer, folder: Path) -> None:
    frames = ", ".join(format_frame(index, time_s) for index, time_s in answer.frames)
    timings, usage = answer.timings, answer.usage
    click.echo(f"model: {folder} ({answer.backend})", err=True)
    click.echo(f"frames: {frames}", err=True)
    different = answer.num_different_frames
    if different < len(answer.frames):
        talk(
            f"different frames: {different} of {len(answer.frames)}, because the clip is short; "
            "a longer one shows the model more (docs/frames.md)"
        )
    click.echo(
        f"tokens: {usage.num_prompt_tokens} in the prompt ({usage.num_video_tokens} of them video), "
        f"{usage.num_new_tokens} new, ended by {answer.finish_reason}",
        err=True,
    )
    click.echo(
        f"time: file {format_duration(timings.file_decode_s)}, preprocess {format_duration(timings.preprocess_s)}, "
        f"video encoder {format_duration(timings.encode_s)}, prefill {format_duration(timings.prefill_s)}, "
        f"{format_duration(timings.per_token_s)} per token",
        err=True,
    )
    peak = peak_rss_bytes()
    if peak is not None:
        click.echo(f"memory: {format_bytes(peak)} at the peak", err=True)


def _as_dict(answer: Answer) -> dict[str, Any]:
    """The answer for JSON: frames become objects, the time per token and the peak memory are added."""
    values = dataclasses.asdict(answer)
    values["frames"] = [{"index": index, "time_s": time_s} for index, time_s in answer.frames]
    values["num_different_frames"] = answer.num_different_frames
    values["timings"]["per_token_s"] = answer.timings.per_token_s
    values["peak_rss_bytes"] = peak_rss_bytes()
    return values
