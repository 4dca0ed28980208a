"""Maps a token to its bytes, so that a stream can be decoded token by token.

Two kinds of tokenizer are supported: byte-level (ours) and SentencePiece with byte fallback (the released one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from blip3v.errors import ArtifactError

__all__ = ["TokenBytes", "byte_alphabet"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet.update({byte: chr(256 + position) for position, byte in enumerate(others)})
    return alphabet


class TokenBytes:
    """Maps a token, as the vocabulary writes it, to its bytes.

    Args:
        decoder: the ``decoder`` part of tokenizer.json.
        added: tokens that stand for their own text.
        where: named in errors.

    Raises:
        ArtifactError: a decoder of another kind.
    """

    def __init__(self, decoder: Mapping[str, Any] | None, added: frozenset[str], where: str) -> None:
        parts = [] if decoder is None else decoder.get("decoders", [decoder])
        kinds = [part["type"] for part in parts]
        if kinds == ["ByteLevel"]:
            self._bytes_of = {char: byte for byte, char in byte_alphabet().items()}
        elif kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
            self._bytes_of = {}
        else:
            raise ArtifactError(
                f"{where} has an unsupported decoder ({', '.join(kinds) or 'none'}); allowed: ByteLevel, or Replace, "
                "ByteFallback, Fuse and Strip (SentencePiece)"
            )
        self._added = added
        self.strips_first_space: bool = kinds[-1] == "Strip"

    def __call__(self, token: str) -> bytes:
        """Bytes of ``token``."""
        if token in self._added:
            return token.encode("utf-8")
        if self._bytes_of:
            return bytes(self._bytes_of[char] for char in token)
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token.replace("\u2581", " ").encode("utf-8")
