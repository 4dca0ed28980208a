"""Which tensors a checkpoint may hold: all 768 released names, every temporal encoder, and what is rejected by name.

The folders are sparse: names, shapes and sizes are the released ones, but the disk holds only headers.
"""

from __future__ import annotations

import functools
import json
import re
import runpy
import sys
from math import prod
from pathlib import Path

import pytest
from released_files import RELEASED_NUM_PIECES, write_released_tokenizer
from synthetic_checkpoint import (
    FORMS,
    INDEX,
    TEMPORAL,
    Shapes,
    released_shapes,
    token_learner,
    with_form,
    write_checkpoint,
)

from blip3v import strict_json
from blip3v.config import ModelConfig, preset
from blip3v.errors import ArtifactError, Blip3vError, UsageError
from blip3v.model import released_names
from blip3v.model.checkpoint import Checkpoint, open_checkpoint
from blip3v.model.released_names import Fit, defaults, fit
from blip3v.model.temporal import temporal_settings
from blip3v.model.weight_file import TensorInfo
from blip3v.model.weights import state_shapes

NUM_ELEMENTS = 4_418_604_771
NUM_BYTES = 17_674_419_084
WITHOUT_TEMPORAL = 4_359_257_219
RELEASED = released_shapes()
WEIGHTLESS = ("perceiver", "mean", "max", "space-time-pool", "none", "single-frame")
EMBEDDING = "lang_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("released"), RELEASED)
    return write_released_tokenizer(folder, num_pieces=RELEASED_NUM_PIECES)


@pytest.fixture(scope="module")
def checkpoint(sparse: Path) -> Checkpoint:
    return open_checkpoint(sparse)


