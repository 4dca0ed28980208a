"""The authors' ``.pt`` file: it opens like the released folder with the same weights, and runs no code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_checkpoint import EMBEDDING, NUM_ROWS, WIDTH, assert_same_weights, live, state
from synthetic_checkpoint import TEMPORAL

from blip3v.errors import ArtifactError, UsageError
from blip3v.model.checkpoint import open_checkpoint
from blip3v.model.convert import convert


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda values: values, id="names"),
        pytest.param(lambda values: {f"vlm.{name}": x for name, x in values.items()}, id="vlm."),
        pytest.param(lambda values: {f"module.{name}": x for name, x in values.items()}, id="module."),
        pytest.param(lambda values: {"model_state_dict": values, "epoch": 3}, id="model_state_dict"),
        pytest.param(lambda values: {"state_dict": {f"module.vlm.{n}": x for n, x in values.items()}}, id="nested"),
    ],
)
def test_the_native_file_is_the_released_folder(released: Path, tmp_path: Path, wrap: Callable) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(wrap(state()), path)
    native, folder = open_checkpoint(path, tokenizer=released), open_checkpoint(released)
    assert native.kind == "native"
    assert native.hashed_files[-1] == path
    same = ("config", "tokenizer_json", "preprocessor", "generation", "chat_template", "unused_keys", "stored")
    assert [getattr(native, name) for name in same] == [getattr(folder, name) for name in same]
    assert_same_weights(native.weights, folder.weights)
    converted = convert(native, tmp_path / "converted").path
    assert_same_weights(open_checkpoint(converted).weights, folder.weights)


def test_native_tensors_may_share_storage(released: Path, tmp_path: Path) -> None:
    """Slices and transposed views are saved with the whole storage behind them."""
    values, path = state(), tmp_path / "checkpoint.pt"
    query = f"{TEMPORAL}ttm_unit.process_layers.0.0.to_q.weight"
    key = query.replace("to_q", "to_k")
    both = torch.cat((values[query], values[key])).to(torch.bfloat16)
    expected = {query: both[:WIDTH].clone(), key: both[WIDTH:].clone(), EMBEDDING: values[EMBEDDING].half()}
    views = {query: both[:WIDTH], key: both[WIDTH:], EMBEDDING: expected[EMBEDDING].t().contiguous().t()}
    torch.save(values | views, path)
    weights = open_checkpoint(path, tokenizer=released).weights
    for name, value in expected.items():
        assert torch.equal(weights[name], live(name, value)), name


def test_a_native_file_that_runs_code_is_refused(released: Path, tmp_path: Path) -> None:
    path, touched = tmp_path / "checkpoint.pt", tmp_path / "touched"

    class Attack:
        def __reduce__(self):
            return Path.touch, (touched,)

    torch.save({"weight": torch.zeros(1), "attack": Attack()}, path)
    with pytest.raises(ArtifactError, match="cannot be loaded as weights only: it holds more than tensors") as caught:
        open_checkpoint(path, tokenizer=released)
    assert not touched.exists()
    assert "weights_only" not in str(caught.value)  # PyTorch's advice is to switch that off
    assert len(str(caught.value).splitlines()) == 1


def test_other_files_than_state_dicts_are_refused(released: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(state(), path)
    with pytest.raises(UsageError, match=r"`blip3v convert` with .* as `tokenizer`"):
        open_checkpoint(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="cannot be loaded as weights only"):
        open_checkpoint(path, tokenizer=released)
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match=r"save it again with torch\.save"):
        open_checkpoint(path, tokenizer=released)
    torch.save({"epoch": 3, "optimizer": {}}, path)
    with pytest.raises(ArtifactError, match="is not a state dict: it holds keys 'epoch'; 'optimizer'"):
        open_checkpoint(path, tokenizer=released)
    torch.save({0: torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="is not a state dict: it holds keys 0"):
        open_checkpoint(path, tokenizer=released)
    torch.save(state() | {"vlm." + EMBEDDING: torch.zeros(1)}, path)
    with pytest.raises(ArtifactError, match="appears twice"):
        open_checkpoint(path, tokenizer=released)
    torch.save(state() | {EMBEDDING: torch.zeros(NUM_ROWS, 64, dtype=torch.int64)}, path)
    with pytest.raises(ArtifactError, match=re.escape(f"{EMBEDDING} is torch.int64")):
        open_checkpoint(path, tokenizer=released)


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.eye(3).to_sparse(), id="sparse"),
        pytest.param(torch.empty(3, device="meta"), id="meta"),
        pytest.param(torch._neg_view(torch.eye(3)), id="negated"),
    ],
)
def test_tensors_without_values_of_their_own_are_refused(released: Path, tmp_path: Path, tensor: torch.Tensor) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(state() | {EMBEDDING: tensor}, path)
    with pytest.raises(ArtifactError, match=re.escape(f"{EMBEDDING} is not a dense tensor")):
        open_checkpoint(path, tokenizer=released)


def test_a_compressed_native_file_is_refused(released: Path, tmp_path: Path) -> None:
    """torch.load(mmap=True) would take the compressed bytes for the weights."""
    path, packed = tmp_path / "checkpoint.pt", tmp_path / "packed.pt"
    torch.save(state(), path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(ArtifactError, match="is compressed"):
        open_checkpoint(packed, tokenizer=released)


def test_a_native_file_that_cannot_be_mapped(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses to map more than memory and swap together."""

    def refuse(*_: object) -> None:
        raise RuntimeError("unable to mmap 9 bytes from file <checkpoint.pt>: Cannot allocate memory (12)\nC++ trace")

    path = tmp_path / "checkpoint.pt"
    torch.save(state(), path)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    with pytest.raises(ArtifactError, match=r"Cannot allocate memory \(12\);") as caught:
        open_checkpoint(path, tokenizer=released)
    assert "trace" not in str(caught.value)


def test_native_weights_are_views_of_the_file_that_cannot_change_it(released: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in state().items()}, path)
    content = path.read_bytes()
    weights = open_checkpoint(path, tokenizer=released).weights
    largest = max(weights.values(), key=lambda tensor: tensor.nbytes)
    assert not any(tensor.requires_grad for tensor in weights.values())
    largest.zero_()
    assert path.read_bytes() == content
