"""Draws a sensitivity table: one bar for each block, the most sensitive at the top."""

from __future__ import annotations

from pathlib import Path

from blip3v.calibration.sensitivity_table import SensitivityTable
from blip3v.publishing import cannot_write, write_file

__all__ = ["CHART_FILE", "draw_chart"]

CHART_FILE = "sensitivity.png"

_COLOURS = {"video_encoder": "#e07a1f", "decoder": "#2a6f97"}
_KEPT_COLOUR, _GREY = "#ced4da", "#495057"
_ROW_INCHES = 0.2
_FLOOR = 1e-12  # nats: nothing is drawn below, since the axis is logarithmic


def draw_chart(table: SensitivityTable, path: Path) -> None:
    """Writes the chart as PNG, the same bytes for the same table.

    Args:
        table: complete.
        path: the file; replaced if it exists.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ArtifactError: the file cannot be written.
    """
    # The extra `eval` brings it, and nothing else here needs it.
    import io

    from matplotlib.figure import Figure

    ranked = table.ranked()
    figure = Figure(figsize=(8, 1.6 + _ROW_INCHES * len(ranked)), dpi=140, layout="constrained")
    axis = figure.add_subplot()
    for row, block in enumerate(ranked):
        form, result = block.lowest
        colour = _KEPT_COLOUR if block.is_kept else _COLOURS[block.graph]
        axis.barh(row, max(result.kl, _FLOOR), height=0.7, color=colour)
        others = [other.kl for name, other in block.measured.items() if name != form]
        axis.plot([max(kl, _FLOOR) for kl in others], [row] * len(others), "|", color=_GREY, markersize=7)
    labels = [f"{block.short_name}, {block.lowest[0]}" for block in ranked]
    axis.set_yticks(range(len(ranked)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("mean KL divergence of the logits from fp32's, nats (|: the block's other format)", fontsize=8)
    axis.set_title(
        f"Each block quantised alone: {table.num_questions} questions about {table.num_clips} videos, "
        f"{table.num_positions} positions\norange: video encoder, blue: decoder, grey: not quantised by default",
        fontsize=8,
        loc="left",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    try:
        write_file(path, png.getvalue())
    except OSError as error:
        raise cannot_write(path, error) from error
