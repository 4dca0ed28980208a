"""``blip3v inspect``: what a bundle is, without running it."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blip3v.bundle.card import flatten
from blip3v.bundle.manifest import GraphEntry, Manifest
from blip3v.bundle.reader import open_bundle
from blip3v.runtime import cpu_rules

__all__ = ["command"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, default=False, show_default=True, help="One JSON object on stdout.")
def command(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE is: inputs and outputs, precision of the weights, sizes, parity, where it came from.

    Opens it, so that names, sizes and the hashes of small files are checked; `blip3v verify` hashes all.

    \b
    Examples:
      blip3v inspect tiny-tokenlearner-32-fp16
      blip3v inspect tiny-tokenlearner-32-fp16 --json
    """
    opened = open_bundle(bundle)
    manifest, next_command = opened.manifest, _next_command(opened.manifest, bundle)
    if as_json:
        values = {"path": str(bundle), "size_bytes": manifest.size_bytes, "manifest": manifest.to_dict()}
        computed = cpu_rules.stored_and_computed(manifest.precision)
        click.echo(json.dumps({**values, "stored_and_computed": computed, "next": next_command}))
        return
    console = Console(highlight=False)
    ports = [_ports(name, graph) for name, graph in manifest.graphs.items()]
    for table in (_summary(manifest), *ports, _weights(manifest), _parity(manifest), _files(manifest)):
        console.print(table)
    click.echo(f"next: {next_command}")


def _next_command(manifest: Manifest, path: Path) -> str:
    folder = shlex.quote(str(path))
    if manifest.source.random_init or not manifest.source.trained:
        return f"blip3v bench {folder}"
    return f'blip3v ask VIDEO "QUESTION" -m {folder}'


def _summary(manifest: Manifest) -> Table:
    table = _table(f"{manifest.model}, {manifest.encoder}", "", "")
    kv = manifest.kv
    window = "all" if kv.sliding_window is None else str(kv.sliding_window)
    rows = {
        "video": f"{manifest.num_frames} frames to {manifest.num_video_tokens} tokens",
        "precision": cpu_rules.stored_and_computed(manifest.precision),
        **{f"  {name}": str(spec) for name, spec in manifest.precision.graphs.items()},
        "target": f"{manifest.target}, opset {manifest.opset}",
        "weights": _provenance(manifest),
        "made by": ", ".join(f"{tool} {version}" for tool, version in manifest.created_by.items()),
        "KV cache": f"{kv.num_layers} layers x {kv.num_kv_heads} heads x {kv.head_dim}, "
        f"{manifest.precision.decoder.cache}, {size_text(kv.bytes_per_token)} a token, window {window}",
        "context": f"{manifest.limits.max_context} tokens",
        "on disk": size_text(manifest.size_bytes),
        "in memory": f"about {size_text(cpu_rules.bundle_resident_bytes(manifest))} without KV cache",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _provenance(manifest: Manifest) -> str:
    source = manifest.source
    if source.random_init:
        return f"{source.name}: random, good for measuring only"
    return f"{source.name}: {'trained' if source.trained else 'not fully trained, good for measuring only'}"


def _ports(name: str, graph: GraphEntry) -> Table:
    """Inputs and outputs; neighbours of one form, such as the caches of all layers, share a row."""
    table = _table(f"{name}: inputs and outputs", "", "name", "dtype", "axes")
    for side, ports in (("in", graph.inputs), ("out", graph.outputs)):
        for (dtype, axes), group in itertools.groupby(ports, key=lambda port: (port.dtype, port.axes)):
            same = list(group)
            text = same[0].name if len(same) == 1 else f"{same[0].name} ... {same[-1].name} ({len(same)})"
            table.add_row(side, escape(text), escape(dtype), escape(", ".join(map(str, axes)) or "scalar"))
    return table


def _weights(manifest: Manifest) -> Table:
    table = _table("stored weights", "graph", "dtype", "tensors", "elements", "size")
    for graph, counts in manifest.weights.items():
        for dtype, count in counts.items():
            numbers = (f"{count.num_tensors:,}", f"{count.num_elements:,}", size_text(count.size_bytes))
            table.add_row(escape(graph), escape(dtype), *numbers)
    return table


def _parity(manifest: Manifest) -> Table:
    table = _table("parity with PyTorch", "", "")
    if manifest.parity is None:
        table.add_row("not checked", "exported with --no-check")
    for name, value in flatten(manifest.parity or {}):
        table.add_row(escape(name), escape(f"{value:.3g}" if isinstance(value, float) else str(value)))
    return table


def _files(manifest: Manifest) -> Table:
    table = _table("files", "name", "size", "sha256")
    for name, entry in manifest.files.items():
        table.add_row(escape(name), size_text(entry.size_bytes), entry.sha256[:12])
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=any(columns))
    for column in columns:
        # A name is copied by people, so it stays in one piece; other texts wrap.
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    return table


def size_text(num_bytes: int) -> str:
    """A size in binary units, for people."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def made_text(path: Path, *, size_bytes: int, seconds: float, peak_rss_bytes: int | None) -> str:
    """What a command that makes a folder says at its end."""
    peak = "" if peak_rss_bytes is None else f", peak memory {size_text(peak_rss_bytes)}"
    return f"{path}: {size_text(size_bytes)}, {seconds:.1f} s{peak}"
