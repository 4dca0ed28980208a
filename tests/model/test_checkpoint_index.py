"""What is not a checkpoint: an index that disagrees with its shards, configs of other models, other folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_checkpoint import CONFIG, INDEX, PREFIX, Shapes, released_shapes, write_checkpoint

from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError
from blip3v.model.checkpoint import open_checkpoint

RELEASED = released_shapes()


def few_shapes() -> Shapes:
    """Enough for an index: the errors below come before any shape is checked."""
    return {name: RELEASED[name] for name in list(RELEASED)[:12]}


def edit_index(folder: Path, change) -> Path:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


FIRST = PREFIX + "vision_encoder.embeddings.patch_embedding.weight"


def _drop(index) -> None:
    del index["weight_map"][FIRST]


def _add(index) -> None:
    index["weight_map"]["vlm.ghost"] = index["weight_map"][FIRST]


def _move(index) -> None:
    shards = sorted(set(index["weight_map"].values()))
    index["weight_map"][FIRST] = shards[-1]


def _to(place: object):
    return lambda index: index["weight_map"].update({FIRST: place})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        pytest.param(_drop, ArtifactError, f"{FIRST} of model-00001-.* is not in the index", id="in a shard only"),
        pytest.param(_add, ArtifactError, "vlm.ghost is not in model-00001", id="in the index only"),
        pytest.param(_move, ArtifactError, f"{FIRST} is not in model-0000[2-9]", id="in another shard"),
        pytest.param(_to("gone.safetensors"), ArtifactMissingError, "lacks gone.safetensors", id="no such shard"),
        pytest.param(_to("../x.safetensors"), ArtifactError, "only safetensors files beside it", id="parent folder"),
        pytest.param(_to("/etc/x.safetensors"), ArtifactError, "only safetensors files beside it", id="absolute"),
        pytest.param(_to("a\\x.safetensors"), ArtifactError, "only safetensors files beside it", id="backslash"),
        pytest.param(_to("config.json"), ArtifactError, "only safetensors files beside it", id="another file"),
        pytest.param(_to(7), ArtifactError, "has no weight_map", id="no name"),
        pytest.param(lambda index: index.pop("weight_map"), ArtifactError, "has no weight_map", id="no map"),
    ],
)
def test_index_and_shards_must_agree(tmp_path: Path, change, error: type[Exception], match: str) -> None:
    write_checkpoint(tmp_path, few_shapes(), shard_bytes=8_000_000)
    with pytest.raises(error, match=match):
        open_checkpoint(edit_index(tmp_path, change))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, few_shapes(), shard_bytes=8_000_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    second = shards[1].read_bytes()
    write_checkpoint(tmp_path / "again", {FIRST.removeprefix(PREFIX): RELEASED[FIRST.removeprefix(PREFIX)]})
    shards[1].write_bytes((tmp_path / "again" / "model-00001-of-00001.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=f"{FIRST} is also in model-00002-of-.*, not only in model-00001"):
        open_checkpoint(tmp_path)
    shards[1].write_bytes(second[:-1])
    with pytest.raises(ArtifactError, match=r"model-00002-of-.* is not a complete safetensors file"):
        open_checkpoint(tmp_path)


def test_an_index_may_not_hold_a_name_twice(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, few_shapes())
    text = (tmp_path / INDEX).read_text()
    entry = f'"{FIRST}": "model-00001-of-00001.safetensors"'
    (tmp_path / INDEX).write_text(text.replace(entry, f"{entry}, {entry}"))
    with pytest.raises(ConfigError, match="appears twice"):
        open_checkpoint(tmp_path)


def test_names_without_the_prefix_are_listed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, few_shapes())
    shard = folder / "model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"vlm.', b'"llm.'))
    (folder / INDEX).write_text((folder / INDEX).read_text().replace('"vlm.', '"llm.'))
    with pytest.raises(ArtifactError, match=r"do not begin with vlm\.: unknown llm\.vision_encoder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ({"model_type": "llama"}, "text_config has model_type 'llama', .*allowed: 'phi3'"),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "rope_scaling"),
        ({"model_type": "phi3", "initial_tokenizer_len": "many"}, "initial_tokenizer_len is 'many'"),
        ({"model_type": "phi3", "num_hidden_layers": 31, "num_attention_heads": 7}, "text.num_heads, which is 7"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, text: dict[str, object], match: str) -> None:
    folder = write_checkpoint(tmp_path, few_shapes(), config={**CONFIG, "text_config": text})
    with pytest.raises(ConfigError, match=match):
        open_checkpoint(folder)


def test_what_is_not_a_checkpoint_is_named(tmp_path: Path) -> None:
    kinds = "a released Hugging Face folder"
    with pytest.raises(ArtifactMissingError, match=f"does not exist; allowed.*{kinds}"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ArtifactMissingError, match="is an empty folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ArtifactMissingError, match=r"contains notes\.txt and no config\.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ArtifactError, match=r"does not end in \.pt"):
        open_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ArtifactError, match="model_type 'llava'"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "xgenmm"}')
    with pytest.raises(ArtifactMissingError, match=r"neither model\.safetensors\.index\.json nor model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is a bundle"):
        open_checkpoint(tmp_path)
