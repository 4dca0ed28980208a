"""How the accuracy report looks in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from blip3v.commands.tables import print_table
from blip3v.export.accuracy import AccuracyReport, EngineAccuracy, LayerFormats
from blip3v.units import format_bytes, format_count, format_ratio

__all__ = ["print_accuracy"]


def print_accuracy(report: AccuracyReport, console: Console) -> None:
    """Prints a row for each back end, the sizes, the formats of all layers, and the layers with the largest errors."""
    print_table(console, _engines(report))
    for line in _lines(report):
        console.print(line, soft_wrap=True, markup=False)
    if report.formats:
        print_table(console, _formats(report))
    if report.worst_layers:
        print_table(console, _layers(report))


def _engines(report: AccuracyReport) -> Table:
    table = Table(
        title=f"accuracy of {report.precision} against {report.reference} in PyTorch fp32",
        title_justify="left",
        box=box.SIMPLE,
    )
    headings = ("video cosine,\nmin", "logit KL,\nmean", "KL,\np99", "KL,\nmax", "same\ntokens", "same\nanswers")
    table.add_column("engine")
    for heading in (*headings, "exact match", "drop, points\n(95 % interval)"):
        table.add_column(heading, justify="right")
    for engine in report.engines:
        table.add_row(engine.backend, *_cells(engine))
    return table


def _cells(engine: EngineAccuracy) -> list[str]:
    answers, films = engine.answers, engine.films
    cells = [
        f"{engine.video.cosine_min:.6f}",
        *(f"{value:.1e}" for value in (answers.kl_mean, answers.kl_p99, answers.kl_max)),
        f"{100 * answers.tokens_agreeing / answers.num_tokens:.2f} %",
        f"{100 * answers.answers_agreeing / answers.num_answers:.2f} %",
    ]
    if films is None:
        return [*cells, "", ""]
    drop = films.drop
    return [
        *cells,
        f"{100 * films.reference:.2f} to {100 * films.graphs:.2f} %",
        f"{drop.points:.2f} ({drop.low:.2f} to {drop.high:.2f})",
    ]


def _lines(report: AccuracyReport) -> list[str]:
    engine = report.engines[0]
    questions, clips = (
        format_count(engine.data.num_prompts, "question"),
        format_count(engine.data.num_clips, "clip"),
    )
    source = "your videos" if engine.data.split is None else f"synthetic films, split {engine.data.split}"
    tokens = format_count(engine.answers.num_tokens, "token")
    lines = [
        f"asked: {questions} about {clips} ({source}), {tokens} compared",
        f"budget: {_budget(report)}",
        f"sizes: {_sizes(report)}",
    ]
    if report.layers is not None:
        layers = report.layers
        lines.append(f"layers: {layers.quantized} of {layers.asked} quantised, {layers.kept} kept in floating point")
    for graph, obeys in report.tensorrt.items():
        verdict = "obeys TensorRT's rules" if obeys else "is for ONNX Runtime and OpenVINO alone"
        lines.append(f"{graph.replace('_', ' ')}: its quantisation {verdict}")
    return [*lines, *(f"not measured on {name}: {why}" for name, why in report.unavailable.items())]


def _budget(report: AccuracyReport) -> str:
    if report.budget is None:
        return "none, as the weights are not trained"
    what = "of exact match lost" if report.budget == "exact match" else "of tokens that differ"
    verdict = "kept" if report.passed else "EXCEEDED"
    points = "point" if report.max_accuracy_drop == 1 else "points"
    return f"{report.max_accuracy_drop:g} {points} {what}, {verdict}"


def _sizes(report: AccuracyReport) -> str:
    sizes = report.sizes
    parts = [
        *((graph.replace("_", " "), sizes.graphs[graph], sizes.fp32_graphs[graph]) for graph in sizes.graphs),
        ("bundle", sizes.bundle, sizes.fp32_bundle),
    ]
    texts = (
        f"{name} {format_bytes(size)}, {format_ratio(fp32 / size)} smaller than fp32 ({format_bytes(fp32)})"
        for name, size, fp32 in parts
    )
    return "; ".join(texts)


def _formats(report: AccuracyReport) -> Table:
    table = Table(title="all linear layers of quantised graphs", title_justify="left", box=box.SIMPLE)
    for heading in ("graph", "layers", "weights", "inputs that share a scale", "computed"):
        table.add_column(heading, justify="right" if heading == "layers" else "left")
    for formats in report.formats:
        computed = ", ".join(formats.computed.values())
        count = f"{formats.num_layers:,}"
        table.add_row(formats.graph.replace("_", " "), count, formats.weights, _group(formats), computed)
    return table


def _group(formats: LayerFormats) -> str:
    if formats.group_size is None:
        return "all" if formats.weights == "int8" else ""
    return f"{formats.group_size}{', the last ones padded' if formats.padded else ''}"


def _layers(report: AccuracyReport) -> Table:
    table = Table(title="layers with the largest errors", title_justify="left", box=box.SIMPLE)
    for heading in ("layer, as --keep takes it", "weights", "relative error", "computed"):
        table.add_column(heading, justify="right" if heading == "relative error" else "left")
    for layer in report.worst_layers:
        computed = ", ".join(layer.computed.values())
        table.add_row(layer.pattern, layer.weights, f"{100 * layer.relative_error:.2f} %", computed)
    return table
