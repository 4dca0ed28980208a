"""The authors' ``.pt`` file: it opens like the released folder with the same weights, and runs no code."""

from __future__ import annotations

import pickle
import re
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_checkpoint import EMBEDDING, NUM_ROWS, WIDTH, assert_same_weights, live, state
from synthetic_checkpoint import TEMPORAL

from blip3v.errors import ArtifactError, UsageError
from blip3v.model import weight_file
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


class Call:
    """Unpickled, it is the result of a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self._call = function, args

    def __reduce__(self):
        return self._call


def raw_pickle(path: Path, pickled: bytes) -> None:
    """Writes a file of torch.save with another pickle in it."""
    torch.save(state(), path)
    with zipfile.ZipFile(path) as source:
        records = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in records.items():
            target.writestr(name, pickled if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path, run: torch.save(state() | {"attack": Call(*run)}, path), id="call"),
        pytest.param(
            lambda path, run: torch.save({"state_dict": state(), "x": Call(*run)}, path), id="beside the dict"
        ),
        pytest.param(lambda path, run: torch.save(torch.nn.Linear(2, 2), path), id="module"),
        pytest.param(lambda path, run: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), id="script"),
        pytest.param(lambda path, run: path.write_bytes(pickle.dumps(Call(*run))), id="plain pickle"),
        pytest.param(
            lambda path, run: torch.save(Call(*run), path, _use_new_zipfile_serialization=False), id="legacy format"
        ),
        pytest.param(lambda path, run: raw_pickle(path, pickle.dumps(Call(*run), protocol=0)), id="protocol 0"),
        pytest.param(lambda path, run: raw_pickle(path, pickle.dumps(Call(*run), protocol=5)), id="protocol 5"),
        pytest.param(lambda path, run: raw_pickle(path, b"cos\nsystem\n(S'true'\ntR."), id="os.system"),
        pytest.param(lambda path, run: raw_pickle(path, b"\x80\x02csys\nexit\n)R."), id="a blocked module"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_native_file_that_runs_code_is_refused(
    released: Path, tmp_path: Path, write: Callable[[Path, tuple[object, ...]], None]
) -> None:
    """PyTorch's own error advises weights_only=False: neither the message nor a logged cause may pass that on."""
    path, touched = tmp_path / "checkpoint.pt", tmp_path / "touched"
    write(path, (Path.touch, touched))
    with pytest.raises(ArtifactError, match="cannot be loaded as weights only: ") as caught:
        open_checkpoint(path, tokenizer=released)
    assert not touched.exists()
    printed = "".join(traceback.format_exception(caught.value))
    assert "weights_only" not in str(caught.value)
    assert "In PyTorch 2.6" not in printed
    assert "trust" not in printed
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


def _outside_its_shape() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[9], [9]]), torch.ones(1), (3, 3), check_invariants=False)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: torch.eye(3).to_sparse(), id="sparse"),
        pytest.param(lambda: torch.eye(3).to_sparse_csr(), id="compressed rows"),
        pytest.param(lambda: torch.eye(4).to_sparse_bsr((2, 2)), id="blocks"),
        pytest.param(_outside_its_shape, id="sparse outside its shape"),
        pytest.param(lambda: torch.empty(3, device="meta"), id="meta"),
        pytest.param(lambda: torch._neg_view(torch.eye(3)), id="negated"),
    ],
)
def test_tensors_without_values_of_their_own_are_refused(
    released: Path, tmp_path: Path, make: Callable[[], torch.Tensor]
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(state() | {EMBEDDING: make()}, path)
    with pytest.raises(ArtifactError, match=re.escape(f"{EMBEDDING} is not a dense tensor")):
        open_checkpoint(path, tokenizer=released)


def test_values_of_a_native_file_are_checked(released: Path, tmp_path: Path) -> None:
    path, values = tmp_path / "checkpoint.pt", state()
    values[EMBEDDING][3, 5] = torch.inf
    torch.save(values, path)
    weights = open_checkpoint(path, tokenizer=released).weights
    with pytest.raises(ArtifactError, match=re.escape(EMBEDDING) + r" in .*checkpoint\.pt .* not finite: 1 of"):
        weights[EMBEDDING]


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


@pytest.mark.parametrize("error", [MemoryError("Cannot allocate memory (os error 12)"), RuntimeError("no mmap\ntrace")])
def test_a_safetensors_file_that_cannot_be_mapped(
    released: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The library raises MemoryError, which was a traceback: the file was larger than `ulimit -v` left room for."""
    weights = open_checkpoint(released).weights

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(weight_file, "safe_open", refuse)
    for read in (lambda: open_checkpoint(released), lambda: weights[EMBEDDING]):
        with pytest.raises(ArtifactError, match=r"safetensors cannot be mapped into memory: .*; free memory") as caught:
            read()
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
