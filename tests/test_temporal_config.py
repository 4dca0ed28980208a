"""The temporal encoder's settings: counts, forms, settings without effect, and config files of schema version 1."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import blip3v
from blip3v import strict_json
from blip3v.config import PRESETS, ModelConfig, TemporalConfig, preset
from blip3v.errors import ConfigError
from blip3v.model.temporal import (
    build_temporal,
    encoder_names,
    find_encoder,
    temporal_settings,
    with_encoder,
    with_frames,
)

RELEASED = preset("xgen-mm-vid")
# Token counts for 8 frames of 128 tokens, the default first.
COUNTS = {
    "tokenlearner": (32, 16, 64, 128, 256),
    "gttm": (128, 16, 32, 64, 256),
    "ttm": (128, 16, 32, 64, 256),
    "transformer": (128, 16, 32, 64, 256),
    "perceiver": (32, 16, 64, 128),
    "mean": (128,),
    "max": (128,),
    "per-frame": (32, 16, 64, 128, 256),
    "space-time-pool": (32, 16, 64, 128),
    "none": (1024,),
    "single-frame": (128,),
    "mambalike": (128, 16, 32, 64, 256),
    "video-chatgpt": (8 + 729,),
    "pllava": (8 * 13**2, *(8 * side**2 for side in range(1, 28) if side != 13)),
    "slowfast-llava": (2 * 364 + 8 * 16,),
    "llama-vid-content": (8, *(8 * side**2 for side in range(2, 28))),
}
# Those of frames, and of a part that no frame adds to.
GROWING = {"none", "per-frame", "ttm", "video-chatgpt", "pllava", "slowfast-llava", "llama-vid-content"}


def chosen(encoder: str, **choices: object) -> Any:
    return temporal_settings(with_encoder(RELEASED, encoder, **choices))  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", encoder_names())
def test_the_counts_of_an_encoder(encoder: str) -> None:
    assert with_encoder(RELEASED, encoder).num_video_tokens == COUNTS[encoder][0]
    for count in COUNTS[encoder]:
        assert with_encoder(RELEASED, encoder, num_video_tokens=count).num_video_tokens == count


@pytest.mark.parametrize("encoder", encoder_names())
@pytest.mark.parametrize("count", [0, 31, 2047])
def test_a_count_that_an_encoder_cannot_give_is_an_error_that_lists_the_ones_it_can(encoder: str, count: int) -> None:
    listed = ", ".join(map(str, sorted(COUNTS[encoder])))
    with pytest.raises(ConfigError, match=f"{encoder} cannot produce {count} tokens from 8 frames; allowed: {listed}$"):
        with_encoder(RELEASED, encoder, num_video_tokens=count)


@pytest.mark.parametrize(
    ("encoder", "of_8", "of_16"),
    [
        ("none", 1024, 2048),
        ("per-frame", 32, 64),
        ("ttm", 128, 256),
        ("video-chatgpt", 8 + 729, 16 + 729),
        ("pllava", 8 * 169, 16 * 169),
        ("slowfast-llava", 728 + 128, 728 + 256),
        ("llama-vid-content", 8, 16),
    ],
)
def test_a_count_by_frame_follows_the_frames(encoder: str, of_8: int, of_16: int) -> None:
    config = with_encoder(RELEASED, encoder)
    assert (config.num_video_tokens, with_frames(config, 16).num_video_tokens) == (of_8, of_16)
    assert with_encoder(RELEASED, encoder, num_frames=16).num_video_tokens == of_16


@pytest.mark.parametrize("encoder", sorted(set(encoder_names()) - GROWING))
def test_other_counts_do_not_depend_on_the_frames(encoder: str) -> None:
    config = with_encoder(RELEASED, encoder)
    assert with_frames(config, 3).temporal == config.temporal
    ttm = with_encoder(RELEASED, "ttm", num_video_tokens=32)
    assert with_frames(ttm, 3).num_video_tokens == 32


@pytest.mark.parametrize("encoder", ["gttm", "mambalike"])
def test_attention_is_chosen_if_the_released_mean_does_not_give_the_count(encoder: str) -> None:
    assert chosen(encoder).pooling == "mean"
    assert chosen(encoder, num_video_tokens=128).pooling == "mean"
    assert chosen(encoder, num_video_tokens=32).pooling == "attention"
    config = with_encoder(RELEASED, encoder, num_video_tokens=128, pooling="attention")
    assert temporal_settings(config).pooling == "attention"
    assert with_encoder(config, encoder, num_video_tokens=128) == config  # a form that fits is kept
    assert temporal_settings(with_encoder(config, "mean")).pooling == "mean"
    with pytest.raises(ConfigError, match=r"cannot produce 32 tokens from 8 frames; allowed: 128$"):
        with_encoder(RELEASED, encoder, num_video_tokens=32, pooling="mean")


def test_the_memory_of_ttm_is_the_output_if_its_steps_do_not_give_the_count() -> None:
    assert not chosen("ttm").memory_output
    by_memory = chosen("ttm", num_video_tokens=32)
    assert (by_memory.memory_output, by_memory.memory_tokens) == (True, 32)
    by_steps = chosen("ttm", num_video_tokens=32, step_tokens=4)
    assert (by_steps.memory_output, by_steps.memory_tokens) == (False, 128)
    assert with_encoder(RELEASED, "ttm", memory_output=True).num_video_tokens == 128
    with pytest.raises(ConfigError, match="make the two equal"):
        with_encoder(RELEASED, "ttm", num_video_tokens=32, memory_output=True, memory_tokens=64)
    with pytest.raises(ConfigError, match=r"ttm cannot produce 64 tokens from 8 frames; allowed: 32$"):
        with_encoder(RELEASED, "ttm", num_video_tokens=64, step_tokens=4)


def test_another_encoder_gets_the_size_of_the_preset() -> None:
    assert [chosen(name).num_layers for name in ("gttm", "transformer", "ttm")] == [4, 4, 2]
    tiny = preset("tiny")
    assert temporal_settings(with_encoder(tiny, "ttm")).num_layers == 1
    assert with_encoder(with_encoder(tiny, "ttm"), "tokenlearner") == tiny
    assert chosen("ttm", num_layers=4).num_layers == 4


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_states_its_encoder_as_the_encoders_own_file_does(name: str) -> None:
    own = preset(name)
    away = with_encoder(own, "max")
    assert with_encoder(away, own.temporal.encoder) == own


@pytest.mark.parametrize(
    ("encoder", "options", "says"),
    [
        ("tokenlearner", {"num_slots": 2}, "num_slots has no effect on tokenlearner; its settings are time_stamps"),
        ("max", {"pooling": "sum"}, "pooling has no effect on max; it has no settings"),
        ("gttm", {"time_stamps": True}, "time_stamps has no effect on gttm"),
        ("ttm", {"memory_output": True, "step_tokens": 8}, "step_tokens has no effect on ttm with memory_output"),
        ("gttm", {"pooling": "sum"}, "gttm: settings: pooling is 'sum'; allowed: mean, attention"),
        ("gttm", {"slots": 2}, "slots has no effect on gttm; did you mean 'num_slots'"),
        ("gttm", {"num_slots": "4"}, "gttm: settings: num_slots is '4'; int is expected"),
        ("gttm", {"num_slots": 0}, "gttm: settings: num_slots is 0; at least 1"),
        (
            "gttm",
            {"num_heads": 7},
            "gttm: vision.hidden_size is 1152, which num_heads 7 of",
        ),
        ("slowfast-llava", {"slow_frames": 9}, "slowfast-llava: slow_frames is 9, but a clip has 8 frames"),
        ("slowfast-llava", {"fast_side": 28}, "slowfast-llava: fast_side is 28, but a frame has 729 patches"),
        ("slowfast-llava", {"slow_frames": 0}, "slow_frames is 0; at least 1"),
        ("gtm", {}, "encoder 'gtm' is unknown; allowed: tokenlearner, gttm"),
    ],
)
def test_a_setting_that_is_invalid_or_has_no_effect_is_refused(
    encoder: str, options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        with_encoder(RELEASED, encoder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", encoder_names())
def test_a_config_survives_the_round_trip(encoder: str, tmp_path: Path) -> None:
    config = with_encoder(RELEASED, encoder, num_video_tokens=COUNTS[encoder][-1])
    config.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == config


def test_settings_are_opaque_until_the_encoder_is_built(tmp_path: Path) -> None:
    """A bundle opens even if the package of its encoder is not installed."""
    settings = {"depth": 3, "kinds": ["a", "b"], "inner": {"rate": 0.5}, "none": None}
    temporal = TemporalConfig(encoder="of-another-package", num_video_tokens=7, settings=settings)
    config = dataclasses.replace(RELEASED, temporal=temporal)
    config.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text())["temporal"]["settings"] == settings
    with pytest.raises(ConfigError, match="encoder 'of-another-package' is unknown; allowed: tokenlearner, "):
        temporal_settings(config)


@pytest.mark.parametrize(
    ("temporal", "says"),
    [
        ({"settings": {"slots": 4}}, "gttm: settings has the unknown key 'slots'; did you mean 'num_slots'"),
        (
            {"settings": {"memory_output": True}},
            "settings has the unknown key 'memory_output'; allowed: num_slots",
        ),
        ({"settings": {"pooling": "sum"}}, "gttm: settings: pooling is 'sum'; allowed: mean, attention"),
        ({"settings": {"num_layers": 0}}, "gttm: settings: num_layers is 0; at least 1 is needed"),
        ({"num_video_tokens": 32}, "gttm cannot produce 32 tokens from 8 frames; allowed: 128$"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_encoder_is_built(
    temporal: dict[str, object], says: str, tmp_path: Path
) -> None:
    values = RELEASED.to_dict()
    values["temporal"] |= temporal
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = ModelConfig.load(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=says):
        build_temporal(config)


def test_a_setting_that_a_config_file_lacks_is_the_default(tmp_path: Path) -> None:
    values = RELEASED.to_dict()
    values["temporal"]["settings"] = {}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert temporal_settings(ModelConfig.load(tmp_path / "config.json")) == temporal_settings(RELEASED)


@pytest.mark.parametrize(
    ("temporal", "says"),
    [
        ({"encoder": "gttm", "num_video_tokens": 0}, "num_video_tokens is 0; at least 1"),
        ({"encoder": "gttm", "num_video_tokens": "7"}, "num_video_tokens is '7'; int is expected"),
        ({"encoder": 5, "num_video_tokens": 7}, "encoder is 5; str is expected"),
        ({"encoder": "../gttm", "num_video_tokens": 7}, "temporal.encoder is '../gttm'; only lower-case letters"),
        ({"encoder": "gttm\n", "num_video_tokens": 7}, "only lower-case letters, digits and hyphens are allowed"),
        ({"encoder": "gttm", "num_video_tokens": 7, "settings": [1]}, "settings is .*; dict is expected"),
        ({"encoder": "gttm", "num_video_tokens": 7, "num_slots": 4}, "unknown key 'num_slots'; allowed: encoder, "),
        ({"encoder": "gttm"}, "temporal lacks the key 'num_video_tokens'"),
    ],
)
def test_name_and_count_are_checked_without_the_encoder(temporal: dict[str, object], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED.to_dict() | {"temporal": temporal}))
    with pytest.raises(ConfigError, match=says):
        ModelConfig.load(tmp_path / "config.json")


# Version 1: the settings of all encoders with every encoder, and two other names.
V1_TEMPORAL = {
    **{"num_heads": 6, "num_layers": 2, "num_slots": 4, "ff_mult": 2, "time_stamps": True, "pooling": "mean"},
    **{"process_tokens": 64, "memory_tokens": 128, "step_tokens": 16, "memory_output": False},
}


def version_1(path: Path, encoder: str, num_tokens: int, /, **changes: object) -> Path:
    values = preset("tiny").to_dict() | {"schema_version": 1}
    values["text"]["max_positions"] = values["text"].pop("max_context")
    temporal = {"encoder": encoder, "num_tokens": num_tokens, **V1_TEMPORAL, **changes}
    values["temporal"] = {name: value for name, value in temporal.items() if value is not None}
    path.write_text(strict_json.dumps(values))
    return path


@pytest.mark.parametrize("encoder", [name for name in COUNTS if find_encoder(name).reads == "latents"])
def test_a_config_file_of_version_1_is_read(encoder: str, tmp_path: Path) -> None:
    want = with_encoder(preset("tiny"), encoder)
    layers = {"num_layers": 1} if encoder == "ttm" else {}
    path = version_1(tmp_path / "config.json", encoder, want.num_video_tokens, **layers)
    assert ModelConfig.load(path) == want
    want.save(path)
    assert json.loads(path.read_text())["schema_version"] == 2


def test_a_config_file_from_before_the_settings_of_ttm_loads(tmp_path: Path) -> None:
    later = dict.fromkeys(("pooling", "process_tokens", "memory_tokens", "step_tokens", "memory_output"))
    path = version_1(tmp_path / "config.json", "gttm", 128, **later)
    assert ModelConfig.load(path) == with_encoder(preset("tiny"), "gttm")


def test_what_version_1_left_out_has_the_default_of_version_1(tmp_path: Path) -> None:
    """By default ttm has 2 layers now; in version 1 it had 4, like every encoder."""
    path = version_1(tmp_path / "config.json", "ttm", 128, num_layers=None, time_stamps=None)
    settings = temporal_settings(ModelConfig.load(path))
    assert (settings.num_layers, settings.time_stamps, settings.num_heads) == (4, False, 6)


@pytest.mark.parametrize(
    ("encoder", "changes", "says"),
    [
        ("gttm", {"memory_output": True}, "temporal.memory_output has no effect on gttm"),
        ("max", {"pooling": "sum"}, "temporal.pooling has no effect on max"),
        ("gttm", {"num_slot": 4}, "temporal has the unknown key 'num_slot'"),
        ("gttm", {"num_tokens": None}, "temporal lacks the key 'num_video_tokens'"),
        ("gttm", {"encoder": ["gttm"]}, "encoder is .*; str is expected"),
    ],
)
def test_a_config_file_of_version_1_that_is_wrong_is_refused(
    encoder: str, changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    path = version_1(tmp_path / "config.json", encoder, 128, **changes)
    with pytest.raises(ConfigError, match=says):
        ModelConfig.load(path)


@pytest.mark.parametrize("version", [0, 3, "2", True, None])
def test_another_version_is_refused(version: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED.to_dict() | {"schema_version": version}))
    with pytest.raises(ConfigError, match=f"schema_version {version!r}; this blip3v reads 1 and 2"):
        ModelConfig.load(tmp_path / "config.json")


def test_the_shipped_models_are_of_the_current_version_and_state_every_setting() -> None:
    for path in Path(blip3v.__file__).parent.glob("models/*/config.json"):
        config = ModelConfig.load(path)
        assert json.loads(path.read_text()) == config.to_dict()
        assert config.temporal.settings == dataclasses.asdict(temporal_settings(config))
