"""Choosing formats from a sensitivity table: within the budget, monotone in it, and never without a table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest

from blip3v.bundle.precision import PRECISIONS, GraphPrecision, Precision
from blip3v.calibration.layers import linear_layers
from blip3v.calibration.mixed import choose_mixed, predicted_kl, resolve_mixed
from blip3v.calibration.options import DEFAULT_MAX_KL
from blip3v.calibration.sensitivity import Scan, add_sensitivity
from blip3v.calibration.sensitivity_table import Block, Comparison, SensitivityTable, parameter_names
from blip3v.errors import Blip3vError, CalibrationError, ConfigError, UsageError
from blip3v.export.to_onnx import layer_names
from blip3v.model import Blip3Video

MIXED = Precision.parse("mixed")
BUDGETS = (math.inf, 1, 0.3, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001, 0.0)
EXACT = ("float16-stored", "float16", "float32")


def toy_table(together: float = 0.0) -> SensitivityTable:
    def block(graph: str, name: str, layers: list[str], form: str, **kl: float) -> Block:
        measured = {key.replace("_", "-"): Comparison(kl=value, agreement=1.0) for key, value in kl.items()}
        return Block(graph=graph, name=name, layers=tuple(layers), format=form, measured=measured)

    vision = [("vision_encoder.encoder.layers.0", 0.02), ("vision_encoder.encoder.layers.1", 0.002)]
    decoder = [("lang_model.model.layers.0", 0.2, 0.01), ("lang_model.model.layers.1", 0.04, 0.001)]
    rows = [block("video_encoder", name, [f"{name}.mlp.fc1"], "int8", int8=kl) for name, kl in vision]
    kept = "vision_tokenizer.projection"
    rows.append(block("video_encoder", kept, [kept], "float16-stored", int8=5.0))
    for name, low, high in decoder:
        layers = [f"{name}.mlp.gate_up_proj", f"{name}.self_attn.o_proj"]
        rows.append(block("decoder", name, layers, "int4-block", int4_block=low, int8_block=high))
    head = "lang_model.lm_head"
    rows.append(block("decoder", head, [head], "int8-block", int4_block=0.5, int8_block=0.0001))
    return SensitivityTable(
        statistics_sha256="a" * 64,
        recipe={"smoothing": True},
        group_size=128,
        num_clips=1,
        num_questions=1,
        num_positions=4,
        blocks=tuple(rows),
        together=Comparison(kl=together, agreement=1.0),
    )


def formats(table: SensitivityTable, precision: Precision) -> dict[str, str]:
    """The format of every layer, as the exporter finds it."""
    return {
        layer: precision.graphs[block.graph].format_of(parameter_names(layer))
        for block in table.blocks
        for layer in block.layers
    }


def test_the_most_sensitive_blocks_are_raised_first() -> None:
    mixed = choose_mixed(toy_table(), 0.05, MIXED)
    assert formats(toy_table(), mixed) == {
        "vision_encoder.encoder.layers.0.mlp.fc1": "int8",
        "vision_encoder.encoder.layers.1.mlp.fc1": "int8",
        "vision_tokenizer.projection": "float16-stored",
        "lang_model.model.layers.0.mlp.gate_up_proj": "int8-block",
        "lang_model.model.layers.0.self_attn.o_proj": "int8-block",
        "lang_model.model.layers.1.mlp.gate_up_proj": "int8-block",
        "lang_model.model.layers.1.self_attn.o_proj": "int8-block",
        "lang_model.lm_head": "int8-block",
    }
    assert [(island.name, island.weights) for island in mixed.decoder.islands[:2]] == [
        ("decoder 0: 0.2 nats in int4-block", "int8-block"),
        ("decoder 1: 0.04 nats in int4-block", "int8-block"),
    ]
    assert mixed.decoder.islands[0].parameters == ("layers.0.gate_up_proj.weight", "layers.0.o_proj.weight")
    assert mixed.name == "mixed"
    assert mixed.video_encoder == MIXED.video_encoder
    assert predicted_kl(toy_table(), mixed) == pytest.approx(0.02 + 0.002 + 0.01 + 0.001 + 0.0001)


@pytest.mark.parametrize("together", [0.0, 1.0], ids=["additive", "worse together"])
def test_a_smaller_budget_raises_the_same_and_further_blocks(together: float) -> None:
    table, order = toy_table(together), ("int4-block", "int8", "int8-block", *EXACT)
    chosen = [choose_mixed(table, budget, MIXED) for budget in BUDGETS if budget < math.inf]
    for budget, precision in zip(BUDGETS[1:], chosen, strict=True):
        assert predicted_kl(table, precision) <= budget
    for wide, narrow in itertools.pairwise(formats(table, precision) for precision in chosen):
        assert all(order.index(wide[layer]) <= order.index(narrow[layer]) for layer in wide)
    assert set(formats(table, chosen[-1]).values()) == {"float16-stored"}
    assert choose_mixed(table, 1e6, MIXED) == MIXED


def test_the_prediction_counts_what_blocks_do_together() -> None:
    alone = toy_table().total_kl
    assert alone == pytest.approx(0.02 + 0.002 + 0.2 + 0.04 + 0.0001)
    assert predicted_kl(toy_table(together=alone / 2), MIXED) == pytest.approx(alone)
    assert predicted_kl(toy_table(together=alone * 3), MIXED) == pytest.approx(alone * 3)


def test_a_graph_that_is_not_mixed_keeps_its_formats_and_counts() -> None:
    base = Precision.parse("video_encoder=int8,decoder=mixed")
    mixed = choose_mixed(toy_table(), 0.03, base)
    assert mixed.video_encoder == base.video_encoder
    assert predicted_kl(toy_table(), mixed) <= 0.03
    with pytest.raises(CalibrationError, match=r"video_encoder=int8 alone is predicted to cost 0.022 nats.*0.02"):
        choose_mixed(toy_table(), 0.02, base)
    exact = Precision.parse("video_encoder=fp16,decoder=mixed")
    assert choose_mixed(toy_table(), 0.0, exact).video_encoder == exact.video_encoder


def test_what_the_user_keeps_or_quantises_by_node_stays_so() -> None:
    """Once the islands of raised blocks came before those of --keep and --quantize, which then had no effect."""
    keep = MIXED.with_nodes(keep=["decoder:/layers.0.*"], quantize=["decoder:/layers.1.*"])
    for budget in (0.05, 0.0):
        mixed = choose_mixed(toy_table(), budget, keep)
        raised = choose_mixed(toy_table(), budget, MIXED)
        for layer, expected in ((0, "float16-stored"), (1, "int4-block")):
            weight, node = [f"layers.{layer}.o_proj.weight"], [f"/layers.{layer}.attn/o_proj/MatMul"]
            assert raised.decoder.format_of(weight, node) in ("int8-block", "float16-stored")
            assert mixed.decoder.format_of(weight, node) == expected
        assert mixed.decoder.format_of(["layers.0.o_proj.weight"]) == raised.decoder.format_of(
            ["layers.0.o_proj.weight"]
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_encoder=mixed,decoder=int8", r"the decoder cannot be int8 .*: fp32, fp16, int8-weight, int4, mixed$"),
        (
            "video_encoder=int8-weight,decoder=mixed",
            r"the video_encoder cannot be int8-weight .*: fp32, fp16, int8, mixed$",
        ),
    ],
)
def test_a_graph_in_a_format_that_no_scan_measures(text: str, message: str) -> None:
    """Once the message said to measure again, which measures the same formats again."""
    with pytest.raises(CalibrationError, match=message):
        choose_mixed(toy_table(), 1.0, Precision.parse(text))


@pytest.mark.parametrize("decoder", ["fp32", "fp16", "int8-weight", "int4"])
def test_a_graph_in_a_format_that_the_scan_measures(decoder: str) -> None:
    base = Precision.parse(f"video_encoder=mixed,decoder={decoder}")
    assert choose_mixed(toy_table(), 2.0, base) == base


@pytest.mark.parametrize("name", [name for name, entry in PRECISIONS.items() if entry.tolerance is None])
def test_the_rotation_of_the_inputs_is_exact(name: str) -> None:
    """Once `mixed` stored it in 4 bits."""
    assert PRECISIONS[name].decoder.format_of(["rotation"]) == "float32"


@pytest.mark.parametrize("budget", [-1.0, math.nan, math.inf])
def test_a_budget_is_a_number_of_nats(budget: float) -> None:
    with pytest.raises(UsageError, match="max_kl is"):
        choose_mixed(toy_table(), budget, MIXED)


def test_a_table_that_does_not_know_enough() -> None:
    with pytest.raises(CalibrationError, match="not complete"):
        choose_mixed(dataclasses.replace(toy_table(), together=None), 0.1, MIXED)
    with pytest.raises(CalibrationError, match="has no vision 0 in int8-block, only in int8"):
        predicted_kl(toy_table(), Precision.parse("int8-weight"))
    decoder: GraphPrecision = dataclasses.replace(MIXED.decoder, group_size=32)
    with pytest.raises(CalibrationError, match=r"groups of 32 weights.*groups of 128"):
        choose_mixed(toy_table(), 0.1, dataclasses.replace(MIXED, decoder=decoder))


def test_mixed_meets_its_budget_in_simulation(scan: Scan, tmp_path: Path) -> None:
    """The whole model with the chosen formats, not only the prediction."""
    table = add_sensitivity(tmp_path, scan, statistics_sha256="", recipe={})
    base = dataclasses.replace(MIXED, decoder=dataclasses.replace(MIXED.decoder, group_size=scan.group_size))
    assert table.together is not None
    results = []
    for share in (1.5, 0.6, 0.3, 0.1, 0.01):
        budget = share * max(table.total_kl, table.together.kl)
        mixed = choose_mixed(table, budget, base)
        results.append(scan.compare(formats(table, mixed)).kl)
        assert results[-1] <= budget
    assert results == sorted(results, reverse=True)


def test_mixed_without_a_table_says_what_to_run(tmp_path: Path) -> None:
    recipe = toy_table().recipe
    assert resolve_mixed(Precision.parse("int8"), None, recipe=recipe) == Precision.parse("int8")
    with pytest.raises(UsageError, match=r"precision mixed .*the sensitivity scan of `blip3v calibrate`"):
        resolve_mixed(MIXED, None, recipe=recipe)

    def refused(kind: type[Blip3vError], message: str, recipe: dict[str, object] = recipe) -> None:
        with pytest.raises(kind, match=message):
            resolve_mixed(MIXED, tmp_path, recipe=recipe)

    refused(CalibrationError, "has no calibration.json")
    (tmp_path / "calibration.json").write_text(json.dumps({"sha256": "a" * 64}))
    refused(CalibrationError, "has no sensitivity.json.*the sensitivity scan of `blip3v calibrate`")
    toy_table().save(tmp_path)
    assert resolve_mixed(MIXED, tmp_path, recipe=recipe) == choose_mixed(toy_table(), DEFAULT_MAX_KL, MIXED)
    refused(
        CalibrationError,
        "another recipe: smoothing True instead of False; mixed takes the recipe",
        {"smoothing": False},
    )
    (tmp_path / "calibration.json").write_text(json.dumps({"sha256": "b" * 64}))
    refused(CalibrationError, "with another calibration")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"schema_version": 2}, CalibrationError, "schema_version 2; this version reads 1"),
        ({"num_clips": "many"}, ConfigError, "num_clips is 'many'"),
        ({"surprise": 1}, ConfigError, "unknown key 'surprise'"),
        ({"together": {"kl": -1.0, "agreement": 1.0}}, ConfigError, "kl is -1.0"),
        ({"together": {"kl": 0.0, "agreement": 2.0}}, ConfigError, "agreement 2.0"),
    ],
)
def test_a_broken_table(tmp_path: Path, change: dict, kind: type[Blip3vError], message: str) -> None:
    toy_table().save(tmp_path)
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=message):
        SensitivityTable.load(tmp_path, statistics_sha256="a" * 64, recipe={"smoothing": True})


def test_a_table_survives_the_file(tmp_path: Path) -> None:
    toy_table().save(tmp_path)
    assert SensitivityTable.load(tmp_path, statistics_sha256="a" * 64, recipe={"smoothing": True}) == toy_table()


def test_layers_have_their_names_in_the_graphs(whole_model: Blip3Video) -> None:
    """What an island's pattern matches is a parameter of the graph, so no block is raised in vain."""
    layers = linear_layers(whole_model.config)
    for graph, names in layer_names(whole_model.config).items():
        for parameter, layer in names.items():
            if layer in layers and not parameter.endswith("bias"):
                own = parameter_names(layer)
                assert parameter in own or parameter.replace("temporal.encoder.", "temporal.") in own, (
                    graph,
                    parameter,
                )


def test_the_entry_begins_with_the_lowest_formats() -> None:
    entry = PRECISIONS["mixed"]
    assert (entry.video_encoder.weights, entry.decoder.weights) == ("int8", "int4-block")
    assert MIXED.needs_sensitivity
    assert not any(Precision.parse(name).needs_sensitivity for name in PRECISIONS if name != "mixed")
