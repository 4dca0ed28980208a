"""The authors' native checkpoint: one ``.pt`` file of torch.save, names without ``vlm.``.

``torch.load`` maps it with ``weights_only``: it runs no code of the file, and a weight is read from the disk when it is
used.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from blip3v.errors import ArtifactError
from blip3v.model.weight_file import DTYPES, TensorInfo, listed

__all__ = ["NativeFile", "NativeWeights"]

# Under which key the tensors may lie, and what wrappers put before their names.
_STATE_KEYS = ("model_state_dict", "state_dict")
_PREFIXES = ("module.", "vlm.")
# Pages that were read count as memory of this process until their map goes, so the file is mapped anew after this much.
_REMAP_BYTES = 2**30


class NativeFile:
    """A ``.pt`` file, mapped.

    Attributes:
        path: the file.
        tensors: what it holds, by names without prefixes.

    Raises:
        ArtifactError: not a file of torch.save with tensors by name and nothing else, or one that cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped, self._num_read_bytes = _load(path), 0
        names = {dtype: name for name, dtype in DTYPES.items()}
        # A dtype that weights do not have keeps its own name, which the comparison with the model then refuses.
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)))
            for name, tensor in self._mapped.items()
        }

    def read(self, name: str) -> Tensor:
        """One tensor, a view of the mapped file; writing to it does not change the file.

        Raises:
            ArtifactError: the file can no longer be mapped.
        """
        if self._num_read_bytes > _REMAP_BYTES:
            self._mapped, self._num_read_bytes = _load(self.path), 0
        tensor = self._mapped[name]
        self._num_read_bytes += tensor.nbytes
        return tensor


class NativeWeights(Mapping[str, Tensor]):
    """Tensors of a ``.pt`` file by the model's names, each read when it is used.

    Args:
        file: where they are.
        origins: the name in the file and the number of rows (None: all) of each.
    """

    def __init__(self, file: NativeFile, origins: Mapping[str, tuple[str, int | None]]) -> None:
        self._file, self._origins = file, dict(origins)

    def __getitem__(self, name: str) -> Tensor:
        source, num_rows = self._origins[name]
        return self._file.read(source)[:num_rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


def _load(path: Path) -> dict[str, Tensor]:
    """The file's tensors by names without prefixes, as views of a map that goes with the last of them."""
    try:
        _check_stored(path)
        with warnings.catch_warnings(action="ignore"):  # what is odd about the file ends in an error below
            values = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a broken pickle makes the reader raise anything
        raise ArtifactError(
            f"{path} cannot be read as weights alone: {_reason(error)}; save it again with torch.save as a state dict"
        ) from error
    return _plain(_state(values, path), path)


def _check_stored(path: Path) -> None:
    """PyTorch maps compressed records as if they were the weights."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise ValueError(f"{packed[0]} is compressed, and only what is stored as it is can be mapped")


def _reason(error: Exception) -> str:
    """Without PyTorch's advice, which is to load the file with ``weights_only=False``."""
    lines = str(error).splitlines()
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "it holds more than tensors, and nothing else is ever loaded"
    return lines[0] if lines else type(error).__name__


def _state(values: object, path: Path) -> dict[str, Tensor]:
    for key in _STATE_KEYS:
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
            break
    if isinstance(values, dict) and values:
        state = {
            name: tensor for name, tensor in values.items() if isinstance(name, str) and isinstance(tensor, Tensor)
        }
        if len(state) == len(values):
            return state
    found = f"keys {listed([repr(key) for key in values])}" if isinstance(values, dict) else type(values).__name__
    raise ArtifactError(
        f"{path} holds no tensors by name but {found}; expected are they themselves, or under one of "
        f"{', '.join(_STATE_KEYS)}"
    )


def _plain(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    problems = []
    for full, tensor in state.items():
        name = full
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name in tensors:
            problems.append(f"{full} stands twice, with and without a prefix")
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_neg():
            problems.append(f"{full} is not a dense tensor with values of its own")
        tensors[name] = tensor.detach()
    if problems:
        raise ArtifactError(f"{path}: {listed(problems)}")
    return tensors
