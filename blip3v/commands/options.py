"""Options that several verbs share.

The decorators that end in ``_options`` add a group of options and give it to the command as one argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import click

from blip3v.bundle.precision import PRECISIONS
from blip3v.commands.completed_values import completes
from blip3v.commands.local_models import MODEL_PATH
from blip3v.errors import UsageError
from blip3v.runtime import GenerationOptions
from blip3v.runtime.backends import AUTO, backend_names
from blip3v.video import VideoLimits

__all__ = [
    "BACKEND_HELP",
    "PRECISION_HELP",
    "OutputForm",
    "backend_option",
    "clip_options",
    "engine_options",
    "gathered",
    "generation_options",
    "model_option",
    "output_options",
    "system_option",
    "url_options",
]

OutputForm = Literal["text", "json", "jsonl"]
_Command = Callable[..., Any]

BACKEND_HELP = (
    f"{', '.join((AUTO, *backend_names()))}, NAME:DEVICE as in openvino:gpu, or one for each graph: "
    "video_encoder=NAME,decoder=NAME; NAME+NAME for a decoder is one for prompts and one for steps"
)

PRECISION_HELP = (
    f"{' or '.join(PRECISIONS)}, or one for each graph, as in video_encoder=fp32,decoder=fp16. fp16 is half the size "
    "and what GPUs and NPUs compute in; fp32 is for debugging, and opens at once on a CPU, which has to widen fp16."
)

backend_option = click.option(
    "--backend",
    default=AUTO,
    show_default=True,
    shell_complete=completes((AUTO, *backend_names())),
    help=f"Inference engine: {BACKEND_HELP}.",
)

model_option = click.option(
    "-m",
    "--model",
    type=MODEL_PATH,
    help="Bundle, or its hub id.  [default: the only blip3v-* bundle in the current folder]",
)

system_option = click.option(
    "--system", metavar="TEXT", help='System text before the first question; "" leaves it out.  [default: the model\'s]'
)

# Parameter -> option, for each group.
_OUTPUT = {
    "as_json": click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object with text, tokens, frames and timings."
    ),
    "as_jsonl": click.option(
        "--jsonl",
        "as_jsonl",
        is_flag=True,
        help="Print a JSON object on a line for each piece of text and each answer.",
    ),
}

_CLIP = {
    "start": click.option("--start", type=float, help="Start of the clip in the video, in seconds."),
    "end": click.option("--end", type=float, help="End of the clip in the video, in seconds."),
    "fps": click.option("--fps", type=float, help="Frame rate of an image or a folder of images, which have no times."),
}

_URL = {
    "allow_url": click.option("--allow-url", is_flag=True, help="Download VIDEO if it is an http or https URL."),
    "allow_private_url": click.option(
        "--allow-private-url", is_flag=True, help="With --allow-url: from this machine and local networks too."
    ),
}

_GENERATION = {
    "max_new_tokens": click.option(
        "--max-new-tokens", type=int, help="Maximum tokens of the answer.  [default: the bundle's own limit]"
    ),
    "temperature": click.option(
        "--temperature", type=float, default=0.0, show_default=True, help="0 picks the most likely token."
    ),
    "top_p": click.option(
        "--top-p",
        type=float,
        default=1.0,
        show_default=True,
        help="Sample from the most likely tokens that add up to this.",
    ),
    "top_k": click.option(
        "--top-k", type=int, default=0, show_default=True, help="Sample from the K most likely tokens; 0: from all."
    ),
    "repetition_penalty": click.option(
        "--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less."
    ),
    "stop": click.option("--stop", multiple=True, help="End the answer before this text; can be given several times."),
    "seed": click.option(
        "--seed", type=int, default=0, show_default=True, help="Sampling seed; needs a temperature above 0."
    ),
    "logprobs": click.option(
        "--logprobs", type=int, help="With --json or --jsonl: log-probabilities, with this many alternatives per token."
    ),
    "num_speculative_tokens": click.option(
        "--num-speculative-tokens",
        type=int,
        default=0,
        show_default=True,
        help="Guess up to this many tokens ahead and verify them together: the same answer, often sooner; 0: none.",
    ),
    "timeout_s": click.option(
        "--timeout",
        "timeout_s",
        type=float,
        help="Time limit in seconds, for encoding the video and for each answer.",
    ),
}

_ENGINE = {
    "backend": backend_option,
    "device": click.option(
        "--device",
        default="auto",
        show_default=True,
        shell_complete=completes((AUTO, "cpu", "cuda", "gpu", "npu")),
        help="Device of both graphs: cpu, cuda (an NVIDIA GPU), gpu or npu (Intel's, with OpenVINO), or auto: the CPU, "
        "or an NVIDIA GPU if there is one and an engine for it is installed.",
    ),
    "threads": click.option("--threads", type=int, help="Threads per operator.  [default: one per physical core]"),
    "max_context": click.option(
        "--max-context", type=int, help="Maximum tokens of prompt and answer.  [default: the model's own]"
    ),
    "allow_random": click.option(
        "--allow-random", is_flag=True, help="Run even a bundle with random weights; its answers mean nothing."
    ),
}


def output_options(command: _Command) -> _Command:
    """In what form the answers are printed: ``form``, an ``OutputForm``."""
    return gathered(command, "form", _OUTPUT, _form)


def clip_options(command: _Command) -> _Command:
    """Which part of the video: ``clip``, arguments of ``VideoLM.encode``."""
    return gathered(command, "clip", _CLIP, dict)


def url_options(command: _Command) -> _Command:
    """Whether a video may be downloaded: ``limits``, a ``VideoLimits``."""
    return gathered(command, "limits", _URL, VideoLimits)


def generation_options(command: _Command) -> _Command:
    """How to answer: ``options``, a ``GenerationOptions``."""
    return gathered(command, "options", _GENERATION, GenerationOptions)


def engine_options(command: _Command) -> _Command:
    """What computes it: ``engine``, arguments of ``VideoLM.open``."""
    return gathered(command, "engine", _ENGINE, dict)


def _form(*, as_json: bool, as_jsonl: bool) -> OutputForm:
    if as_json and as_jsonl:
        raise UsageError("--json and --jsonl exclude each other: one object at the end, or one on each line")
    return "json" if as_json else "jsonl" if as_jsonl else "text"


def gathered(
    command: _Command, argument: str, group: Mapping[str, Callable[[_Command], _Command]], kind: Callable[..., Any]
) -> _Command:
    """Adds a group of options to a command, which gets them as one argument that ``kind`` makes of their values."""

    @functools.wraps(command)
    def with_group(**values: Any) -> Any:
        return command(**{argument: kind(**{name: values.pop(name) for name in group})}, **values)

    for option in reversed([*group.values()]):
        option(with_group)
    return with_group
