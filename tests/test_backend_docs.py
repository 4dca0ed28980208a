"""docs/backends.md: every figure is that of the committed measurement, and every back end has its row."""

from __future__ import annotations

import json
from pathlib import Path

from blip3v.runtime.backends import GRAPHS, backend_names, get_backend

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/backends.md").read_text("utf-8")
NAMES = {"video_encoder=openvino,decoder=onnxruntime": "what `auto` takes"}


def test_every_row_of_the_4b_model_is_what_was_measured() -> None:
    report = json.loads((ROOT / "benchmarks/results/full-size-engines.json").read_text("utf-8"))
    for row in report["summary"]:
        cells = [
            row["precision"],
            NAMES.get(row["backend"], f"`{row['backend']}`"),
            f"{row['open_s']:.1f} s",
            f"{row['peak_rss_bytes'] / 2**30:.1f} GiB",
            f"{row['encode_s']:.1f} s",
            f"{row['prefill_s']:.1f} s",
            f"{row['per_token_s']:.2f} s",
            f"{max(row['cancel_encode_s'], row['cancel_prefill_s']):.2f} s",
        ]
        assert f"| {' | '.join(cells)} |" in PAGE


def test_every_back_end_has_its_rank_on_the_page() -> None:
    for name in backend_names():
        ranks = " | ".join(str(get_backend(name).rank[graph]) for graph in GRAPHS)
        assert f"| `{name}` | {ranks} |" in PAGE


def test_every_row_of_tiny_is_what_was_measured() -> None:
    report = json.loads((ROOT / "benchmarks/results/bench-engines-cpu.json").read_text("utf-8"))
    for row in report["rows"]:
        engines = {row["backend"][graph]["backend"] for graph in GRAPHS}
        name = f"`{engines.pop()}`" if len(engines) == 1 else "what `auto` takes"
        chain, language = row["whole_chain"], row["language_model"]
        cells = [
            str(row["num_video_tokens"]),
            name,
            f"{chain['samples_per_s']:.2f}",
            f"{chain['ratio']:.2f}x",
            f"{language['samples_per_s']:.1f}",
            f"{language['ratio']:.2f}x",
        ]
        assert f"| {' | '.join(cells)} |" in PAGE
