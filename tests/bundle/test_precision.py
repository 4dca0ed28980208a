"""The table of precisions: parsing names, what each one stores, and islands."""

from __future__ import annotations

import dataclasses

import pytest

from blip3v.bundle import Precision
from blip3v.bundle.precision import PRECISIONS, Island
from blip3v.errors import UsageError

MIXED = "video_encoder=fp16,decoder=fp32"


@pytest.mark.parametrize("name", [*PRECISIONS, MIXED, *(f"{name}+kv-int8" for name in (*PRECISIONS, MIXED))])
def test_a_name_survives_the_round_trip(name: str) -> None:
    assert Precision.parse(name).name == str(Precision.parse(name)) == name


def test_a_choice_for_each_graph() -> None:
    mixed = Precision.parse("decoder=fp32, video_encoder=fp16")
    assert mixed.name == MIXED
    assert mixed.file_name == "video_encoder-fp16-decoder-fp32"
    assert mixed.video_encoder == PRECISIONS["fp16"].video_encoder
    assert mixed.decoder == PRECISIONS["fp32"].decoder
    assert Precision.parse("video_encoder=fp16,decoder=fp16") == Precision.parse("fp16")


def test_a_precision_for_the_other_graph_is_refused() -> None:
    """The video encoder of int4 is int8: whoever asks for it by name is told so, instead of getting it in silence."""
    with pytest.raises(
        UsageError, match="video_encoder has no precision int4; allowed for it: fp32, fp16, int8, int8-"
    ):
        Precision.parse("video_encoder=int4,decoder=int4")
    assert Precision.parse("video_encoder=int8,decoder=int4") == Precision.parse("int4")


@pytest.mark.parametrize(
    "text",
    [
        *("", "=", "fp8", "FP16", "fp16,fp32", "decoder=fp16", "decoder=fp16,decoder=fp32"),
        *(
            "fp16+",
            "fp16+kv-",
            "fp16+kv-fp16",
            "fp16+int8",
            "fp16+kv-int8+kv-int8",
            f"decoder=fp16+kv-int8,{MIXED[:18]}",
        ),
        *("encoder=fp16,decoder=fp16", f"{MIXED},decoder=fp32", "video_encoder=fp16,decoder="),
    ],
)
def test_another_name_is_refused_with_the_ones_that_exist(text: str) -> None:
    with pytest.raises(
        UsageError, match="allowed: fp32, fp16, int8, int8-weight, int4, mixed, or one for each graph, as in"
    ):
        Precision.parse(text)


def test_a_cache_of_its_own_is_in_every_name() -> None:
    chosen = Precision.parse("fp16").with_cache("int8")
    assert chosen == Precision.parse("fp16+kv-int8") != Precision.parse("fp16")
    assert chosen.file_name == "fp16-kv-int8"
    assert chosen.decoder == dataclasses.replace(PRECISIONS["fp16"].decoder, cache="int8")
    assert chosen.video_encoder == PRECISIONS["fp16"].video_encoder
    assert str(chosen.decoder).endswith("inputs and outputs float16, cache int8")
    with pytest.raises(UsageError, match="cache dtype 'int4' is unknown; allowed: int8"):
        chosen.with_cache("int4")


def test_an_int8_cache_has_a_tolerance_of_its_own() -> None:
    own, wide = Precision.parse("fp32"), Precision.parse("fp32+kv-int8")
    assert wide.decoder.tolerance.relative_error > own.decoder.tolerance.relative_error
    assert wide.video_encoder.tolerance == own.video_encoder.tolerance


@pytest.mark.parametrize("name", PRECISIONS)
def test_entries_agree_with_their_name_and_with_themselves(name: str) -> None:
    entry = PRECISIONS[name]
    for spec in (entry.video_encoder, entry.decoder):
        # 4-bit weights gain nothing in the video encoder.
        assert spec.name == ("int8" if (name, spec.cache) == ("int4", None) else name)
        assert spec.is_quantized == (entry.tolerance is None)
        assert spec.is_quantized or spec.tolerance is entry.tolerance
    assert Precision.parse(name).name == name
    assert Precision.parse(name).graphs == {"video_encoder": entry.video_encoder, "decoder": entry.decoder}


def test_fp16_keeps_its_islands() -> None:
    fp16 = Precision.parse("fp16")
    assert fp16.decoder.format_of(["layers.0.o_proj.weight"]) == "float16"
    assert fp16.decoder.format_of(["lm_head"]) == "float16"
    assert fp16.decoder.format_of(["lm_head_bias"]) == "float32"
    # The weights of a recurrence have two names; those of other encoders have different ones.
    names = ["vision_tokenizer.temporal_encoder.initial_memory", "temporal.encoder.initial_memory"]
    assert fp16.video_encoder.format_of(names) == "float32"
    assert fp16.video_encoder.format_of(["temporal.final_output.mlp.1.weight"]) == "float16"
    assert Precision.parse("fp32").decoder.islands == ()


def test_the_first_island_that_matches_applies() -> None:
    islands = (
        Island(name="head", parameters=("lm_head",), weights="float16"),
        Island(name="rest", parameters=("lm_*", "layers.?.o_proj.weight"), weights="other"),
    )
    spec = dataclasses.replace(PRECISIONS["fp32"].decoder, islands=islands)
    assert [
        spec.format_of([name]) for name in ("lm_head", "lm_head_bias", "layers.1.o_proj.weight", "norm.weight")
    ] == [
        "float16",
        "other",
        "other",
        "float32",
    ]


def test_only_a_dtype_that_can_overflow_has_a_limit() -> None:
    assert Precision.parse("fp16").decoder.activation_limit == 65504
    assert Precision.parse("fp32").decoder.activation_limit is None
