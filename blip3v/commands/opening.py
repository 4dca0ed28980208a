"""What comes before an answer: the checks that cost nothing, then the bundle."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3v.bundle import open_bundle
from blip3v.commands.local_models import local_model
from blip3v.commands.options import OutputForm
from blip3v.commands.output import talk
from blip3v.commands.questions import Question
from blip3v.errors import UsageError
from blip3v.runtime import GenerationOptions, OpenEstimate, VideoLM
from blip3v.runtime.request import checked_prompt
from blip3v.video import VideoLimits
from blip3v.video.source import check_path
from blip3v.video_decoder.ranges import check_fps, check_range

__all__ = ["check_form", "check_questions", "check_video", "chosen_bundle", "default_bundle", "open_lm"]

_EXPORT = "blip3v export --encoder tokenlearner"


def check_form(form: OutputForm, options: GenerationOptions) -> None:
    """Checks that what was asked for can be printed.

    Raises:
        UsageError: log-probabilities, which text has no place for.
    """
    if options.logprobs is not None and form == "text":
        raise UsageError("--logprobs has no effect without --json or --jsonl; add one")


def check_video(video: str, clip: Mapping[str, Any], limits: VideoLimits) -> None:
    """Checks all about a video that does not need it fetched or decoded.

    Args:
        video: a path or a URL.
        clip: arguments of ``VideoLM.encode``.
        limits: what a video may cost.

    Raises:
        UsageError: a range that no video can have.
        VideoError: no such file or folder, one that cannot be read, or a folder without images.
    """
    check_range(clip["start"], clip["end"])
    check_fps(clip["fps"])
    check_path(video, limits)


def check_questions(model: Path, questions: Sequence[Question], options: GenerationOptions, system: str | None) -> None:
    """Checks questions with a bundle's tokenizer, template and context, without opening its graphs.

    Raises:
        ArtifactError: not a bundle.
        RequestError: a question or system text that cannot be asked, or that is too long.
    """
    bundle = open_bundle(model)
    for question in questions:
        with question.named():
            checked_prompt(bundle, question.text, options, system)


def open_lm(model: Path, engine: Mapping[str, Any], limits: VideoLimits, *, decoder_ahead: bool = False) -> VideoLM:
    """Opens a bundle, and says first what that takes if it is much; arguments and errors of ``VideoLM.open``."""

    def announce(needed: OpenEstimate) -> None:
        if needed.is_large:
            talk(f"opening {model}: {needed}")

    return VideoLM.open(model, **engine, limits=limits, on_estimate=announce, decoder_ahead=decoder_ahead)


def chosen_bundle(model: Path | None) -> Path:
    """The bundle that --model names, by path or hub id; without it the only one in the current folder."""
    return default_bundle(Path.cwd()) if model is None else local_model(model)


def default_bundle(folder: Path) -> Path:
    """The one bundle in ``folder``: a folder named ``blip3v-*`` with a manifest.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = _bundles(folder, "blip3v-*")
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(map(str, found))
        raise UsageError(f"there are {len(found)} bundles in {folder}: {names}; name one: -m {found[0]}")
    deeper = _bundles(folder, "*/blip3v-*")  # such as those of `blip3v demo`
    name_one = f"name one: -m {shlex.quote(str(deeper[-1]))}" if deeper else "name one with -m"
    raise UsageError(f"there is no bundle (blip3v-*) in {folder}; make one with `{_EXPORT}`, or {name_one}")


def _bundles(folder: Path, pattern: str) -> list[Path]:
    """Paths of bundles, relative to ``folder``."""
    found = (path for path in folder.glob(pattern) if (path / "manifest.json").is_file())
    return sorted(path.relative_to(folder) for path in found)
