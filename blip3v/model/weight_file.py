"""safetensors files: listing the tensors of one without reading its weights, and writing one tensor at a time.

The library's own writer needs all tensors in memory at once. Not here: which tensors a file must hold
(``folder.py``, ``released_names.py``), and reading them one by one (``weights.py``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from blip3v.errors import ArtifactError

__all__ = [
    "DTYPES",
    "TensorInfo",
    "UnusedKey",
    "compare",
    "file_bytes",
    "first_line",
    "header",
    "listed",
    "opened",
    "read_tensor_infos",
    "tensor_info",
    "write_weights",
]

# The dtypes that weights may be stored in, by their safetensors names.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# The released sinusoid frequencies are meaningless in half precision.
_KEEP_FP32 = ("inv_freq",)
_MAX_LISTED = 8
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one tensor in a file."""

    shape: tuple[int, ...]
    dtype: str  # its safetensors name; one of DTYPES if the tensor is a weight

    @property
    def num_elements(self) -> int:
        """The product of the shape."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Its size in a file. The dtype must be one of ``DTYPES``."""
        return self.num_elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class UnusedKey:
    """A tensor of a checkpoint, or some rows of one, that no computation uses."""

    name: str
    shape: tuple[int, ...]
    why: str


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Maps a safetensors file and gives the library's handle of it.

    Raises:
        ArtifactError: the file is broken, or cannot be mapped; also for the handle's errors in the ``with`` block.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (MemoryError, RuntimeError) as error:  # of the library's mapping, and of torch's
        raise ArtifactError(
            f"{path} cannot be mapped into memory: {first_line(error)}; free memory, or raise the limit of this "
            "process's address space (ulimit -v)"
        ) from error
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a complete safetensors file: {error}; copy or write it again") from error


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Reads the names, shapes and dtypes of a safetensors file, but not its weights.

    Raises:
        ArtifactError: the file is broken.
    """
    with opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        _check_unique_keys(path)
        return {name: TensorInfo(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _check_unique_keys(path: Path) -> None:
    """Refuses a header that says something twice: the library takes the last."""

    def check(pairs: list[tuple[str, Any]]) -> None:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise ArtifactError(f"{path} has {listed(twice)} twice in its header; copy or write it again")

    with path.open("rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=check)


def first_line(error: BaseException) -> str:
    """Returns what an error says, without the traces that torch appends; its type if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def tensor_info(name: str, tensor: Tensor | TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    """Returns the shape and dtype that a tensor is stored with.

    Args:
        name: its name; sinusoid frequencies are always fp32.
        tensor: the tensor, or its present shape and dtype.
        dtype: the dtype to store; None: the present one.
    """
    own = DTYPES[tensor.dtype] if isinstance(tensor, TensorInfo) else tensor.dtype
    chosen = torch.float32 if name.endswith(_KEEP_FP32) else dtype or own
    names = {value: key for key, value in DTYPES.items()}
    return TensorInfo(tuple(tensor.shape), names[chosen])


def file_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """Returns the size in bytes of the file that ``write_weights`` writes for ``tensors``."""
    return len(header(tensors)) + sum(stored.num_bytes for stored in tensors.values())


def header(tensors: Mapping[str, TensorInfo], *, length: int | None = None) -> bytes:
    """Returns what a file begins with, before the tensors: the widest dtypes first, else in the given order.

    Args:
        tensors: shape and dtype by name.
        length: of the result; None: as short as possible.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, stored in _ordered(tensors):
        end = start + stored.num_bytes
        entries[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT if length is None else length - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def write_weights(path: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file with one tensor in memory at a time.

    Args:
        path: the file to write.
        tensors: shape and dtype by name. A tensor that is read in another dtype is cast.
        read: returns the tensor of a name, in that shape.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(header(tensors))
        for name, stored in _ordered(tensors):
            tensor = read(name).detach().cpu().to(DTYPES[stored.dtype]).contiguous()
            assert tuple(tensor.shape) == stored.shape, f"{name} is {tuple(tensor.shape)}, not {stored.shape}"
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def compare(found: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Lists by name what is missing, unknown, misshapen or not of a weight's dtype in ``found``."""
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unknown {name}" for name in sorted(found) if name not in wanted]
    for name, shape in wanted.items():
        stored = found.get(name)
        if stored is not None and stored.shape != shape:
            problems.append(f"{name} has shape {stored.shape}, expected {shape}")
        elif stored is not None and stored.dtype not in DTYPES:
            problems.append(f"{name} is {stored.dtype}, expected one of {', '.join(DTYPES)}")
    return problems


def listed(problems: list[str]) -> str:
    """Joins the first few problems and counts the rest."""
    more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
    return "; ".join(problems[:_MAX_LISTED]) + more


def _ordered(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, TensorInfo]]:
    # Widest dtypes first, so that every tensor is aligned to its element size.
    return sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize)
