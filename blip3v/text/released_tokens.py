"""The added tokens of a released folder: their ids and flags, and which of them the tokenizer itself calls special.

The slow tokenizer reads ``tokenizer_config.json``. ``added_tokens.json`` and ``special_tokens_map.json`` repeat its
contents for older readers; if they are present, they must agree with it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.errors import ArtifactError, ArtifactMissingError, ConfigError
from blip3v.text.special import ADDED_TOKENS, BASE_TOKENS, END, PAD, TAIL_TOKENS, UNKNOWN, SpecialToken

__all__ = ["ReleasedTokens"]

# Keys of tokenizer_config.json that decide ids or text, and the values they may have.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "add_bos_token": (False,),
    "bos_token": ("<s>",),
    "eos_token": (END, "<|endoftext|>"),
    "legacy": (False,),
    "pad_token": (PAD,),
    "tokenizer_class": ("LlamaTokenizer", "LlamaTokenizerFast"),
    "unk_token": (UNKNOWN,),
}
# The same for keys that may be absent.
_OPTIONAL: dict[str, tuple[object, ...]] = {
    "add_eos_token": (False,),
    "add_prefix_space": (True,),
    "clean_up_tokenization_spaces": (False,),
    "do_lower_case": (False,),
    "extra_special_tokens": ({}, []),
    "sp_model_kwargs": ({},),
    "spaces_between_special_tokens": (False,),
    "split_special_tokens": (False,),
}
# Keys that change neither ids nor text.
_IGNORED = (
    *("auto_map", "chat_template", "max_length", "model_input_names", "model_max_length", "name_or_path"),
    *("pad_to_multiple_of", "pad_token_type_id", "padding_side", "processor_class", "stride", "truncation_side"),
    *("truncation_strategy", "use_default_system_prompt"),
)
_DECODER, _ADDITIONAL = "added_tokens_decoder", "additional_special_tokens"
_KEYS = (*_REQUIRED, *_OPTIONAL, *_IGNORED, _DECODER, _ADDITIONAL)
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_ADDED_TEXTS = [token.text for token in ADDED_TOKENS]


@dataclass(frozen=True)
class ReleasedTokens:
    """The tokens besides the learned pieces.

    Attributes:
        by_id: the added tokens in the order of their ids.
        named: texts of those that the tokenizer calls special: bos, eos, unk, pad and the additional ones. Role markers
            are not among them, although each has the flag ``special``.
    """

    by_id: dict[int, SpecialToken]
    named: frozenset[str]

    @classmethod
    def load(cls, folder: Path, num_pieces: int) -> ReleasedTokens:
        """Reads the three files.

        A folder may lack ``<image>`` and the two tokens after it, as the image model's does: the authors' code adds
        them on loading, and so does this. For the same reason eos counts as ``<|end|>``, whichever the file names.

        Args:
            folder: the released folder.
            num_pieces: pieces of ``tokenizer.model``; ``<|endoftext|>`` has this id.

        Raises:
            ArtifactMissingError: ``tokenizer_config.json`` is missing.
            ArtifactError: a key, value, token, id or flag that the released files do not have, or files that disagree.
        """
        path = folder / "tokenizer_config.json"
        config = _read(path)
        _check_keys(config, path)
        by_id = _tokens(config, path, num_pieces)
        additional = _texts(config.get(_ADDITIONAL, []), f"{path}: {_ADDITIONAL}")
        named = {"<s>", UNKNOWN, PAD, END, *_ADDED_TEXTS, *additional}
        unknown = named - {token.text for token in by_id.values()}
        if unknown:
            raise ArtifactError(f"{path}: {_ADDITIONAL} contains {sorted(unknown)}, which {_DECODER} does not have")
        if str(num_pieces + len(TAIL_TOKENS)) in config[_DECODER] and set(_ADDED_TEXTS) - set(additional):
            raise ArtifactError(
                f"{path}: {_ADDITIONAL} is {additional}; allowed: a list with {', '.join(_ADDED_TEXTS)}"
            )
        _check_added_tokens(folder / "added_tokens.json", config[_DECODER], num_pieces)
        _check_special_tokens_map(folder / "special_tokens_map.json", config)
        return cls(by_id, frozenset(named))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArtifactMissingError(f"{path} does not exist; the released folder contains it")
    try:
        return strict_json.read_json(path)
    except ConfigError as error:
        raise ArtifactError(str(error)) from error


def _check_keys(config: Mapping[str, Any], path: Path) -> None:
    for key in config:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "the released file has no such key"
            raise ArtifactError(f"{path} has the unknown key {key!r}; {hint}")
    for key, allowed in (_REQUIRED | _OPTIONAL).items():
        if key not in config and key in _REQUIRED:
            raise ArtifactError(f"{path} lacks the key {key!r}; allowed: {_listed(allowed)}")
        value = config.get(key, allowed[0])
        value = _text(value) if key.endswith("_token") and isinstance(value, dict) else value
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise ArtifactError(f"{path}: {key} is {value!r}; allowed: {_listed(allowed)}, as released")


def _tokens(config: Mapping[str, Any], path: Path, num_pieces: int) -> dict[int, SpecialToken]:
    entries = config.get(_DECODER)
    if not isinstance(entries, dict):
        raise ArtifactError(f"{path}: {_DECODER} is {entries!r}; an object from ids to tokens is expected")
    head = BASE_TOKENS[: -len(TAIL_TOKENS)]
    by_id = dict(enumerate(head)) | dict(enumerate((*TAIL_TOKENS, *ADDED_TOKENS), start=num_pieces))
    keys = {str(token_id): token_id for token_id in by_id}
    for key, entry in entries.items():
        if key not in keys:
            raise ArtifactError(f"{path}: {_DECODER}[{key!r}] is not a released id; allowed: {', '.join(keys)}")
        by_id[keys[key]] = _token(entry, by_id[keys[key]].text, f"{path}: {_DECODER}[{key!r}]")
    absent = [key for key in keys if key not in entries]
    if absent not in ([], list(keys)[-len(ADDED_TOKENS) :]):
        raise ArtifactError(f"{path}: {_DECODER} lacks the ids {', '.join(absent)}")
    return by_id


def _token(entry: object, text: str, where: str) -> SpecialToken:
    if not isinstance(entry, dict) or set(entry) - {"__type"} != {"content", *_FLAGS}:
        raise ArtifactError(f"{where} is {entry!r}; an object with content, {', '.join(_FLAGS)} is expected")
    if entry["content"] != text:
        raise ArtifactError(f"{where} is {entry['content']!r}; the released token with this id is {text}")
    for flag in _FLAGS:
        if not isinstance(entry[flag], bool) or (entry[flag] and flag in ("lstrip", "single_word")):
            allowed = "false" if flag in ("lstrip", "single_word") else "true, false"
            raise ArtifactError(f"{where}: {flag} is {entry[flag]!r}; allowed: {allowed}")
    return SpecialToken(text, rstrip=entry["rstrip"], special=entry["special"])


def _check_added_tokens(path: Path, entries: Mapping[str, Any], num_pieces: int) -> None:
    if not path.exists():
        return
    expected = {entry["content"]: int(key) for key, entry in entries.items() if int(key) >= num_pieces}
    found = _read(path)
    for text in sorted({*found, *expected}):
        if found.get(text) != expected.get(text):
            raise ArtifactError(
                f"{path}: {text} is {found.get(text)!r}; tokenizer_config.json says {expected.get(text)!r}"
            )


def _check_special_tokens_map(path: Path, config: Mapping[str, Any]) -> None:
    if not path.exists():
        return
    for key, value in _read(path).items():
        if key == _ADDITIONAL:
            found: object = _texts(value, f"{path}: {key}")
            expected: object = _texts(config.get(key, []), key)
        else:
            found, expected = _text(value), _text(config.get(key))
        if found != expected:
            raise ArtifactError(f"{path}: {key} is {found!r}; tokenizer_config.json says {expected!r}")


def _texts(value: object, where: str) -> list[str]:
    texts = [_text(one) for one in value] if isinstance(value, list) else [None]
    strings = [text for text in texts if isinstance(text, str)]
    if len(strings) < len(texts):
        raise ArtifactError(f"{where} is {value!r}; a list of tokens is expected")
    return strings


def _text(value: object) -> object:
    """The text of a token, which is stored as text or as an object with its flags."""
    return value.get("content") if isinstance(value, dict) else value


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(repr, values))
