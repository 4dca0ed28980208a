"""Reads ``tokenizer.model``, the file of a SentencePiece tokenizer, without the sentencepiece package.

The file is one protobuf message. The few fields that determine ids are read here, and whatever would change the ids in
a way that ``released_tokenizer.py`` cannot reproduce is refused: a normaliser with rules, another kind of model, pieces
of other types. Training settings, the self test and extensions are skipped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blip3v.errors import ArtifactError, ArtifactMissingError

__all__ = ["SentencePieceFile"]

# The released file has 0.5 MB and 32,000 pieces of at most 48 bytes; anything far larger is not a tokenizer.
_MAX_FILE_BYTES = 16 * 2**20
_MAX_PIECES = 2**19
_MAX_PIECE_CHARS = 256

# Field numbers of sentencepiece_model.proto, and the numbers of its enums.
_PIECE, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_TYPE_NAMES = {_NORMAL: "normal", _UNKNOWN: "unknown", _CONTROL: "control", 4: "user-defined", 5: "unused", 6: "byte"}
_CHARSMAP_FIELD = 2
_BPE = 2


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """A varint field with a single allowed value."""

    name: str
    number: int
    default: int
    allowed: int


_TRAINER_SETTINGS = (
    _Setting(name="model_type (2 is BPE)", number=3, default=1, allowed=_BPE),
    _Setting(name="treat_whitespace_as_suffix", number=24, default=0, allowed=0),
    _Setting(name="byte_fallback", number=35, default=0, allowed=1),
    _Setting(name="unk_id", number=40, default=0, allowed=0),
    _Setting(name="bos_id", number=41, default=1, allowed=1),
    _Setting(name="eos_id", number=42, default=2, allowed=2),
)
# add_dummy_prefix (3) may be anything: the released tokenizer switches it off and writes its own prefix.
_NORMALIZER_SETTINGS = (
    _Setting(name="remove_extra_whitespaces", number=4, default=1, allowed=0),
    _Setting(name="escape_whitespaces", number=5, default=1, allowed=1),
)
_HEAD = (("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL))


@dataclass(frozen=True)
class SentencePieceFile:
    """A BPE model with byte fallback and no normaliser, as Llama's and Phi-3's are.

    ``pieces[i]`` is the text of id i: first ``<unk>``, ``<s>``, ``</s>``, then the learned pieces and, somewhere among
    them, the 256 bytes as ``<0x00>`` to ``<0xFF>``. ``scores`` has the score of each learned piece; the highest is
    merged first.
    """

    pieces: tuple[str, ...]
    scores: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> SentencePieceFile:
        """Reads ``tokenizer.model``.

        Raises:
            ArtifactMissingError: no such file.
            ArtifactError: not a SentencePiece model, or one of another kind; the message names the field.
        """
        if not path.is_file():
            raise ArtifactMissingError(f"{path} does not exist; the released folder contains it")
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise ArtifactError(f"{path} has {size} bytes; a SentencePiece model has at most {_MAX_FILE_BYTES}")
        try:
            return cls._parse(path.read_bytes())
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    @classmethod
    def _parse(cls, data: bytes) -> SentencePieceFile:
        typed: dict[str, int] = {}
        scores: dict[str, float] = {}
        messages: dict[int, bytes] = {}
        for number, value in _fields(data):
            if number == _PIECE:
                text, score, kind = _piece(_bytes(value, "pieces"), len(typed))
                if text in typed:
                    raise ArtifactError(f"the piece {text!r} appears twice")
                typed[text] = kind
                if kind == _NORMAL:
                    scores[text] = score
            elif number in (_TRAINER, _NORMALIZER, _DENORMALIZER):  # a message that appears twice is merged
                messages[number] = messages.get(number, b"") + _bytes(value, f"field {number}")
        _check_settings("trainer_spec", messages.get(_TRAINER, b""), _TRAINER_SETTINGS)
        _check_settings("normalizer_spec", messages.get(_NORMALIZER, b""), _NORMALIZER_SETTINGS)
        _check_no_rules("normalizer_spec", messages.get(_NORMALIZER, b""))
        _check_no_rules("denormalizer_spec", messages.get(_DENORMALIZER, b""))
        _check_pieces(typed)
        return cls(tuple(typed), scores)


def _check_settings(where: str, message: bytes, settings: tuple[_Setting, ...]) -> None:
    values = dict(_fields(message))
    for setting in settings:
        value = values.get(setting.number, setting.default)
        if value != setting.allowed:
            raise ArtifactError(f"{where}.{setting.name} is {value!r}; allowed: {setting.allowed}, as released")


def _check_no_rules(where: str, message: bytes) -> None:
    if dict(_fields(message)).get(_CHARSMAP_FIELD, b""):
        raise ArtifactError(f"{where}.precompiled_charsmap contains rules; allowed: none (identity), as released")


def _check_pieces(typed: dict[str, int]) -> None:
    if tuple(typed.items())[: len(_HEAD)] != _HEAD:
        raise ArtifactError(f"the first pieces are {list(typed)[:3]}; allowed: <unk> (unknown), <s>, </s> (control)")
    for text, kind in list(typed.items())[len(_HEAD) :]:
        if kind not in (_NORMAL, _BYTE):
            name = _TYPE_NAMES.get(kind, str(kind))
            raise ArtifactError(f"the piece {text!r} is of type {name}; allowed after </s>: normal and byte")
    in_bytes = {text for text, kind in typed.items() if kind == _BYTE}
    if in_bytes != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise ArtifactError(f"there are {len(in_bytes)} byte pieces; <0x00> to <0xFF> are needed, each once")


def _piece(message: bytes, index: int) -> tuple[str, float, int]:
    values = dict(_fields(message))
    kind, raw_score = values.get(3, _NORMAL), values.get(2, bytes(4))
    try:
        text = _bytes(values.get(1, b""), f"pieces[{index}].piece").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"pieces[{index}].piece is not UTF-8: {error}") from error
    if not isinstance(kind, int) or not isinstance(raw_score, bytes) or len(raw_score) != 4:
        raise ArtifactError(
            f"pieces[{index}] has a type or score of the wrong wire type; this is not a SentencePiece model"
        )
    score = struct.unpack("<f", raw_score)[0]
    if not math.isfinite(score):
        raise ArtifactError(f"pieces[{index}] has the score {score}; a finite number is expected")
    if not 0 < len(text) <= _MAX_PIECE_CHARS:
        raise ArtifactError(f"pieces[{index}] has {len(text)} characters; allowed: 1 to {_MAX_PIECE_CHARS}")
    if index >= _MAX_PIECES:
        raise ArtifactError(f"there are more than {_MAX_PIECES} pieces; the released model has 32000")
    return text, score, kind


def _bytes(value: int | bytes, where: str) -> bytes:
    if isinstance(value, int):
        raise ArtifactError(f"{where} is a number where bytes are expected; this is not a SentencePiece model")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message: varints as int, everything else as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ArtifactError(f"wire type {wire} at byte {position}; this is not a SentencePiece model")
        if length > len(data) - position:
            raise ArtifactError(f"a field of {length} bytes at byte {position} runs past the end; the file is cut off")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(data):
            raise ArtifactError("a number runs past the end; the file is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ArtifactError(f"a number at byte {position} has more than 64 bits; this is not a SentencePiece model")
