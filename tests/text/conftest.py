"""A byte-level tokenizer like that of `tiny`, and a SentencePiece one like that of the released model."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers

from blip3v.text import Tokenizer, train_tokenizer
from blip3v.text.special import ADDED_TOKENS, BASE_TOKENS

FILM_TEXTS = [
    "Which way does the red circle turn?",
    "How many times does the small blue square bounce?",
    "The green triangle appears before the yellow circle.",
] * 4


@pytest.fixture(scope="session")
def film_backend() -> tokenizers.Tokenizer:
    return train_tokenizer(FILM_TEXTS, vocab_size_base=608)


@pytest.fixture(scope="session")
def film_tokenizer(film_backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(film_backend)


@pytest.fixture(scope="session")
def piece_tokenizer() -> Tokenizer:
    """Llama's form at a small size: pieces with a leading mark, byte fallback, the first space dropped on decoding."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "r", "e", "d", "re", "red"]
    vocab = {piece: i for i, piece in enumerate([*pieces, "\u2581red"])}
    merges = [("r", "e"), ("re", "d"), ("\u2581", "red")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_tokens(
        [
            tokenizers.AddedToken(token.text, rstrip=token.rstrip, special=token.special, normalized=False)
            for token in (*BASE_TOKENS, *ADDED_TOKENS)
        ]
    )
    return Tokenizer(backend)
