"""Writes the tables of quantisation.md from the JSON of full_size_quantized.py, and draws the speed beside fp32.

    python scripts/plot_full_size_quantized.py benchmarks/results/full-size-quantized.json docs/quantization.md \
        docs/quantization-full-size.png

It replaces what is between the page's two markers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws into files, even without a display

import matplotlib.pyplot as plt

from blip3v.config import preset
from blip3v.publishing import write_file
from scripts.full_size_quantized import ratio
from scripts.page_tables import replace_table

SCRIPT = "plot_full_size_quantized.py"
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_ASKED = {"auto": "auto", **ENGINES}
_COLOURS = {"onnxruntime": "#2a6f97", "openvino": "#e07a5f"}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of a part of the model in one form, and how many times fp32 takes as long."""

    part: str
    form: str
    backend: str
    median_s: float
    ratio: float
    lowest: float
    highest: float
    share: float | None = None  # of all such parts, of the whole video encoder in this form


def main(result: Path, page: Path, picture: Path) -> None:
    """Writes both."""
    report = json.loads(result.read_text("utf-8"))
    if report.get("schema_version") != 1:
        raise SystemExit(f"{result} has schema_version {report.get('schema_version')!r}; 1 is read")
    write_file(page, replace_table(page.read_text("utf-8"), SCRIPT, tables(report)))
    draw(list(speeds(report)), picture)


def tables(report: dict[str, Any]) -> str:
    """The tables in Markdown: whole models, and parts beside fp32."""
    return f"{_whole_models(report)}\n\n{_speed_table(list(speeds(report)))}"


def speeds(report: dict[str, Any]) -> Iterator[Speed]:
    """Every part and form on every back end that was measured, fp32 included."""
    steps = {step["name"]: step for step in report["steps"]}
    for backend in ENGINES:
        if f"whole video encoder on {backend}" in steps:
            yield from _decoder(report, steps, backend)
            yield from _video_encoder(report, steps, backend)


def _decoder(report: dict[str, Any], steps: dict[str, Any], backend: str) -> Iterator[Speed]:
    names = {"prefill_s": "prompt of 160 tokens", "decode_s": "one token"}
    for row in steps[f"decoder on {backend}"]["summary"]["graphs"]:
        part = f"{report['decoder_layers']} decoder layers and head, {names[row['figure']]}"
        yield _speed(part, backend, row)


def _video_encoder(report: dict[str, Any], steps: dict[str, Any], backend: str) -> Iterator[Speed]:
    whole = {row["form"]: row for row in steps[f"whole video encoder on {backend}"]["summary"]["graphs"]}
    num_layers = preset(report["preset"]).vision.num_layers
    other = steps[f"other parts on {backend}"]
    layers = _difference(steps[f"vision layers on {backend}"], "vision", report["vision_layers"] - 1)
    for part, times, found in (
        (f"one of {num_layers} vision layers", num_layers, layers),
        ("temporal encoder (gttm)", 1, _difference(other, "one vision layer", 1)),
        ("patches, resampler, projection", 1, _rest(other, layers)),
    ):
        for form, row in found.items():
            yield _speed(part, backend, row, times * row["median_s"] / whole[form]["median_s"])
    for row in whole.values():
        yield _speed("whole video encoder", backend, row)


