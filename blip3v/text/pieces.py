"""Maps a token to its bytes, so that a stream can be decoded token by token.

Two kinds of tokenizer are supported: byte-level (ours) and SentencePiece with byte fallback (the released one).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

from blip3v.errors import ArtifactError

__all__ = ["TokenBytes", "Utf8Decoder", "byte_alphabet"]

_MARK = "\u2581"  # SentencePiece's space
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    alphabet.update({byte: chr(256 + position) for position, byte in enumerate(others)})
    return alphabet


# A byte that is not UTF-8, as the error handler "surrogateescape" decodes it.
_BROKEN_BYTE = re.compile("[\udc80-\udcff]")


class Utf8Decoder:
    """Decodes bytes that arrive in parts; what is not UTF-8 becomes U+FFFD and takes nothing else with it.

    Args:
        one_for_each_byte: one U+FFFD for each broken byte, as SentencePiece decodes; else one for each longest part
            of a character, as the Unicode standard recommends and as byte-level tokenizers decode.
    """

    def __init__(self, *, one_for_each_byte: bool) -> None:
        errors = "surrogateescape" if one_for_each_byte else "replace"
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def decode(self, part: bytes, *, final: bool = False) -> str:
        """The text that ``part`` completes; with ``final`` an incomplete character at the end counts as broken."""
        return _BROKEN_BYTE.sub("\ufffd", self._decoder.decode(part, final))


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
        self._strips_first_mark = kinds[-1] == "Strip"

    def __call__(self, token: str, *, first: bool = False) -> bytes:
        """Bytes of ``token``; ``first``: it is the first of a text, whose leading mark SentencePiece drops."""
        if token in self._added:
            return token.encode("utf-8")
        if self._bytes_of:
            known = all(char in self._bytes_of for char in token)
            return bytes(self._bytes_of[char] for char in token) if known else token.encode("utf-8")
        match = _BYTE_TOKEN.fullmatch(token)
        if match:
            return bytes([int(match[1], 16)])
        text = token.removeprefix(_MARK) if first and self._strips_first_mark else token
        return text.replace(_MARK, " ").encode("utf-8")

    def utf8_decoder(self) -> Utf8Decoder:
        """A decoder for the joined bytes of tokens."""
        return Utf8Decoder(one_for_each_byte=not self._bytes_of)
