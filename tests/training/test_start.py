"""What a run starts from: towers as the transformers library saves them, all kinds of checkpoint, and refusals."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from model.synthetic_checkpoint import GENERATION, PREPROCESSOR
from released_files import write_released_tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    Phi3Config,
    Phi3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from blip3v.config import PRESETS, ModelConfig, TemporalConfig, preset
from blip3v.errors import ArtifactError, ArtifactMissingError, Blip3vError, ConfigError, UsageError
from blip3v.folders import shipped_model
from blip3v.model import Blip3Video
from blip3v.model.folder import load_model_folder, save_model_folder
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import RandomWeights, empty_model, fill, state_shapes
from blip3v.text import GenerationConfig
from blip3v.training import Recipe, Stage
from blip3v.training.broken import BrokenClip
from blip3v.training.loop import StageSummary
from blip3v.training.parallel import load_weights
from blip3v.training.recipe import PlannedStage
from blip3v.training.run import TrainOptions, train
from blip3v.training.start import Start, find_start
from blip3v.video.preprocess import PreprocessorConfig

TINY = preset("tiny")
STAGE = Stage(
    task="instructions",
    num_films=2,
    num_steps=1,
    batch_size=1,
    pairs_per_clip=1,
    learning_rate=1e-3,
    warmup_steps=1,
)
BASE = Recipe(preset="tiny", encoder="gttm", seed=3, stages=(STAGE,))


def siglip_config(**changes: Any) -> SiglipVisionConfig:
    vision = TINY.vision
    values: dict[str, Any] = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    return SiglipVisionConfig(**(values | changes))


def phi3_config(**changes: Any) -> Phi3Config:
    text = TINY.text
    values: dict[str, Any] = {
        "vocab_size": 640,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "max_position_embeddings": text.max_context,
        "original_max_position_embeddings": text.max_context,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Phi3Config(**(values | changes))


def perturb(model: torch.nn.Module) -> None:
    """Changes the ones and zeros of a new model in every vector, so that a swap shows."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> tuple[SiglipVisionModel, Path]:
    torch.manual_seed(1)
    model, folder = SiglipVisionModel(siglip_config()).eval(), tmp_path_factory.mktemp("siglip")
    perturb(model)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phi3ForCausalLM, Path]:
    """A language model folder with several shards and a tokenizer."""
    torch.manual_seed(2)
    model, folder = Phi3ForCausalLM(phi3_config()).eval(), tmp_path_factory.mktemp("phi3")
    perturb(model)
    model.save_pretrained(folder, max_shard_size="1MB")
    assert (folder / "model.safetensors.index.json").is_file()
    write_released_tokenizer(folder)
    return model, folder


def towers(vision: Path, language: Path, **changes: object) -> Recipe:
    return dataclasses.replace(BASE, vision=str(vision), language=str(language), **changes)  # type: ignore[arg-type]


def model_of(start: Start) -> Blip3Video:
    assert set(start.weights) == set(state_shapes(start.config))
    model = empty_model(start.config)
    fill(model, start.weights)
    return model


def test_two_towers_compute_what_the_library_computes(
    vision: tuple[SiglipVisionModel, Path], language: tuple[Phi3ForCausalLM, Path]
) -> None:
    torch.manual_seed(4)
    start = find_start(towers(vision[1], language[1]), None)
    model = model_of(start)
    frames, ids = torch.rand(1, 2, 3, 64, 64) * 2 - 1, torch.randint(0, 608, (2, 9))
    with torch.no_grad():
        ours, theirs = model.features(frames)[0], vision[0](pixel_values=frames[0]).last_hidden_state
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        logits = model.lang_model(model.lang_model.embed(ids))
        torch.testing.assert_close(
            logits[..., :608], language[0](input_ids=ids).logits[..., :608], atol=1e-4, rtol=1e-4
        )
    assert logits.shape[-1] == 611
    assert start.origin == {
        "vision_encoder": str(vision[1]),
        "vision_tokenizer": "random",
        "temporal_encoder": "random",
        "lang_model": str(language[1]),
    }


