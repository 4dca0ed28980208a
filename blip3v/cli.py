"""The command line. Each verb is a file of ``blip3v/commands``, imported when it is called."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

import blip3v
from blip3v import extras
from blip3v.errors import Blip3vError

__all__ = ["main"]

# verb -> one line for --help; `command` in blip3v/commands/VERB.py is its click command
_VERBS = {
    "demo": "The whole chain on a real clip: export, check, ask, measure.",
    "ask": "Answer a question about a video.",
    "export": "Make a bundle: two ONNX graphs, checked against PyTorch.",
    "convert": "Make a model folder from a released checkpoint.",
    "inspect": "Show what a bundle is.",
    "verify": "Hash every file of a bundle again.",
    "train": "Train a model from a recipe.",
    "eval": "Exact match per kind of question on the film set.",
    "data": "Make synthetic film files with questions.",
    "bench": "Samples per second against the 1024-token baseline.",
    "doctor": "What this machine can run, and what is missing.",
}

# Parameters of the library that the command line calls otherwise.
_OPTIONS = {"folder": "--output", "num_frames": "--frames", "num_video_tokens": "--tokens", "preset_name": "--preset"}

_SYSTEM_ERROR = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130

_EPILOG = """\b
Exit codes:
  0    done
  1    the system refused: disk, permission, a pipe that was closed
  2    usage, config, or a package that is not installed
  3    model folder or bundle
  4    export
  5    parity: the graphs do not match PyTorch
  6    inference engine
  7    video
  8    request
  9    server
  130  interrupted
"""


class _Verbs(click.Group):
    """Lists the verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(f"blip3v.commands.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            ctx.fail(_unknown_verb(args[0]))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(blip3v.__version__, prog_name="blip3v")
def group() -> None:
    """BLIP-3-Video at the edge: export, check, run and measure without PyTorch.

    \b
    Examples:
      blip3v export --encoder tokenlearner --precision fp16
      blip3v ask examples/turn.mp4 "Which way does the red circle turn?"
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point: whatever a user can cause becomes one line on stderr and an exit code.

    Args:
        args: what follows the program's name; None: the arguments of this process.
    """
    sys.exit(_run(sys.argv[1:] if args is None else list(args)))


def _run(args: list[str]) -> int:
    """Runs a command and gives the exit code. An exception that leaves here is a bug, and keeps its traceback."""
    try:
        result = group.main(args, prog_name="blip3v", standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe is still caught
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Blip3vError as error:
        return _refuse(_as_typed(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _refuse("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        _silence_stdout()
        return _SYSTEM_ERROR
    except OSError as error:
        return _refuse(str(error), _SYSTEM_ERROR)
    except ModuleNotFoundError as error:
        extra = extras.extra_of(error.name or "", prefer=args[0] if args else "")
        if extra is None:
            raise
        line = extras.pip_line(extra)
        return _refuse(f"the package {error.name!r} is not installed; run: {line}", _USAGE_ERROR)


def _as_typed(error: Blip3vError) -> str:
    """The error's message, with the parameters that its remedy names written as options."""
    remedy = re.sub(r"`(\w+)(?:=([^`]+))?`", _option, error.remedy)
    return f"{error.message}; {remedy}" if remedy else error.message


def _option(parameter: re.Match[str]) -> str:
    """`force=True` becomes --force, `init='random'` becomes --init random."""
    name, value = parameter.groups()
    if (name, value) == ("check", "False"):
        return "--no-check"
    option = _OPTIONS.get(name) or f"--{name.replace('_', '-')}"
    return option if value in (None, "True") else f"{option} {value.strip(chr(39))}"


def _refuse(message: str, exit_code: int) -> int:
    click.echo(f"error: {message}", err=True)
    return exit_code


def _silence_stdout() -> None:
    # What is left in the buffer would raise again when the interpreter flushes it on its way out.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unknown_verb(verb: str) -> str:
    import difflib  # only for a mistake: --help need not wait for it

    near = difflib.get_close_matches(verb, _VERBS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(_VERBS)}"
    return f"there is no command {verb!r}; {hint}"


if __name__ == "__main__":
    main()
