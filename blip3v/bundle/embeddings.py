"""The token embedding as a memory-mapped table: rows are read from the file when a prompt needs them.

The file is safetensors with a single tensor, ``embed_tokens``. Its header is parsed and checked here, because the
library's own reader copies a tensor into memory. Legend: V token ids (base and added), D width.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from blip3v.errors import ArtifactError, ArtifactMissingError

__all__ = ["open_embeddings", "write_embeddings"]

_NAME = "embed_tokens"
_DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_MAX_HEADER_BYTES = 4096
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_embeddings(path: Path, table_VD: npt.NDArray[np.floating]) -> None:
    """Writes the table: row i is the embedding of token id i.

    Args:
        path: the file to write.
        table_VD: float16 or float32.

    Raises:
        ArtifactError: another shape or dtype.
        OSError: the file system reports an error.
    """
    if table_VD.ndim != 2 or table_VD.dtype not in (np.float16, np.float32):
        raise ArtifactError(
            f"an embedding table is {table_VD.dtype} {table_VD.shape}; float16 or float32 (V, D) is needed"
        )
    try:
        save_file({_NAME: np.ascontiguousarray(table_VD)}, path)
    except SafetensorError as error:  # which hides the number of the system's error in its text
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), str(error)) from error


def open_embeddings(path: Path) -> npt.NDArray[np.floating]:
    """Returns a read-only view (V, D) of the file, float16 or float32; rows are read from disk when they are accessed.

    Raises:
        ArtifactMissingError: the file does not exist.
        ArtifactError: not a safetensors file with just this tensor, or its sizes are inconsistent.
    """
    if not path.is_file():
        raise ArtifactMissingError(f"{path} does not exist; run `blip3v export` again")
    try:
        header, start = _header(path)
        dtype, shape = _checked(header, path.stat().st_size - start)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not an embedding table: {error}; run `blip3v export` again") from error
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and the offset where the data starts."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > _MAX_HEADER_BYTES:
            raise ValueError(f"its header would have {length} bytes; at most {_MAX_HEADER_BYTES} are allowed")
        text = file.read(length)
    if len(text) < length:
        raise ValueError("it ends inside its header")
    header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _checked(header: dict[str, Any], num_data_bytes: int) -> tuple[np.dtype[Any], tuple[int, int]]:
    """The dtype and shape, checked against the number of bytes that follow the header."""
    names = sorted(header.keys() - {"__metadata__"})
    if names != [_NAME]:
        raise ValueError(f"it contains {names}; only {_NAME} is allowed")
    entry = header[_NAME]
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{_NAME} is {entry['dtype']}; F16 or F32 is allowed")
    dtype = _DTYPES[entry["dtype"]]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if len(shape) != 2 or any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"{_NAME} has shape {shape}; two sizes of at least 1 are needed")
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    if offsets != [0, num_bytes] or num_bytes != num_data_bytes:
        raise ValueError(f"{_NAME} needs {num_bytes} bytes; {num_data_bytes} follow the header at offsets {offsets}")
    return dtype, (shape[0], shape[1])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("its header has a duplicate key")
    return result