def test_what_no_tower_contains_is_drawn_from_the_seed_and_biases_are_zero(
    vision: tuple[SiglipVisionModel, Path], language: tuple[Phi3ForCausalLM, Path]
) -> None:
    starts = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        starts.append(dict(find_start(towers(vision[1], language[1]), None).weights))
    added = starts[0]["lang_model.model.embed_tokens.additional_embedding.weight"]
    assert 0.015 < added.std() < 0.025
    assert not starts[0]["lang_model.lm_head.bias"].any()
    assert not starts[0]["lang_model.lm_head.additional_fc.bias"].any()
    drawn = [name for name, x in starts[0].items() if not torch.equal(x, starts[2][name])]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert {name.split(".")[0] for name in drawn} == {"vision_tokenizer", "lang_model"}
    assert "vision_tokenizer.temporal_encoder.initial_memory" in drawn


def test_a_siglip_with_its_text_tower_and_pooling_head_gives_the_same_weights(
    tmp_path: Path, language: tuple[Phi3ForCausalLM, Path]
) -> None:
    text = SiglipTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    model = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=siglip_config().to_dict())).eval()
    perturb(model)
    model.save_pretrained(tmp_path)
    ours = model_of(find_start(towers(tmp_path, language[1]), None))
    frames = torch.rand(1, 1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        theirs = model.vision_model(pixel_values=frames[0]).last_hidden_state
        torch.testing.assert_close(ours.features(frames)[0], theirs, atol=1e-5, rtol=1e-5)


def edited(source: Path, folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a single-file folder with edited tensors."""
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda x: x.pop(next(n for n in x if n.endswith("layers.2.mlp.fc1.bias"))),
            r"missing \S+layers.2.mlp.fc1.bias",
        ),
        (lambda x: x.update(extra=torch.zeros(1)), r"unknown \S*extra"),
        (
            lambda x: x.update({n: x[n].T.contiguous() for n in list(x) if n.endswith("layers.0.mlp.fc1.weight")}),
            r"layers.0.mlp.fc1.weight has shape \(96, 256\), expected \(256, 96\)",
        ),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_a_tower_with_other_tensors_is_refused_by_name(
    tmp_path: Path,
    vision: tuple[SiglipVisionModel, Path],
    language: tuple[Phi3ForCausalLM, Path],
    edit: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    folder = edited(vision[1], tmp_path / "edited", edit)
    with pytest.raises(ArtifactError, match=message):
        find_start(towers(folder, language[1]), None)


def rewritten(source: Path, folder: Path, **values: object) -> Path:
    """A copy of a folder with other values in its config.json."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | values), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("tower", "values", "message"),
    [
        ("vision", {"num_attention_heads": 4}, "num_attention_heads is 4; the recipe's preset has 6"),
        ("vision", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("language", {"sliding_window": 16}, "sliding_window is 16; the recipe's preset has None"),
        ("language", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta is 500000.0"),
    ],
    ids=["heads", "activation", "window", "rope"],
)
def test_a_tower_that_computes_something_else_is_refused(
    tmp_path: Path,
    vision: tuple[SiglipVisionModel, Path],
    language: tuple[Phi3ForCausalLM, Path],
    tower: str,
    values: dict[str, object],
    message: str,
) -> None:
    """Shapes do not show these settings."""
    folders = {"vision": vision[1], "language": language[1]}
    folders[tower] = rewritten(folders[tower], tmp_path / "other", **values)
    with pytest.raises(ArtifactError, match=message):
        find_start(towers(folders["vision"], folders["language"]), None)


def test_the_number_of_embedding_rows_follows_the_language_folder(
    tmp_path: Path, vision: tuple[SiglipVisionModel, Path]
) -> None:
    tokenizer = str(write_released_tokenizer(tmp_path / "tokenizer"))
    for rows in (608, 700, 600):
        Phi3ForCausalLM(phi3_config(vocab_size=rows)).save_pretrained(tmp_path / str(rows))
    for rows in (608, 700):
        start = find_start(towers(vision[1], tmp_path / str(rows), tokenizer=tokenizer), None)
        assert start.config.text.vocab_size == rows
        assert model_of(start).lang_model.lm_head.bias.shape == (rows,)
    with pytest.raises(ConfigError, match="600 embedding rows; the preset needs 608"):
        find_start(towers(vision[1], tmp_path / "600", tokenizer=tokenizer), None)


def test_a_language_folder_without_a_tokenizer_that_fits_says_so(
    tmp_path: Path, vision: tuple[SiglipVisionModel, Path]
) -> None:
    Phi3ForCausalLM(phi3_config()).save_pretrained(tmp_path)
    with pytest.raises(ArtifactMissingError, match="tokenizer"):
        find_start(towers(vision[1], tmp_path), None)
    start = find_start(towers(vision[1], tmp_path, tokenizer=str(shipped_model("gttm"))), None)
    assert start.chat.tokenizer.num_tokens == 611


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with 608 embedding rows, as written by `blip3v convert`; the preset has 640."""
    config = with_encoder(dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=608)), "gttm")
    model = empty_model(config)
    fill(model, RandomWeights(config))
    path = tmp_path_factory.mktemp("folders") / "model"
    save_model_folder(
        path,
        model,
        (shipped_model("gttm") / "tokenizer.json").read_text("utf-8"),
        PreprocessorConfig(image_size=64),
        GenerationConfig(system_prompt=None, max_new_tokens=8),
        "{{ messages }}",
        dtype=None,
    )
    return path


def test_a_checkpoint_is_copied_whole_and_its_rows_are_kept(folder: Path) -> None:
    start = find_start(BASE, folder)
    assert start.config.text.vocab_size == 608
    assert set(start.origin.values()) == {str(folder)}
    want = load_model_folder(folder).model.state_dict()
    assert all(torch.equal(start.weights[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "changes",
    [{"encoder": "tokenlearner"}, {"encoder": "gttm", "temporal": {"num_slots": 2}}, {"encoder": "ttm"}],
    ids=["tokenlearner", "gttm-2-slots", "ttm"],
)
def test_another_temporal_encoder_starts_as_the_authors_start_it(folder: Path, changes: dict[str, object]) -> None:
    """The rest is the checkpoint's; the encoder is initialised by torch, without the gain for small models."""
    recipe = dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]
    torch.manual_seed(7)
    start = find_start(recipe, folder)
    model, want = model_of(start), load_model_folder(folder).model.state_dict()
    inside = "vision_tokenizer.temporal_encoder."
    assert all(torch.equal(x, want[name]) for name, x in model.state_dict().items() if not name.startswith(inside))
    assert start.origin["temporal_encoder"].startswith("random, since")
    linear = [x for name, x in model.named_parameters() if name.startswith(inside) and ".mlp.3.weight" in name]
    assert linear
    for weight in linear:
        assert weight.abs().max() <= weight.shape[1] ** -0.5 + 1e-6  # torch's uniform initialisation of a Linear


def test_the_same_encoder_for_more_frames_is_copied(folder: Path) -> None:
    start = find_start(dataclasses.replace(BASE, num_frames=16), folder)
    assert start.config.num_frames == 16
    assert start.origin["temporal_encoder"] == str(folder)


def test_frames_are_resized_as_the_checkpoint_or_the_recipe_says(folder: Path) -> None:
    assert find_start(BASE, folder).preprocessor.resize_mode == "squash"
    assert find_start(dataclasses.replace(BASE, resize_mode="pad"), folder).preprocessor.resize_mode == "pad"


def test_a_checkpoint_of_another_preset_is_refused_with_the_size(folder: Path) -> None:
    recipe = dataclasses.replace(BASE, preset="xgen-mm-vid")
    with pytest.raises(ConfigError, match=r"vision.image_size is 64 in .* and 384 in preset xgen-mm-vid"):
        find_start(recipe, folder)


@pytest.mark.parametrize(
    ("changes", "init", "message"),
    [
        ({"init": "the image model"}, None, "starts from 'the image model'"),
        ({"preset": "xgen-mm-vid"}, None, "name a checkpoint as `init`"),
        ({"vision": "a", "language": "b"}, "c", "leave `init` out"),
        ({}, "nowhere", "nowhere does not exist"),
    ],
    ids=["named", "no-tokenizer", "both", "nowhere"],
)
def test_an_unusable_start_says_what_to_name(changes: dict[str, str], init: str | None, message: str) -> None:
    recipe = dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]
    with pytest.raises(Blip3vError, match=message):
        find_start(recipe, None if init is None else Path(init))


def test_a_pt_file_needs_the_folder_of_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(UsageError, match="tokenizer in the recipe"):
        find_start(BASE, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": "a"}, "belong together"),
        ({"vision": "a", "language": "b", "start": "spread"}, "leave it out"),
        ({"vision": "a", "language": "b", "init": "tiny-base"}, "leave one out"),
    ],
    ids=["one-tower", "spread", "init"],
)
def test_a_recipe_whose_starts_exclude_each_other_is_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **changes)  # type: ignore[arg-type]


