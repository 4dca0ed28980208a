"""``blip3v calibrate`` as a user runs it: what it writes and prints, and what it refuses before it writes anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_models import small_config, write_folder

from blip3v import cli
from blip3v.calibration.statistics import Calibration
from blip3v.data.film import make_film
from blip3v.data.film_files import write_films
from blip3v.export.source import folder_source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model folder."""
    return write_folder(tmp_path_factory.mktemp("models") / "model", small_config())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films with their questions, as `blip3v data` writes them."""
    path = tmp_path_factory.mktemp("data") / "films"
    write_films(path, {f"{seed}.mp4": make_film(seed, "train") for seed in (50_000, 50_001)}, height=240)
    return path


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["calibrate", *map(str, args)])
    return int(ended.value.code or 0)


def test_a_calibration_with_its_table_and_the_next_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    assert run("-m", folder, "--clips", 4, "--prompts", 2, "--rows", 16) == 0
    printed = capsys.readouterr()
    name = "blip3v-tiny-tokenlearner-32tok-calibration"
    assert printed.out.startswith(f"{name}: ")
    assert "peak memory" in printed.out
    for words in ("4 clips, 8 prompts", "  vision encoder\n", "  decoder\n", "video_encoder", "rows kept", "_proj"):
        assert words in printed.err
    assert f"next: blip3v export -m {folder} --precision int8 --calibration {name}\n" in printed.err
    made = Calibration.load(Path(name))
    source = folder_source(folder)
    made.check_model(source.hashed_provenance(), source.config)
    assert (made.record.settings.num_rows, made.record.settings.num_extreme) == (16, 2)
    assert made.record.data.seeds == tuple(range(1_000_000, 1_000_004))
    assert run("-m", folder, "--clips", 4, "--prompts", 2) == 2
    assert "already exists; choose another --output, or replace it with --force" in capsys.readouterr().err


def test_json_of_a_folder_of_videos(
    folder: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    assert run("-m", folder, "--data", films, "--prompts", 4, "--rows", 16, "-o", output, "--json", "-q") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    values = json.loads(printed.out)
    assert values["output"] == str(output)
    assert values["data"]["num_prompts"] == 8
    assert sorted(values["data"]["sha256"]) == ["50000.mp4", "50001.mp4", "questions.json"]
    made = Calibration.load(output)
    assert values["data"]["sha256"] == made.record.data.sha256
    assert sum(graph["num_layers"] for graph in values["graphs"].values()) == len(made.record.layers)
    assert values["size_bytes"] == sum(file.stat().st_size for file in output.iterdir())
    before = (output / "statistics.safetensors").read_bytes()
    arguments = ("-m", folder, "--data", films, "--prompts", 4, "--rows", 16, "-o", output, "-q")
    assert run(*arguments, "--seed", 1, "--force") == 0
    assert (output / "statistics.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--clips", "1", "--prompts", "2"], 4, "2 prompts to calibrate on; at least 8 are needed; add questions or "),
        (["--clips", "1", "--prompts", "2"], 4, "or raise --clips or --prompts"),
        (
            ["--data", "FILMS", "--clips", "3"],
            4,
            "asks about 2 videos, and 3 are to be used; add videos, or lower --cl",
        ),
        (["--data", "nowhere"], 4, "nowhere is not a folder"),
        (["--encoder", "gttm"], 2, "holds the encoder tokenlearner, not gttm"),
        (["--preset", "tiny"], 2, "--preset has no effect with --model"),
        (["--rows", "0"], 2, "0 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    arguments: list[str],
    code: int,
    message: str,
    folder: Path,
    films: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new"
    words = [str(films) if word == "FILMS" else word for word in arguments]
    assert run("-m", folder, "-o", output, *words) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
