"""The authors' native checkpoint: one ``.pt`` file written by torch.save, with names that lack ``vlm.``.

``torch.load`` maps it with ``weights_only``: no code in the file runs, and a weight is read from disk when it is used.
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
from blip3v.model.weight_file import DTYPES, TensorInfo, first_line, listed
from blip3v.model.weight_values import check_values

__all__ = ["NativeFile", "NativeWeights"]

# Keys that the state dict may be nested under, and prefixes that wrappers add to its names.
_STATE_KEYS = ("model_state_dict", "state_dict")
_PREFIXES = ("module.", "vlm.")
# Pages that were read count as this process's memory until they are unmapped, so the file is remapped after this much.
_REMAP_BYTES = 2**30


class NativeFile:
    """A memory-mapped ``.pt`` file.

    Attributes:
        path: the file.
        tensors: shape and dtype of its tensors, by names without prefixes.

    Raises:
        ArtifactError: torch.save did not write it, it holds more than tensors by name, or it cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped, self._num_read_bytes = _load(path), 0
        names = {dtype: name for name, dtype in DTYPES.items()}
        # A dtype outside DTYPES keeps its torch name, which the comparison with the model then rejects.
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)))
            for name, tensor in self._mapped.items()
        }

    def read(self, name: str) -> Tensor:
        """Returns one tensor as a view of the mapped file; writing to it does not change the file.

        Raises:
            ArtifactError: the file can no longer be mapped.
        """
        if self._num_read_bytes > _REMAP_BYTES:
            self._mapped, self._num_read_bytes = _load(self.path), 0
        tensor = self._mapped[name]
        self._num_read_bytes += tensor.nbytes
        return tensor


class NativeWeights(Mapping[str, Tensor]):
    """Tensors of a ``.pt`` file by the model's names, each read on access.

    Args:
        file: the file that holds them.
        origins: for each name, its name in the file and the number of leading rows to use (None: all).
    """

    def __init__(self, file: NativeFile, origins: Mapping[str, tuple[str, int | None]]) -> None:
        self._file, self._origins = file, dict(origins)

    def __getitem__(self, name: str) -> Tensor:
        source, num_rows = self._origins[name]
        return check_values(name, self._file.read(source)[:num_rows], where=self._file.path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)


def _load(path: Path) -> dict[str, Tensor]:
    """Maps the file and returns its tensors by names without prefixes; the map is released with the last of them."""
    try:
        _check_uncompressed(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anything odd about the file is an error below
            values = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        # Without the cause: PyTorch's own text advises loading the file with ``weights_only=False``.
        raise ArtifactError(f"{path} cannot be loaded as weights only: {_reason(error)}") from None
    return _without_prefixes(_state_dict(values, path), path)


def _check_uncompressed(path: Path) -> None:
    """Refuses compressed records, which PyTorch would map as if they were the weights."""
    with zipfile.ZipFile(path) as archive:
        compressed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise _CompressedError(compressed[0])


class _CompressedError(Exception):
    """A record of the archive is compressed."""


def _reason(error: Exception) -> str:
    """What is wrong and what to do, in words of our own unless they are the system's."""
    again = "save it again with torch.save as a state dict"
    if isinstance(error, _CompressedError):
        return f"{error} is compressed, and only uncompressed records can be mapped; {again}"
    if isinstance(error, zipfile.BadZipFile):
        return f"it is not a whole file of torch.save's present format; copy it again, or {again}"
    if isinstance(error, (OSError, MemoryError)) or "unable to mmap" in str(error):
        return f"{first_line(error)}; check that it can be read, and free memory"
    if isinstance(error, pickle.UnpicklingError):
        return f"it holds more than tensors, and only tensors are ever loaded; {again}"
    return f"it is broken; copy it again, or {again}"


def _state_dict(values: object, path: Path) -> dict[str, Tensor]:
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
        f"{path} is not a state dict: it holds {found}; expected tensors by name, at the top level or under "
        f"{' or '.join(_STATE_KEYS)}"
    )


def _without_prefixes(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    problems = []
    for full, tensor in state.items():
        name = full
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name in tensors:
            problems.append(f"{full} appears twice, with and without a prefix")
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_neg():
            problems.append(f"{full} is not a dense tensor that stores its own values")
        tensors[name] = tensor.detach()
    if problems:
        raise ArtifactError(f"{path}: {listed(problems)}")
    return tensors
