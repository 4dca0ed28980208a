"""safetensors files: what one holds without reading its weights, and writing one tensor at a time.

The library's own writer wants all tensors in memory at once. What is not here: which tensors there must be
(``folder.py``, ``released_names.py``) and reading them one by one (``weights.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

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
    "listed",
    "read_tensor_infos",
    "tensor_info",
    "write_weights",
]

# What weights may be stored as, by the name that safetensors gives it.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# The released sinusoid frequencies lose their meaning in half precision.
_KEEP_FP32 = ("inv_freq",)
_MOST_LISTED = 8
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it; one of DTYPES where it is a weight

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """What it takes in a file. The dtype is one of ``DTYPES``."""
        return self.num_elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class UnusedKey:
    """A tensor of a checkpoint, or rows of one, that no computation uses."""

    name: str
    shape: tuple[int, ...]
    why: str


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of a safetensors file; the weights are not read.

    Raises:
        ArtifactError: the file is broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: TensorInfo(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is not a whole safetensors file: {error}; copy or write it again") from error


def tensor_info(name: str, tensor: Tensor | TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    """How a tensor goes into a file.

    Args:
        name: its name; sinusoid frequencies are always fp32.
        tensor: whose shape and dtype it has so far.
        dtype: the dtype wanted; None: as it is.
    """
    own = DTYPES[tensor.dtype] if isinstance(tensor, TensorInfo) else tensor.dtype
    chosen = torch.float32 if name.endswith(_KEEP_FP32) else dtype or own
    names = {value: key for key, value in DTYPES.items()}
    return TensorInfo(tuple(tensor.shape), names[chosen])


def file_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    """Bytes of the file that ``write_weights`` makes of these."""
    return len(_header(tensors)) + sum(stored.num_bytes for stored in tensors.values())


def write_weights(path: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file; one tensor is in memory at a time.

    Args:
        path: the file to make.
        tensors: what it holds. A tensor that is read in another dtype is cast.
        read: gives the tensor of a name, of that shape.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        file.write(_header(tensors))
        for name, stored in _ordered(tensors):
            tensor = read(name).detach().cpu().to(DTYPES[stored.dtype]).contiguous()
            assert tuple(tensor.shape) == stored.shape, f"{name} is {tuple(tensor.shape)}, not {stored.shape}"
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def compare(found: Mapping[str, TensorInfo], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unknown, misshapen or no weight among ``found``, each by name."""
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
    """The first few of many problems, and how many more there are."""
    more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
    return "; ".join(problems[:_MOST_LISTED]) + more


def _ordered(tensors: Mapping[str, TensorInfo]) -> list[tuple[str, TensorInfo]]:
    # Wide dtypes first, so that every tensor begins at a multiple of its own width.
    return sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize)


def _header(tensors: Mapping[str, TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, stored in _ordered(tensors):
        end = start + stored.num_bytes
        entries[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
