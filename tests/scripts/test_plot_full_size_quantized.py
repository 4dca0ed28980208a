"""The tables and the picture of what int8 and int4 cost at full size, from a result that is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import plot_full_size_quantized
from scripts.full_size_quantized import COMPARISONS, summary
from scripts.page_tables import END, start_marker

ENCODER_FORMS = ("fp32", "int8", "int8, temporal encoder too")
SECONDS = {  # of the graphs, by form
    "vision": (11.0, 7.0, None),
    "one vision layer": (3.0, 3.0, 2.5),
    "one vision layer, no temporal encoder": (2.0, 2.0, None),
    "whole video encoder": (28.0, 15.0, 14.5),
}


def runs(cuts: tuple[str, ...]) -> list[dict[str, Any]]:
    if cuts == ("decoder",):
        forms = {"fp32": (8.0, 0.5), "int8": (2.0, 0.25), "int4": (4.0, 0.1)}
        return [
            {"round": 0, "cut": "decoder", "form": form, "prefill_s": prefill_s, "decode_s": decode_s}
            for form, (prefill_s, decode_s) in forms.items()
        ]
    return [
        {"round": 0, "cut": cut, "form": form, "encode_s": seconds}
        for cut in cuts
        for form, seconds in zip(ENCODER_FORMS, SECONDS[cut], strict=True)
        if seconds is not None
    ]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    made = {"seconds": 600, "peak_rss_bytes": 2**31, "size_bytes": 10**9}
    steps: list[dict[str, Any]] = [{"name": "calibrate", **made}]
    for precision in ("int8", "int4"):
        asked = {
            "open_s": 2.0,
            "resident_while_asking": {"rss_bytes": 2**32, "file_bytes": 2**30},
            "timings": {"encode_s": 9.0, "prefill_s": 1.0, "per_token_s": 0.125},
        }
        steps += [{"name": f"export {precision}", **made}, {"name": f"ask {precision} on onnxruntime", "median": asked}]
    for comparison in COMPARISONS:
        found = runs(comparison.cuts)
        steps.append({"name": f"{comparison.name} on onnxruntime", "runs": found, "summary": summary(found)})
    report = {"schema_version": 1, "preset": "xgen-mm-vid", "decoder_layers": 12, "vision_layers": 9, "steps": steps}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(report), "utf-8")
    return path


def test_the_page_says_what_each_part_takes(result: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    page.write_text(f"before\n{start_marker(plot_full_size_quantized.SCRIPT)}\nold\n{END}\nafter\n", "utf-8")
    plot_full_size_quantized.main(result, page, picture)
    text = page.read_text("utf-8")
    ask = "| ask int4 | ONNX Runtime |  |  |  | 2.0 s | 4.00 GiB | 1.00 GiB | 9.0 s | 1.00 s | 0.125 s |"
    assert ask in text
    assert "| 12 decoder layers and head, one token | int4 | ONNX Runtime | 100 ms | 5.00x |" in text
    # Eight layers take 8 s less 4 s; 27 of them are 13.5 of 15 s.
    assert "| one of 27 vision layers | int8 | ONNX Runtime | 500 ms | 2.00x | 2.00 to 2.00 | 90 % |" in text
    # Its form is compared with the graph without a temporal encoder in int8: 2.5 s less 2 s.
    assert "| temporal encoder (gttm) | int8, temporal encoder too | ONNX Runtime | 500 ms | 2.00x |" in text
    # 2 s less one layer of 0.5 s; in fp32 2 s less 1 s.
    assert "| patches, resampler, projection | int8 | ONNX Runtime | 1,500 ms | 0.67x | 0.67 to 0.67 | 10 % |" in text
    assert "OpenVINO" not in text
    assert "old" not in text
    assert picture.stat().st_size > 10_000


def test_a_page_without_markers_is_refused(result: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n", "utf-8")
    with pytest.raises(ValueError, match=r"lacks <!-- table: scripts/plot_full_size_quantized.py -->"):
        plot_full_size_quantized.main(result, page, tmp_path / "picture.png")
    assert page.read_text("utf-8") == "nothing\n"
