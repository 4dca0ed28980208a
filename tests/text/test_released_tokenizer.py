"""The ids of the converted tokenizer are those of the slow one, for every string.

Two oracles: goldens written by transformers' own class (scripts/make_tokenizer_goldens.py), and a reimplementation of
it with the sentencepiece package, for strings and models that the goldens do not cover.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_strings import (
    NEARLY_SPECIAL,
    SPECIAL,
    WHITE_SPACE,
    WORDS,
    odd_strings,
    repetitive_texts,
    train_sentencepiece,
    training_texts,
)
from released_files import (
    NUM_BASE_TOKENS,
    NUM_PIECES,
    RELEASED_NUM_PIECES,
    SMALL_MODEL,
    write_released_tokenizer,
)
from slow_tokenizer import NAMED, SlowTokenizer

from blip3v.config import preset
from blip3v.errors import RequestError
from blip3v.text import (
    RELEASED_SYSTEM_PROMPT,
    RELEASED_TEMPLATE,
    GenerationConfig,
    Message,
    StreamDecoder,
    Tokenizer,
    build_prompt,
    continue_prompt,
    render_chat,
)
from blip3v.text.released_tokenizer import released_tokenizer_json
from blip3v.text.sentencepiece_file import SentencePieceFile

GOLDENS = json.loads(SMALL_MODEL.with_suffix(".json").read_text("ascii"))
RELEASED = GenerationConfig(system_prompt=RELEASED_SYSTEM_PROMPT, max_new_tokens=1024)
QUESTION = "Which way does the red circle turn?"


def converted(folder: Path) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(released_tokenizer_json(folder)))


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token(i) for i in tokenizer.encode(text)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released_tokenizer(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def released(folder: Path) -> Tokenizer:
    return converted(folder)


@pytest.fixture(scope="session")
def slow(folder: Path) -> SlowTokenizer:
    return SlowTokenizer(folder)


def test_ids_are_those_of_the_slow_tokenizer_on_every_golden(released: Tokenizer) -> None:
    assert len(GOLDENS["ids"]) > 2000
    different = {text: ids for text, ids in GOLDENS["ids"] if released.encode(text) != ids}
    assert different == {}


def test_the_reimplemented_slow_tokenizer_is_the_slow_tokenizer(slow: SlowTokenizer) -> None:
    assert sorted(NAMED) == GOLDENS["special"]
    assert [text for text, ids in GOLDENS["ids"] if slow.encode(text) != ids] == []


def trained_folder(folder: Path, texts: list[str], num_pieces: int) -> Path:
    """A released folder whose pieces are learned in the test."""
    train_sentencepiece(folder / "trained.model", texts, num_pieces)
    write_released_tokenizer(folder, model=folder / "trained.model", num_pieces=num_pieces)
    return folder


def test_ids_on_strings_of_all_kinds_over_a_model_trained_here(tmp_path: Path) -> None:
    folder = trained_folder(tmp_path, training_texts(), 700)
    slow, ours = SlowTokenizer(folder), converted(folder)
    different = [text for text in odd_strings(6000, seed=2) if slow.encode(text) != ours.encode(text)]
    assert different == []


def test_ids_where_nearly_every_piece_overlaps_with_itself(tmp_path: Path) -> None:
    """SentencePiece takes the leftmost of two equal merges; a list of merges only orders pairs."""
    folder = trained_folder(tmp_path, repetitive_texts(), 400)
    slow, ours = SlowTokenizer(folder), converted(folder)
    short = ["".join(chars) for length in range(1, 9) for chars in itertools.product("ab ", repeat=length)]
    rng = random.Random(3)
    long = ["".join(rng.choices("ab ", weights=[3, 2, 1], k=rng.randint(9, 80))) for _ in range(2000)]
    assert [text for text in (*short, *long) if slow.encode(text) != ours.encode(text)] == []


@settings(max_examples=400)
@given(st.lists(st.sampled_from(SPECIAL + NEARLY_SPECIAL + WHITE_SPACE + WORDS) | st.text(max_size=6), max_size=8))
def test_ids_on_what_hypothesis_finds(slow: SlowTokenizer, released: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert released.encode(text) == slow.encode(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("a", ["▁a"]),
        (" a", ["▁▁", "a"]),
        ("<|user|>", ["▁", "<|user|>"]),
        ("<|user|>\n a", ["▁", "<|user|>", "a"]),
        ("<|user|>\x1c\x1f a", ["▁", "<|user|>", "a"]),
        ("<|end|>\n<|user|>a", ["<|end|>", "<|user|>", "a"]),
        ("<image>\na", ["<image>", "<0x0A>", "a"]),
        ("<image> a", ["<image>", "▁a"]),
        ("<image>a", ["<image>", "a"]),
        ("<image\u2581placeholder>", ["<image placeholder>"]),
        ("<|end|", ["▁", "<0x3C>", "<0x7C>", "e", "n", "d", "<0x7C>"]),
    ],
)  # fmt: skip
def test_rules_that_are_easy_to_get_wrong(released: Tokenizer, text: str, tokens: list[str]) -> None:
    assert tokens_of(released, text) == tokens


def test_released_ids_and_files(tmp_path: Path) -> None:
    """With the released number of pieces, the small files have the released sizes and the tokens the released ids."""
    tokenizer = converted(write_released_tokenizer(tmp_path, num_pieces=RELEASED_NUM_PIECES))
    assert (tmp_path / "added_tokens.json").stat().st_size == 390
    assert (tmp_path / "special_tokens_map.json").stat().st_size == 920
    assert round((tmp_path / "tokenizer_config.json").stat().st_size, -1) == 4180
    names = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<pad>", "<image>"]
    assert [tokenizer.id(name) for name in names] == [32000, 32001, 32006, 32007, 32010, 32011, 32012]
    assert [tokenizer.id(name) for name in ("<image placeholder>", "<|endofchunk|>")] == [32013, 32014]
    assert tokenizer.num_tokens == preset("xgen-mm-vid").text.num_logits == 32015


def test_the_small_vocabulary_fits_the_preset_tiny(released: Tokenizer) -> None:
    assert NUM_BASE_TOKENS == NUM_PIECES + 12 == preset("tiny").text.num_base_tokens
    assert released.num_tokens == preset("tiny").text.num_logits


def test_a_folder_without_image_gets_it_as_the_authors_code_adds_it(tmp_path: Path, folder: Path) -> None:
    write_released_tokenizer(tmp_path)
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["additional_special_tokens"]
    for token_id in range(NUM_BASE_TOKENS, NUM_BASE_TOKENS + 3):
        del config["added_tokens_decoder"][str(token_id)]
    path.write_text(json.dumps(config | {"eos_token": "<|endoftext|>"}))
    assert released_tokenizer_json(tmp_path) == released_tokenizer_json(folder)


def test_a_tokenizer_json_in_the_folder_is_not_read(tmp_path: Path, folder: Path) -> None:
    write_released_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert released_tokenizer_json(tmp_path) == released_tokenizer_json(folder)


def test_flags_are_those_of_the_file(tmp_path: Path) -> None:
    """`<image>` strips the newline after it only if the file says so."""
    path = write_released_tokenizer(tmp_path) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"][str(NUM_BASE_TOKENS)]["rstrip"] = True
    path.write_text(json.dumps(config))
    assert tokens_of(converted(tmp_path), "<image>\na") == ["<image>", "a"]
    for token in config["added_tokens_decoder"].values():
        token["rstrip"] = False
    path.write_text(json.dumps(config))
    assert tokens_of(converted(tmp_path), "<|user|>\n a") == ["▁", "<|user|>", "<0x0A>", "▁a"]


def test_pieces_and_scores_are_read_as_sentencepiece_reads_them() -> None:
    file = SentencePieceFile.load(SMALL_MODEL)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(SMALL_MODEL))
    assert list(file.pieces) == [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
    learned = [i for i in range(3, NUM_PIECES) if not theirs.is_byte(i)]
    assert file.scores == {theirs.id_to_piece(i): theirs.get_score(i) for i in learned}


def test_streaming_equals_decoding_on_every_golden(released: Tokenizer) -> None:
    for text, ids in GOLDENS["ids"]:
        stream = StreamDecoder(released)
        assert "".join([*map(stream.push, ids), stream.finish()]) == released.decode(ids), text


# Byte tokens in the order of their bytes, <0x00> first, and ordinary pieces after them.
FIRST_BYTE, FIRST_PIECE = 3, 3 + 256
BROKEN = [b"\xe4", b"\xe4\xb8", b"\xb8", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x8e"]
WHOLE = [text.encode() for text in (" ", "a", "\u2581", "\u00e9", "\u4e2d", "\U0001f3ac")]


def byte_runs() -> st.SearchStrategy[list[int]]:
    """Ids of byte tokens: whole characters, broken ones and single bytes, with a few pieces and special tokens."""
    run = st.sampled_from(BROKEN + WHOLE) | st.binary(min_size=1, max_size=4)
    other = st.sampled_from([*range(FIRST_PIECE, NUM_PIECES), NUM_BASE_TOKENS - 2, NUM_BASE_TOKENS]).map(lambda i: [i])
    part = run.map(lambda data: [FIRST_BYTE + byte for byte in data])
    return st.lists(st.one_of(part, part, part, other), max_size=12).map(
        lambda parts: list(itertools.chain.from_iterable(parts))
    )


@settings(max_examples=1000)
@given(ids=byte_runs())
def test_byte_runs_decode_as_in_the_slow_tokenizer(released: Tokenizer, slow: SlowTokenizer, ids: list[int]) -> None:
    """The library's decoder lost a whole run of bytes if one was broken: 20 cut-off bytes cost the answer's end."""
    stream = StreamDecoder(released)
    assert "".join([*map(stream.push, ids), stream.finish()]) == released.decode(ids) == slow.decode(ids)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param("\u4e2d\u6587".encode()[:-1], "\u4e2d\ufffd\ufffd", id="cut-off"),
        pytest.param(b"a\xffb", "a\ufffdb", id="inside"),
        pytest.param(b"\xe4\xb8", "\ufffd\ufffd", id="nothing-else"),
        pytest.param(b" a", " a", id="space-as-a-byte"),
    ],
)
def test_broken_bytes_cost_nothing_but_themselves(
    released: Tokenizer, slow: SlowTokenizer, data: bytes, text: str
) -> None:
    """All four were U+FFFD from end to end, and the space was lost."""
    ids = [FIRST_BYTE + byte for byte in data]
    assert released.decode(ids) == slow.decode(ids) == text


def test_whole_text_decodes_as_by_the_library(folder: Path, released: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(released_tokenizer_json(folder))
    for text, ids in GOLDENS["ids"]:
        assert released.decode(ids) == backend.decode(ids, skip_special_tokens=True), text


def test_text_without_special_tokens_comes_back(released: Tokenizer) -> None:
    plain = [text for text, _ in GOLDENS["ids"] if not any(t in text for t in ("\u2581", *released.added_tokens))]
    assert len(plain) > 300
    assert [text for text in plain if released.decode(released.encode(text)) != text] == []


def test_the_released_prompt(released: Tokenizer) -> None:
    """A lone mark first, no newline after a marker, the newline after `<image>`: as from the slow tokenizer."""
    golden = {text: ids for text, ids in GOLDENS["ids"] if text.endswith("<|assistant|>\n")}
    prompt = build_prompt(released, RELEASED_TEMPLATE, RELEASED, [Message("user", QUESTION)])
    text = f"<|system|>\n{RELEASED_SYSTEM_PROMPT}<|end|>\n<|user|>\n<image>\n{QUESTION}<|end|>\n<|assistant|>\n"
    assert prompt.ids == golden[text]
    assert prompt.ids.count(released.image_id) == 1
    around = [released.token(i) for i in prompt.ids[prompt.image_position - 2 : prompt.image_position + 3]]
    assert around == ["<|end|>", "<|user|>", "<image>", "<0x0A>", "Which"]
    assert [released.token(i) for i in prompt.ids[:2]] == ["▁", "<|system|>"]
    assert [released.token(i) for i in prompt.ids[-2:]] == ["<|end|>", "<|assistant|>"]


def test_a_follow_up_turn_has_the_ids_of_the_whole_conversation(released: Tokenizer) -> None:
    golden = {text: ids for text, ids in GOLDENS["ids"] if text.endswith("<|assistant|>\n")}
    ids = build_prompt(released, RELEASED_TEMPLATE, RELEASED, [Message("user", QUESTION)]).ids
    ids = [*ids, *released.encode_after("<|assistant|>", "It turns left."), released.end_id]
    ids += continue_prompt(released, RELEASED_TEMPLATE, "  How many times?\n")
    assert ids == golden[max(golden, key=len)]


def test_a_message_that_becomes_a_special_token_is_refused(released: Tokenizer) -> None:
    """SentencePiece reads `<image placeholder>` with U+2581 instead of the space as that token."""
    forged = "What <image\u2581placeholder> turns?"
    with pytest.raises(RequestError, match="user message becomes a special token"):
        build_prompt(released, RELEASED_TEMPLATE, RELEASED, [Message("user", forged)])
    with pytest.raises(RequestError, match="user message becomes a special token"):
        continue_prompt(released, RELEASED_TEMPLATE, forged)


def test_after_a_marker_no_mark_begins_the_text(released: Tokenizer, film_tokenizer: Tokenizer) -> None:
    assert [released.token(i) for i in released.encode_after("<|assistant|>", "\n a")] == ["a"]
    assert released.encode("a") != released.encode_after("<|assistant|>", "a")
    assert film_tokenizer.encode("red circle") == film_tokenizer.encode_after("<|assistant|>", "red circle")
    with pytest.raises(RequestError, match="'<x>' is not a special token"):
        released.encode_after("<x>", "a")


@pytest.mark.parametrize("generation_prompt", [True, False], ids=["prompt", "whole"])
def test_the_released_template_and_ours_write_the_same(folder: Path, generation_prompt: bool) -> None:
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    turns = [("system", "Be brief."), ("user", f"<image>\n{QUESTION}"), ("assistant", " Left. "), ("user", "Sure?")]
    for count in range(len(turns) + 1):
        messages = [Message(role, content) for role, content in turns[:count]]
        texts = [
            render_chat(one, messages, add_generation_prompt=generation_prompt) for one in (template, RELEASED_TEMPLATE)
        ]
        assert texts[0] == texts[1]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", [" ", "<|user|> \n", "a b ", "\U0001f3ac", "<|user|"])
def test_a_long_text_does_not_take_quadratic_time(released: Tokenizer, part: str) -> None:
    assert released.encode(part * (2**17 // len(part)))