class Counted(Mapping[str, torch.Tensor]):
    """Weights that count how many of them are in memory."""

    def __init__(self, config: ModelConfig) -> None:
        self.random, self.alive, self.most = RandomWeights(config), 0, 0

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.random[name]
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self.forget)
        return tensor

    def forget(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.random)

    def __len__(self) -> int:
        return len(self.random)


def test_a_model_takes_its_weights_one_at_a_time_and_shares_none() -> None:
    """The 4B model's weights are 18 GB and do not fit twice. A file that changes later must not change the run."""
    weights, model = Counted(TINY), empty_model(TINY)
    load_weights(model, weights, torch.device("cpu"))
    assert weights.most == 1
    state = model.state_dict()
    assert all(torch.equal(state[name], weights.random[name]) for name in weights)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


class Silent:
    def start(self, origin: dict[str, str]) -> None: ...
    def stage(self, index: int, planned: PlannedStage) -> None: ...
    def features(self, done: int, total: int) -> None: ...
    def broken(self, clip: BrokenClip) -> None: ...
    def end(self, summary: StageSummary) -> None: ...
    def step(self, step: int, num_steps: int, loss: float) -> None: ...


def test_a_native_checkpoint_is_fine_tuned_into_a_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small version of the authors' .pt: the vision encoder stays, the rest moves by one step of AdamW."""
    temporal = TemporalConfig(encoder="tokenlearner", num_video_tokens=32)
    small = dataclasses.replace(TINY, name="xgen-mm-vid", temporal=temporal)
    monkeypatch.setitem(PRESETS, "xgen-mm-vid", small)
    weights = dict(RandomWeights(small))
    torch.save(weights, tmp_path / "model.pt")
    folder = write_released_tokenizer(tmp_path / "tokenizer")
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"size": [64, 64]}), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION), "utf-8")
    recipe = dataclasses.replace(
        BASE, preset="xgen-mm-vid", encoder="tokenlearner", tokenizer=str(folder), gradient_checkpointing=True
    )
    options = TrainOptions(output=tmp_path / "run", init=tmp_path / "model.pt", device="cpu")
    trained = load_model_folder(train(recipe, options, Silent()))
    assert trained.config.text.vocab_size == 608
    state = trained.model.state_dict()
    for name, tensor in state.items():
        before = weights[name][: tensor.shape[0]].half().float()
        if name.startswith("vision_encoder."):
            assert torch.equal(tensor, before), name
        else:
            torch.testing.assert_close(tensor, before, atol=2e-3, rtol=1e-3)
    moved = {
        name.split(".")[0]
        for name, x in state.items()
        if not torch.equal(x, weights[name][: x.shape[0]].half().float())
    }
    assert moved == {"vision_tokenizer", "lang_model"}