@pytest.fixture(autouse=True)
def shapes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the 4B model are needed a thousand times here."""
    monkeypatch.setattr(released_names, "state_shapes", _cached_shapes)


def _cached_shapes(config):
    return _shapes_of(json.dumps(config.to_dict()))


@functools.cache
def _shapes_of(config_json):
    return state_shapes(strict_json.from_dict(ModelConfig, json.loads(config_json), "a config of this test"))


def fitted(shapes: Shapes, *, encoder: str | None = None, num_frames: int = 8, dtype: str = "F32") -> Fit:
    found = {name: TensorInfo(shape, dtype) for name, shape in shapes.items()}
    return fit(found, defaults(found), where="here", encoder=encoder, num_frames=num_frames)


def renamed(shapes: Shapes, old: str, new: str) -> Shapes:
    return {new if name == old else name: shape for name, shape in shapes.items()}


def num_kept(result: Fit) -> int:
    return sum(map(prod, state_shapes(result.config).values()))


def num_left_out(result: Fit | Checkpoint) -> int:
    return sum(prod(item.shape) for item in result.unused_keys)


def test_the_folder_is_the_released_one_to_the_byte(sparse: Path) -> None:
    """Sizes as listed on the page of the released files: 4.95, 4.98, 4.98 and 2.76 GB, index 76 kB."""
    shards = sorted(sparse.glob("*.safetensors"))
    assert [round(shard.stat().st_size / 1e9, 2) for shard in shards] == [4.95, 4.98, 4.98, 2.76]
    assert (sparse / INDEX).stat().st_size == 75_973
    index = json.loads((sparse / INDEX).read_text())
    assert index["metadata"]["total_size"] == NUM_BYTES
    assert len(index["weight_map"]) == 768
    assert sum(file.stat().st_blocks * 512 for file in sparse.iterdir()) < 2_000_000, "the holes take disk space"


def test_the_script_writes_a_synthetic_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, script = tmp_path / "synthetic", Path(__file__).parents[2] / "scripts" / "synthetic_checkpoint.py"
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [str(script), str(folder), "--sparse", "--form", "tokenlearner", "--dtype", "F16"])
    runpy.run_path(str(script), run_name="__main__")
    assert "4,359,337,603 elements, 8,718,675,206 bytes" in capsys.readouterr().out
    opened = open_checkpoint(folder)
    assert (opened.config.temporal.encoder, opened.config.num_video_tokens) == ("tokenlearner", 32)
    assert {part.dtype for part in opened.stored.values()} == {"F16"}
    with pytest.raises(SystemExit, match="exists; choose another folder"):
        runpy.run_path(str(script), run_name="__main__")


def test_every_released_tensor_has_its_place_or_a_reason(checkpoint: Checkpoint) -> None:
    kept = sum(part.num_elements for part in checkpoint.stored.values())
    assert kept + num_left_out(checkpoint) == NUM_ELEMENTS
    whole = {item.name for item in checkpoint.unused_keys if RELEASED[item.name] == item.shape}
    assert set(checkpoint.weights) | whole == set(RELEASED)
    assert set(checkpoint.weights) & whole == set()
    assert set(checkpoint.weights) == set(state_shapes(checkpoint.config))


def test_what_is_left_out_is_named(checkpoint: Checkpoint) -> None:
    parts: dict[str, int] = {}
    for item in checkpoint.unused_keys:
        parts[item.why] = parts.get(item.why, 0) + prod(item.shape)
    assert parts == {
        "the pooling head: all patch tokens are used, not their pool": 15_238_352,
        "the read layer of grouped memories is built and never called": 332_288,
        "rows 32012 to 32063 belong to no token": 52 * (3072 + 3072 + 1),
    }


def test_the_released_model_is_what_its_config_and_tensors_say(checkpoint: Checkpoint) -> None:
    config, released = checkpoint.config, preset("xgen-mm-vid")
    assert checkpoint.kind == "released"
    assert (config.vision, config.resampler, config.num_frames) == (released.vision, released.resampler, 8)
    assert config.temporal == released.temporal
    assert (config.text.vocab_size, config.text.num_logits) == (32012, 32015)
    assert (checkpoint.preprocessor.image_size, checkpoint.preprocessor.resize_mode) == (384, "squash")
    assert (checkpoint.generation.max_new_tokens, checkpoint.generation.stop_token) == (1024, "<|end|>")
    assert {file.name for file in checkpoint.hashed_files} == {file.name for file in checkpoint.path.iterdir()}


def test_dead_rows_are_not_read(checkpoint: Checkpoint) -> None:
    assert checkpoint.weights[EMBEDDING].shape == (32012, 3072)
    assert checkpoint.weights["lang_model.lm_head.bias"].shape == (32012,)
    assert checkpoint.weights["lang_model.lm_head.additional_fc.weight"].shape == (3, 3072)


@pytest.mark.parametrize("change", ["renamed", "missing", "transposed", "cut"])
def test_a_change_to_any_tensor_is_noticed(change: str) -> None:
    """All 768, one at a time: the error names the tensor or, if it was renamed, its new name."""
    for name, shape in RELEASED.items():
        wrong = {
            "renamed": renamed(RELEASED, name, f"{name}_new"),
            "missing": {key: value for key, value in RELEASED.items() if key != name},
            "transposed": RELEASED | {name: shape[::-1]},
            "cut": RELEASED | {name: (shape[0] - 1, *shape[1:])},
        }[change]
        if wrong == RELEASED:
            continue  # transposing does not change the shape of a vector or a square matrix
        with pytest.raises(ArtifactError) as caught:
            fitted(wrong)
        message = str(caught.value)
        short = name.removeprefix("vision_tokenizer.")
        assert short in message or f"{name}_new" in message, f"{name}: {message}"


def test_each_kind_of_wrong_tensor_is_listed_by_name() -> None:
    norm, extra = "lang_model.model.norm.weight", "lang_model.model.layers.32.mlp.down_proj.weight"
    query = "vision_tokenizer.layers.3.0.to_q.weight"
    wrong = renamed(RELEASED, norm, "lang_model.model.final_norm.weight") | {extra: (3072, 8192), query: (1152, 1536)}
    with pytest.raises(ArtifactError) as caught:
        fitted(wrong)
    message = str(caught.value)
    assert f"missing {norm}" in message
    assert "unknown lang_model.model.final_norm.weight" in message
    assert f"unknown {extra}" in message
    assert f"{query} has shape (1152, 1536), expected (1536, 1152)" in message


def test_a_long_list_is_cut_and_counted() -> None:
    wrong = {name: shape for name, shape in RELEASED.items() if ".layers.5." not in name}
    num_gone = len(RELEASED) - len(wrong)
    with pytest.raises(ArtifactError, match=rf"and {num_gone - 8} more$"):
        fitted(wrong)


def test_weights_of_another_dtype_are_refused() -> None:
    found = {name: TensorInfo(shape, "F32") for name, shape in RELEASED.items()}
    found["lang_model.model.norm.weight"] = TensorInfo((3072,), "I64")
    with pytest.raises(ArtifactError, match=r"lang_model\.model\.norm\.weight is I64, expected one of F32, F16, BF16"):
        fit(found, preset("xgen-mm-vid"), where="here", encoder=None, num_frames=8)


def test_a_vision_encoder_saved_without_its_pooling_head_is_fine() -> None:
    bare = {name: shape for name, shape in RELEASED.items() if not name.startswith("vision_encoder.head.")}
    assert num_kept(fitted(bare)) == num_kept(fitted(RELEASED))


# form -> encoder, tokens for 8 frames, elements of the temporal encoder (fact sheet), settings in its config
KNOWN: dict[str, tuple[str, int, int, dict[str, object]]] = {
    "gttm": ("gttm", 128, 59_347_552, {"pooling": "mean", "num_layers": 4, "num_slots": 4}),
    "gttm-attention": ("gttm", 32, 59_347_552 + 80_384, {"pooling": "attention", "num_layers": 4}),
    "tokenlearner": ("tokenlearner", 32, 80_384, {"time_stamps": False}),
    "tokenlearner-128": ("tokenlearner", 128, 332_288, {"time_stamps": False}),
    "per-frame": ("per-frame", 32, 13_856, {}),
    "transformer": ("transformer", 128, 58_411_008, {"num_layers": 4}),
    "ttm": ("ttm", 128, 29_887_488, {"memory_output": False, "time_stamps": False, "step_tokens": 16}),
    "ttm-memory": ("ttm", 128, 29_926_464, {"memory_output": True, "time_stamps": True, "memory_tokens": 128}),
    "mambalike": ("mambalike", 128, 128 * 4 * 1152 + 576 + 2 * (2 + 8 + 32), {"num_slots": 4}),
}


@pytest.mark.parametrize("form", KNOWN)
def test_the_temporal_encoder_is_found_by_its_tensors(form: str) -> None:
    encoder, num_video_tokens, num_elements, settings = KNOWN[form]
    shapes = with_form(RELEASED, form)
    assert sum(map(prod, shapes.values())) == WITHOUT_TEMPORAL + num_elements, (
        "the table above differs from the fact sheet"
    )
    result = fitted(shapes)
    temporal = result.config.temporal
    assert (temporal.encoder, temporal.num_video_tokens, result.config.resampler.num_latents) == (
        encoder,
        num_video_tokens,
        128,
    )
    assert {name: temporal.settings[name] for name in settings} == settings
    assert num_kept(result) + num_left_out(result) == WITHOUT_TEMPORAL + num_elements


@pytest.mark.parametrize("form", [*KNOWN, "gttm-32-latents"])
def test_a_change_to_any_tensor_of_any_temporal_encoder_is_noticed(form: str) -> None:
    shapes = with_form(RELEASED, form)
    for name in [name for name in shapes if name.startswith(TEMPORAL)]:
        short = name.removeprefix("vision_tokenizer.")
        without = {key: x for key, x in shapes.items() if key != name}
        if form == "ttm-memory" and name.endswith("inv_freq"):
            continue  # without time stamps it is the other ttm, with 32 tokens per frame
        for wrong in (renamed(shapes, name, f"{name}_new"), without):
            with pytest.raises(Blip3vError) as caught:
                fitted(wrong)
            # Without its first tensors a head of unknown name is not recognised as a head: the rest of it is unknown.
            head = form == "gttm-attention" and "some_head" in name
            assert short in str(caught.value) or (head and "some_head" in str(caught.value)), f"{name}: {caught.value}"


def test_32_tokens_may_come_from_32_latents() -> None:
    result = fitted(with_form(RELEASED, "gttm-32-latents"))
    assert (result.config.temporal.encoder, result.config.temporal.num_video_tokens) == ("gttm", 32)
    assert (result.config.resampler.num_latents, temporal_settings(result.config).pooling) == (32, "mean")
    shapes = state_shapes(result.config)
    assert shapes["vision_tokenizer.latents"] == (32, 1152)
    assert shapes[f"{TEMPORAL}initial_memory"] == (32, 4, 1152)


def test_a_head_of_unknown_name_becomes_our_models_head() -> None:
    origins = fitted(with_form(RELEASED, "gttm-attention")).origins
    assert origins[f"{TEMPORAL}final_output.mlp.3.weight"].name == f"{TEMPORAL}some_head.mlp.3.weight"
    assert (
        origins[f"{TEMPORAL}ttm_unit.write_layer.mlp.3.weight"].name == f"{TEMPORAL}ttm_unit.write_layer.mlp.3.weight"
    )


def test_two_heads_are_rejected() -> None:
    more = {TEMPORAL + name: shape for name, shape in token_learner("other_head", 16, 1152).items()}
    with pytest.raises(ArtifactError, match="TokenLearners other_head, some_head"):
        fitted(with_form(RELEASED, "gttm-attention") | more)


def test_unused_parts_of_other_encoders_are_named() -> None:
    assert {item.name for item in fitted(with_form(RELEASED, "mambalike")).unused_keys} >= {
        f"{TEMPORAL}expand_mlp2.{part}" for part in ("0.weight", "0.bias", "1.weight", "3.weight")
    }
    outputs = [x for x in fitted(with_form(RELEASED, "ttm-memory")).unused_keys if "output_layer" in x.name]
    assert sum(prod(item.shape) for item in outputs) == 80_384


@pytest.mark.parametrize(
    ("form", "num_video_tokens"), [("gttm", 128), ("per-frame", 64), ("ttm", 256), ("tokenlearner", 32)]
)
def test_the_caller_sets_the_number_of_frames(form: str, num_video_tokens: int) -> None:
    config = fitted(with_form(RELEASED, form), num_frames=16).config
    assert (config.num_frames, config.num_video_tokens) == (16, num_video_tokens)


def test_without_tensors_the_encoder_must_be_named() -> None:
    shapes = with_form(RELEASED, "weightless")
    with pytest.raises(UsageError, match=re.escape(", ".join(WEIGHTLESS)) + ".*`encoder`"):
        fitted(shapes)
    for encoder in WEIGHTLESS:
        assert fitted(shapes, encoder=encoder).config.temporal.encoder == encoder
    with pytest.raises(UsageError, match="gttm has some"):
        fitted(shapes, encoder="gttm")
    with pytest.raises(UsageError, match="'gtm' is unknown"):
        fitted(shapes, encoder="gtm")


def test_an_encoder_that_contradicts_the_tensors_is_rejected() -> None:
    with pytest.raises(UsageError, match="the encoder gttm, not mean"):
        fitted(RELEASED, encoder="mean")
    assert fitted(RELEASED, encoder="gttm").config.temporal.encoder == "gttm"


def test_tensors_of_no_known_encoder_are_listed() -> None:
    with pytest.raises(ArtifactError, match=r"match no known encoder: mixer\.weight \(7, 7\)"):
        fitted(with_form(RELEASED, "weightless") | {f"{TEMPORAL}mixer.weight": (7, 7)})


def test_every_form_is_tested() -> None:
    assert set(FORMS) == {*KNOWN, "gttm-32-latents", "weightless"}
