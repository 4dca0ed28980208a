"""``blip3v train``."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from blip3v.commands.train import command


def test_a_dry_run_reads_well(tmp_path: Path) -> None:
    text = (
        'preset = "tiny"\nencoder = "gttm"\nseed = 1\nparallel = "fsdp"\n[[stages]]\ntask = "objects"\nnum_films = 10\n'
    )
    text += "num_epochs = 2\nbatch_size_per_device = 2\npairs_per_clip = 1\nlearning_rate = 1e-3\nwarmup_steps = 1\n"
    (tmp_path / "r.toml").write_text(text + "cache_features = true\n", "utf-8")
    result = CliRunner().invoke(command, ["--recipe", str(tmp_path / "r.toml"), "--dry-run"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny, gttm, 128 tokens for 8 frames; fp32, fsdp, without gradient checkpointing"
    assert "lang_model: random" in lines
    assert "stage 1: objects, 10 clips" in lines
    assert any(line.startswith("  trained parameters: ") and "object_head" in line for line in lines)
    assert any(line.startswith("  4 devices: 3 steps of 8 clips") for line in lines)


def test_the_command_trains_and_prints_what_is_next(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'preset = "tiny"\nencoder = "mean"\nseed = 1\n[[stages]]\ntask = "video-captions"\nnum_films = 2\n'
        "num_steps = 1\nbatch_size = 1\npairs_per_clip = 1\nlearning_rate = 1e-3\nwarmup_steps = 1\n"
    )
    out = tmp_path / "run"
    result = CliRunner().invoke(command, ["--recipe", str(path), "-o", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out / "model")
    assert "next: blip3v eval" in result.stderr
