"""docs/encoders.md against the committed report, and the report against the counts of the fact sheet."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blip3v.bundle.precision import PRECISIONS
from blip3v.model.temporal import BUILT_IN

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "benchmarks/results/encoders.json"
PAGE = ROOT / "docs/encoders.md"
TOLERANCES = {name: entry.tolerance for name, entry in PRECISIONS.items() if entry.tolerance is not None}
ROWS = json.loads(REPORT.read_text("utf-8"))["rows"]

# Elements in the authors' state dicts, from the fact sheet of their checkpoints and not from our modules.
AUTHORS_TOTALS = {
    ("gttm", 128): 59_347_552,
    ("tts", 128): 58_411_008,
    ("ttm", 128): 29_887_488,
    ("ttm_m128pos", 128): 29_926_464,
    ("tl", 32): 80_384,
    ("tl", 128): 332_288,
    ("tl_per_frame", 32): 13_856,
    # Memory 128*4*1152, frequencies 576, and twice a norm of 1, 1 -> 8 and 8 -> 4.
    ("mambalike", 128): 589_824 + 576 + 2 * (2 + 8 + 32),
    **{(name, 128): 0 for name in ("mean", "max")},
    **{(name, 32): 0 for name in ("perceiver_only", "st_max")},
    ("raw", 1024): 0,
}
TOKEN_LEARNERS = {16: 41_984, 32: 80_384, 128: 332_288, 256: 725_504}


def test_the_authors_state_dicts_have_the_elements_of_the_fact_sheet() -> None:
    assert {(row["authors"], row["num_video_tokens"]): row["authors_total"] for row in ROWS if row["authors"]} == (
        AUTHORS_TOTALS
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['encoder']} {row['form']} {row['num_video_tokens']}")
def test_the_counts_are_those_of_the_modules(row: dict) -> None:
    import torch  # the rest of this file does not need it

    from blip3v.config import preset
    from blip3v.model.temporal import build_temporal, with_encoder

    config = with_encoder(
        preset("xgen-mm-vid"), row["encoder"], num_video_tokens=row["num_video_tokens"], **row["options"]
    )
    with torch.device("meta"):
        module = build_temporal(config)
    assert config.num_video_tokens == row["num_video_tokens"]
    assert sum(parameter.numel() for parameter in module.parameters()) == row["parameters"]
    assert sum(buffer.numel() for buffer in module.buffers()) == row["buffers"]


def test_attention_adds_one_token_learner() -> None:
    for encoder in ("gttm", "mambalike"):
        (mean,) = (row["parameters"] for row in ROWS if row["encoder"] == encoder and "mean" in row["form"])
        attention = {r["num_video_tokens"]: r["parameters"] - mean for r in ROWS if r["form"] == "attentional pooling"
                     and r["encoder"] == encoder}  # fmt: skip
        assert attention == TOKEN_LEARNERS


def test_every_encoder_was_run_at_every_count_and_within_tolerance() -> None:
    assert {row["encoder"] for row in ROWS} == set(BUILT_IN)
    counts = {name: {row["num_video_tokens"] for row in ROWS if row["encoder"] == name} for name in BUILT_IN}
    for name in ("tokenlearner", "gttm", "ttm", "transformer", "per-frame", "mambalike"):
        assert counts[name] == {16, 32, 128, 256}
    for row in ROWS:
        ran = {(run["precision"], run["num_clips"], run["num_frames"]) for run in row["runs"]}
        assert ran == {(precision, *size) for precision in TOLERANCES for size in ((1, 8), (2, 2))}
        assert all(run["relative_error"] <= TOLERANCES[run["precision"]].relative_error for run in row["runs"])


def test_the_page_holds_the_table_of_the_report(tmp_path: Path) -> None:
    page = tmp_path / "encoders.md"
    page.write_text(re.sub(r"(?s)(<!-- table.*?-->\n).*?(<!-- end)", r"\1\2", PAGE.read_text("utf-8")), "utf-8")
    script = ROOT / "scripts/encoder_table.py"
    subprocess.run([sys.executable, script, "table", REPORT, page], check=True, cwd=ROOT)
    assert page.read_text("utf-8") == PAGE.read_text("utf-8"), f"run: python {script} table {REPORT} {PAGE}"


def test_the_page_documents_every_encoder() -> None:
    documented = re.findall(r"^\| `([a-z-]+)` \| [A-Z]", PAGE.read_text("utf-8"), re.MULTILINE)
    assert tuple(documented) == BUILT_IN
