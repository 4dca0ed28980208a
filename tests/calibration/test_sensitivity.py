"""The sensitivity scan against a brute-force run of the whole model, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import answer_logits, asked_of
from toy_plan import ToyPlan, simulate

from blip3v.bundle.precision import Precision
from blip3v.calibration import sensitivity
from blip3v.calibration.data import ClipSet
from blip3v.calibration.layers import linear_layers
from blip3v.calibration.quantized import QuantizedMatrix
from blip3v.calibration.sensitivity import Scan, add_sensitivity, blocks, measure_sensitivity
from blip3v.calibration.sensitivity_table import SensitivityTable
from blip3v.calibration.spool import Spool
from blip3v.errors import CalibrationError, ConfigError
from blip3v.model import Blip3Video

MIXED = Precision.parse("mixed")
GROUP = 32


class DamagedPlan:
    """Another plan whose integers of one layer have a scale that is 8 times too large."""

    def __init__(self, plan: ToyPlan, layer: str) -> None:
        self._plan, self._damaged = plan, layer
        self.weights: Mapping[str, torch.Tensor] = plan.weights
        self.input_rotation_DD: torch.Tensor | None = None

    def activation_scale(self, layer: str) -> float:
        return float(self._plan.activation_scale(layer))

    def quantize(self, layer: str, weight_NK: torch.Tensor, *, bits: int, group_size: int | None) -> QuantizedMatrix:
        quantized: QuantizedMatrix = self._plan.quantize(layer, weight_NK, bits=bits, group_size=group_size)
        factor = 8.0 if layer == self._damaged else 1.0
        return dataclasses.replace(quantized, scales_Ng=quantized.scales_Ng * factor)

    def rows(self, layer: str) -> torch.Tensor:
        raise NotImplementedError


@pytest.fixture(scope="module")
def table(scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> SensitivityTable:
    return add_sensitivity(tmp_path_factory.mktemp("table"), scan, statistics_sha256="0" * 64, recipe={})


def brute_force(model: Blip3Video, plan: ToyPlan, films: ClipSet, formats: dict[str, str]) -> tuple[float, float]:
    """Mean KL and agreement of the whole model, all of whose modules are quantised as ``formats`` says."""
    quantized = copy.deepcopy(model)
    with torch.inference_mode():
        simulate(quantized, plan, formats, GROUP)
    kl, same = [], []
    for clip, asked in asked_of(films):
        p = torch.log_softmax(answer_logits(model, clip, asked).double(), -1).numpy()
        q = torch.log_softmax(answer_logits(quantized, clip, asked).double(), -1).numpy()
        kl += list((np.exp(p) * (p - q)).sum(-1))
        same += list(p.argmax(-1) == q.argmax(-1))
    return float(np.mean(kl)), float(np.mean(same))


def test_a_block_alone_equals_a_run_of_the_whole_model(
    scan: Scan, whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, table: SensitivityTable
) -> None:
    """One block of every kind, in every format that it was measured in, and all together."""
    kinds = {block.short_name.split(" ")[0]: block for block in table.blocks}
    assert set(kinds) == {"vision", "resampler", "temporal", "projection", "decoder", "head"}
    for block in kinds.values():
        for form, got in block.measured.items():
            expected = brute_force(whole_model, toy_plan, films, dict.fromkeys(block.layers, form))
            assert got.kl == pytest.approx(expected[0], rel=2e-3, abs=1e-9), (block.name, form)
            assert got.agreement == pytest.approx(expected[1])
    by_default = {name: block.format for block in table.blocks if not block.is_kept for name in block.layers}
    assert table.together is not None
    kl, agreement = brute_force(whole_model, toy_plan, films, by_default)
    assert table.together.kl == pytest.approx(kl, rel=2e-3)
    assert table.together.agreement == pytest.approx(agreement)
    assert scan.compare({}).kl == 0


def test_every_layer_is_in_one_block_in_its_default_format(whole_model: Blip3Video, table: SensitivityTable) -> None:
    names = [name for block in table.blocks for name in block.layers]
    assert sorted(names) == sorted(linear_layers(whole_model.config))
    formats = {block.short_name: block.format for block in table.blocks if not block.is_kept}
    assert formats == {
        "vision 0": "int8",
        "vision 1": "int8",
        "resampler 0": "int8",
        "resampler 1": "int8",
        "decoder 0": "int4-block",
        "decoder 1": "int4-block",
        "head": "int8-block",
    }
    kept = [block for block in table.blocks if block.is_kept]
    assert {block.short_name for block in kept} == {"resampler 0", "resampler 1", "temporal encoder", "projection"}
    assert all(set(block.measured) == {"int8"} for block in kept)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("lang_model.model.layers.1.mlp.down_proj", "decoder 1"),
        ("vision_encoder.encoder.layers.0.self_attn.v_proj", "vision 0"),
        ("lang_model.lm_head", "head"),
    ],
)
def test_a_damaged_block_ranks_first(
    whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, tmp_path: Path, layer: str, expected: str
) -> None:
    """The scale of one layer's weights is stored 8 times too large."""
    plan = DamagedPlan(toy_plan, layer)
    with Scan(whole_model.config, plan, films.clips[:1], folder=tmp_path, group_size=GROUP) as scan:
        table = add_sensitivity(tmp_path, scan, statistics_sha256="", recipe={})
    assert table.ranked()[0].short_name == expected


