"""Texts for the tokenizer's tests: training texts of a small SentencePiece model, and odd strings to compare ids on.

Used by the tests and by scripts/make_tokenizer_goldens.py, which runs without blip3v: only the standard library
and sentencepiece.
"""

from __future__ import annotations

import random
from pathlib import Path

SPECIAL = [
    *("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder6|>", "<|system|>"),
    *("<|end|>", "<|user|>", "<pad>", "<image>", "<image placeholder>", "<|endofchunk|>"),
]
NEARLY_SPECIAL = [
    *(
        "<|end",
        "<|end|",
        "<|end|>|",
        "<|END|>",
        "<|end |>",
        "|end|>",
        "<||end|>",
        "<|placeholder7|>",
        "<|placeholder|>",
    ),
    *("<image", "<image>>", "<<image>", "<image\u2581placeholder>", "<image  placeholder>", "<image\u00a0placeholder>"),
    *("<imag", "<s", "<ss>", "</", "</s", "<pad", "<0x0A>", "<0x41>", "<", ">", "<|", "|>", "\\n", "unk>", "<unk"),
]
WORDS = [
    *("Which", "way", "does", "the", "red", "circle", "turn?", "How", "many", "times", "bounces", "2024", "3.14", "a"),
    *("na\u00efve", "e\u0301te\u0301", "\u00c5", "A\u030a", "привет", "фильм", "Ελλάδα", "שלום", "مرحبا", "नमस्ते"),
    *("ไทย", "日本語", "中文字幕", "한국어", "\uff46\uff55\uff4c\uff4c", "\ufb01ligree", "\u00bd", "\u2460", "x\u00b2"),
    *("\u2026", "\u2014", "\u201cquoted\u201d", "don't", "C++", "f(x)=x**2;", "http://a.b/c?d=e"),
]
WHITE_SPACE = [
    *(" ", "  ", "   ", "    ", "       ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n ", "\u00a0", "\u2003", "\u3000"),
    *(
        "\u2028",
        "\u2029",
        "\u202f",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x1d",
        "\x1e",
        "\x1f",
        "\x85",
        "\u1680",
        "\u2581",
        "\u2581\u2581",
    ),
]
ODD = [
    *("\x00", "\x01", "\x7f", "\x9f", "\u200b", "\u200d", "\u200e", "\u202e", "\u2060", "\ufeff", "\ufffd", "\ufffe"),
    *("\u0301", "\u0327\u0302", "\U0001f3ac", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7"),
    *("\U0001f44d\U0001f3fd", "\U00020000", "\U0010ffff", "\ue000", "\ud7ff", "\u00df", "\u0130", "\u0131"),
]
REPEATED = [
    *(
        "aaaa",
        "abab",
        "ababa",
        "hahaha",
        "aabaa",
        "oooooo",
        "......",
        "-----",
        "======",
        "0000",
        "1212",
        "((((",
        "))))",
    ),
]


def training_texts() -> list[str]:
    """Lines of several scripts with all kinds of white space; runs and repeated parts make pieces overlap."""
    rng = random.Random(20240901)
    lines = []
    for _ in range(3000):
        words = rng.choices(WORDS + REPEATED, k=rng.randint(1, 12))
        spaces = rng.choices([" ", "  ", "    ", "        ", "\t"], weights=[20, 2, 2, 1, 1], k=len(words))
        lines.append("".join(word + space for word, space in zip(words, spaces, strict=True)))
    return lines


def repetitive_texts() -> list[str]:
    """Lines of two letters and spaces, for a model in which nearly every piece overlaps itself."""
    rng = random.Random(7)
    return ["".join(rng.choices("ab ", weights=[5, 4, 3], k=rng.randint(1, 60))) for _ in range(2000)]


def train_sentencepiece(path: Path, texts: list[str], num_pieces: int) -> None:
    """Trains a model with Llama's settings and writes it to ``path``."""
    import sentencepiece  # only the tests' environment and the goldens' have it

    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=file,
            model_type="bpe",
            vocab_size=num_pieces,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            character_coverage=0.99995,
            num_threads=1,
            minloglevel=2,
        )


def odd_strings(count: int, seed: int) -> list[str]:
    """``count`` strings: first every part alone and every special token next to some text, then random mixtures."""
    parts = [SPECIAL, NEARLY_SPECIAL, WORDS, WHITE_SPACE, ODD, REPEATED]
    neighbours = ["", " ", "\n", "\x1c", "\u2581", "a", " a", "\na", "<|end|>", "<image>", "<|user|>"]
    strings = ["", *(part for group in parts for part in group)]
    strings += [left + token + right for token in SPECIAL for left in neighbours[:6] for right in neighbours]
    rng = random.Random(seed)
    while len(strings) < count:
        groups = rng.choices(parts, weights=[4, 2, 6, 6, 2, 1], k=rng.randint(1, 14))
        pieces = [rng.choice(group) for group in groups]
        if rng.random() < 0.3:
            pieces.insert(rng.randrange(len(pieces) + 1), _random_text(rng))
        strings.append("".join(pieces))
    return strings[:count]


def _random_text(rng: random.Random) -> str:
    """Any characters but surrogates, half of them among the first few hundred."""
    codes = [rng.randrange(0x300) if rng.random() < 0.5 else rng.randrange(0x110000) for _ in range(rng.randint(1, 8))]
    return "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)
