"""Finds H.264 pictures that no other picture refers to, which need not be decoded unless they are wanted.

Each NAL unit states in ``nal_ref_idc`` whether its picture is a reference; 0 means that none is predicted from it
(ITU-T H.264, 7.4.1). Damage could make a reference look like such a picture. ``frame_num``, which counts references,
then has a gap, so the number of each picture is compared with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Gap", "Pictures", "pictures_of"]

_SLICE, _IDR_SLICE, _SPS, _PPS = 1, 5, 7, 8
# Supplemental information, delimiters and filler, which no other picture needs.
_HARMLESS = {6, 9, 12}
# Profiles whose sequence parameters begin with the format of the samples.
_WITH_FORMAT = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
_START_CODE = b"\0\0\1"
# The fields up to frame_num are shorter in a file that is not damaged.
_HEADER_BYTES = 24


class Gap(Exception):  # noqa: N818 (a finding, not an error: the caller decodes everything then)
    """A picture does not follow from the one before it: what was left out may have been a reference."""


def pictures_of(extradata: bytes | None) -> Pictures | None:
    """What tells the pictures of a stream apart.

    Args:
        extradata: of the stream: an ``avcC`` record, or NAL units after start codes.

    Returns:
        None if that cannot be told safely: with fields, gaps that the stream allows, or rare parameters.
    """
    if not extradata:
        return None
    try:
        length_bytes = (extradata[4] & 3) + 1 if extradata[0] == 1 else 0
        units = _units_of_avcc(extradata) if length_bytes else _after_start_codes(extradata)
        (sps,) = {_without_end(unit) for unit in units if unit[0] & 31 == _SPS}
        frame_num_bits = _frame_num_bits(_Bits(sps[1:]))
    except (IndexError, ValueError):
        return None
    return None if frame_num_bits is None else Pictures(length_bytes, sps, frame_num_bits)


@dataclass(frozen=True)
class _Picture:
    is_idr: bool
    is_reference: bool
    frame_num: int


class Pictures:
    """Follows the pictures of one pass over packets, in decode order."""

    def __init__(self, length_bytes: int, sps: bytes, frame_num_bits: int) -> None:
        self._length_bytes = length_bytes  # of the length before a NAL unit; 0: start codes
        self._sps = sps
        self._frame_num_bits = frame_num_bits
        self._expected: int | None = None  # frame_num of the next picture; None: not known

    def is_unreferenced(self, packet: bytes) -> bool:
        """Whether no other picture refers to that of ``packet``, the next one in decode order.

        Raises:
            Gap: a reference is missing before this picture, or the stream's parameters change.
        """
        try:
            picture, has_more = self._picture(packet)
        except (IndexError, ValueError):
            self._expected = None
            return False
        known = self._expected is not None
        if known and not picture.is_idr and picture.frame_num != self._expected:
            raise Gap
        if picture.is_reference:
            self._expected = (picture.frame_num + 1) % (1 << self._frame_num_bits)
        return known and not picture.is_reference and not has_more

    def _picture(self, packet: bytes) -> tuple[_Picture, bool]:
        """The one frame of a packet, and whether there is more that other frames may need.

        Raises:
            ValueError, IndexError: it is anything else.
        """
        view = memoryview(packet)
        units = _with_lengths(view, self._length_bytes) if self._length_bytes else _after_start_codes(packet)
        pictures, has_more = set(), False
        for unit in units:
            kind, is_reference = unit[0] & 0x9F, bool(unit[0] & 0x60)  # with the bit that is always 0
            if kind in (_SLICE, _IDR_SLICE):
                pictures.add(_Picture(kind == _IDR_SLICE, is_reference, self._frame_num(unit)))
            elif kind == _SPS and _without_end(unit) != self._sps:
                raise Gap
            elif kind not in (_SPS, _PPS, *_HARMLESS):
                raise ValueError(f"a NAL unit starts with {unit[0]}")
            has_more = has_more or kind not in (_SLICE, *_HARMLESS)
        (picture,) = pictures
        return picture, has_more

    def _frame_num(self, unit: memoryview) -> int:
        bits = _Bits(bytes(unit[1:_HEADER_BYTES]))
        for _ in ("first_mb_in_slice", "slice_type", "pic_parameter_set_id"):
            bits.golomb()
        return bits.read(self._frame_num_bits)


class _Bits:
    """Reads the fields of a NAL unit's header.

    Every method raises ``ValueError`` beyond the end.
    """

    def __init__(self, data: bytes) -> None:
        payload = data.replace(b"\0\0\3", b"\0\0")  # the 3 only keeps start codes out of the data
        self._value, self._left = int.from_bytes(payload, "big"), len(payload) * 8

    def read(self, num_bits: int) -> int:
        """An unsigned number of ``num_bits``."""
        self._left -= num_bits
        if self._left < 0:
            raise ValueError("the NAL unit ends too early")
        return self._value >> self._left & (1 << num_bits) - 1

    def golomb(self) -> int:
        """An unsigned Exp-Golomb code."""
        num_zeros = 0
        while not self.read(1):
            num_zeros += 1
        return (1 << num_zeros) - 1 + self.read(num_zeros)


def _frame_num_bits(sps: _Bits) -> int | None:
    """Bits of ``frame_num``, from the sequence parameters; None unless every packet has one whole, counted frame."""
    profile = sps.read(8)
    sps.read(16)  # constraints, level
    sps.golomb()  # seq_parameter_set_id
    if profile in _WITH_FORMAT:
        if sps.golomb() == 3 and sps.read(1):  # three colour planes, coded separately
            return None
        sps.golomb(), sps.golomb(), sps.read(1)  # bit depths, lossless
        if sps.read(1):  # scaling matrices
            return None
    frame_num_bits = sps.golomb() + 4
    order_type = sps.golomb()
    if order_type == 1 or frame_num_bits > 16:
        return None
    if order_type == 0:
        sps.golomb()
    sps.golomb()  # max_num_ref_frames
    allows_gaps = sps.read(1)
    sps.golomb(), sps.golomb()  # width, height
    has_frames_only = sps.read(1)
    return frame_num_bits if has_frames_only and not allows_gaps else None


def _units_of_avcc(record: bytes) -> Iterator[memoryview]:
    """Its sequence parameter sets; what follows them does not matter here."""
    view, at = memoryview(record), 6
    for _ in range(record[5] & 31):
        start = at + 2
        at = start + int.from_bytes(view[at:start], "big")
        if at > len(view):
            raise ValueError("a parameter set is longer than its record")
        yield view[start:at]


def _with_lengths(packet: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """NAL units, each after its length, which together are the whole packet."""
    at = 0
    while at < len(packet):
        start = at + length_bytes
        at = start + int.from_bytes(packet[at:start], "big")
        if at > len(packet):
            raise ValueError("a NAL unit is longer than its packet")
        yield packet[start:at]


def _after_start_codes(packet: bytes) -> Iterator[memoryview]:
    starts = []
    at = packet.find(_START_CODE)
    while at >= 0:
        starts.append(at)
        at = packet.find(_START_CODE, at + 3)
    view = memoryview(packet)
    for start, end in pairwise([*starts, len(packet)]):
        yield view[start + 3 : end]


def _without_end(unit: memoryview) -> bytes:
    """Without the zeros that may follow it."""
    return bytes(unit).rstrip(b"\0")
