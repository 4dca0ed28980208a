"""``blip3v eval`` on an untrained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from export_models import small_config, write_folder

from blip3v.commands.eval import command
from blip3v.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "untrained", small_config())


def test_the_command_writes_what_it_prints_and_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    arguments = ["-m", str(folder), "--questions", "8", "-o", str(out), "--json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads(out.read_text())
    assert record["num_questions"] == 8
    again = CliRunner().invoke(command, arguments)
    assert isinstance(again.exception, UsageError)
