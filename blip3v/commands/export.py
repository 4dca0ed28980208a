"""``blip3v export``: make a bundle from a model folder, a shipped model, or random weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table

from blip3v.bundle.precision import CACHE_DTYPES, DEFAULT_PRECISION, PRECISIONS, Precision
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import DEFAULT_TARGET, TARGETS, Target
from blip3v.bundle.writer import check_target
from blip3v.commands.accuracy_report import print_accuracy
from blip3v.commands.completed_values import completes
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.next_command import after_export
from blip3v.commands.options import PRECISION_HELP
from blip3v.commands.output import print_made, quiet_option, talk_console
from blip3v.commands.program import command_line
from blip3v.commands.quantization_options import QuantizationChoice, quantization_options
from blip3v.commands.stages import show_stages
from blip3v.commands.tables import print_table
from blip3v.config import PRESETS
from blip3v.export.parity import PARITY_BACKEND, Comparison, ParityReport
from blip3v.export.request import check_request
from blip3v.model.temporal import encoder_names
from blip3v.runtime.backends import get_backend
from blip3v.strict_json import dumps
from blip3v.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from blip3v.export.estimate import Estimate
    from blip3v.export.source import ExportSource

__all__ = ["command"]


@click.command("export", short_help="Export a bundle: two ONNX graphs, checked against PyTorch.")
@click.option(
    "--encoder",
    type=click.Choice(encoder_names()),
    help="Temporal encoder.  [default: the model's own; tokenlearner for the shipped models]",
)
@click.option(
    "--precision",
    metavar="PRECISION",
    shell_complete=completes(PRECISIONS),
    default=DEFAULT_PRECISION,
    show_default=True,
    help=PRECISION_HELP,
)
@click.option(
    "--kv-cache",
    type=click.Choice(CACHE_DTYPES),
    help="Format of the keys and values that the decoder keeps: int8 is a quarter of float32 in memory and faster per "
    "token, but slower to read a prompt.  [default: float16 in fp16, else float32]",
)
@click.option(
    "-m",
    "--model",
    type=MODEL_PATH,
    help="Model folder, or released checkpoint or its hub id.  [default: the trained one in the package]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to create.  [default: blip3v-PRESET-ENCODER-TOKENStok-PRECISION]",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Model shape; not with --model.  [default: tiny]")
@click.option(
    "--init", type=click.Choice(["random"]), help="Random weights, to measure speed and memory.  [default: trained]"
)
@click.option("--frames", type=click.IntRange(min=1), help="Frames per clip.  [default: the model's own]")
@click.option("--tokens", type=click.IntRange(min=1), help="Video tokens per clip.  [default: the model's own]")
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default=DEFAULT_TARGET,
    show_default=True,
    help="What runs the graphs: ONNX Runtime and OpenVINO; TensorRT 10.15 and later; TensorRT-RTX; TensorRT 10.3 to "
    "10.14. Engines are then made with `build`.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option(
    "--no-check",
    is_flag=True,
    help="Skip the comparison with PyTorch; `eval --reference` can measure a quantised bundle later.",
)
@click.option("--dry-run", is_flag=True, help="Print what the export would need, and write nothing.")
@quantization_options
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(
    encoder: str | None,
    precision: str,
    kv_cache: str | None,
    quantization: QuantizationChoice,
    model: Path | None,
    output: Path | None,
    preset: str | None,
    init: str | None,
    frames: int | None,
    tokens: int | None,
    target: Target,
    force: bool,
    no_check: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Export a bundle: two ONNX graphs, checked against PyTorch.

    The bundle answers questions without PyTorch. Each stage and each decoded token is compared with the fp32 PyTorch
    model on a real clip; if one does not match, the command exits with code 5 and leaves no bundle. A quantised
    model is calibrated first, and its answers are compared instead.

    \b
    Examples:
      blip3v export --encoder tokenlearner
      blip3v export -m runs/mine/model --precision fp32 -o my-bundle
      blip3v export --precision int4 --group-size 32
      blip3v export --kv-cache int8
      blip3v export --target tensorrt-rtx --precision int8
      blip3v export -m Salesforce/xgen-mm-vid-phi3-mini-r-v1.5-128tokens-8frames --download
      blip3v export --preset xgen-mm-vid --init random --dry-run
    """
    chosen = Precision.parse(precision)
    if kv_cache is not None:
        chosen = chosen.with_cache(kv_cache)
    chosen = for_target(quantization.applied(chosen), target)
    ending = chosen.file_name if target == DEFAULT_TARGET else f"{chosen.file_name}-{target}"
    if no_check:
        quantization.check_unchecked()
    if not dry_run:
        _check_writing(output, force=force, check=not no_check)
    model = None if model is None else local_model(model, "checkpoint")
    name = check_request(
        model=model, preset_name=preset, init=init, encoder=encoder, num_frames=frames, num_video_tokens=tokens
    )
    if name is not None and output is None and not dry_run:
        check_target(Path(f"{name}-{ending}"), force=force)
    # These import PyTorch, which takes seconds: only after everything that can be checked without it.
    from blip3v.export.estimate import estimate
    from blip3v.export.pipeline import export_bundle
    from blip3v.export.source import resolve_source

    source = resolve_source(
        model=model, preset_name=preset, init=init, encoder=encoder, num_frames=frames, num_video_tokens=tokens
    )
    folder = output if output is not None else Path(f"{source.folder_name}-{ending}")
    needed = estimate(source.config, chosen, check=not no_check)
    if dry_run:
        _print_plan(source, folder, chosen, needed, as_json)
        return
    console = talk_console()
    for line in (f"{_title(source, chosen)} -> {folder}", *_frames_text(source), _estimate_text(needed)):
        console.print(line, soft_wrap=True)
    islands: dict[str, float] = {}

    def show_islands(peaks: Mapping[str, float]) -> None:
        islands.update(peaks)
        for line in _islands_text(peaks):
            console.print(line, soft_wrap=True)

    with ExitStack() as stack:
        result = export_bundle(
            source,
            folder,
            precision=chosen,
            target=target,
            quantization=quantization.options(command_line(*sys.argv[1:])) if chosen.is_quantized else None,
            check=not no_check,
            force=force,
            progress=show_stages(console, stack),
            on_parity=lambda report: _print_parity(report, console),
            on_accuracy=lambda report: print_accuracy(report, console),
            on_islands=show_islands,
        )
    parity = None if result.parity is None else result.parity.to_dict()
    print_made(
        result,
        after_export(result.manifest, result.path),
        as_json=as_json,
        parity=parity,
        accuracy=None if result.accuracy is None else result.accuracy.to_dict(),
        islands=islands,
        frames_from=source.frames_from,
    )


