"""Trains a small byte-level BPE tokenizer with the released special tokens, for the presets that we train.

Ids, as in the released vocabulary::

    0 .. 2        <unk> <s> </s>
    3 .. 258      the 256 bytes
    259 ..        learned merges, most frequent first, then unused <|reserved_n|> if too few can be learned
    base-12 ..    <|endoftext|> ... <|user|> <pad>
    base ..       <image> <image placeholder> <|endofchunk|>
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from blip3v.errors import ConfigError
from blip3v.text.pieces import byte_alphabet
from blip3v.text.special import ADDED_TOKENS, BASE_TOKENS, TAIL_TOKENS, SpecialToken

__all__ = ["train_tokenizer"]

_HEAD_TOKENS = BASE_TOKENS[: -len(TAIL_TOKENS)]


def train_tokenizer(texts: Iterable[str], *, vocab_size_base: int) -> tokenizers.Tokenizer:
    """Learns merges from ``texts``; the same texts give the same tokenizer, byte for byte.

    Args:
        texts: what the merges are learned from, without special tokens.
        vocab_size_base: number of base tokens (``TextConfig.num_base_tokens``); the added tokens have the next ids.

    Raises:
        ConfigError: ``vocab_size_base`` has no room for the bytes and the special tokens.
    """
    alphabet = [byte_alphabet()[byte] for byte in range(256)]
    num_merges = vocab_size_base - len(alphabet) - len(BASE_TOKENS)
    if num_merges < 0:
        least = len(alphabet) + len(BASE_TOKENS)
        raise ConfigError(f"num_base_tokens is {vocab_size_base}; bytes and special tokens alone need {least}")
    merges = _learn(texts, alphabet, num_merges)
    learned = ["".join(pair) for pair in merges]
    reserved = [f"<|reserved_{n}|>" for n in range(num_merges - len(merges))]
    order = [*_texts(_HEAD_TOKENS), *alphabet, *learned, *reserved, *_texts(TAIL_TOKENS)]
    vocab = {token: token_id for token_id, token in enumerate(order)}
    assert len(vocab) == vocab_size_base
    result = _byte_level(models.BPE(vocab=vocab, merges=merges))
    result.add_tokens([_added(token) for token in (*BASE_TOKENS, *ADDED_TOKENS)])
    return result


def _learn(texts: Iterable[str], alphabet: list[str], num_merges: int) -> list[tuple[str, str]]:
    """Pairs in the order learned; fewer than ``num_merges`` if the texts run out of pairs.

    Two pairs can make the same token ("a"+"bc", "ab"+"c"); the trainer counts such a token once, and so do we.
    """
    learner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + num_merges, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    pairs = json.loads(learner.to_str())["model"]["merges"]
    merges: dict[str, tuple[str, str]] = {}
    for left, right in pairs:
        merges.setdefault(left + right, (left, right))
    return list(merges.values())[:num_merges]


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    result = tokenizers.Tokenizer(model)
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    return result


def _added(token: SpecialToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token.text, rstrip=token.rstrip, special=token.special, normalized=False)


def _texts(tokens: Iterable[SpecialToken]) -> list[str]:
    return [token.text for token in tokens]
