"""``blip3v calibrate --sensitivity``: its table, its picture, and an export that needs them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from export_models import small_config, write_folder
from PIL import Image
from rich.console import Console

from blip3v import cli
from blip3v.calibration.sensitivity_table import Block, Comparison, SensitivityTable
from blip3v.commands.sensitivity import print_sensitivity


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["calibrate", *map(str, args)])
    return int(ended.value.code or 0)


def test_a_scan_of_a_new_calibration_and_of_one_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = write_folder(tmp_path / "model", small_config()), tmp_path / "made"
    arguments = ("-m", folder, "--clips", 2, "--prompts", 4, "--rows", 16, "-o", output, "--sensitivity")
    assert run(*arguments, "--json", "-q") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    values = json.loads(printed.out)
    assert "--precision mixed" in values["next"]
    scan = values["sensitivity"]
    assert [row["kl"] for row in scan["ranked"]] == sorted((row["kl"] for row in scan["ranked"]), reverse=True)
    assert scan["together"]["kl"] > 0
    assert Image.open(scan["chart"]).size[0] > 500
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    assert set(before) == {"calibration.json", "statistics.safetensors", "sensitivity.json", "sensitivity.png"}

    assert run(*arguments, "-q") == 0  # everything is there: nothing is measured again
    shown = capsys.readouterr().out
    assert "each block quantised alone" in shown
    assert "all blocks that are quantised by default at once" in shown
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before
    assert run(*arguments, "--seed", 1) == 2
    assert "was made of other data" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_longest_bar_is_the_most_sensitive_block(encoding: str) -> None:
    kls = {"lang_model.model.layers.0": 0.1, "lang_model.model.layers.1": 0.05, "lang_model.lm_head": 0.0}
    blocks = tuple(
        Block(
            graph="decoder",
            name=name,
            layers=(f"{name}.mlp.down_proj",),
            format="int4-block",
            measured={"int4-block": Comparison(kl=kl, agreement=0.5)},
        )
        for name, kl in kls.items()
    )
    table = SensitivityTable(
        statistics_sha256="",
        recipe={},
        group_size=32,
        num_clips=1,
        num_questions=1,
        num_positions=2,
        blocks=blocks,
        together=Comparison(kl=0.2, agreement=0.5),
    )
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_sensitivity(Console(file=out, width=80), table)
    out.seek(0)
    lines = [line.split() for line in out.read().splitlines() if "int4-block" in line]
    mark = "█" if encoding == "utf-8" else "#"
    assert [line[:2] for line in lines] == [["decoder", "0"], ["decoder", "1"], ["head", "int4-block"]]
    assert [sum(word.count(mark) for word in line) for line in lines] == [20, 10, 0]
