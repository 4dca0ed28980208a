"""Checkpoints with real weights: what is read and converted equals what was written, tensor by tensor.

The model is small, in the released form (``small_checkpoint.py``).
"""

from __future__ import annotations

import json
import re
from collections import namedtuple
from math import prod
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from released_files import NUM_BASE_TOKENS, write_released_tokenizer
from safetensors.torch import load_file, save_file
from small_checkpoint import EMBEDDING, SIDE, assert_same_weights, live, made_up, small_shapes, write_small
from synthetic_checkpoint import (
    DTYPES,
    PREPROCESSOR,
)
from torch import Tensor

from blip3v.cli import group
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError, UsageError
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.convert import convert
from blip3v.model.folder import load_model_folder
from blip3v.model.weights import state_shapes
from blip3v.units import format_bytes

pytestmark = pytest.mark.usefixtures("small_preset")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_converted_folder_equals_the_source(tmp_path: Path, dtype: str) -> None:
    source = write_small(tmp_path / "released", dtype=dtype)
    assert len(list(source.glob("*.safetensors"))) > 3, "the test needs several shards"
    checkpoint = open_checkpoint(source)
    converted = convert(checkpoint, tmp_path / "converted")
    written = load_file(converted.path / "model.safetensors")
    shapes = small_shapes()
    expected = {f"vlm.{name}" for name in state_shapes(checkpoint.config)}
    assert set(written) == expected
    for name, value in written.items():
        short = name.removeprefix("vlm.")
        original = live(short, made_up(short, shapes[short])).to(DTYPES[dtype])
        assert torch.equal(checkpoint.weights[short], original), name
        keep = torch.float32 if name.endswith("inv_freq") else DTYPES[dtype]
        assert value.dtype is keep, name
        assert torch.equal(value, original.to(keep)), name


def test_a_converted_folder_is_a_model_folder(released: Path, tmp_path: Path) -> None:
    """It loads strictly, its forward pass is finite, and opening it returns the same as opening the source."""
    source = open_checkpoint(released)
    folder = convert(source, tmp_path / "converted").path
    model = load_model_folder(folder).model
    video = model.encode_video(torch.zeros(1, 3, 3, SIDE, SIDE))
    logits = model(torch.tensor([[5, 610, 7]]), torch.tensor([1]), video)
    assert logits.shape == (1, 2 + 128, NUM_BASE_TOKENS + 3)
    assert bool(logits.isfinite().all())
    again = open_checkpoint(folder)
    assert (again.kind, again.unused_keys) == ("blip3v", ())
    assert (again.config, again.preprocessor, again.generation) == (
        source.config,
        source.preprocessor,
        source.generation,
    )
    assert (again.tokenizer_json, again.chat_template) == (source.tokenizer_json, source.chat_template)
    assert {file.name for file in again.hashed_files} == {file.name for file in folder.iterdir()}


def test_the_config_of_a_fine_tune_is_read(released: Path) -> None:
    text = open_checkpoint(released).config.text
    assert (text.hidden_size, text.num_layers, text.sliding_window, text.vocab_size) == (64, 2, 40, NUM_BASE_TOKENS)


def test_weights_may_be_in_one_file(released: Path, tmp_path: Path) -> None:
    one = write_small(tmp_path / "one")
    shards = sorted(one.glob("*.safetensors"))
    tensors = {name: value for shard in shards for name, value in load_file(shard).items()}
    for file in (*shards, one / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, one / "model.safetensors")
    assert_same_weights(open_checkpoint(one).weights, open_checkpoint(released).weights)


