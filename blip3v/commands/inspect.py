"""``blip3v inspect``: show what a bundle contains, without running it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip3v.bundle.card import flatten
from blip3v.bundle.layout import ACCURACY
from blip3v.bundle.manifest import GraphEntry, Manifest
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.commands.accuracy_report import print_accuracy
from blip3v.commands.local_models import MODEL_PATH, download_option, local_model
from blip3v.commands.next_command import after_export
from blip3v.commands.output import quiet_option, talk
from blip3v.commands.tables import print_table
from blip3v.errors import ProviderError
from blip3v.export.accuracy import load_report
from blip3v.runtime.backends import stored_and_computed
from blip3v.runtime.opening import estimate_open, graph_files
from blip3v.runtime.prompt_weights import find_prompt_weights
from blip3v.units import format_bytes, format_count

__all__ = ["command"]

_NO_CHECK = "exported with --no-check"
_NO_REPORT = "its answers were compared instead, or will be by eval --reference"
_OTHER_REPORT = f"{ACCURACY} is not a report that this blip3v reads; measure again with eval --reference"


@click.command()
@click.argument("bundle", type=MODEL_PATH)
@download_option
@click.option("--json", "as_json", is_flag=True, default=False, show_default=True, help="Print one JSON object.")
@quiet_option
def command(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE contains: inputs and outputs, weight precision, sizes, parity, and where it came from.

    The bundle is opened, which checks names, sizes and the hashes of small files; `blip3v verify` hashes every file.

    \b
    Examples:
      blip3v inspect blip3v-tiny-tokenlearner-32tok-fp16
      blip3v inspect blip3v-tiny-tokenlearner-32tok-fp16 --json
    """
    bundle = local_model(bundle)
    opened = open_bundle(bundle)
    manifest, next_command = opened.manifest, after_export(opened.manifest, bundle)
    if as_json:
        values = {"path": str(bundle), "size_bytes": manifest.size_bytes, "manifest": manifest.to_dict()}
        computed = stored_and_computed(manifest.precision, manifest.target)
        folder = _prompt_weights_folder(opened)
        values["prompt_weights"] = None if folder is None else {"int8": str(folder)}
        click.echo(json.dumps({**values, "stored_and_computed": computed, "next": next_command}))
        return
    console = Console(highlight=False)
    graphs = [_inputs_and_outputs(name, graph) for name, graph in manifest.graphs.items()]
    for table in (_summary(opened), *graphs, _weights(manifest)):
        print_table(console, table)
    accuracy = load_report(bundle) if manifest.precision.is_quantized else None
    if accuracy is None:
        print_table(console, _parity(manifest, has_report=(bundle / ACCURACY).is_file()))
    else:
        print_accuracy(accuracy, console)
    print_table(console, _files(manifest))
    talk(f"next: {next_command}")


def _summary(opened: Bundle) -> Table:
    manifest = opened.manifest
    table = _table(f"{manifest.model}, {manifest.encoder}", "", "")
    kv = manifest.kv
    frames, tokens = format_count(manifest.num_frames, "frame"), format_count(manifest.num_video_tokens, "token")
    window = "no sliding window" if kv.sliding_window is None else f"sliding window {kv.sliding_window}"
    rows = {
        "video": f"{frames} to {tokens}",
        "precision": stored_and_computed(manifest.precision, manifest.target),
        **{f"  {name}": str(spec) for name, spec in manifest.precision.graphs.items()},
        "target": f"{manifest.target}, opset {manifest.opset}",
        "weights": _provenance(manifest),
        "made by": ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items()),
        "KV cache": f"{kv.num_layers} layers x {kv.num_kv_heads} heads x {kv.head_dim}, "
        f"{manifest.precision.decoder.cache}, {format_bytes(kv.bytes_per_token)} per token, {window}",
        "context": f"{manifest.limits.max_context} tokens",
        "on disk": format_bytes(manifest.size_bytes),
        "opening needs": _cost(opened),
        **_prompt_weights(opened),
        **_tuning(opened),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _cost(opened: Bundle) -> str:
    """What opening would need with ``auto``, and which engines that chooses."""
    try:
        needed = estimate_open(opened)
    except ProviderError as error:
        return error.message
    free = "" if needed.free_bytes is None else f" of the {format_bytes(needed.free_bytes)} free"
    sizes = ", ".join([f"{format_bytes(needed.memory_bytes)}{free}", *map(str, needed.devices)])
    return f"{sizes}, and about {needed.seconds:.1f} s; {needed.backend.computed}"


def _prompt_weights_folder(opened: Bundle) -> Path | None:
    """Where weights for prompts are that were made on this machine; None: there are none."""
    found = find_prompt_weights(graph_files(opened)["decoder"])
    return None if found is None else found.parent


def _prompt_weights(opened: Bundle) -> dict[str, str]:
    """A second set of weights that was made for prompts on this machine; without one, no row."""
    folder = _prompt_weights_folder(opened)
    if folder is None:
        return {}
    size = format_bytes(sum(file.stat().st_size for file in folder.iterdir()))
    return {"weights for prompts": f"int8, {size}, for --backend decoder=onnxruntime:cpu-int8+onnxruntime"}


def _tuning(opened: Bundle) -> dict[str, str]:
    """What a tuning of this machine decides; without one, no row."""
    try:
        said = estimate_open(opened).backend.tuning
    except ProviderError:
        return {}
    return {} if said is None else {"tuning": said}


def _provenance(manifest: Manifest) -> str:
    source = manifest.source
    if source.random_init:
        return f"{source.name}: random, good for benchmarks only"
    return f"{source.name}: {'trained' if source.trained else 'not fully trained, good for benchmarks only'}"


def _inputs_and_outputs(name: str, graph: GraphEntry) -> Table:
    """Neighbours with the same dtype and axes, such as the caches of all layers, share a row."""
    table = _table(f"{name}: inputs and outputs", "", "name", "dtype", "axes")
    for side, specs in (("in", graph.inputs), ("out", graph.outputs)):
        for (dtype, axes), group in itertools.groupby(specs, key=lambda spec: (spec.dtype, spec.axes)):
            same = list(group)
            text = same[0].name if len(same) == 1 else f"{same[0].name} ... {same[-1].name} ({len(same)})"
            table.add_row(side, escape(text), escape(dtype), escape(", ".join(map(str, axes)) or "scalar"))
    return table


def _weights(manifest: Manifest) -> Table:
    table = _table("stored weights", "graph", "dtype", "tensors", "elements", "size")
    for graph, counts in manifest.weights.items():
        for dtype, count in counts.items():
            numbers = (f"{count.num_tensors:,}", f"{count.num_elements:,}", format_bytes(count.size_bytes))
            table.add_row(escape(graph), escape(dtype), *numbers)
    return table


def _parity(manifest: Manifest, *, has_report: bool) -> Table:
    table = _table("parity with PyTorch", "", "")
    if manifest.parity is None:
        reason = _NO_CHECK
        if manifest.precision.is_quantized:
            reason = _OTHER_REPORT if has_report else _NO_REPORT
        table.add_row("not checked", reason)
    for name, value in flatten(manifest.parity or {}):
        table.add_row(escape(name), escape(_parity_text(name, value)))
    return table


def _parity_text(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.7f}" if name.endswith("cosine") else f"{value:.3g}"


def _files(manifest: Manifest) -> Table:
    table = _table("files", "name", "size", "sha256")
    for name, entry in manifest.files.items():
        table.add_row(escape(name), format_bytes(entry.size_bytes), entry.sha256[:12])
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=any(columns))
    for column in columns:
        # People copy names, so a name stays on one line; other text wraps.
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    return table
