"""With --quiet a command prints its result and its errors, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fake_bundle import write_fake_bundle

from blip3v import cli
from blip3v.commands.output import quiet_option, talk, talk_console

RECIPE = """
preset = "tiny"
encoder = "mean"
seed = 1
[[stages]]
task = "video-captions"
num_films = 2
num_steps = 1
batch_size = 1
pairs_per_clip = 1
learning_rate = 1e-3
warmup_steps = 1
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_fake_bundle(tmp_path / "bundle")
    (tmp_path / "recipe.toml").write_text(RECIPE, "utf-8")


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        (["inspect", "bundle"], "tiny, tokenlearner"),
        (["verify", "bundle"], "all 11 files are unchanged"),
        (["doctor"], "what can run here"),
        (["completion", "bash", "--install"], "completions/blip3v"),
        (["data", "--count", "1", "--height", "240", "--seed", "98"], "films-test-98: 1 clip, "),
        (["train", "--recipe", "recipe.toml", "-o", "run", "--device", "cpu"], "run/model\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_only_the_result_is_printed(
    arguments: list[str], result: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert cli._run([*arguments, "--quiet"]) == 0
    printed = capfd.readouterr()
    assert result in printed.out
    assert printed.err == ""


def test_errors_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(["verify", "-q", "nowhere"]) == 3
    assert capsys.readouterr().err.startswith("error: nowhere does not exist")


@pytest.mark.parametrize("flag", ["-q", None])
def test_talk_of_both_kinds_is_silenced(flag: str | None) -> None:
    @click.command()
    @quiet_option
    def command() -> None:
        talk("plain")
        talk_console().print("rich")

    result = CliRunner().invoke(command, [] if flag is None else [flag])
    assert result.stderr == ("" if flag else "plain\nrich\n")


def test_no_command_talks_past_the_option() -> None:
    """Talk goes through ``talk`` or ``talk_console``; what does not is an error, which cli.py prints."""
    allowed = {"output.py", "demo.py", "chat.py", "local_models.py"}  # a failed step, a conversation, a question
    for path in Path(cli.__file__).parent.glob("commands/*.py"):
        text = path.read_text("utf-8")
        assert path.name in allowed or not re.search(r"err=True|stderr=True|sys\.stderr", text), path
