"""Ids, round trips, streaming, and files that are not tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from blip3v.config import preset
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError, RequestError
from blip3v.text import StreamDecoder, Tokenizer, train_tokenizer
from blip3v.text.pieces import byte_alphabet
from blip3v.text.special import ADDED_TOKENS, BASE_TOKENS

TINY = preset("tiny").text
# The released ids relative to 32000, from tokenizer_config.json of the base model.
RELEASED_TAIL = {
    "<|endoftext|>": 0, "<|assistant|>": 1, "<|placeholder1|>": 2, "<|placeholder2|>": 3, "<|placeholder3|>": 4,
    "<|placeholder4|>": 5, "<|system|>": 6, "<|end|>": 7, "<|placeholder5|>": 8, "<|placeholder6|>": 9,
    "<|user|>": 10, "<pad>": 11, "<image>": 12, "<image placeholder>": 13, "<|endofchunk|>": 14,
}  # fmt: skip


def plain_text() -> st.SearchStrategy[str]:
    """Any text without special tokens and without SentencePiece's mark for a space."""
    markup = ["\u2581", *(token.text for token in (*BASE_TOKENS, *ADDED_TOKENS))]
    return st.text().filter(lambda text: not any(token in text for token in markup))


def trained(texts: list[str]) -> Tokenizer:
    return Tokenizer(train_tokenizer(texts, vocab_size_base=TINY.num_base_tokens))


@pytest.mark.parametrize("texts", [[], ["a red circle turns left"] * 50], ids=["nothing-to-learn", "some-text"])
def test_ids_follow_the_released_order_whatever_was_learned(texts: list[str]) -> None:
    tokenizer = trained(texts)
    first = tokenizer.id("<|endoftext|>")
    assert [tokenizer.id(token) for token in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert {token: tokenizer.id(token) - first for token in RELEASED_TAIL} == RELEASED_TAIL
    assert tokenizer.image_id == TINY.num_base_tokens == 608
    assert tokenizer.num_tokens == TINY.num_logits
    assert len({tokenizer.token(i) for i in range(tokenizer.num_tokens)}) == TINY.num_logits


def test_rstrip_and_special_flags_are_the_released_ones() -> None:
    stripping = {token.text for token in (*BASE_TOKENS, *ADDED_TOKENS) if token.rstrip}
    kept = {"<unk>", "<s>", "<|endoftext|>", "<pad>", "<image>", "<image placeholder>", "<|endofchunk|>"}
    assert stripping == {token.text for token in (*BASE_TOKENS, *ADDED_TOKENS)} - kept
    assert [token.text for token in (*BASE_TOKENS, *ADDED_TOKENS) if not token.special] == ["</s>"]


def test_a_role_marker_strips_its_newline_and_image_keeps_it(film_tokenizer: Tokenizer) -> None:
    newline = film_tokenizer.encode("\n")
    assert film_tokenizer.encode("<|user|>\n<image>\n") == [
        film_tokenizer.id("<|user|>"),
        film_tokenizer.image_id,
        *newline,
    ]


def test_training_twice_gives_the_same_file() -> None:
    texts = [f"film {n} shows {n % 7} circles and {n % 5} squares" for n in range(300)]
    one, two = (train_tokenizer(iter(texts), vocab_size_base=608).to_str() for _ in range(2))
    assert one == two


def test_training_learns_merges_that_shorten_its_texts(film_tokenizer: Tokenizer) -> None:
    text = "Which way does the red circle turn?"
    assert len(film_tokenizer.encode(text)) < len(text) / 2


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="alone need 271"):
        train_tokenizer(["a"], vocab_size_base=270)


def test_byte_alphabet_is_that_of_the_library() -> None:
    assert sorted(byte_alphabet().values()) == sorted(pre_tokenizers.ByteLevel.alphabet())


@given(text=plain_text())
def test_any_text_comes_back(film_tokenizer: Tokenizer, text: str) -> None:
    assert film_tokenizer.decode(film_tokenizer.encode(text)) == text


def test_decode_leaves_special_tokens_out(film_tokenizer: Tokenizer) -> None:
    assert film_tokenizer.decode(film_tokenizer.encode("<|assistant|>\nred<|end|>")) == "red"


def test_a_lone_surrogate_is_refused(film_tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="lone surrogate at 4"):
        film_tokenizer.encode("red \ud800")


@pytest.mark.parametrize("text", [None, b"red", 3, ["red"]], ids=lambda value: type(value).__name__)
def test_what_is_not_a_text_is_refused(film_tokenizer: Tokenizer, text: Any) -> None:
    """It was an AttributeError."""
    with pytest.raises(RequestError, match=f"the text has type {type(text).__name__}; a str is expected"):
        film_tokenizer.encode(text)


