"""Released folders that are broken, odd or hostile: each raises an error that names the file and the key."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_files import NUM_BASE_TOKENS, SMALL_MODEL, write_released_tokenizer
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined] # generated at import time

from blip3v.errors import ArtifactError, ArtifactMissingError
from blip3v.text.released_tokenizer import released_tokenizer_json
from blip3v.text.sentencepiece_file import SentencePieceFile

USER_ID, IMAGE_ID = str(NUM_BASE_TOKENS - 2), str(NUM_BASE_TOKENS)
FIRST_LEARNED = 3 + 256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_released_tokenizer(tmp_path / "released")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_token(key: str, **flags: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["added_tokens_decoder"][key].update(flags)


CONFIG_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "legacy": (lambda c: c.update(legacy=True), "legacy is True; allowed: False"),
    "legacy-is-a-number": (lambda c: c.update(legacy=0), "legacy is 0; allowed: False"),
    "no-legacy": (lambda c: c.pop("legacy"), "lacks the key 'legacy'"),
    "bos": (lambda c: c.update(add_bos_token=True), "add_bos_token is True"),
    "no-bos": (lambda c: c.pop("add_bos_token"), "lacks the key 'add_bos_token'"),
    "eos": (lambda c: c.update(add_eos_token=True), "add_eos_token is True"),
    "prefix": (lambda c: c.update(add_prefix_space=False), "add_prefix_space is False; allowed: True"),
    "class": (lambda c: c.update(tokenizer_class="GPT2Tokenizer"), "tokenizer_class is 'GPT2Tokenizer'"),
    "clean-up": (lambda c: c.update(clean_up_tokenization_spaces=True), "clean_up_tokenization_spaces is True"),
    "sampling": (lambda c: c.update(sp_model_kwargs={"enable_sampling": True}), "sp_model_kwargs is {'enable"),
    "eos-token": (lambda c: c.update(eos_token="</s>"), "eos_token is '</s>'; allowed: '<|end|>', '<|endoftext|>'"),
    "unknown-key": (lambda c: c.update(add_bos_tokens=False), "did you mean 'add_bos_token'"),
    "from-slow": (lambda c: c.update(from_slow=True), "unknown key 'from_slow'"),
    "no-tokens": (lambda c: c.pop("added_tokens_decoder"), "added_tokens_decoder is None"),
    "token-is-text": (lambda c: c["added_tokens_decoder"].update({USER_ID: "<|user|>"}), "is '<|user|>'; an object"),
    "other-token": (edit_token(USER_ID, content="<|human|>"), "the released token with this id is <|user|>"),
    "lstrip": (edit_token(USER_ID, lstrip=True), "lstrip is True; allowed: false"),
    "single-word": (edit_token(USER_ID, single_word=True), "single_word is True; allowed: false"),
    "rstrip-is-text": (edit_token(USER_ID, rstrip="yes"), "rstrip is 'yes'; allowed: true, false"),
    "unknown-flag": (edit_token(USER_ID, lower=True), "an object with content, lstrip"),
    "one-more": (lambda c: c["added_tokens_decoder"].update({"700": {}}), "['700'] is not a released id"),
    "one-less": (lambda c: c["added_tokens_decoder"].pop(USER_ID), f"added_tokens_decoder lacks the ids {USER_ID}"),
    "no-image": (lambda c: c["added_tokens_decoder"].pop(IMAGE_ID), f"added_tokens_decoder lacks the ids {IMAGE_ID}"),
    "additional": (lambda c: c.update(additional_special_tokens=["<image>"]), "special_tokens is ['<image>']"),
    "additional-odd": (lambda c: c["additional_special_tokens"].append("<x>"), "special_tokens contains ['<x>']"),
    "additional-type": (lambda c: c.update(additional_special_tokens="<x>"), "a list of tokens is expected"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONFIG_CHANGES.values(), ids=CONFIG_CHANGES)
def test_an_odd_tokenizer_config(folder: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder / "tokenizer_config.json", change)
    with pytest.raises(ArtifactError) as caught:
        released_tokenizer_json(folder)
    assert "tokenizer_config.json" in str(caught.value)
    assert message in str(caught.value)


def test_tokens_may_be_written_as_objects(folder: Path) -> None:
    expected = released_tokenizer_json(folder)
    as_object = {"__type": "AddedToken", "content": "<|end|>", "lstrip": False}
    edit(folder / "tokenizer_config.json", lambda c: c.update(eos_token=as_object))
    assert released_tokenizer_json(folder) == expected


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("added_tokens.json", lambda v: v.update({"<|user|>": 5}), f"is 5; tokenizer_config.json says {USER_ID}"),
        ("added_tokens.json", lambda v: v.pop("<image>"), f"is None; tokenizer_config.json says {IMAGE_ID}"),
        ("added_tokens.json", lambda v: v.update({"<x>": 7}), "is 7; tokenizer_config.json says None"),
        ("special_tokens_map.json", lambda v: v.update(eos_token="</s>"), "eos_token is '</s>'; tokenizer_config"),
        ("special_tokens_map.json", lambda v: v["additional_special_tokens"].pop(), "tokens is ['<image>', "),
    ],
    ids=["other-id", "one-less", "one-more", "other-eos", "fewer-additional"],
)  # fmt: skip
def test_files_that_disagree(folder: Path, name: str, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(folder / name, change)
    with pytest.raises(ArtifactError) as caught:
        released_tokenizer_json(folder)
    assert f"{name}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtifactMissingError, match=rf"{name} does not exist"):
        released_tokenizer_json(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"legacy": false, "legacy": true}'], ids=["empty", "list", "cut", "twice"]
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
def test_json_that_is_broken(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ArtifactError, match=name):
        released_tokenizer_json(folder)


def change_piece(index: int, **values: object) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(model.pieces[index], name, value)

    return change


def join_unk(model: Any) -> None:
    model.pieces[FIRST_LEARNED].piece, model.pieces[FIRST_LEARNED + 1].piece = ">\u2581", ">"


def same_score(model: Any) -> None:
    model.pieces[FIRST_LEARNED + 1].score = model.pieces[FIRST_LEARNED].score


MODEL_CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "unigram": (lambda m: setattr(m.trainer_spec, "model_type", 1), "trainer_spec.model_type (2 is BPE) is 1"),
    "no-bytes": (lambda m: setattr(m.trainer_spec, "byte_fallback", False), "byte_fallback is 0; allowed: 1"),
    "suffix": (lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True), "whitespace_as_suffix is 1"),
    "unk-id": (lambda m: setattr(m.trainer_spec, "unk_id", 3), "trainer_spec.unk_id is 3; allowed: 0"),
    "no-trainer": (lambda m: m.ClearField("trainer_spec"), "trainer_spec.model_type (2 is BPE) is 1"),
    "nfkc": (lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"x"), "normalizer_spec.precompiled"),
    "extra-space": (lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", True), "extra_whitespaces is 1"),
    "no-escape": (lambda m: setattr(m.normalizer_spec, "escape_whitespaces", False), "escape_whitespaces is 0"),
    "denormalizer": (lambda m: setattr(m.denormalizer_spec, "precompiled_charsmap", b"x"), "denormalizer_spec.pre"),
    "head": (change_piece(1, piece="<bos>"), "the first pieces are ['<unk>', '<bos>', '</s>']"),
    "user-defined": (change_piece(FIRST_LEARNED, type=4), "user-defined; allowed after </s>: normal and byte"),
    "unused": (change_piece(FIRST_LEARNED, type=5), "is of type unused"),
    "missing-byte": (change_piece(100, type=1), "there are 255 byte pieces"),
    "twice": (change_piece(FIRST_LEARNED, piece="a"), "the piece 'a' appears twice"),
    "empty-piece": (change_piece(FIRST_LEARNED, piece=""), "has 0 characters; allowed: 1 to 256"),
    "long-piece": (change_piece(FIRST_LEARNED, piece="a" * 257), "has 257 characters"),
    "infinite": (change_piece(FIRST_LEARNED, score=float("inf")), "has the score inf"),
    "same-score": (same_score, "two pieces have the same score"),
    "unknown-char": (change_piece(FIRST_LEARNED, piece="a\u20ac"), "contains '\u20ac', which is not itself a piece"),
    "joins-unk": (join_unk, "joins the end of <unk> to a space"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MODEL_CHANGES.values(), ids=MODEL_CHANGES)
def test_a_model_of_another_kind(folder: Path, change: Callable[[Any], object], message: str) -> None:
    path = folder / "tokenizer.model"
    model = ModelProto.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError) as caught:
        released_tokenizer_json(folder)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "model_type (2 is BPE) is 1"),
        (b"\x0a\x05ab", "runs past the end"),
        (b"\x0a", "a number runs past the end"),
        (b"\xff" * 11, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01", "pieces is a number"),
        (b"\x0a\x04\x0a\x02\xff\xfe", "pieces[0].piece is not UTF-8"),
        (b"\x0a\x05\x0a\x01a\x10\x01", "score of the wrong wire type"),
    ],
    ids=["empty", "cut", "cut-number", "long-number", "group", "number", "utf-8", "score"],
)
def test_bytes_that_are_not_a_model(folder: Path, data: bytes, message: str) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        released_tokenizer_json(folder)
    assert message in str(caught.value)


def test_a_file_far_too_large_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.model").open("wb") as file:
        file.truncate(16 * 2**20 + 1)
    with pytest.raises(ArtifactError, match="at most 16777216"):
        released_tokenizer_json(folder)


@settings(max_examples=300)
@given(data=st.data())
def test_a_model_with_any_byte_changed_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(SMALL_MODEL.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.model"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(ArtifactError):
        assert SentencePieceFile.load(path).pieces
