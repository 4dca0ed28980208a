"""Seeded damage: bytes, JSON files and texts as a broken disk, a careless editor or an attacker leaves them."""

from __future__ import annotations

import json
import random
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 2**31, 2**63, 10**30, -0.0, 0.5, 1e-300, 1e308),
    *(float("nan"), float("inf"), "", " ", "x", "0", "../x", "/etc/passwd", "\x00", "\ud800", "\u202e", "x" * 5000),
    *([], [0], [[]], [None], {}, {"x": 1}, {"": {}}),
)
_BOUNDARIES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x00" * 64)
_CHARACTERS = "aZ 0.?\n\t\r\x00\x1b\x7f\x85\u00a0\u0301\u200b\u200d\u202e\u2581\ufeff\ufffd\U0001f3ac\U0010ffff\ud800"
_SPECIAL = (
    "<image>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<s>",
    "</s>",
    "<0x0A>",
    "{{ 7*7 }}",
    "{% for %}",
    "%s%n",
)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """``data`` after one flipped bit or one to four larger changes, half of them near its start, where headers are."""
    changed = bytearray(data)
    if changed and rng.random() < 0.3:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    for _ in range(rng.randint(1, 4)):
        if changed:
            _change(changed, rng)
    return bytes(changed)


def _change(data: bytearray, rng: random.Random) -> None:
    span = len(data) if rng.random() < 0.5 else min(len(data), 512)
    at = rng.randrange(span)
    length = rng.choice((1, 2, 4, 8, 64, 1024))
    match rng.randrange(6):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            new = rng.choice(_BOUNDARIES)
            data[at : at + len(new)] = new
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = rng.randbytes(length)
        case 4:
            source = rng.randrange(len(data))
            data[at : at + length] = data[source : source + length]
        case 5:
            del data[at:]


def mutated_json(text: str, rng: random.Random) -> str:
    """A JSON document with one value replaced, removed or added; now and then its text is damaged instead."""
    if rng.random() < 0.15:
        return mutated_bytes(text.encode(), rng).decode("utf-8", "replace")
    document = json.loads(text)
    parents = list(_containers(document))
    parent = rng.choice(parents)
    key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    match rng.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(("x", "", "__class__", str(key) + "s"))] = parent[key]
        case 2 if isinstance(parent[key], int | float):
            parent[key] = rng.choice((-1, 2, 0.5, 10**6)) * parent[key]
        case _:
            parent[key] = rng.choice(ODD_VALUES)
    return json.dumps(document)


def _containers(value: Any) -> list[Any]:
    """All dicts and lists inside ``value`` that hold something."""
    if not isinstance(value, dict | list) or not value:
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for item in inner for found in _containers(item))]


def odd_text(rng: random.Random) -> str:
    """A question that nobody types: control and format characters, lone surrogates, template syntax, great length."""
    parts = []
    for _ in range(rng.randint(0, 8)):
        match rng.randrange(5):
            case 0:
                parts.append(rng.choice(_SPECIAL))
            case 1:
                parts.append(rng.choice(_CHARACTERS) * rng.choice((1, 2, 50)))
            case 2:
                parts.append("".join(chr(rng.randrange(0x110000)) for _ in range(rng.randint(1, 8))))
            case _:
                parts.append("which way does the red ball move ")
    return "".join(parts) * (400 if rng.random() < 0.05 else 1)


def odd_value(rng: random.Random) -> Any:
    """A value for an option that wants another."""
    return rng.choice((*ODD_VALUES, b"", object(), ("a", 1), range(3)))
