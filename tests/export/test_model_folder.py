"""Model folders: the round trip, atomicity, and one clear error for each way a folder can be broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export_models import small_config, write_folder
from safetensors.torch import load_file, save_file

from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError, UsageError
from blip3v.folders import shipped_model
from blip3v.model.folder import load_model_folder, open_model_folder, save_model_folder
from blip3v.model.weights import random_model
from blip3v.text.generation import GenerationConfig
from blip3v.video.preprocess import PreprocessorConfig


def test_what_is_saved_is_what_is_loaded(folder: Path) -> None:
    loaded = load_model_folder(folder)
    expected = random_model(small_config()).state_dict()
    assert loaded.config == small_config()
    assert loaded.training is None
    assert not loaded.model.training
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_names_are_the_released_ones(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    assert "vlm.lang_model.model.layers.1.self_attn.qkv_proj.weight" in names
    assert "vlm.vision_tokenizer.temporal_encoder.final_output.mlp.1.weight" in names
    assert all(name.startswith("vlm.") for name in names)


def test_half_precision_keeps_the_time_stamps_in_fp32(tmp_path: Path, folder: Path) -> None:
    read = load_model_folder(folder)
    texts = read.tokenizer.read_text("utf-8"), read.chat_template.read_text("utf-8")
    half = tmp_path / "half"
    save_model_folder(
        half,
        read.model,
        texts[0],
        PreprocessorConfig(image_size=32),
        GenerationConfig(system_prompt=None, max_new_tokens=4),
        texts[1],
        {"seed": 1},
    )
    stored = load_file(half / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds.pop("vlm.vision_tokenizer.temporal_encoder.pos_emb.inv_freq") is torch.float32
    assert set(kinds.values()) == {torch.float16}
    assert json.loads((half / "training.json").read_text()) == {"seed": 1}
    assert all(tensor.dtype is torch.float32 for tensor in load_model_folder(half).model.state_dict().values())


def test_loading_leaves_the_callers_random_state_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load_model_folder(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_an_existing_folder_stays_unless_replacing_is_allowed(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        write_folder(folder, small_config(), seed=1)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [item.name for item in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_missing_file_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ArtifactMissingError, match=missing):
        open_model_folder(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a complete safetensors file"):
        load_model_folder(folder)


def test_every_wrong_tensor_is_listed_in_one_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["vlm.vision_tokenizer.latents"]
    tensors["vlm.extra"] = torch.zeros(1)
    tensors["vlm.lang_model.model.norm.weight"] = torch.zeros(7)
    tensors["vlm.vision_tokenizer.norm.bias"] = tensors["vlm.vision_tokenizer.norm.bias"].long()
    save_file(tensors, path)
    with pytest.raises(ArtifactError) as caught:
        load_model_folder(folder)
    message = str(caught.value)
    assert "missing vlm.vision_tokenizer.latents" in message
    assert "unknown vlm.extra" in message
    assert "vlm.lang_model.model.norm.weight has shape (7,), expected (128,)" in message
    assert "vlm.vision_tokenizer.norm.bias is I64" in message


@pytest.mark.parametrize(
    ("content", "match"),
    [
        pytest.param("{", "JSON", id="not-json"),
        pytest.param('{"schema_version": 1, "nam": 2}', "unknown key 'nam'", id="unknown-key"),
        pytest.param('{"schema_version": 9}', "schema_version 9", id="another-version"),
    ],
)
def test_a_hostile_config_is_one_clear_error(folder: Path, content: str, match: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=match):
        load_model_folder(folder)


def test_a_tokenizer_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", small_config(num_base_tokens=600))
    (folder / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    with pytest.raises(ArtifactError, match="603 tokens"):
        load_model_folder(folder)


def test_an_encoder_that_is_not_shipped_is_named() -> None:
    with pytest.raises(ArtifactMissingError, match="'mean' is shipped"):
        shipped_model("mean")
