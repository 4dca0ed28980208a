"""``blip3v convert``: make a model folder from a released checkpoint, the authors' ``.pt``, or a model folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.output import print_made, quiet_option, talk, talk_console
from blip3v.commands.program import command_line
from blip3v.commands.tables import print_table
from blip3v.model.arguments import check_opening, check_target
from blip3v.model.temporal import encoder_names
from blip3v.publishing import check_writable
from blip3v.units import format_count
from blip3v.video.preprocess import ResizeMode

if TYPE_CHECKING:
    from blip3v.model.checkpoint import Checkpoint

__all__ = ["command"]

_KINDS = {"blip3v": "model folder", "released": "released folder", "native": "the authors' .pt file"}
_DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@click.command("convert", short_help="Convert a released checkpoint to a model folder.")
@click.argument("source", type=MODEL_PATH)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder to create.  [default: MODEL-ENCODER-TOKENStok]"
)
@click.option(
    "--encoder",
    type=click.Choice(encoder_names()),
    help="Temporal encoder, if the checkpoint has no tensors for it.  [default: found from its tensors]",
)
@click.option(
    "--frames",
    type=click.IntRange(min=1),
    help="Frames per clip in training.  [default: as its name or model card says, or 8]",
)
@click.option(
    "--tokenizer",
    type=MODEL_PATH,
    help="Released folder, or its hub id, with the tokenizer for a .pt file.  [default: the source's own]",
)
@click.option(
    "--dtype", type=click.Choice(list(_DTYPES)), help="Dtype to store weights in.  [default: as in the source]"
)
@click.option(
    "--resize",
    type=click.Choice(get_args(ResizeMode)),
    help="How frames are made square: squash (released script) or grey bars (training).  [default: the source's own]",
)
@click.option("--force", is_flag=True, help="Replace an existing model folder.")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(
    source: Path,
    output: Path | None,
    encoder: str | None,
    frames: int | None,
    tokenizer: Path | None,
    dtype: str | None,
    resize: ResizeMode | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert SOURCE to a model folder. It is a released Hugging Face folder or its hub id, the authors' .pt file, or a
    model folder.

    The temporal encoder is found from the names and shapes of the tensors. An unknown or missing tensor, or one with
    the wrong shape, is an error; tensors that no computation uses are listed and left out. One tensor is in memory at a
    time.

    \b
    Examples:
      blip3v convert Salesforce/xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames -o mine --dtype fp16
      blip3v convert mine.pt --tokenizer Salesforce/xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames -o mine
    """
    if output is not None:
        check_target(output, source=source, force=force)
        check_writable(output)
    source = local_model(source, "checkpoint")
    if tokenizer is not None and source.is_file():  # with a folder it is refused, and must not be downloaded for that
        tokenizer = local_model(tokenizer, "tokenizer")
    check_opening(source, tokenizer=tokenizer, encoder=encoder, num_frames=frames)
    # These import PyTorch, which takes seconds: only after everything that can be checked without it.
    from blip3v.model.checkpoint import open_checkpoint
    from blip3v.model.convert import convert, folder_name, weight_bytes
    from blip3v.model.weight_file import DTYPES

    checkpoint = open_checkpoint(source, tokenizer=tokenizer, encoder=encoder, num_frames=frames)
    folder = output if output is not None else Path(folder_name(checkpoint))
    chosen = None if dtype is None else DTYPES[_DTYPES[dtype]]
    preprocessor = checkpoint.preprocessor
    if resize is not None:
        preprocessor = dataclasses.replace(preprocessor, resize_mode=resize)
    console = talk_console()
    talk(_found_text(checkpoint, preprocessor.resize_mode))
    for table in _unused_key_tables(checkpoint):
        print_table(console, table)
    with ExitStack() as stack:
        each = _bar(console, stack, weight_bytes(checkpoint.stored, chosen))
        result = convert(checkpoint, folder, dtype=chosen, preprocessor=preprocessor, force=force, each=each)
    print_made(
        result,
        command_line("export", "-m", str(result.path)),
        as_json=as_json,
        source=str(checkpoint.path),
        kind=checkpoint.kind,
        frames_from=checkpoint.frames_from,
        config=checkpoint.config.to_dict(),
        num_elements=_num_elements(checkpoint),
        unused_keys=[dataclasses.asdict(item) for item in checkpoint.unused_keys],
    )


def _bar(console: Console, stack: ExitStack, total_bytes: int) -> Callable[[int], None]:
    """Shows a bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("weights"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    bar = stack.enter_context(
        Progress(*columns, console=console, disable=not console.is_terminal or console.quiet, transient=True)
    )
    task = bar.add_task("weights", total=total_bytes)
    return lambda num_bytes: bar.advance(task, num_bytes)


def _found_text(checkpoint: Checkpoint, resize_mode: str) -> str:
    config = checkpoint.config
    settings = ", ".join(f"{name} {value}" for name, value in config.temporal.settings.items())
    encoder = f"{config.temporal.encoder} ({settings})" if settings else config.temporal.encoder
    dtypes = sorted({part.dtype for part in checkpoint.stored.values()})
    frames = f"frames per clip: {config.num_frames} ({checkpoint.frames_from})\n"
    return (
        f"{checkpoint.path}: {_KINDS[checkpoint.kind]}, {config.name} with {encoder}, "
        f"{format_count(config.num_frames, 'frame')} to {format_count(config.num_video_tokens, 'token')}\n{frames}"
        f"{_num_elements(checkpoint):,} elements in {len(checkpoint.stored)} tensors, {', '.join(dtypes)}; "
        f"frames are resized by {resize_mode}"
    )


def _unused_key_tables(checkpoint: Checkpoint) -> Iterator[Table]:
    """One table per reason."""
    for why, items in groupby(checkpoint.unused_keys, key=lambda item: item.why):
        table = Table(title=f"left out: {why}", title_justify="left", box=box.SIMPLE, show_header=False)
        for justify in ("left", "left", "right"):
            table.add_column(justify=justify, overflow="fold")
        for item in items:
            table.add_row(item.name, "x".join(map(str, item.shape)), f"{prod(item.shape):,}")
        yield table


def _num_elements(checkpoint: Checkpoint) -> int:
    return sum(part.num_elements for part in checkpoint.stored.values())
