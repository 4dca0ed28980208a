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
from blip3v.commands.sensitivity import print_sensitivity, summary


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["calibrate", *map(str, args)])
    return int(ended.value.code or 0)


def test_a_scan_writes_its_table_and_picture_beside_the_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = write_folder(tmp_path / "model", small_config()), tmp_path / "made"
    arguments = ("-m", folder, "--clips", 2, "--prompts", 4, "--rows", 8, "-o", output, "--sensitivity", "-q")
    assert run(*arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "each block quantised alone" in printed.out
    assert "all blocks that are quantised by default at once" in printed.out
    names = {"calibration.json", "statistics.safetensors", "sensitivity.json", "sensitivity.png"}
    assert {file.name for file in output.iterdir()} == names
    with Image.open(output / "sensitivity.png") as chart:
        assert chart.size[0] > 500
    # An existing calibration is kept, so it must be of the same data.
    assert run(*arguments, "--seed", 1) == 2
    assert "was made of other data" in capsys.readouterr().err
    # Once other rows were taken for those that the calibration holds.
    assert run(*arguments, "--rows", 16) == 2
    error = capsys.readouterr().err
    assert "keeps 8 inputs of each layer, drawn with seed 0; 16 with seed 0 were asked for" in error
    assert "go on with --rows 8 and --seed 0, or replace it with --force" in error


def toy_table() -> SensitivityTable:
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
    return SensitivityTable(
        statistics_sha256="",
        recipe={},
        group_size=32,
        num_clips=1,
        num_questions=1,
        num_positions=2,
        blocks=blocks,
        together=Comparison(kl=0.2, agreement=0.5),
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_longest_bar_is_the_most_sensitive_block(encoding: str) -> None:
    table = toy_table()
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_sensitivity(Console(file=out, width=80), table)
    out.seek(0)
    lines = [line for line in out.read().splitlines() if "int4-block" in line]
    mark = "█" if encoding == "utf-8" else "#"
    shown = [next(name for name in ("decoder 0", "decoder 1", "head") if name in line) for line in lines]
    assert shown == ["decoder 0", "decoder 1", "head"]
    assert [line.count(mark) for line in lines] == [20, 10, 0]


def test_the_json_of_a_scan(tmp_path: Path) -> None:
    values = summary(toy_table(), tmp_path)
    assert values["table"] == str(tmp_path / "sensitivity.json")
    assert values["together"] == {"kl": 0.2, "agreement": 0.5}
    assert values["ranked"][0] == {
        "block": "lang_model.model.layers.0",
        "format": "int4-block",
        "kl": 0.1,
        "agreement": 0.5,
    }
    assert [row["kl"] for row in values["ranked"]] == [0.1, 0.05, 0.0]
    assert json.loads(json.dumps(values)) == values