def test_an_interrupted_scan_goes_on(scan: Scan, table: SensitivityTable, tmp_path: Path) -> None:
    """Each result is in the file before the next is measured, and none is measured twice."""

    def interrupt(block: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    identity: dict[str, Any] = {"statistics_sha256": "0" * 64, "recipe": {}}
    with pytest.raises(KeyboardInterrupt):
        add_sensitivity(tmp_path, scan, **identity, progress=interrupt)
    partial = SensitivityTable.load(tmp_path, **identity)
    assert sum(len(block.measured) for block in partial.blocks) == 3
    assert not partial.is_complete

    measured: list[int] = []
    complete = add_sensitivity(tmp_path, scan, **identity, progress=lambda block, done, total: measured.append(done))
    assert complete == table == SensitivityTable.load(tmp_path, **identity)
    saved: list[SensitivityTable] = []
    assert measure_sensitivity(scan, complete, save=saved.append) == complete
    assert saved == []


def test_results_of_other_samples_are_not_mixed(scan: Scan, table: SensitivityTable, tmp_path: Path) -> None:
    identity: dict[str, Any] = {"statistics_sha256": "0" * 64, "recipe": {}}
    dataclasses.replace(table, num_clips=99).save(tmp_path)
    with pytest.raises(CalibrationError, match=r"measured with other samples.*force=True"):
        add_sensitivity(tmp_path, scan, **identity)
    assert add_sensitivity(tmp_path, scan, **identity, force=True) == table


def test_samples_that_cannot_be_used(
    whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, tmp_path: Path
) -> None:
    clip = films.clips[0]
    pixels = clip.load()
    broken = np.where(np.arange(pixels.size).reshape(pixels.shape) == 5, np.nan, pixels).astype(np.float32)
    cases = [
        ([], "0 clips without a question"),
        ([dataclasses.replace(clip, prompts=())], "1 clips without a question"),
        ([dataclasses.replace(clip, load=lambda: pixels[:2])], "this model takes finite ones of"),
        ([dataclasses.replace(clip, load=lambda: broken)], "this model takes finite ones of"),
    ]
    for clips, message in cases:
        with pytest.raises(CalibrationError, match=message):
            Scan(whole_model.config, toy_plan, clips, folder=tmp_path, group_size=GROUP)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_samples(
    whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once patches, hidden states and logits of all samples were in memory: 27 MB a clip and copy at 4B."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal most
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    read, write = Spool.read, Spool.write
    monkeypatch.setattr(Spool, "read", lambda self, at: count(read(self, at)))
    monkeypatch.setattr(Spool, "write", lambda self, at, tensor: write(self, at, count(tensor)))
    with Scan(whole_model.config, toy_plan, films.clips, folder=tmp_path, group_size=GROUP) as scan:
        assert scan.num_questions == 9
        for layer in ("vision_encoder.encoder.layers.1.mlp.fc1", "lang_model.model.layers.0.mlp.down_proj"):
            scan.compare({layer: "int8"})
    assert most <= 3


def test_the_disk_must_hold_what_waits_there(
    whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is the size of the files, whatever the samples."""
    sizes: list[int] = []
    monkeypatch.setattr(sensitivity, "require_disk", lambda folder, num_bytes, what: sizes.append(num_bytes))
    written: dict[tuple[int, int], int] = {}
    write = Spool.write

    def counted(self: Spool, at: int, tensor: torch.Tensor) -> None:
        written[id(self), at] = 4 * tensor.numel()
        write(self, at, tensor)

    monkeypatch.setattr(Spool, "write", counted)
    with Scan(whole_model.config, toy_plan, films.clips, folder=tmp_path, group_size=GROUP) as scan:
        scan.compare({"vision_encoder.encoder.layers.0.mlp.fc1": "int8"})
    assert sum(written.values()) == sum(sizes)


def test_a_layer_or_format_that_does_not_exist(scan: Scan) -> None:
    with pytest.raises(ConfigError, match=r"has no lang_model.model.layers.7.mlp.down_proj"):
        scan.compare({"lang_model.model.layers.7.mlp.down_proj": "int8"})
    with pytest.raises(ConfigError, match=r"int3-block.*allowed: float16-stored, int8, int8-block, int4-block"):
        scan.compare({"lang_model.lm_head": "int3-block"})


def test_weights_that_are_not_finite_are_an_error(
    whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, tmp_path: Path
) -> None:
    plan = copy.copy(toy_plan)
    name = "lang_model.model.layers.1.mlp.down_proj.weight"
    plan.weights = dict(toy_plan.weights) | {name: torch.full_like(toy_plan.weights[name], torch.nan)}
    with pytest.raises(CalibrationError, match="fp32 model's logits are not finite"):
        Scan(whole_model.config, plan, films.clips[:1], folder=tmp_path, group_size=GROUP)


def test_blocks_follow_the_precision(whole_model: Blip3Video) -> None:
    int8 = blocks(whole_model.config, Precision.parse("int8"))
    assert {block.format for block in int8 if block.graph == "decoder"} == {"int8"}
