"""The released special tokens, in the order of their ids, and how they treat the white space after them.

Not here: the ids, which depend on the tokenizer (``tokenizer.py``), since a small vocabulary has other ids.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ADDED_TOKENS",
    "ASSISTANT",
    "BASE_TOKENS",
    "END",
    "IMAGE",
    "IMAGE_PLACEHOLDER",
    "PAD",
    "REQUIRED_TOKENS",
    "ROLES",
    "SYSTEM",
    "TAIL_TOKENS",
    "UNKNOWN",
    "USER",
    "SpecialToken",
]

ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
END = "<|end|>"
PAD = "<pad>"
UNKNOWN = "<unk>"
IMAGE = "<image>"
IMAGE_PLACEHOLDER = "<image placeholder>"


@dataclass(frozen=True)
class SpecialToken:
    """One special token of the released tokenizer."""

    text: str
    rstrip: bool = False  # strips the white space after it, so that the newline after a role marker is not a token
    special: bool = True  # decoding leaves it out


# Ids 0, 1, 2.
_HEAD_TOKENS = (SpecialToken(UNKNOWN), SpecialToken("<s>"), SpecialToken("</s>", rstrip=True, special=False))

# After the learned tokens (released: from id 32000), up to the last base id.
TAIL_TOKENS = (
    SpecialToken("<|endoftext|>"),
    SpecialToken(ASSISTANT, rstrip=True),
    SpecialToken("<|placeholder1|>", rstrip=True),
    SpecialToken("<|placeholder2|>", rstrip=True),
    SpecialToken("<|placeholder3|>", rstrip=True),
    SpecialToken("<|placeholder4|>", rstrip=True),
    SpecialToken(SYSTEM, rstrip=True),
    SpecialToken(END, rstrip=True),
    SpecialToken("<|placeholder5|>", rstrip=True),
    SpecialToken("<|placeholder6|>", rstrip=True),
    SpecialToken(USER, rstrip=True),
    SpecialToken(PAD),
)

BASE_TOKENS = _HEAD_TOKENS + TAIL_TOKENS

# The tokens of the added rows, from id ``num_base_tokens`` on.
ADDED_TOKENS = (SpecialToken(IMAGE), SpecialToken(IMAGE_PLACEHOLDER), SpecialToken("<|endofchunk|>"))

# The tokens that prompts and decoding need.
REQUIRED_TOKENS = (SYSTEM, USER, ASSISTANT, END, PAD, IMAGE)

ROLES = ("system", "user", "assistant")