@pytest.mark.parametrize("token_id", [-1, 611, 2**31], ids=["negative", "one-too-many", "huge"])
def test_unknown_ids_are_refused(film_tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(RequestError, match="0 to 610"):
        film_tokenizer.decode([token_id])
    with pytest.raises(RequestError, match="0 to 610"):
        StreamDecoder(film_tokenizer).push(token_id)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = StreamDecoder(tokenizer)
    return "".join([*map(stream.push, ids), stream.finish()])


@given(ids=st.lists(st.integers(0, 610), max_size=60))
def test_any_ids_decode_as_by_the_library(
    film_tokenizer: Tokenizer, film_backend: tokenizers.Tokenizer, ids: list[int]
) -> None:
    """Of bytes, which is what byte-level tokens are: its decoder of byte fallback is another one."""
    text = film_backend.decode(ids, skip_special_tokens=True)
    assert streamed(film_tokenizer, ids) == film_tokenizer.decode(ids) == text


@given(text=plain_text())
def test_streaming_equals_decoding_for_sentencepiece(piece_tokenizer: Tokenizer, text: str) -> None:
    ids = piece_tokenizer.encode(text)
    assert streamed(piece_tokenizer, ids) == piece_tokenizer.decode(ids) == text


def test_streaming_keeps_an_added_token_that_is_text() -> None:
    """Such a token stands for itself: its space is not in the byte alphabet."""
    backend = train_tokenizer(["red"], vocab_size_base=608)
    backend.add_tokens([tokenizers.AddedToken("red circle", special=False)])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode("a red circle turns")
    assert 611 in ids
    assert streamed(tokenizer, ids) == tokenizer.decode(ids) == "a red circle turns"


def test_a_split_character_comes_out_with_its_last_byte(film_tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(film_tokenizer)
    ids = film_tokenizer.encode("\U0001f3ac")
    assert len(ids) == 4
    assert [stream.push(i) for i in ids] == ["", "", "", "\U0001f3ac"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"


def test_streaming_never_decodes_the_whole_text(film_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("the stream decoded a list of ids")

    monkeypatch.setattr(Tokenizer, "decode", refuse)
    assert streamed(film_tokenizer, film_tokenizer.encode("red circle")) == "red circle"


def test_a_saved_tokenizer_loads_and_ignores_truncation(tmp_path: Path, film_tokenizer: Tokenizer) -> None:
    """A truncation setting in the file would silently cut long questions."""
    backend = train_tokenizer(["red"], vocab_size_base=608)
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "a long question about a red circle"
    assert Tokenizer.load(tmp_path / "tokenizer.json").decode(film_tokenizer.encode(text)) != ""
    ids = Tokenizer.load(tmp_path / "tokenizer.json").encode(text)
    assert Tokenizer.load(tmp_path / "tokenizer.json").decode(ids) == text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[" * 100_000], ids=["empty", "object", "bytes", "deep"])
def test_files_that_are_not_a_tokenizer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="is not a tokenizer"):
        Tokenizer.load(path)


PATTERN = {"Regex": "(x+x+)+y"}  # more than 10 million ways to fail on a row of x
BOMBS = {
    "normalizer": {"type": "Replace", "pattern": PATTERN, "content": "z"},
    "pre_tokenizer": {"type": "Split", "pattern": PATTERN, "behavior": "Isolated", "invert": False},
}


def bomb(part: str, *further: str) -> str:
    """A tokenizer.json with a pattern that takes too long, and further tokens that go through its normaliser."""
    values = json.loads(train_tokenizer(["red"], vocab_size_base=608).to_str())
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False) | {"normalized": True}
    values["added_tokens"] += [token | {"id": 611 + i, "content": content} for i, content in enumerate(further)]
    return json.dumps(values | {part: BOMBS[part]})


@pytest.mark.parametrize("part", BOMBS)
def test_a_pattern_that_takes_too_long_for_a_text(part: str) -> None:
    """The library's native code panicked: a PanicException, which is no Exception, ended the caller's thread."""
    tokenizer = Tokenizer.parse(bomb(part), where="there/tokenizer.json")
    with pytest.raises(
        ArtifactError, match=r"there/tokenizer.json cannot encode a text of 40 characters: .*retry-limit"
    ):
        tokenizer.encode("x" * 40)
    assert tokenizer.decode(tokenizer.encode("red")) == "red"


def test_a_pattern_that_takes_too_long_for_a_token(tmp_path: Path) -> None:
    """Tokens go through the normaliser when the file is read: the same panic, one step earlier."""
    (tmp_path / "tokenizer.json").write_text(bomb("normalizer", "x" * 40), "utf-8")
    with pytest.raises(ArtifactError, match=r"is not a tokenizer .*retry-limit"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_taken_for_a_broken_tokenizer(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def interrupted(text: str) -> None:
        raise kind

    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_str=interrupted))
    with pytest.raises(kind):
        Tokenizer.parse("{}")


def test_a_vocabulary_with_characters_that_are_no_bytes() -> None:
    """Streaming its token was a KeyError; the library writes the token itself."""
    values = json.loads(train_tokenizer(["red"], vocab_size_base=608).to_str())
    vocab = values["model"]["vocab"]
    vocab["\u4e2d"] = vocab.pop("<|reserved_0|>")
    backend = tokenizers.Tokenizer.from_str(json.dumps(values))
    ids = [vocab["\u4e2d"]]
    assert streamed(Tokenizer(backend), ids) == backend.decode(ids) == "\u4e2d"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match="does not exist"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_image_is_refused(tmp_path: Path) -> None:
    text = train_tokenizer(["red"], vocab_size_base=608).to_str().replace("<image>", "<picture>")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(ArtifactError, match="no special token <image>"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_decoder_of_another_kind_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.add_tokens([tokenizers.AddedToken(token.text) for token in (*BASE_TOKENS, *ADDED_TOKENS)])
    with pytest.raises(ArtifactError, match=r"unsupported decoder \(none\)"):
        Tokenizer(backend)


def test_an_id_beyond_every_table_is_refused_at_once(film_backend: tokenizers.Tokenizer) -> None:
    """Found by mutating the file: the library walked through all ids below it, for 15 s."""
    values = json.loads(film_backend.to_str())
    values["model"]["vocab"]["a"] = 10**9
    with pytest.raises(ArtifactError, match=r"the token 'a' the id 1000000000; at most 1048576"):
        Tokenizer.parse(json.dumps(values))