def test_arguments_without_effect_are_refused(released: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokenizer of its own"):
        open_checkpoint(released, tokenizer=released)
    folder = convert(open_checkpoint(released), tmp_path / "converted").path
    for options in ({"encoder": "gttm"}, {"num_frames": 16}):
        with pytest.raises(UsageError, match="sets the encoder and frames"):
            open_checkpoint(folder, **options)


def test_a_tokenizer_of_another_size_is_refused(released: Path) -> None:
    write_released_tokenizer(released, num_pieces=600)
    with pytest.raises(ArtifactError, match=r"615 tokens.*611"):
        open_checkpoint(released)


def test_a_folder_without_processor_is_refused(released: Path) -> None:
    (released / "preprocessor_config.json").unlink()
    with pytest.raises(ArtifactMissingError, match=r"preprocessor_config\.json does not exist"):
        open_checkpoint(released)


def test_the_processor_must_fit_the_vision_encoder(released: Path) -> None:
    (released / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, "size": [384, 384]}))
    with pytest.raises(ConfigError, match="384 pixels a side, and the vision encoder takes 28"):
        open_checkpoint(released)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [28, 56]},
        {"size": 28},
        {"resize_mode": "crop"},
        {"interpolation_mode": "nearest"},
        {"do_resize": False},
    ],
    ids=str,
)
def test_an_unknown_processor_is_refused(released: Path, change: dict[str, object]) -> None:
    values = {**PREPROCESSOR, "size": [SIDE, SIDE], **change}
    (released / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        open_checkpoint(released)


def test_weights_that_fp16_cannot_hold_are_named(tmp_path: Path) -> None:
    norm = "lang_model.model.norm.weight"

    def large(name: str, shape: tuple[int, ...]) -> Tensor:
        return made_up(name, shape) * (1e6 if name == norm else 1.0)

    checkpoint = open_checkpoint(write_small(tmp_path / "released", make=large))
    message = rf"{re.escape(norm)} holds .*e\+06, which F16 cannot represent; choose bf16"
    with pytest.raises(ArtifactError, match=message):
        convert(checkpoint, tmp_path / "converted", dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["released"], "half a folder was left behind"
    convert(checkpoint, tmp_path / "converted", dtype=torch.bfloat16)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    norm = "lang_model.model.norm.weight"
    broken = write_small(
        tmp_path / "released", make=lambda name, shape: made_up(name, shape) * (torch.nan if name == norm else 1.0)
    )
    with pytest.raises(ArtifactError, match=rf"{re.escape(norm)} in .* holds values that are not finite: 64 of 64"):
        convert(open_checkpoint(broken), tmp_path / "converted")


def test_a_full_disk_is_reported_before_the_work(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(ArtifactError, match=r"needs about \d\S* MiB of disk space, and 1\.00 MiB is free"):
        convert(open_checkpoint(released), tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def run(*args: object):
    return CliRunner().invoke(group, ["convert", *map(str, args)], prog_name="blip3v")


def test_the_command_says_what_it_found_and_left_out(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    done = run(released, "-o", folder, "--dtype", "fp16", "--frames", 16, "--resize", "pad")
    assert done.exit_code == 0, done.output
    kept = sum(map(prod, state_shapes(open_checkpoint(folder).config).values()))
    settings = "num_slots 4, pooling mean, num_layers 4, num_heads 8, ff_mult 4"
    assert f"released folder, xgen-mm-vid with gttm ({settings}), 16 frames to 128 tokens" in done.stderr
    assert f"{kept:,} elements in" in done.stderr
    assert "vision_encoder.head.probe" in done.stderr
    assert "belong to no token" in " ".join(done.stderr.split())
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert done.stdout.startswith(f"{folder}: {format_bytes(size)}, ")
    assert done.stderr.endswith(f"next: blip3v export -m {folder}\n")
    opened = open_checkpoint(folder)
    assert (opened.preprocessor.resize_mode, opened.config.num_frames) == ("pad", 16)
    assert {part.dtype for name, part in opened.stored.items() if "inv_freq" not in name} == {"F16"}


def test_the_command_prints_one_object(released: Path, tmp_path: Path) -> None:
    values = json.loads(run(released, "-o", tmp_path / "converted", "--json").stdout)
    assert values["kind"] == "released"
    assert values["unused_keys"][0]["name"] == "vision_encoder.head.probe"
    assert values["config"] == open_checkpoint(released).config.to_dict()
    num_left_out = sum(prod(item["shape"]) for item in values["unused_keys"])
    assert values["num_elements"] + num_left_out == sum(map(prod, small_shapes().values()))
    assert values["size_bytes"] == sum(file.stat().st_size for file in (tmp_path / "converted").iterdir())


def test_only_a_model_folder_is_replaced(released: Path, tmp_path: Path) -> None:
    folder = tmp_path / "converted"
    folder.mkdir()
    (folder / "thesis.txt").write_text("")
    assert "or replace it with `force=True`" in str(run(released, "-o", folder).exception)
    assert "is not a model folder" in str(run(released, "-o", folder, "--force").exception)
    assert (folder / "thesis.txt").exists()
    assert "is the source itself" in str(run(released, "-o", released, "--force").exception)
    (folder / "thesis.txt").unlink()
    folder.rmdir()
    assert run(released, "-o", folder).exit_code == 0
    assert run(released, "-o", folder, "--force", "--dtype", "bf16").exit_code == 0
    assert open_checkpoint(folder).stored[EMBEDDING].dtype == "BF16"


def test_the_history_of_a_trained_folder_is_kept(released: Path, tmp_path: Path) -> None:
    trained = convert(open_checkpoint(released), tmp_path / "trained").path
    (trained / "training.json").write_text('{"recipe": "mine"}')
    half = convert(open_checkpoint(trained), tmp_path / "half", dtype=torch.float16).path
    assert json.loads((half / "training.json").read_text()) == {"recipe": "mine"}
