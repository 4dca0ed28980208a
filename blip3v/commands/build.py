"""``blip3v build``: build the TensorRT engines of a bundle, or pack its weights for ONNX Runtime."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import cast, get_args

import click
from rich import box
from rich.console import Console
from rich.table import Table

from blip3v.bundle import layout
from blip3v.bundle.engines import HardwareCompatibility, Library, engine_file
from blip3v.bundle.manifest import Manifest
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.next_command import after_build
from blip3v.commands.output import print_made, quiet_option, talk_console
from blip3v.commands.program import command_line
from blip3v.commands.stages import show_stages
from blip3v.commands.tables import print_table
from blip3v.errors import UsageError
from blip3v.export.engine_request import DEFAULT_SEQ_LEN, EngineRequest
from blip3v.export.engines import EngineBuild, build_engines
from blip3v.export.packed_graphs import build_packed, build_prompt_weights
from blip3v.runtime.backends import PREFILL_CHUNK
from blip3v.units import format_bytes, format_duration

__all__ = ["command"]

_MIB = 2**20
_ONNXRUNTIME, _INT8 = "onnxruntime", "int8"
_PAIR = "decoder=onnxruntime:cpu-int8+onnxruntime"  # prompts with such weights, steps with those of the bundle
_ONE = click.IntRange(min=1)
_OF_TENSORRT = (
    *("max_batch_size", "max_frames", "max_seq_len", "prefill_chunk", "compute_capability", "workspace_mib"),
    *("optimization_level", "version_compatible", "hardware_compatibility"),
)


@click.command()
@click.argument("bundle", type=MODEL_PATH)
@click.option(
    "--library",
    type=click.Choice([*get_args(Library), _ONNXRUNTIME]),
    help="TensorRT for the GPU of this machine, or TensorRT-RTX for any; onnxruntime packs the weights of an int8 "
    "bundle for this machine's processor.  [default: that of the bundle's target]",
)
@click.option(
    "--prompt-weights",
    type=click.Choice([_INT8]),
    help="With onnxruntime: instead make a second set of weights for the prompts of a bundle in int4, in int8.",
)
@click.option(
    "--max-batch-size",
    type=_ONE,
    default=1,
    show_default=True,
    help="Clips, and conversations, that are answered at once.",
)
@click.option("--max-frames", type=_ONE, help="Frames of a clip.  [default: the bundle's]")
@click.option(
    "--max-seq-len",
    type=_ONE,
    help="Tokens of video, prompt and answer together, for which the KV cache is allocated.  "
    f"[default: the model's context, at most {DEFAULT_SEQ_LEN}]",
)
@click.option(
    "--prefill-chunk",
    type=_ONE,
    help=f"Tokens of a prompt that are read at once.  [default: {PREFILL_CHUNK}]",
)
@click.option(
    "--compute-capability",
    metavar="LIST",
    default="",
    help="With TensorRT-RTX: GPUs to build for, as in 8.6,8.9,12.0.  [default: this machine's; with none, the usual]",
)
@click.option(
    "--workspace-mib", type=_ONE, help="Scratch memory of the GPU that a layer may use, in MiB.  [default: all of it]"
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    help="0 builds quickly, 5 looks longest for the fastest engine.  [default: the library's]",
)
@click.option("--version-compatible", is_flag=True, help="With TensorRT: later versions may load the engines.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice([level.replace("_", "-") for level in get_args(HardwareCompatibility)]),
    default="none",
    show_default=True,
    help="With TensorRT: other GPUs that may load the engines.",
)
@click.option("--force", is_flag=True, help="Build again what is there, and replace it.")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@quiet_option
def command(
    bundle: Path,
    library: str | None,
    prompt_weights: str | None,
    max_batch_size: int,
    max_frames: int | None,
    max_seq_len: int | None,
    prefill_chunk: int | None,
    compute_capability: str,
    workspace_mib: int | None,
    optimization_level: int | None,
    version_compatible: bool,
    hardware_compatibility: str,
    force: bool,
    as_json: bool,
) -> None:
    """Build the TensorRT engines of BUNDLE, which was exported with --target tensorrt or tensorrt-rtx.

    They are put into its folder engines/, under a name made of everything that decides where they run; engines that
    are there already are kept. TensorRT builds on the GPU that runs them, TensorRT-RTX on any machine. With --library
    onnxruntime, ONNX Runtime packs the weights of an int8 bundle once, which then opens in about half the time and with
    less memory; the packed weights take twice the disk space of the graphs. --prompt-weights int8 makes int8 weights
    from those of an int4 bundle and packs them: asked for with --backend decoder=onnxruntime:cpu-int8+onnxruntime, they
    read prompts several times as fast, and the int4 weights take the steps.

    \b
    Examples:
      blip3v build blip3v-tiny-tokenlearner-32tok-fp16
      blip3v build blip3v-tiny-tokenlearner-32tok-fp16 --max-batch-size 4 --compute-capability 8.6,8.9
      blip3v build blip3v-tiny-tokenlearner-32tok-int8 --library onnxruntime
      blip3v build blip3v-tiny-tokenlearner-32tok-int4 --library onnxruntime --prompt-weights int8
    """
    if library == _ONNXRUNTIME:
        _check_no_others(click.get_current_context())
        _pack(local_model(bundle), for_prompts=prompt_weights is not None, force=force, as_json=as_json)
        return
    if prompt_weights is not None:
        raise UsageError(
            f"--prompt-weights is for ONNX Runtime and has no effect without --library {_ONNXRUNTIME}; add it"
        )
    level: HardwareCompatibility = hardware_compatibility.replace("-", "_")  # type: ignore[assignment]
    request = EngineRequest(
        library=cast("Library | None", library),
        max_batch_size=max_batch_size,
        max_frames=max_frames,
        max_seq_len=max_seq_len,
        prefill_chunk=prefill_chunk,
        compute_capability=tuple(part.strip() for part in compute_capability.split(",") if part.strip()),
        workspace_bytes=None if workspace_mib is None else workspace_mib * _MIB,
        optimization_level=optimization_level,
        version_compatible=version_compatible,
        hardware_compatibility=level,
    )
    bundle = local_model(bundle)
    console = talk_console()
    with ExitStack() as stack:
        result = build_engines(bundle, request, force=force, progress=show_stages(console, stack))
    if not as_json:
        _print_engines(result, console)
    print_made(
        result,
        _next(bundle, result),
        as_json=as_json,
        is_new=result.is_new,
        engines=_values(result),
        layers=result.layers,
        unreadable=result.unreadable,
    )


def _check_no_others(context: click.Context) -> None:
    """Raises if an option of TensorRT was given."""
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if given and name in _OF_TENSORRT:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for TensorRT and has no effect with --library {_ONNXRUNTIME}; leave it out")


def _pack(bundle: Path, *, for_prompts: bool, force: bool, as_json: bool) -> None:
    console = talk_console()
    build, options = (build_prompt_weights, ("--backend", _PAIR)) if for_prompts else (build_packed, ())
    with ExitStack() as stack:
        result = build(bundle, force=force, progress=show_stages(console, stack))
    if not as_json and not result.is_new:
        console.print("these packed weights are there already; --force packs them again", soft_wrap=True)
    print_made(
        result,
        after_build(Manifest.load(bundle / layout.MANIFEST), bundle, *options),
        as_json=as_json,
        is_new=result.is_new,
        graphs={name: str(folder) for name, folder in result.folders.items()},
    )


def _next(bundle: Path, result: EngineBuild) -> str:
    """A bundle whose engines run here can be asked; elsewhere, what this machine lacks is of interest."""
    if result.unreadable is not None:
        return command_line("doctor")
    return after_build(Manifest.load(bundle / layout.MANIFEST), bundle)


def _print_engines(result: EngineBuild, console: Console) -> None:
    if not result.is_new:
        console.print("these engines are there already; --force builds them again", soft_wrap=True)
    title = f"{result.library}, for compute capability {', '.join(result.record.compute_capabilities)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in ("graph", "engine", "size", "built in", "peak memory"):
        table.add_column(name, justify="left" if name in ("graph", "engine") else "right")
    for name, built in result.record.graphs.items():
        peak = "" if built.peak_rss_bytes is None else format_bytes(built.peak_rss_bytes)
        table.add_row(name, engine_file(name), format_bytes(built.size_bytes), format_duration(built.build_s), peak)
    print_table(console, table)
    limits = result.record.limits
    console.print(
        f"at most {limits.max_batch_size} at once, {limits.max_frames} frames, {limits.max_seq_len} tokens, "
        f"{limits.prefill_chunk} of a prompt in one step",
        soft_wrap=True,
    )
    if result.unreadable is not None:
        console.print(f"no layer report: {result.unreadable}", soft_wrap=True)


def _values(result: EngineBuild) -> dict[str, object]:
    """The record of the engines, as it stands beside them, with the files' paths."""
    record = result.record.to_dict()
    for name, graph in record["graphs"].items():
        graph["file"] = str(result.path / engine_file(name))
    return record
