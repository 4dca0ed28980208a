"""Several readers of one open file, each with a position of its own, which threads need."""

from __future__ import annotations

import os
from typing import BinaryIO

__all__ = ["CAN_SHARE", "Reader", "reader"]

# Elsewhere than on Unix readers would share the file's position: one at a time then.
CAN_SHARE = hasattr(os, "pread")


def reader(file: BinaryIO) -> BinaryIO | Reader:
    """What reads ``file`` from its start; independent of other readers where ``CAN_SHARE`` says so."""
    if CAN_SHARE:
        return Reader(file.fileno())
    file.seek(0)
    return file


class Reader:
    """Reads a regular file through its descriptor, which it does not own. What PyAV needs of a file, and no more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = 0

    def read(self, num_bytes: int) -> bytes:
        """At most ``num_bytes`` from the position on; none at the end."""
        data = os.pread(self._descriptor, num_bytes, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position, and returns it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        if start is None:
            start = os.fstat(self._descriptor).st_size
        if start + offset < 0:
            raise ValueError(f"position {start + offset} is before the start of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position
