"""The command line. Each verb is a file in ``blip3v/commands``, imported only when it is called."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

import blip3v
from blip3v.commands.failure import Failure, error_text, failure_of, has_printed, wants_json

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["main"]

# verb -> one line for --help; `command` in blip3v/commands/VERB.py is its click command
_VERBS = {
    "demo": "Run the whole chain on a real clip: export, check, ask, measure.",
    "ask": "Answer questions about a video.",
    "chat": "Talk about a video.",
    "export": "Export a bundle: two ONNX graphs, checked against PyTorch.",
    "calibrate": "Collect what enters every layer, for quantised exports.",
    "build": "Build the TensorRT engines of a bundle.",
    "tune": "Find the fastest engines and threads for a bundle here.",
    "convert": "Convert a released checkpoint to a model folder.",
    "inspect": "Show what a bundle contains.",
    "verify": "Check the hash of every file in a bundle.",
    "train": "Train a model from a recipe.",
    "eval": "Measure exact match per kind of question on the film set.",
    "data": "Generate synthetic film files with questions.",
    "bench": "Measure samples per second against the 1024-token baseline.",
    "doctor": "Show what this machine can run and what is missing.",
    "completion": "Print or install the completion of a shell.",
}

_SYSTEM_ERROR = 1

_EPILOG = """\b
Words:
  checkpoint    PyTorch weights as the authors release them; convert reads it
  model folder  such weights in our form; train and convert write it, export reads it
  bundle        what answers without PyTorch; export writes it, ask runs it
  (docs/glossary.md has more)

\b
Exit codes:
  0    done
  1    system error: disk, permissions, a closed pipe
  2    usage, config, or a missing package
  3    model folder or bundle
  4    export or calibration
  5    graphs do not match PyTorch, or lose too much
  6    inference engine
  7    video
  8    request
  9    server
  10   slower than the baseline of bench
  11   endpoint, such as the judge of eval
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
        if args and args[0] not in _VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(_unknown_verb(args[0]))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # only completing needs it

        verbs = [CompletionItem(verb, help=line) for verb, line in _VERBS.items() if verb.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

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
    """Entry point: anything that a user can cause becomes one line on stderr and an exit code.

    Args:
        args: the arguments after the program name; None: those of this process.
    """
    # A path may hold bytes that are not UTF-8: as escapes they fit into a line, and into JSON. None: stdout is closed.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    sys.exit(_run(sys.argv[1:] if args is None else list(args)))


def _run(args: list[str]) -> int:
    """Runs a command and returns its exit code. An exception that escapes is a bug and keeps its traceback."""
    state: dict[str, Any] = {}
    try:
        _check_streams()
        result = group.main(args, prog_name="blip3v", standalone_mode=False, obj=state)
        sys.stdout.flush()  # here, while a closed pipe is still caught
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        _silence_stdout()
        return _SYSTEM_ERROR
    except (Exception, KeyboardInterrupt) as error:
        failure = failure_of(error, verb=args[0] if args else "")
        if failure is None:
            raise
        _tell(error, failure)
        _print_error(error_text(failure, args) if wants_json(args) and not has_printed(state) else None)
        return failure.exit_code


def _check_streams() -> None:
    """Refuses a closed stdout, since no result could be printed; a closed stderr only means that nobody listens."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise OSError(errno.EBADF, "", "standard output")


def _tell(error: BaseException, failure: Failure) -> None:
    if isinstance(error, click.ClickException):
        error.show()  # with the usage of the command
    else:
        click.echo(f"error: {failure.message}", err=True)


def _print_error(text: str | None) -> None:
    """Prints the error as JSON, if that is wanted, and gives stdout up if it takes nothing."""
    try:
        if text is not None:
            click.echo(text)
        sys.stdout.flush()
    except OSError:
        _silence_stdout()


def _silence_stdout() -> None:
    # Whatever is left in the buffer would raise again when the interpreter flushes it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unknown_verb(verb: str) -> str:
    import difflib  # only needed for a typo; --help does not wait for it

    near = difflib.get_close_matches(verb, _VERBS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(_VERBS)}"
    return f"unknown command {verb!r}; {hint}"


if __name__ == "__main__":
    main()
