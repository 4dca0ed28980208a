"""The authors' native checkpoint: one ``.pt`` file of torch.save, names without ``vlm.``.

It is unpickled with ``weights_only``, so that it can run no code, and without its weights: their places in the file are
taken, and each is read when it is asked for.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from blip3v.errors import ArtifactError
from blip3v.model.weight_file import DTYPES, TensorInfo, listed

__all__ = ["NativeFile", "NativeWeights", "open_native"]

# Under which key the tensors may lie, and what wrappers put before their names.
_STATE_KEYS = ("model_state_dict", "state_dict")
_PREFIXES = ("module.", "vlm.")


@dataclass(frozen=True)
class _Place:
    """Where the elements of a tensor lie in the file."""

    start: int  # byte of its storage
    offset: int  # elements from there
    stride: tuple[int, ...]


@dataclass(frozen=True)
class NativeFile:
    """What a ``.pt`` file holds, unread, by names without prefixes."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, _Place]

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own.

        Raises:
            ArtifactError: the file ends before it does.
        """
        stored, place = self.tensors[name], self.places[name]
        dtype = DTYPES[stored.dtype]
        last = sum((size - 1) * step for size, step in zip(stored.shape, place.stride, strict=True))
        elements = torch.empty(last + 1, dtype=dtype)
        with self.path.open("rb") as file:
            file.seek(place.start + place.offset * dtype.itemsize)
            num_read = file.readinto(elements.view(torch.uint8).numpy().data)
        if num_read < elements.nbytes:
            raise ArtifactError(f"{self.path} ends inside the tensor {name}; copy it again")
        return elements.as_strided(stored.shape, place.stride)


class NativeWeights(Mapping[str, Tensor]):
    """Tensors of a ``.pt`` file by the model's names, each read when it is asked for.

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


def open_native(path: Path) -> NativeFile:
    """Reads names, shapes and places of the tensors.

    Raises:
        ArtifactError: not a file of torch.save that weights alone are in, or one without tensors by name.
    """
    state = _state(path)
    tensors, places, problems = {}, {}, []
    names = {dtype: name for name, dtype in DTYPES.items()}
    for full, tensor in state.items():
        name = _without_prefixes(full)
        if name in tensors:
            problems.append(f"{full} stands twice, with and without a prefix")
        # A dtype that weights do not have gets its own name, which the comparison with the model then refuses.
        tensors[name] = TensorInfo(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype)))
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            raise ArtifactError(
                f"{path} is of an old form that cannot be read piece by piece; save it again with torch.save"
            )
        places[name] = _Place(start, int(tensor.storage_offset()), tuple(tensor.stride()))
    if problems:
        raise ArtifactError(f"{path}: {listed(problems)}")
    return NativeFile(path, tensors, places)


def _state(path: Path) -> dict[str, Tensor]:
    try:
        with FakeTensorMode():
            values = torch.load(path, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(
            f"{path} cannot be read as weights alone: {reason}; expected is what torch.save wrote"
        ) from error
    for key in _STATE_KEYS:
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
            break
    if not _is_state(values):
        found = f"keys {listed([repr(key) for key in values])}" if isinstance(values, dict) else type(values).__name__
        raise ArtifactError(
            f"{path} holds no tensors by name but {found}; expected are they themselves, or under one of "
            f"{', '.join(_STATE_KEYS)}"
        )
    return cast(dict[str, Tensor], values)


def _is_state(values: object) -> bool:
    if not isinstance(values, dict) or not values:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in values.items())


def _without_prefixes(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
