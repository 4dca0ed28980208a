"""Tells image files from videos by their first bytes. Imports neither av nor PIL, of which a file needs only one."""

from __future__ import annotations

import struct
from typing import BinaryIO

__all__ = ["is_image", "is_jpeg"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF_OR_BMP = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_HEAD_BYTES = 1 << 16


def is_image(file: BinaryIO) -> bool:
    """Whether Pillow has to read the file: a picture, a TIFF of several pages, or any WebP.

    GIF and animated PNG are videos: ffmpeg shows them as players do, and WebP is the one animation that it does not
    read. JPEGs one after the other are a video too, unless the first one is a photo: cameras append a preview or a
    depth map to theirs. The file's position does not matter and is preserved.
    """
    position = file.tell()
    try:
        head = _head(file)
        if head.startswith(_PNG):
            return not _is_animated_png(file)
        if head.startswith(_JPEG):
            return b"Exif\0\0" in head or b"MPF\0" in head
        return head.startswith(_TIFF_OR_BMP) or _is_webp(head) or _is_ppm(head)
    finally:
        file.seek(position)


def is_jpeg(file: BinaryIO) -> bool:
    """Whether the file starts as a JPEG: one that is no video is a picture. The file's position is preserved."""
    position = file.tell()
    try:
        return _head(file).startswith(_JPEG)
    finally:
        file.seek(position)


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(_HEAD_BYTES)


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_ppm(head: bytes) -> bool:
    return head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3].isspace()


def _is_animated_png(file: BinaryIO) -> bool:
    """Whether an animation's header comes before the picture's data."""
    file.seek(len(_PNG))
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind in (b"acTL", b"IDAT", b"IEND"):
            return bool(kind == b"acTL")
        file.seek(length + 4, 1)
    return False