def _rest(step: dict[str, Any], layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per form, what a graph without temporal encoder takes beside its one vision layer."""
    cut = "one vision layer, no temporal encoder"
    runs = [run for run in step["runs"] if run["cut"] == cut]
    seconds = {
        form: [run["encode_s"] - row["median_s"] for run in runs if run["form"] == form] for form, row in layers.items()
    }
    return {form: {"form": form, **ratio(own, seconds["fp32"])} for form, own in seconds.items()}


def _difference(step: dict[str, Any], cut: str, parts: int) -> dict[str, dict[str, Any]]:
    """Per form, what a graph takes longer than the next, divided by the ``parts`` that it has more.

    The graph with the fewest parts may lack a form; then it is compared in the one that computes all else alike.
    """
    runs = {(run["round"], run["cut"], run["form"]): run["encode_s"] for run in step["runs"]}
    other = next(run["cut"] for run in step["runs"] if run["cut"] != cut)
    found = {}
    rounds = sorted({number for number, _, _ in runs})
    for form in dict.fromkeys(run["form"] for run in step["runs"] if run["cut"] == cut):
        base = form if (rounds[0], other, form) in runs else form.partition(",")[0]
        seconds = [(runs[n, cut, form] - runs[n, other, base]) / parts for n in rounds]
        fp32 = [(runs[n, cut, "fp32"] - runs[n, other, "fp32"]) / parts for n in rounds]
        found[form] = {"form": form, **ratio(seconds, fp32)}
    return found


def _speed(part: str, backend: str, row: dict[str, Any], share: float | None = None) -> Speed:
    return Speed(
        part=part,
        form=row["form"],
        backend=backend,
        median_s=row["median_s"],
        ratio=row["fp32_to_this"],
        lowest=row["lowest"],
        highest=row["highest"],
        share=share,
    )


def _whole_models(report: dict[str, Any]) -> str:
    steps = {step["name"]: step for step in report["steps"]}
    rows = [("calibrate", "", *_made(steps["calibrate"]), "", "", "", "", "", "")]
    for precision in ("int8", "int4"):
        rows.append((f"export {precision}", "", *_made(steps[f"export {precision}"]), "", "", "", "", "", ""))
        for backend, engine in _ASKED.items():
            step = steps.get(f"ask {precision} on {backend}")
            if step is not None:
                rows.append((f"ask {precision}", engine, "", "", "", *_asked(step["median"])))
    head = ("step", "engine", "time", "peak memory", "on disk", "open", "resident", "of which mapped")
    return _markdown((*head, "video", "prompt", "token"), rows, num_left=2)


def _made(step: dict[str, Any]) -> tuple[str, ...]:
    disk = f"{step['size_bytes'] / 1e9:.2f} GB"
    return f"{step['seconds'] / 60:.0f} min", f"{step['peak_rss_bytes'] / 2**30:.1f} GiB", disk


def _asked(median: dict[str, Any]) -> tuple[str, ...]:
    memory, timings = median["resident_while_asking"], median["timings"]
    return (
        f"{median['open_s']:.1f} s",
        f"{memory['rss_bytes'] / 2**30:.2f} GiB",
        f"{memory['file_bytes'] / 2**30:.2f} GiB",
        f"{timings['encode_s']:.1f} s",
        f"{timings['prefill_s']:.2f} s",
        f"{timings['per_token_s']:.3f} s",
    )


def _speed_table(found: Sequence[Speed]) -> str:
    rows = [
        (
            speed.part,
            speed.form,
            ENGINES[speed.backend],
            f"{1000 * speed.median_s:,.0f} ms",
            f"{speed.ratio:.2f}x",
            "" if speed.form == "fp32" else f"{speed.lowest:.2f} to {speed.highest:.2f}",
            "" if speed.share is None else f"{100 * speed.share:.0f} %",
        )
        for speed in sorted(found, key=lambda speed: _order(found, speed))
    ]
    return _markdown(
        ("part", "form", "engine", "median", "beside fp32", "rounds", "of the video encoder"), rows, num_left=3
    )


def _order(found: Sequence[Speed], speed: Speed) -> tuple[int, int]:
    parts = list(dict.fromkeys(other.part for other in found))
    return parts.index(speed.part), list(ENGINES).index(speed.backend)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * num_left + "---:|" * (len(head) - num_left)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def draw(found: Sequence[Speed], picture: Path) -> None:
    """Draws how many times as fast as fp32 each part is, a bar for each engine, with the range over the rounds."""
    shown = [speed for speed in found if speed.form != "fp32"]
    labels = list(
        dict.fromkeys(f"{speed.part}\n{speed.form}" for speed in sorted(shown, key=lambda s: _order(found, s)))
    )
    figure, axis = plt.subplots(figsize=(7.5, 1 + 0.5 * len(labels)), dpi=160)
    for number, (backend, engine) in enumerate(ENGINES.items()):
        own = [speed for speed in shown if speed.backend == backend]
        heights = [labels.index(f"{speed.part}\n{speed.form}") + 0.38 * number - 0.19 for speed in own]
        ratios = [speed.ratio for speed in own]
        errors = [[s.ratio - s.lowest for s in own], [s.highest - s.ratio for s in own]]
        axis.barh(heights, ratios, height=0.36, color=_COLOURS[backend], label=engine, xerr=errors, ecolor="#495057")
    axis.axvline(1, color="#495057", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels, fontsize=7.5)
    axis.invert_yaxis()
    axis.set_xlabel("times as fast as fp32 on the same engine; lines: lowest and highest of the rounds", fontsize=8)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Software": None})  # the same bytes from the same result


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(f"usage: python scripts/{SCRIPT} RESULT.json PAGE.md OUT.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
