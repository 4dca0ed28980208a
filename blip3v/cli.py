"""The command line. Each verb's command lives in the part that it drives and is imported when it is called."""

from __future__ import annotations

import importlib
import sys

import click

import blip3v
from blip3v.errors import Blip3vError

__all__ = ["main"]

# verb -> (module that holds its click command `command`, one line for --help)
_VERBS = {
    "demo": ("blip3v.demo", "The whole chain on a real clip: export, check, ask, measure."),
    "ask": ("blip3v.runtime.ask_command", "Answer a question about a video."),
    "export": ("blip3v.export.command", "Make a bundle: two ONNX graphs, checked against PyTorch."),
    "inspect": ("blip3v.bundle.inspect_command", "Show what a bundle is."),
    "verify": ("blip3v.bundle.verify_command", "Hash every file of a bundle again."),
    "train": ("blip3v.training.command", "Train a model from a recipe."),
    "eval": ("blip3v.evaluation.command", "Exact match per kind of question on the film set."),
    "data": ("blip3v.data.command", "Make synthetic film files with questions."),
    "bench": ("blip3v.bench.command", "Samples per second against the 1024-token baseline."),
    "doctor": ("blip3v.doctor", "What this machine can run, and what is missing."),
}


class _Verbs(click.Group):
    """Lists the verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(_VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in _VERBS.items()])


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 usage or config, 3 model folder or bundle, 4 export, 5 parity, 6 inference engine, "
    "7 video, 8 request, 9 server, 130 interrupted.",
)
@click.version_option(blip3v.__version__, prog_name="blip3v")
def group() -> None:
    """BLIP-3-Video at the edge: export, check, run and measure without PyTorch.

    \b
    Examples:
      blip3v export --encoder tokenlearner --precision fp16
      blip3v ask examples/turn.mp4 "Which way does the red circle turn?"
    """


def main() -> None:
    """Entry point: our own errors become one line on stderr and their exit code."""
    try:
        group()
    except Blip3vError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
