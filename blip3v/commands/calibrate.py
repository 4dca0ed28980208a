"""``blip3v calibrate``: run a model on real clips and keep what enters every layer, for quantised exports."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from blip3v.calibration.data import ClipSet, default_counts, film_clips, folder_clips, read_questions
from blip3v.calibration.record import SamplingSettings, check_target
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.output import print_made, quiet_option, talk_console
from blip3v.commands.program import command_line
from blip3v.commands.sensitivity import print_sensitivity, scan_blocks, summary
from blip3v.commands.stages import show_stages
from blip3v.commands.tables import print_table
from blip3v.config import PRESETS
from blip3v.errors import UsageError
from blip3v.export.request import check_request
from blip3v.model.temporal import encoder_names
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.units import format_count

if TYPE_CHECKING:
    from blip3v.bundle.manifest import Source
    from blip3v.calibration.statistics import Calibration
    from blip3v.export.source import ExportSource

__all__ = ["command"]

_EXTREME_SHARE = 8  # one in so many rows is kept for its large values


@dataclass(frozen=True, kw_only=True)
class _Made:
    path: Path
    size_bytes: int
    seconds: float
    peak_rss_bytes: int | None


@click.command("calibrate", short_help="Collect what enters every layer, for quantised exports.")
@click.option(
    "-m",
    "--model",
    type=MODEL_PATH,
    help="Model folder, or released checkpoint or its hub id.  [default: the trained one in the package]",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Model shape; not with --model.  [default: tiny]")
@click.option(
    "--init", type=click.Choice(["random"]), help="Random weights, to measure speed and memory.  [default: trained]"
)
@click.option(
    "--encoder",
    type=click.Choice(encoder_names()),
    help="Temporal encoder.  [default: the model's own; tokenlearner for the shipped models]",
)
@click.option("--frames", type=click.IntRange(min=1), help="Frames per clip.  [default: the model's own]")
@click.option("--tokens", type=click.IntRange(min=1), help="Video tokens per clip.  [default: the model's own]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of videos with a questions.json.  [default: synthetic films that no model is trained or evaluated on]",
)
@click.option(
    "--clips",
    type=click.IntRange(min=1),
    help="Number of clips.  [default: all of --data; else 64 films, or 8 for models other than tiny]",
)
@click.option(
    "--prompts",
    type=click.IntRange(min=1),
    help="Prompts per clip; with --data, at most.  [default: all of --data; else 3, or 4 for models other than tiny]",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=SamplingSettings().num_rows,
    show_default=True,
    help="Inputs to keep of each layer: an eighth for their large values, the others at random.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is chosen at random."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to create.  [default: blip3v-PRESET-ENCODER-TOKENStok-calibration]",
)
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Also quantise each block alone and measure what that does to the answers, for --precision mixed. An existing "
    "calibration of the same model, data and rows is kept, and an interrupted measurement goes on.",
)
@click.option("--force", is_flag=True, help="Replace an existing calibration.")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(
    model: Path | None,
    preset: str | None,
    init: str | None,
    encoder: str | None,
    frames: int | None,
    tokens: int | None,
    data: Path | None,
    clips: int | None,
    prompts: int | None,
    rows: int,
    seed: int,
    output: Path | None,
    sensitivity: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Run a model on real clips and prompts, and keep what enters every layer: what quantised exports need.

    The model runs in fp32, one layer at a time, so that a model need not fit into memory. A calibration serves every
    precision of the same model, and no other model. Films and questions of the evaluation are refused.

    The questions.json of --data is a list of {"video": name, "question": text, "answer": text}, in which the answer may
    be left out, or the one that blip3v data writes.

    \b
    Examples:
      blip3v calibrate -m runs/mine/model -o my-calibration
      blip3v calibrate -m runs/mine/model --data videos/ --clips 16 --prompts 4
    """
    started = time.perf_counter()
    if sensitivity:
        import matplotlib  # noqa: F401  # draws the result; if it is missing, fail before the work
    if output is not None:
        check_target(output, force=force or sensitivity)
    if data is not None:
        read_questions(data)
    model = None if model is None else local_model(model, "checkpoint")
    chosen: dict[str, Any] = {"preset_name": preset, "init": init, "encoder": encoder}
    chosen |= {"num_frames": frames, "num_video_tokens": tokens}
    name = check_request(model=model, **chosen)
    if name is not None and output is None:
        check_target(_default(name), force=force or sensitivity)
    # These import PyTorch, which takes seconds: only after everything that can be checked without it.
    from blip3v.calibration.collect import calibrate
    from blip3v.export.source import resolve_source

    source = resolve_source(model=model, **chosen)
    folder = output if output is not None else _default(source.folder_name)
    samples = _samples(source, data, clips, prompts, seed)
    settings = SamplingSettings(num_rows=rows, num_extreme=rows // _EXTREME_SHARE, seed=seed)
    console = talk_console()
    record = samples.record
    what = f"{format_count(record.num_clips, 'clip')}, {format_count(record.num_prompts, 'prompt')}"
    console.print(f"{source.folder_name}: {what} -> {folder}", soft_wrap=True)
    with ExitStack() as stack:
        progress = show_stages(console, stack)
        if source.hashed_files:
            progress("hash the checkpoint")
        provenance = source.hashed_provenance()
        if sensitivity and not force and folder.exists():
            calibration = _existing(folder, source, provenance, samples, settings)
        else:
            calibration = calibrate(
                folder, source, provenance, samples, settings=settings, force=force, progress=progress
            )
        table = scan_blocks(calibration, source, samples.clips, force=force, progress=progress) if sensitivity else None
    if not as_json:
        print_table(console, _table(calibration))
        if table is not None:
            print_sensitivity(Console(highlight=False), table)
    made = _Made(
        path=folder,
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
    )
    print_made(
        made,
        _next(folder, model, chosen, "mixed" if sensitivity else "int8"),
        as_json=as_json,
        model=source.provenance.name,
        data=dataclasses.asdict(record),
        settings=dataclasses.asdict(calibration.record.settings),
        graphs=_summary(calibration),
        **({} if table is None else {"sensitivity": summary(table, folder)}),
    )


def _default(name: str) -> Path:
    return Path(f"{name}-calibration")


def _existing(
    folder: Path, source: ExportSource, provenance: Source, samples: ClipSet, settings: SamplingSettings
) -> Calibration:
    """The calibration in ``folder``, which must be of this model and these samples, with as many rows and this seed."""
    from blip3v.calibration.statistics import Calibration  # imports PyTorch

    calibration = Calibration.load(folder)
    calibration.check_model(provenance, source.config)
    if calibration.record.data != samples.record:
        raise UsageError(
            f"{folder} was made of other data; give the same data, clips, prompts and seed",
            remedy="or replace it with `force=True`",
        )
    found = calibration.record.settings
    if (found.num_rows, found.seed) != (settings.num_rows, settings.seed):
        raise UsageError(
            f"{folder} keeps {format_count(found.num_rows, 'input')} of each layer, drawn with seed {found.seed}; "
            f"{settings.num_rows} with seed {settings.seed} were asked for",
            remedy=f"go on with `rows={found.num_rows}` and `seed={found.seed}`, or replace it with `force=True`",
        )
    return calibration


def _samples(source: ExportSource, data: Path | None, clips: int | None, prompts: int | None, seed: int) -> ClipSet:
    if data is not None:
        return folder_clips(source, data, num_clips=clips, prompts_per_clip=prompts)
    num_clips, num_prompts = default_counts(source.config)
    return film_clips(source, num_clips=clips or num_clips, prompts_per_clip=prompts or num_prompts, seed=seed)


def _summary(calibration: Calibration) -> dict[str, dict[str, Any]]:
    """By graph: layers, their rows, and the layer with the largest input."""
    from blip3v.calibration.layers import linear_layers  # imports PyTorch

    graphs: dict[str, dict[str, Any]] = {}
    for name, layer in linear_layers(calibration.record.config).items():
        record = calibration.record.layers[name]
        largest = float(calibration.absmax(name).max())
        values = graphs.setdefault(
            layer.graph, {"num_layers": 0, "num_seen": 0, "num_rows": 0, "largest": 0.0, "largest_in": name}
        )
        values["num_layers"] += 1
        values["num_seen"] += record.num_seen
        values["num_rows"] += record.num_rows
        if largest > values["largest"]:
            values |= {"largest": largest, "largest_in": name}
    return graphs


def _table(calibration: Calibration) -> Table:
    table = Table(title="inputs of the linear layers", title_justify="left", box=box.SIMPLE)
    for heading in ("graph", "layers", "rows seen", "rows kept", "largest", "in"):
        table.add_column(heading, justify="left" if heading in ("graph", "in") else "right")
    for graph, values in _summary(calibration).items():
        counts = (f"{values[key]:,}" for key in ("num_layers", "num_seen", "num_rows"))
        table.add_row(graph, *counts, f"{values['largest']:.1f}", values["largest_in"])
    return table


def _next(folder: Path, model: Path | None, chosen: dict[str, Any], precision: str) -> str:
    """The export of the same model."""
    options = {
        "-m": model,
        "--preset": chosen["preset_name"],
        "--init": chosen["init"],
        "--encoder": chosen["encoder"],
        "--frames": chosen["num_frames"],
        "--tokens": chosen["num_video_tokens"],
    }
    words = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return command_line("export", *words, "--precision", precision, "--calibration", str(folder))