def _check_writing(output: Path | None, *, force: bool, check: bool) -> None:
    """Checks the output folder, if one is named, and that the engine of the comparison is installed."""
    if output is not None:
        check_target(output, force=force)
    if check:
        get_backend(PARITY_BACKEND).check_installed()


def _print_plan(source: ExportSource, folder: Path, precision: Precision, needed: Estimate, as_json: bool) -> None:
    if as_json:
        values = {
            "output": str(folder),
            "config": source.config.to_dict(),
            "frames_from": source.frames_from,
            "precision": precision.name,
            "estimate": dataclasses.asdict(needed),
        }
        click.echo(dumps(values), nl=False)
        return
    for line in (f"{_title(source, precision)} -> {folder}", *_frames_text(source)):
        click.echo(line)
    for name, count in needed.num_weights.items():
        click.echo(f"{name}: {count:,} weights")
    click.echo(_estimate_text(needed))


def _print_parity(report: ParityReport, console: Console) -> None:
    print_table(console, _parity_table(report))
    console.print(_parity_text(report), soft_wrap=True)


def _parity_table(report: ParityReport) -> Table:
    table = Table(title=f"parity with PyTorch fp32 ({report.precision})", title_justify="left", box=box.SIMPLE)
    for name in ("stage", "sizes", "relative error", "cosine", ""):
        table.add_column(name, justify="right" if name in ("relative error", "cosine") else "left")
    for row in _folded(report.comparisons):
        verdict = "ok" if row.passed else "MISS"
        table.add_row(row.stage, row.case, f"{row.relative_error:.1e}", f"{row.cosine:.7f}", verdict)
    return table


def _folded(rows: tuple[Comparison, ...]) -> list[Comparison]:
    """Merges the decoded steps of a case into one row, the worst."""
    steps: dict[str, list[Comparison]] = {}
    folded = []
    for row in rows:
        if row.stage.startswith("step"):
            steps.setdefault(row.case, []).append(row)
        else:
            folded.append(row)
    for group in steps.values():
        worst = max(group, key=lambda row: row.relative_error)
        name = group[0].stage if len(group) == 1 else f"{len(group)} steps, worst"
        folded.append(dataclasses.replace(worst, stage=name, cosine=min(row.cosine for row in group)))
    return folded


def _parity_text(report: ParityReport) -> str:
    tokens = report.tokens
    lines = [
        *(f"tolerance: {text}" for text in report.tolerance_texts()),
        f"tokens: {tokens.compared} compared, {tokens.differing} differ, {tokens.close_calls} close calls",
    ]
    if report.activations is not None:
        ranges = report.activations
        where = max(ranges.layers, key=lambda name: ranges.layers[name])
        lines.append(f"activations: largest {ranges.largest:.1f} of {ranges.limit:.0f}, in {where}")
    lines.append(f"clip: {report.clip['film']}")
    return "\n".join(lines)


def _islands_text(peaks: Mapping[str, float]) -> list[str]:
    """Lists what is computed in fp32 because half precision might not hold it, and how far it reaches."""
    if not peaks:
        return []
    return ["fp32 islands, with their largest values:", *(f"  {name} {peak:.3g}" for name, peak in peaks.items())]


def _title(source: ExportSource, precision: Precision) -> str:
    config = source.config
    weights = "random weights" if source.provenance.random_init else source.provenance.name
    frames, tokens = format_count(config.num_frames, "frame"), format_count(config.num_video_tokens, "token")
    return f"{config.name} with {config.temporal.encoder}, {frames} to {tokens}, {precision}, {weights}"


def _frames_text(source: ExportSource) -> list[str]:
    """Says what states the number of frames, if no config does."""
    return [] if source.frames_from is None else [f"frames per clip: {source.config.num_frames} ({source.frames_from})"]


def _estimate_text(needed: Estimate) -> str:
    disk, memory = format_bytes(needed.disk_bytes), format_bytes(needed.memory_bytes)
    return f"estimate: {disk} on disk, {memory} of memory at the peak, {format_duration(needed.seconds)}"
