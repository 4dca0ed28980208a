"""A command that failed: the sentence on stderr, the object on stdout with --json, the exit code."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

import click

from blip3v import extras
from blip3v.commands.program import program
from blip3v.errors import Blip3vError
from blip3v.publishing import in_words

__all__ = ["Failure", "as_typed", "error_text", "failure_of", "has_printed", "print_json", "wants_json", "with_error"]

# Library parameters whose options have other names.
_OPTIONS = {
    "folder": "--output",
    "num_clips": "--clips",
    "num_frames": "--frames",
    "num_video_tokens": "--tokens",
    "preset_name": "--preset",
    "prompts_per_clip": "--prompts",
    "timeout_s": "--timeout",
}
_JSON_OPTIONS = ("--json", "--jsonl")
_SYSTEM_ERROR = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130
_PRINTED = "printed"  # in the dict that is the context's object


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a command ended."""

    type: str  # name of the error's class; for a wrong command line always UsageError
    message: str
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a JSON object, under ``error``."""
        return {"type": self.type, "message": self.message, "exit_code": self.exit_code}


def failure_of(error: BaseException, *, verb: str = "") -> Failure | None:
    """What to tell about an error; None: it is a bug and keeps its traceback.

    Args:
        error: what ended the command.
        verb: the command, whose own extra is suggested first for a missing package.
    """
    kind = type(error).__name__
    if isinstance(error, Blip3vError):
        return Failure(type=kind, message=as_typed(error), exit_code=error.exit_code)
    if isinstance(error, click.ClickException):
        kind = "UsageError" if isinstance(error, click.UsageError) else kind
        return Failure(type=kind, message=error.format_message(), exit_code=error.exit_code)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Failure(type="Interrupted", message="interrupted", exit_code=_INTERRUPTED)
    if isinstance(error, OSError):
        is_unnamed = error.errno is not None and error.filename is None
        unnamed = "" if not is_unnamed else " (the system names no file; it may be where standard output goes)"
        return Failure(type=kind, message=in_words(error) + unnamed, exit_code=_SYSTEM_ERROR)
    extra = extras.extra_of(error.name or "", prefer=verb) if isinstance(error, ModuleNotFoundError) else None
    if extra is None:
        return None
    line = extras.pip_line(extra)
    message = f"the package {error.name!r} is not installed; run: {line}"  # type: ignore[attr-defined]
    return Failure(type=kind, message=message, exit_code=_USAGE_ERROR)


def as_typed(error: Blip3vError) -> str:
    """The error's message as the user would type what it advises: parameters as options, this program in commands."""
    remedy = re.sub(r"`(\w+)(?:=([^`]+))?`", _option, error.remedy)
    message = f"{error.message}; {remedy}" if remedy else error.message
    return message.replace("`blip3v ", f"`{shlex.join(program())} ")


def wants_json(args: list[str]) -> bool:
    """Whether the arguments ask for JSON, even if they are otherwise wrong."""
    options = args[: args.index("--")] if "--" in args else args
    return any(option in options for option in _JSON_OPTIONS)


def print_json(text: str) -> None:
    """Prints the one JSON document of a command that may still fail, so that no second one follows it."""
    click.echo(text, nl=not text.endswith("\n"))
    state = click.get_current_context().find_object(dict)
    if state is not None:
        state[_PRINTED] = True


def with_error(values: dict[str, Any], error: Blip3vError | KeyboardInterrupt) -> dict[str, Any]:
    """The JSON values of a command whose result is also a failure: ``error`` is added, in the form of every command."""
    failure = failure_of(error)
    assert failure is not None, "an error of ours has something to tell"
    return {**values, "error": failure.to_dict()}


def has_printed(state: dict[str, Any]) -> bool:
    """Whether ``print_json`` ran in a context with the object ``state``."""
    return bool(state.get(_PRINTED))


def error_text(failure: Failure, args: list[str]) -> str:
    """The JSON object of a command that failed before it printed another, or the last of its JSON lines."""
    kind = {"type": "error"} if "--jsonl" in args else {}
    return json.dumps({**kind, "error": failure.to_dict()}, ensure_ascii=False)


def _option(parameter: re.Match[str]) -> str:
    """`force=True` becomes --force, `init='random'` becomes --init random."""
    name, value = parameter.groups()
    if (name, value) == ("check", "False"):
        return "--no-check"
    option = _OPTIONS.get(name) or f"--{name.replace('_', '-')}"
    return option if value in (None, "True") else f"{option} {value.strip(chr(39))}"
