"""Which other files an ONNX graph wants to read: a walk over the protobuf wire format, without the onnx package.

A hash proves that a graph is the one that was written, not that its writer meant well: an external tensor whose
location is ``../../secret`` would make the engine read it. Only the few message fields on the way to
``TensorProto.external_data`` are visited (field numbers of onnx.proto); all others are skipped by their length, weights
included.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from blip3v.errors import ArtifactError

__all__ = ["external_locations"]

# message -> field number -> message inside
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse_tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse_tensor", 23: "sparse_tensor"},
    "sparse_tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
_MAX_DEPTH = 64
_MAX_FIELDS = 10_000_000


def external_locations(path: Path) -> set[str]:
    """Every ``location`` of external data in the graph, subgraphs and functions included.

    Raises:
        ArtifactError: the file is no ONNX graph.
    """
    if path.stat().st_size == 0:
        return set()
    walk = _Walk(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk.message(data, 0, len(data), "model", 0)
    return walk.locations


class _Walk:
    """One pass over one file. Positions are offsets in bytes."""

    def __init__(self, path: Path) -> None:
        self.locations: set[str] = set()
        self._path = path
        self._fields_left = _MAX_FIELDS

    def message(self, data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> None:
        """Visits one message of ``kind`` between ``start`` and ``end``."""
        if depth > _MAX_DEPTH:
            raise self._broken("graphs nested too deeply")
        entry: dict[int, bytes] = {}
        while start < end:
            tag, start = self._varint(data, start, end)
            if tag >= 2**32:
                raise self._broken("a field number out of range")
            number, wire = tag >> 3, tag & 7
            length, start = self._length(data, start, end, wire)
            if wire == 2 and kind == "entry":
                entry[number] = data[start : start + length]
            elif wire == 2 and number in _FIELDS[kind]:
                self.message(data, start, start + length, _FIELDS[kind][number], depth + 1)
            start += length
        if entry.get(1) == b"location":
            self.locations.add(entry.get(2, b"").decode("utf-8", "replace"))

    def _length(self, data: mmap.mmap, start: int, end: int, wire: int) -> tuple[int, int]:
        """Bytes of a field's value, and where it starts."""
        if wire == 0:
            return 0, self._varint(data, start, end)[1]
        if wire == 2:
            length, start = self._varint(data, start, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise self._broken(f"a field of wire type {wire}")
        if start + length > end:
            raise self._broken("a field that is longer than its message")
        return length, start

    def _varint(self, data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
        self._fields_left -= 1
        if self._fields_left < 0:
            raise self._broken(f"more than {_MAX_FIELDS} fields")
        value = 0
        for shift in range(0, 70, 7):
            if start >= end:
                break
            byte = data[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, start
        raise self._broken("a number that does not end")

    def _broken(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self._path} is no ONNX graph: it has {what}; run `blip3v export` again")
