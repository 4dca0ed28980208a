"""Arrays that wait in a file for the next layer, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from blip3v.publishing import cannot_write

__all__ = ["Spool"]


class Spool:
    """Numbered fp32 tensors in a temporary file without a name, which a killed process leaves nothing of.

    The file is read and written, not mapped: pages of a mapped file would count as memory of this process.

    Args:
        folder: where the file is.
        shapes: of the tensors; they never change.

    Raises:
        ArtifactError: the file cannot be made; also from ``write``.
    """

    def __init__(self, folder: Path, shapes: Sequence[tuple[int, ...]]) -> None:
        self._folder = folder
        self._shapes = list(shapes)
        self._starts = np.cumsum([0, *(4 * prod(shape) for shape in self._shapes)]).tolist()
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed by ``close``
        except OSError as error:
            raise cannot_write(folder, error) from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._shapes)

    def write(self, at: int, tensor: Tensor) -> None:
        """Stores tensor number ``at``, in its shape."""
        assert tuple(tensor.shape) == self._shapes[at], f"{tuple(tensor.shape)} is not {self._shapes[at]}"
        left = tensor.float().contiguous().view(-1).view(torch.uint8).numpy().data
        try:
            self._file.seek(self._starts[at])
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise cannot_write(self._folder, error) from error

    def read(self, at: int) -> Tensor:
        """Returns tensor number ``at``, a copy."""
        values = np.empty(self._shapes[at], np.float32)
        left = values.reshape(-1).view(np.uint8).data
        self._file.seek(self._starts[at])
        while left:
            count = self._file.readinto(left)
            assert count, "read before it was written"
            left = left[count:]
        return torch.from_numpy(values)
